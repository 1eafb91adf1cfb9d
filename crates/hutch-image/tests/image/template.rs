use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use hutch_image::{
    LAYERS_MAX, LayerFiles, NewLayer, Origin, PullTemplate, RegistryOptions, Template,
    TemplateConfig, TemplateError, TemplateOptions, add_layer, template, template_image,
    template_of_source,
};

use crate::world::{Steps, World, read, whole};

/// What tells an erofs image.
const EROFS_MAGIC: [u8; 4] = [0xe2, 0xe1, 0xf5, 0xe0];

/// A root file system as small as it can be, in a tar.
fn root_tar(world: &World) -> PathBuf {
    world.file("root/bin/sh", b"#!");
    world.file("root/etc/os-release", b"ID=small\n");
    pack_root(world)
}

fn pack_root(world: &World) -> PathBuf {
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
pub(crate) fn builder() -> World {
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
        docker: None,
        registries: RegistryOptions::default(),
        environment: world.environment(),
    }
}

pub(crate) fn make(
    world: &World,
    name: &str,
    pull: PullTemplate,
) -> Result<Template, TemplateError> {
    template(&options(world, name, pull), &Steps::default())
}

fn find(world: &World, digest: &str) -> Result<Template, TemplateError> {
    template_image(&world.images(), "shell", digest, &Steps::default())
}

fn is_erofs(image: &Path) -> bool {
    read(image).get(1024..1028) == Some(&EROFS_MAGIC)
}

#[test]
fn a_recipe_is_built_once_and_found_by_both_names() {
    let world = builder();
    let steps = Steps::default();
    let built = template(&options(&world, "shell", PullTemplate::Missing), &steps).unwrap();
    assert!(is_erofs(&built.layers[0]));
    assert_eq!(built.layers.len(), 1);
    assert_eq!(built.config.user.as_deref(), Some("agent"));
    assert!(built.config.environment["PATH"].contains("/usr/local/share/npm-global/bin"));
    assert!(steps.seen().iter().any(|step| step == "installing packages"), "{:?}", steps.seen());
    let again = make(&world, "shell", PullTemplate::Never).unwrap();
    assert_eq!(again, built);
    let other = make(&world, "docker/sandbox-templates:shell", PullTemplate::Missing).unwrap();
    assert_eq!(other.digest, built.digest);
    assert_eq!(other.name, "docker/sandbox-templates:shell");
    assert_eq!(world.calls("mmdebstrap", "trixie"), 1);
    assert_eq!(world.calls("mmdebstrap", "deb http://mirror.test/debian trixie main"), 1);
    assert_eq!(world.kept("layers").len(), 1);
    let digest = built.digest.strip_prefix("sha256:").unwrap();
    let directory = world.images().join("templates").join(digest);
    assert_eq!(fs::read_dir(directory).unwrap().count(), 1, "the manifest");
}

#[test]
fn building_again_leaves_the_old_image_to_its_sandboxes() {
    let world = builder();
    let first = make(&world, "shell", PullTemplate::Missing).unwrap();
    let same = make(&world, "shell", PullTemplate::Always).unwrap();
    assert_eq!(first, same, "the same files are the same template");
    world.file("root/etc/os-release", b"ID=changed\n");
    pack_root(&world);
    let second = make(&world, "shell", PullTemplate::Always).unwrap();
    assert_ne!(first.digest, second.digest);
    assert_eq!(make(&world, "shell", PullTemplate::Missing).unwrap().digest, second.digest);
    let found = find(&world, &first.digest).unwrap();
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
    assert!(is_erofs(&made.layers[0]));
    assert_eq!(made.config, TemplateConfig::default());
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
    assert_eq!(read(&made.layers[0]), content);
    assert_ne!(made.layers[0], image, "the sandbox does not depend on the file any more");
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
    assert!(whole(&error).contains("wrong checksum"), "{}", whole(&error));
    assert_eq!(world.kept("templates"), [""; 0]);
}

#[test]
fn names_that_mean_nothing_are_told_apart() {
    let world = World::new();
    for name in ["shel", "docker/sandbox-templates:codex", "registry.test/image:latest"] {
        let error = make(&world, name, PullTemplate::Never).unwrap_err();
        assert!(matches!(error, TemplateError::Absent { .. }), "{name}: {error}");
    }
    let error = make(&world, "", PullTemplate::Missing).unwrap_err();
    assert!(matches!(error, TemplateError::Reference(_)), "{error}");
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
        let error = find(&world, digest).unwrap_err();
        assert!(matches!(error, TemplateError::Gone { .. }), "{digest}");
    }
}

#[test]
fn a_template_in_one_image_becomes_one_with_layers() {
    let world = builder();
    let made = make(&world, "shell", PullTemplate::Missing).unwrap();
    // As an older Hutch left it: the image in the template's directory, under a digest of its own making.
    let digest = "ab".repeat(32);
    let directory = format!("images/templates/{digest}");
    let manifest =
        read(&world.images().join("templates").join(&made.digest[7..]).join("manifest.json"));
    let mut manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let environment = manifest["config"]["environment"].clone();
    let old = serde_json::json!({
        "format_version": 1, "name": "shell", "source": manifest["source"].take(), "made": 5,
        "environment": environment, "user": "agent",
    });
    let image = read(&made.layers[0]);
    fs::remove_dir_all(world.images()).unwrap();
    world.file(&format!("{directory}/template.img"), &image);
    world.file(&format!("{directory}/manifest.json"), old.to_string().as_bytes());
    let found = find(&world, &format!("sha256:{digest}")).unwrap();
    assert_eq!(read(&found.layers[0]), image);
    assert_eq!(found.config, made.config);
    assert_eq!(make(&world, "shell", PullTemplate::Never).unwrap(), found);
    assert_eq!(world.calls("mmdebstrap", "trixie"), 1, "it is not built again");
    let left = fs::read_dir(world.path(&directory)).unwrap().count();
    assert_eq!((left, world.kept("layers").len()), (1, 1));
}

fn layer_on(
    world: &World,
    base: &Template,
    files: LayerFiles<'_>,
) -> Result<Template, TemplateError> {
    let (images, environment) = (world.images(), world.environment());
    let new = NewLayer {
        images: &images,
        base,
        files,
        name: "my-template:v1",
        config: TemplateConfig { user: Some("me".to_owned()), ..base.config.clone() },
        source: "what it was made of",
        origin: Origin::Recipe,
        environment: &environment,
    };
    add_layer(new, &Steps::default())
}

#[test]
fn a_directory_is_a_layer_on_a_template_and_the_base_is_kept_once() {
    let world = builder();
    let base = make(&world, "shell", PullTemplate::Missing).unwrap();
    world.file("more/usr/bin/agent", b"#!");
    let more = world.path("more");
    let made = layer_on(&world, &base, LayerFiles::Directory(&more)).unwrap();
    assert_eq!(made.layers[0], base.layers[0]);
    assert_eq!(made.layers.len(), 2);
    assert_eq!(made.config.user.as_deref(), Some("me"));
    assert_eq!(world.kept("layers").len(), 2);
    let by_source = template_of_source(&world.images(), "what it was made of", "x").unwrap();
    assert_eq!(by_source.digest, made.digest);
    let references = read(&world.images().join("references.json"));
    let references: serde_json::Value = serde_json::from_slice(&references).unwrap();
    assert_eq!(references["references"]["my-template:v1"], made.digest[7..]);
}

#[test]
fn a_layer_that_is_refused_leaves_nothing() {
    let world = builder();
    let base = make(&world, "shell", PullTemplate::Missing).unwrap();
    let before = (world.kept("layers"), world.kept("templates"));
    for archive in [[7_u8; 1024].as_slice(), b"short"] {
        assert!(layer_on(&world, &base, LayerFiles::Archive(Box::new(archive))).is_err());
    }
    let missing = world.path("missing");
    assert!(layer_on(&world, &base, LayerFiles::Directory(&missing)).is_err());
    assert_eq!((world.kept("layers"), world.kept("templates")), before);
}

#[test]
fn a_template_has_only_so_many_layers() {
    let world = builder();
    let mut template = make(&world, "shell", PullTemplate::Missing).unwrap();
    for number in 1..LAYERS_MAX {
        world.file("more/file", number.to_string().as_bytes());
        let more = world.path("more");
        template = layer_on(&world, &template, LayerFiles::Directory(&more)).unwrap();
    }
    let more = world.path("more");
    let error = layer_on(&world, &template, LayerFiles::Directory(&more)).unwrap_err();
    assert!(matches!(error, TemplateError::TooManyLayers { .. }), "{error}");

    // What is saved of a sandbox becomes one with the layer that is uppermost.
    world.file("root/saved", b"of a sandbox");
    let archive = File::open(pack_root(&world)).unwrap();
    let merged = layer_on(&world, &template, LayerFiles::Archive(Box::new(archive))).unwrap();
    assert_eq!(merged.layers.len(), LAYERS_MAX);
    let (top, below) = merged.layers.split_last().unwrap();
    assert_eq!(below, &template.layers[..LAYERS_MAX - 1]);
    let image =
        hutch_layer::erofs::Image::open(File::open(top).unwrap(), hutch_layer::Limits::default());
    let mut found = Vec::new();
    image
        .unwrap()
        .walk(&mut |entry, _| {
            found.push(String::from_utf8_lossy(entry.path.as_bytes()).into_owned());
            Ok(())
        })
        .unwrap();
    assert!(
        ["file", "saved"].iter().all(|name| found.iter().any(|path| path == name)),
        "{found:?}"
    );
}
