//! What is said when something is wrong: the message, the hint, the exit code.

use super::world::World;

/// Snapshots of what a command line gives, by name.
fn check(world: &World, cases: &[(&str, &[&str])]) {
    for (name, arguments) in cases {
        insta::assert_snapshot!(*name, world.hutch(arguments).seen());
    }
}

#[test]
fn words_that_make_no_sense() {
    let world = World::new();
    check(
        &world,
        &[
            ("unknown_flag", &["run", "--volume", "a:b", "shell"]),
            ("unknown_short_flag", &["stop", "-x", "a"]),
            ("misspelt_flag", &["create", "--tempalte", "x", "shell", "."]),
            ("unknown_flag_of_exec", &["exec", "--no-such-flag", "box", "true"]),
            ("unknown_command", &["stat"]),
            ("exec_without_command", &["exec", "box"]),
            ("stop_without_name", &["stop"]),
            ("create_without_workspace", &["create", "shell"]),
            ("wrong_size", &["create", "--memory", "much", "shell", "."]),
            ("wrong_accelerator", &["run", "--accel", "fast", "shell"]),
            ("json_and_quiet", &["ls", "--json", "-q"]),
        ],
    );
    insta::assert_snapshot!(
        "unknown_flag_in_docker",
        world.docker_sandbox(&["run", "--volume", "a:b", "shell"]).seen()
    );
}

#[test]
fn agents_and_sandboxes_that_are_not_there() {
    let world = World::new();
    world.sandbox("shell-app", &world.project("app"));
    check(
        &world,
        &[
            ("run_nothing", &["run"]),
            ("unknown_agent", &["run", "no-such-agent"]),
            ("misspelt_agent", &["run", "shel"]),
            ("misspelt_sandbox_in_run", &["run", "shell-ap"]),
            ("unknown_agent_in_create", &["create", "cluade", "."]),
            ("unknown_sandbox", &["stop", "something"]),
            ("misspelt_sandbox", &["exec", "shell-app2", "true"]),
            ("inspect_unknown", &["inspect", "shellapp"]),
            ("other_agent_for_a_sandbox", &["run", "--name", "shell-app", "codex"]),
            ("unknown_name_alone", &["run", "--name", "nothing"]),
        ],
    );
}

#[test]
fn names_and_workspaces_that_cannot_be() {
    let world = World::new();
    world.sandbox("shell-app", &world.project("app"));
    world.project("other");
    check(
        &world,
        &[
            ("name_with_a_slash", &["create", "--name", "a/b", "shell", "app"]),
            ("name_of_an_agent", &["create", "--name", "claude", "shell", "app"]),
            ("name_taken", &["create", "--name", "shell-app", "shell", "other"]),
            ("workspace_missing", &["create", "shell", "nowhere"]),
            ("workspace_root", &["run", "shell", "/"]),
            ("workspace_of_the_system", &["run", "shell", "/usr"]),
            ("workspace_with_our_state", &["run", "shell", "../home"]),
            ("workspace_twice", &["run", "shell", "other", "other:ro"]),
            ("other_workspaces_for_a_sandbox", &["run", "shell", "app", "other"]),
            ("other_template_for_a_sandbox", &["run", "-t", "python", "shell-app"]),
            ("too_little_memory", &["run", "--memory", "1m", "shell", "other"]),
        ],
    );
}

#[test]
fn exec_checks_before_it_starts_anything() {
    let world = World::new();
    world.sandbox("box", &world.project("box"));
    check(
        &world,
        &[
            ("exec_no_terminal", &["exec", "-it", "box", "sh"]),
            ("exec_wrong_keys", &["exec", "--detach-keys", "ctrl-1", "-i", "box", "sh"]),
            ("exec_no_env_file", &["exec", "--env-file", "nowhere", "box", "sh"]),
            ("exec_wrong_variable", &["exec", "-e", "=1", "box", "sh"]),
        ],
    );
}

#[test]
fn a_workspace_that_vanished_is_told_before_anything_starts() {
    let world = World::new();
    let project = world.project("app");
    world.sandbox("shell-app", &project);
    std::fs::remove_dir(&project).expect("it is empty");
    check(&world, &[("workspace_vanished", &["exec", "shell-app", "true"])]);
}

#[test]
fn configuration_that_makes_no_sense() {
    let world = World::new();
    let config = world.path("home/.config/hutch");
    std::fs::create_dir_all(&config).expect("the world is writable");
    let write = |text: &str| {
        let file = std::fs::File::create(config.join("config.toml"));
        file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .expect("it is writable");
    };
    write("memroy = \"4g\"\n");
    check(&world, &[("config_unknown_key", &["ls"])]);
    write("cpus = 2\nmemory = much\n");
    check(&world, &[("config_syntax", &["ls"])]);
    write("cpus = \"many\"\n");
    check(&world, &[("config_wrong_value", &["ls"])]);
    write("cpus = 2\nidle_timeout = \"5m\"\n");
    assert_eq!(world.hutch(&["ls"]).code, 0);
}

#[test]
fn nobody_reads_the_output() {
    let world = World::new();
    for command in [&["--help"][..], &["ls"], &["completion", "zsh"], &["version"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut hutch = world.command(std::path::Path::new(env!("CARGO_BIN_EXE_hutch")));
        let output = hutch
            .args(command)
            .stdout(writer)
            .stderr(std::process::Stdio::piped())
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(141), "{command:?}");
        assert!(output.stderr.is_empty(), "{command:?}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").expect("it is there");
    let mut hutch = world.command(std::path::Path::new(env!("CARGO_BIN_EXE_hutch")));
    let output = hutch.arg("version").stdout(full).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("standard output could not be written")
    );
}

#[test]
fn words_that_make_no_sense_are_told_without_their_control_characters() {
    let world = World::new();
    for words in [
        &["exec", "--a\u{1b}[31mb"][..],
        &["run", "--a\u{1b}[31mb"],
        &["a\u{1b}[31mb"],
        &["create", "--cpus", "\u{1b}[31m", "shell", "."],
        &["exec", "--detach-keys", "ctrl-\u{1b}[31m", "box", "true"],
        &["stop", "\u{1b}[31m"],
    ] {
        let run = world.hutch(words);
        assert_ne!(run.code, 0, "{words:?}");
        assert!(!run.stderr.is_empty(), "{words:?}");
        assert!(!run.stderr.contains('\u{1b}'), "{words:?}: {:?}", run.stderr);
    }
}
