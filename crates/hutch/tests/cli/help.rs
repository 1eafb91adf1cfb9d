//! Every help text, and the version, with both names of the program.

use super::world::World;

const COMMANDS: &[&str] = &[
    "run", "create", "exec", "ls", "inspect", "network", "secret", "stop", "rm", "reset", "build",
    "system", "version",
];
const NETWORK_COMMANDS: &[&str] = &["proxy", "log", "check"];

#[test]
fn hutch_helps() {
    let world = World::new();
    insta::assert_snapshot!("hutch", world.hutch(&[]).seen());
    for command in COMMANDS.iter().chain(&["completion"]) {
        insta::assert_snapshot!(
            format!("hutch_{command}"),
            world.hutch(&[command, "--help"]).seen()
        );
    }
}

#[test]
fn the_commands_below_network_help_too() {
    let world = World::new();
    for command in NETWORK_COMMANDS {
        let help = world.hutch(&["network", command, "--help"]);
        insta::assert_snapshot!(format!("hutch_network_{command}"), help.seen());
        let docker = world.docker_sandbox(&["network", command, "--help"]).stdout;
        assert!(docker.contains(&format!("Usage: docker sandbox network {command}")), "{docker}");
        assert!(!docker.contains("hutch network"), "{docker}");
    }
    let alone = world.hutch(&["network"]);
    assert_eq!((alone.code, alone.stderr.as_str()), (0, ""));
    assert_eq!(alone.stdout, world.hutch(&["network", "--help"]).stdout);
}

#[test]
fn the_commands_below_system_help_too() {
    let world = World::new();
    for command in ["df", "prune"] {
        let help = world.hutch(&["system", command, "--help"]);
        insta::assert_snapshot!(format!("hutch_system_{command}"), help.seen());
    }
}

#[test]
fn docker_sandbox_helps_under_its_own_name() {
    let world = World::new();
    insta::assert_snapshot!("docker_sandbox", world.docker_sandbox(&[]).seen());
    insta::assert_snapshot!("docker_sandbox_run", world.docker_sandbox(&["run", "--help"]).seen());
    for command in COMMANDS {
        let help = world.docker_sandbox(&[command, "--help"]);
        assert_eq!(help.code, 0);
        assert!(
            help.stdout.contains(&format!("Usage: docker sandbox {command}")),
            "{}",
            help.stdout
        );
        assert!(
            !help.stdout.contains("hutch run") && !help.stdout.contains("hutch exec"),
            "{}",
            help.stdout
        );
    }
}

#[test]
fn help_is_there_in_every_way_of_asking() {
    let world = World::new();
    let whole = world.hutch(&[]).stdout;
    for arguments in [&["--help"][..], &["help"], &["-h"]] {
        assert_eq!(world.hutch(arguments).stdout, whole, "{arguments:?}");
    }
    assert_eq!(world.hutch(&["help", "run"]).stdout, world.hutch(&["run", "--help"]).stdout);
    assert_eq!(world.hutch(&["list", "-h"]).code, 0);
    assert_eq!(world.hutch(&["remove", "-h"]).code, 0);
}

#[test]
fn the_version_is_one_line() {
    let world = World::new();
    let line = concat!("hutch v", env!("CARGO_PKG_VERSION"), "\n");
    assert_eq!(world.hutch(&["version"]).stdout, line);
    assert_eq!(world.docker_sandbox(&["version"]).stdout, line);
}

#[test]
fn completion_scripts_know_the_commands() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = world.hutch(&["completion", shell]);
        assert_eq!(script.code, 0);
        assert!(script.stdout.contains("inspect"), "{shell}");
    }
}
