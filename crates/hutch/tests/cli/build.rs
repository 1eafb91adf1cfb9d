//! What `build` refuses before anything is made.

use std::fs::File;
use std::io::Write as _;

use super::world::World;

#[test]
fn what_cannot_be_built_is_said_at_once() {
    let world = World::new();
    let empty = world.project("empty");
    let project = world.project("full");
    File::create(project.join("Dockerfile"))
        .and_then(|mut file| file.write_all(b"FROM scratch\n"))
        .expect("our own directory");
    let (empty, project) = (empty.display().to_string(), project.display().to_string());
    for (arguments, part) in [
        (vec!["build"], "DIR"),
        (vec!["build", &empty], "Dockerfile cannot be read: No such file"),
        (vec!["build", "-f", "none", &project], "the Dockerfile none cannot be read"),
        (vec!["build", "-t", "My Name", &project], "`My Name` is no name of an image"),
        (vec!["build", "-"], "`-` is not a directory"),
        (vec!["build", "https://git.test/x.git"], "is not a directory"),
        (vec!["build", "/no/such/directory"], "does not exist"),
        (vec!["build", "--memory", "1", &project], "memory"),
    ] {
        let seen = world.hutch(&arguments);
        assert_ne!(seen.code, 0, "{arguments:?}");
        assert!(seen.stderr.contains(part), "{arguments:?}: {}", seen.stderr);
    }
    let digest = format!("a@sha256:{}", "0".repeat(64));
    let seen = world.hutch(&["build", "-t", &digest, &project]);
    assert!(seen.stderr.contains("its digest is known when it is there"), "{}", seen.stderr);
    assert_eq!(world.hutch(&["ls", "-q"]).stdout, "");
}
