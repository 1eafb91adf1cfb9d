//! The real Docker client with our plugin.

use std::os::unix::fs::symlink;

use hutch_testkit::{Invocation, TestEnvironment};

/// A world whose home has the plugin where Docker looks for it.
fn with_plugin() -> TestEnvironment {
    let environment = TestEnvironment::new();
    let home = environment.path("home");
    environment.make_directory(&home.join(".docker"));
    environment.make_directory(&home.join(".docker/cli-plugins"));
    let program = environment.stage().programs().join("hutch");
    symlink(program, home.join(".docker/cli-plugins/docker-sandbox")).expect("a link can be made");
    environment
}

fn docker(environment: &TestEnvironment, arguments: &[&str]) -> Invocation {
    environment.program("docker").args(arguments)
}

#[test]
fn docker_lists_and_runs_the_plugin() {
    let environment = with_plugin();
    let help = docker(&environment, &["--help"]).run().success().text();
    let line = help
        .lines()
        .find(|line| line.trim_start().starts_with("sandbox"))
        .expect("docker --help lists it");
    assert!(!line.to_lowercase().contains("invalid"), "{line}");
    assert!(
        docker(&environment, &["sandbox", "version"])
            .run()
            .success()
            .text()
            .contains(env!("CARGO_PKG_VERSION"))
    );
    docker(&environment, &["sandbox", "ls"]).run().success();
    let help = docker(&environment, &["sandbox", "--help"]).run().success().text();
    assert!(help.contains("docker sandbox"), "{help}");
    docker(&environment, &["sandbox", "run", "--no-such-flag"]).run().failure();
}

#[test]
fn a_sandbox_lives_its_life_through_docker() {
    let environment = with_plugin();
    let project = environment.project("app");
    let path = project.to_string_lossy().into_owned();
    docker(&environment, &["sandbox", "run", "shell", &path, "--", "-c", "echo out; pwd; exit 7"])
        .run()
        .code(7)
        .says(&format!("out\n{path}"));
    docker(&environment, &["sandbox", "exec", "-i", "shell-app", "cat"])
        .stdin("through docker")
        .run()
        .success()
        .says("through docker");
    let mut terminal =
        docker(&environment, &["sandbox", "exec", "-it", "shell-app", "sh"]).terminal(20, 60);
    terminal.types("stty size; exit 3\r");
    terminal.shows("20 60");
    terminal.ends_with(3);
    docker(&environment, &["sandbox", "ls", "-q"]).run().success().says("shell-app");
    docker(&environment, &["sandbox", "stop", "shell-app"]).run().success().says("shell-app");
    docker(&environment, &["sandbox", "rm", "shell-app"]).run().success().says("shell-app");
}
