use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use hutch_image::{
    PullTemplate, Template, TemplateError, TemplateOptions, template, template_image,
};

use crate::world::{Steps, World, read, whole};

/// What tells an erofs image.
const EROFS_MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];

/// A root file system as small as it can be, in a tar.
fn root_tar(world: &World) -> PathBuf {
    world.file("root/bin/sh", b"#!");
    world.file("root/etc/os-release", b"ID=small\n");
    let archive = world.path("root.tar");
    let made = hutch_sys::spawn::command("tar")
        .arg("--create")
        .arg("--file")
        .arg(&archive)
        .arg("--directory")
        .arg(world.path("root"))
        .args(["--owner=0", "--group=0", "."])
        .stdin(Stdio::null())
        .status()
        .expect("tar is there");
    assert!(made.success());
    archive
}

/// A machine whose mmdebstrap only copies a tar.
fn builder() -> World {
    let world = World::new();
    let archive = root_tar(&world);
    world.program(
        "mmdebstrap",
        &format!(
            "[ \"$1\" != --version ] || exit 0
            echo '0 upgraded, 1 newly installed, 0 to remove'; echo 'Setting up a (1) ...'
            mkdir -p \"$TMPDIR/mmdebstrap.x\"
            while [ \"$1\" != trixie ]; do shift; done; cp '{}' \"$2\"",
            archive.display()
        ),
    );
    world
}

fn options(world: &World, name: &str, pull: PullTemplate) -> TemplateOptions {
    TemplateOptions {
        images: world.images(),
        name: name.to_owned(),
        pull,
        mirror: None,
        environment: world.environment(),
    }
}

fn make(world: &World, name: &str, pull: PullTemplate) -> Result<Template, TemplateError> {
    template(&options(world, name, pull), &Steps::default())
}

fn is_erofs(image: &Path) -> bool {
    read(image).get(1024..1028) == Some(&EROFS_MAGIC)
}

#[test]
fn a_recipe_is_built_once_and_found_by_both_names() {
    let world = builder();
    let steps = Steps::default();
    let built = template(&options(&world, "shell", PullTemplate::Missing), &steps).unwrap();
    assert!(is_erofs(&built.image));
    assert_eq!(built.user.as_deref(), Some("agent"));
    assert!(built.environment["PATH"].contains("/usr/local/share/npm-global/bin"));
    assert!(steps.seen().iter().any(|step| step == "installing packages"), "{:?}", steps.seen());
    let again = make(&world, "shell", PullTemplate::Never).unwrap();
    assert_eq!(again, built);
    let other = make(&world, "docker/sandbox-templates:shell", PullTemplate::Missing).unwrap();
    assert_eq!(other.digest, built.digest);
    assert_eq!(other.name, "docker/sandbox-templates:shell");
    assert_eq!(world.calls("mmdebstrap", "trixie"), 1);
    assert_eq!(world.calls("mmdebstrap", "deb http://mirror.test/debian trixie main"), 1);
    let directory = built.image.parent().unwrap();
    assert_eq!(fs::read_dir(directory).unwrap().count(), 2, "image and manifest");
}

#[test]
fn building_again_leaves_the_old_image_to_its_sandboxes() {
    let world = builder();
    let first = make(&world, "shell", PullTemplate::Missing).unwrap();
    let second = make(&world, "shell", PullTemplate::Always).unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(make(&world, "shell", PullTemplate::Missing).unwrap().digest, second.digest);
    let found = template_image(&world.images(), "shell", &first.digest).unwrap();
    assert_eq!(found, first);
}

#[test]
fn several_at_once_build_it_once() {
    let world = builder();
    let digests: Vec<String> = std::thread::scope(|scope| {
        let one = || make(&world, "shell", PullTemplate::Missing).unwrap().digest;
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]));
    assert_eq!(world.calls("mmdebstrap", "trixie"), 1);
}

#[test]
fn a_failed_build_says_why_leaves_nothing_and_can_be_repeated() {
    let world = builder();
    let good = read(&world.path("bin/mmdebstrap"));
    world.program(
        "mmdebstrap",
        "[ \"$1\" != --version ] || exit 0
        echo 'E: Failed to fetch y'; echo 'E: process exited'; exit 25",
    );
    let error = make(&world, "shell", PullTemplate::Missing).unwrap_err();
    let text = whole(&error);
    assert!(text.starts_with("failed to build the template `shell`: mmdebstrap failed"), "{text}");
    assert!(text.contains("E: Failed to fetch y (full log: "), "{text}");
    assert_eq!(world.kept("templates"), [""; 0]);
    world.file("bin/mmdebstrap", &good);
    make(&world, "shell", PullTemplate::Missing).unwrap();
}

#[test]
fn what_a_killed_build_left_is_removed() {
    let world = builder();
    world.file("images/templates/tmp-template/tree/etc/passwd", b"half");
    let built = make(&world, "shell", PullTemplate::Missing).unwrap();
    let digest = built.digest.strip_prefix("sha256:").unwrap();
    assert_eq!(world.kept("templates"), [digest]);
}

#[test]
fn a_root_file_systems_tar_is_a_template() {
    let world = World::new();
    let archive = root_tar(&world);
    let name = archive.to_str().unwrap();
    let made = make(&world, name, PullTemplate::Missing).unwrap();
    assert!(is_erofs(&made.image));
    assert_eq!((made.user, made.environment.len()), (None, 0));
    let again = make(&world, name, PullTemplate::Always).unwrap();
    assert_eq!(again.digest, made.digest, "the file is the same");
    assert!(archive.is_file());
}

#[test]
fn a_disk_image_is_taken_as_it_is() {
    let world = World::new();
    let mut content = vec![0; 4096];
    content[1024..1028].copy_from_slice(&EROFS_MAGIC);
    let image = world.file("template.img", &content);
    let made = make(&world, image.to_str().unwrap(), PullTemplate::Never).unwrap();
    assert_eq!(read(&made.image), content);
    assert_ne!(made.image, image, "the sandbox does not depend on the file any more");
}

#[test]
fn what_is_no_root_file_system_is_refused() {
    let world = World::new();
    let empty = world.path("empty.tar");
    let made = hutch_sys::spawn::command("tar")
        .args(["--create", "--files-from=/dev/null", "--file"])
        .arg(&empty)
        .status()
        .unwrap();
    assert!(made.success());
    let error = make(&world, empty.to_str().unwrap(), PullTemplate::Missing).unwrap_err();
    assert!(
        whole(&error).contains("is not the archive of a root file system"),
        "{}",
        whole(&error)
    );
    let garbage = world.file("garbage.tar", &[7; 3000]);
    let error = make(&world, garbage.to_str().unwrap(), PullTemplate::Missing).unwrap_err();
    assert!(whole(&error).contains("tar failed"), "{}", whole(&error));
    assert_eq!(world.kept("templates"), [""; 0]);
}

#[test]
fn names_that_mean_nothing_are_told_apart() {
    let world = World::new();
    for name in ["shel", "docker/sandbox-templates:codex", "registry.test/image:latest", ""] {
        let error = make(&world, name, PullTemplate::Missing).unwrap_err();
        assert!(matches!(error, TemplateError::Unknown { .. }), "{name}: {error}");
    }
    for name in ["./none.tar", "/none/none.img"] {
        let error = make(&world, name, PullTemplate::Missing).unwrap_err();
        assert!(matches!(error, TemplateError::Input { .. }), "{name}: {error}");
    }
    let error = make(&world, "shell", PullTemplate::Never).unwrap_err();
    assert!(matches!(error, TemplateError::Absent { .. }), "{error}");
}

#[test]
fn only_digests_find_an_image() {
    let world = World::new();
    world.file("images/templates/x/manifest.json", b"{}");
    for digest in ["", "x", "sha256:", "sha256:../../x", "sha256:x", &"a".repeat(64)] {
        let error = template_image(&world.images(), "shell", digest).unwrap_err();
        assert!(matches!(error, TemplateError::Gone { .. }), "{digest}");
    }
}
