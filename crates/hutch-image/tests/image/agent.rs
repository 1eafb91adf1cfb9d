use hutch_image::PullTemplate;

use crate::template::{builder, make};
use crate::world::{World, read, whole};

/// A machine whose npm makes what the packages of Claude Code have.
fn machine() -> World {
    let world = builder();
    world.program(
        "npm",
        "[ \"$1\" != --version ] || exit 0
        grep -q sha512- package-lock.json || exit 9
        for cpu in x64 arm64; do
            mkdir -p node_modules/@anthropic-ai/claude-code-linux-$cpu node_modules/.bin
            echo program >node_modules/@anthropic-ai/claude-code-linux-$cpu/claude
        done
        umask 077; mkdir -p ../cache; : >node_modules/private",
    );
    world
}

#[test]
fn an_agent_is_a_layer_on_the_base_and_made_once() {
    let world = machine();
    let agent = make(&world, "claude-code", PullTemplate::Missing).unwrap();
    let base = make(&world, "shell", PullTemplate::Never).unwrap();
    assert_eq!(agent.layers.len(), 2);
    assert_eq!(agent.layers[0], base.layers[0], "the base is shared");
    assert_eq!(agent.config.environment, base.config.environment);
    assert_eq!(agent.config.labels["com.docker.sandboxes.flavor"], "claude-code");
    let text = String::from_utf8_lossy(&read(&agent.layers[1])).into_owned();
    assert!(text.contains("../lib/hutch/claude-code/node_modules/@anthropic-ai/"), "the link");
    let docker = "docker/sandbox-templates:claude-code";
    for (name, pull) in [
        ("claude-code", PullTemplate::Missing),
        ("claude-code", PullTemplate::Never),
        (docker, PullTemplate::Never),
    ] {
        let again = make(&world, name, pull).unwrap();
        assert_eq!((again.digest.as_str(), again.name.as_str()), (agent.digest.as_str(), name));
    }
    assert_eq!(world.calls("npm", "--ignore-scripts"), 1);
    assert_eq!(world.calls("mmdebstrap", "trixie"), 1);
    assert!(world.kept("agents").is_empty(), "{:?}", world.kept("agents"));
}

#[test]
fn what_npm_says_is_told_and_nothing_is_left() {
    let world = machine();
    make(&world, "shell", PullTemplate::Missing).unwrap();
    let error = make(&world, "codex", PullTemplate::Never).unwrap_err();
    assert!(whole(&error).contains("not on this machine"), "{}", whole(&error));
    // The packages of another agent.
    let error = make(&world, "codex", PullTemplate::Missing).unwrap_err();
    assert!(
        whole(&error).contains("the packages have no @openai/codex-linux-"),
        "{}",
        whole(&error)
    );
    world.program(
        "npm",
        "[ \"$1\" != --version ] || exit 0
        echo 'npm error code E404'; echo 'npm error 404 Not Found - GET it'; echo 'npm error bye'; exit 1",
    );
    let error = make(&world, "claude-code", PullTemplate::Missing).unwrap_err();
    assert!(whole(&error).contains("npm error 404 Not Found - GET it"), "{}", whole(&error));
    assert!(world.kept("agents").is_empty(), "{:?}", world.kept("agents"));
}
