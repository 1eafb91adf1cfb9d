//! Images that wish us ill: each is refused with its reason, and nothing of it stays.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use hutch_image::{Reference, Template, TemplateError, load_images, templates};
use sha2::{Digest as _, Sha256};

use crate::world::{Steps, World, whole};

/// One file of an archive, as wrong as it has to be.
#[derive(Clone)]
pub(crate) struct Item {
    name: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    content: Vec<u8>,
    /// What the header says, where that is not the truth.
    size: Option<String>,
    device: (&'static str, &'static str),
}

pub(crate) fn item(name: impl AsRef<[u8]>, kind: u8) -> Item {
    Item {
        name: name.as_ref().to_vec(),
        kind,
        link: Vec::new(),
        content: Vec::new(),
        size: None,
        device: ("0", "0"),
    }
}

pub(crate) fn file(name: &str, content: &[u8]) -> Item {
    Item { content: content.to_vec(), ..item(name, b'0') }
}

pub(crate) fn link(name: &str, kind: u8, target: &str) -> Item {
    Item { link: target.as_bytes().to_vec(), ..item(name, kind) }
}

/// Extended headers in front of a file.
fn extended(records: &[(&str, &str)], then: Item) -> Vec<Item> {
    let mut text = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let digits = (rest + 2).to_string().len();
        text.extend(format!("{} {key}={value}\n", rest + digits).bytes());
    }
    vec![Item { content: text, ..item("pax", b'x') }, then]
}

pub(crate) fn tar(items: &[Item]) -> Vec<u8> {
    let mut archive = Vec::new();
    for item in items {
        let mut header = [0_u8; 512];
        let put = |header: &mut [u8; 512], at: usize, text: &[u8]| {
            header[at..at + text.len()].copy_from_slice(text);
        };
        put(&mut header, 0, &item.name[..item.name.len().min(100)]);
        put(&mut header, 100, b"0000755\x000000000\x000000000\0");
        let size = item.size.clone().unwrap_or_else(|| format!("{:011o}", item.content.len()));
        put(&mut header, 124, size.as_bytes());
        put(&mut header, 136, b"00000000000\0        ");
        header[156] = item.kind;
        put(&mut header, 157, &item.link[..item.link.len().min(100)]);
        put(&mut header, 257, b"ustar\x0000");
        put(&mut header, 329, item.device.0.as_bytes());
        put(&mut header, 337, item.device.1.as_bytes());
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(&item.content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// An image as `docker save` writes it.
pub(crate) fn docker_archive(layers: &[Vec<u8>], names: &[&str]) -> Vec<u8> {
    let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let diff_ids: Vec<String> =
        layers.iter().map(|layer| format!("sha256:{}", sha256(layer))).collect();
    let config = serde_json::json!({
        "os": "linux", "architecture": own, "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {"User": "agent", "Env": ["PATH=/bin"]},
    });
    archive_of(&config.to_string(), layers, names)
}

fn archive_of(config: &str, layers: &[Vec<u8>], names: &[&str]) -> Vec<u8> {
    let paths: Vec<String> = (0..layers.len()).map(|at| format!("{at}/layer.tar")).collect();
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": names, "Layers": paths}
    ]);
    let mut items = vec![
        file("manifest.json", manifest.to_string().as_bytes()),
        file("config.json", config.as_bytes()),
    ];
    items.extend(paths.iter().zip(layers).map(|(path, layer)| file(path, layer)));
    tar(&items)
}

fn put(world: &World, content: &[u8]) -> PathBuf {
    world.file("image.tar", content)
}

pub(crate) fn load(world: &World, path: &Path) -> Result<Vec<Template>, TemplateError> {
    load_images(&world.images(), path, None, &Steps::default())
}

/// Nothing is left of an image: no template, no layer, no draft.
#[track_caller]
fn nothing_is_left(world: &World, what: &str) {
    assert_eq!(world.kept("layers"), [""; 0], "{what}");
    assert_eq!(world.kept("templates"), [""; 0], "{what}");
    assert_eq!(templates(&world.images()).len(), 0, "{what}");
}

#[track_caller]
fn refused(what: &str, archive: &[u8], reason: &str) {
    let world = World::new();
    let path = put(&world, archive);
    let error = load(&world, &path).expect_err(what);
    let text = whole(&error);
    assert!(text.contains(reason), "{what}: {text}");
    assert!(!text.contains('\u{1b}'), "{what}: {text}");
    nothing_is_left(&world, what);
}

/// A layer alone, in an image that is otherwise right.
#[track_caller]
fn layer_refused(what: &str, items: &[Item], reason: &str) {
    refused(what, &docker_archive(&[tar(items)], &["evil:1"]), reason);
}

#[test]
fn layers_that_would_leave_their_root() {
    layer_refused("a parent", &[file("../../etc/passwd", b"x")], "leaves the root directory");
    layer_refused("a parent inside", &[file("a/../../b", b"x")], "leaves the root directory");
    layer_refused("an absolute parent", &[file("/../etc/cron.d/x", b"x")], "leaves the root");
    let long = extended(&[("path", "../x")], file("harmless", b"x"));
    layer_refused("a parent in an extended header", &long, "leaves the root directory");
    let gnu =
        [Item { content: b"../../x\0".to_vec(), ..item("././@LongLink", b'L') }, file("a", b"")];
    layer_refused("a parent in a long name", &gnu, "leaves the root directory");
    let links = [link("x", b'2', "/etc"), file("x/passwd", b"x")];
    layer_refused("through a symbolic link", &links, "`x/passwd` lies behind a symbolic link");
    let deep = [link("a/b", b'2', "../.."), item("a/b/c/d", b'5')];
    layer_refused("a directory through a link", &deep, "lies behind a symbolic link");
    let chain = [link("a", b'2', "b"), link("b", b'2', "a"), file("a/x", b"")];
    layer_refused("links in a circle", &chain, "lies behind a symbolic link");
}

#[test]
fn hard_links_to_what_is_not_theirs() {
    layer_refused("to the host", &[link("x", b'1', "/etc/shadow")], "not in the layer before it");
    layer_refused("to a parent", &[link("x", b'1', "../../etc/shadow")], "leaves the root");
    layer_refused("to itself", &[link("x", b'1', "x")], "not in the layer before it");
    layer_refused("to a directory", &[item("d", b'5'), link("x", b'1', "d")], "cannot have one");
    let behind = [link("e", b'2', "/etc"), link("x", b'1', "e/shadow")];
    layer_refused("through a link", &behind, "not in the layer before it");
}

#[test]
fn headers_that_lie() {
    let huge = |size: &str| vec![Item { size: Some(size.to_owned()), ..file("x", b"") }];
    layer_refused("eight gigabytes", &huge("77777777777\0"), "");
    layer_refused("more than there is", &huge("00000100000\0"), "");
    layer_refused("a size in letters", &huge("zzzzzzzzzzz\0"), "is no number");
    let negative = extended(&[("size", "-1")], file("x", b"x"));
    layer_refused("a negative size", &negative, "extended header");
    let enormous = extended(&[("size", "99999999999999")], file("x", b"x"));
    layer_refused("a size beyond the limit", &enormous, "bytes");
    layer_refused("a type of nobody", &[item("x", b'Z')], "unknown type");
    let device = Item { device: ("7777777", "0"), ..item("x", b'3') };
    layer_refused("a device of nobody", &[device], "device number");
    layer_refused("a root that is a file", &[file(".", b"x")], "replace the root");
    layer_refused("a link without a target", &[link("x", b'2', "")], "target is empty");
    let text = Item { content: b"5 a=b".to_vec(), ..item("pax", b'x') };
    layer_refused("a cut extended header", &[text, file("x", b"")], "extended header");
    let mut wrong = tar(&[file("x", b"x")]);
    wrong[0] ^= 1;
    refused("a checksum", &docker_archive(&[wrong], &[]), "wrong checksum");
}

#[test]
fn names_and_attributes_without_end() {
    let long = extended(&[("path", &"a/".repeat(300))], file("x", b""));
    layer_refused("directories in each other", &long, "more than 256 directories");
    let long = extended(&[("path", &"n".repeat(256))], file("x", b""));
    layer_refused("a long name", &long, "more than 255 bytes");
    let long = extended(&[("path", &"abc/".repeat(2000))], file("x", b""));
    layer_refused("a long path", &long, "more than 4096 bytes");
    let value = "v".repeat(70_000);
    let xattr = extended(&[("SCHILY.xattr.user.x", &value)], file("x", b""));
    layer_refused("a large attribute", &xattr, "extended attributes");
    let bomb = Item { size: Some("77777777777\0".to_owned()), ..item("././@LongLink", b'L') };
    layer_refused("a name of gigabytes", &[bomb], "bytes of names");
    let escape = extended(&[("path", "\u{1b}[2Jx/..")], file("x", b""));
    layer_refused("a name that draws", &escape, "leaves the root");
}

#[test]
fn whiteouts_of_nothing() {
    layer_refused("of no name", &[file("d/.wh.", b"")], "whiteout of nothing");
    layer_refused("of the directory", &[file("d/.wh..", b"")], "whiteout of nothing");
    layer_refused("of the parent", &[file("d/.wh...", b"")], "whiteout of nothing");
    layer_refused("a directory of that name", &[file("d/.wh.x/y", b"")], "whiteout");
}

#[test]
fn maps_of_holes_that_contradict_themselves() {
    let sparse = |map: &str, size: &str| {
        let records =
            [("GNU.sparse.map", map), ("GNU.sparse.size", size), ("GNU.sparse.name", "x")];
        extended(&records, file("y", b"12345678"))
    };
    layer_refused("beyond the end", &sparse("0,4,100,4", "50"), "map of holes");
    layer_refused("on each other", &sparse("0,4,2,4", "50"), "map of holes");
    layer_refused("backwards", &sparse("8,4,0,4", "50"), "map of holes");
    layer_refused("more than is stored", &sparse("0,400", "500"), "map of holes");
    layer_refused("an odd map", &sparse("0,4,4", "50"), "map of holes");
    layer_refused("over the edge", &sparse("18446744073709551615,8", "50"), "map of holes");
    layer_refused("a file of a petabyte", &sparse("0,8", "1125899906842624"), "bytes");
}

#[test]
fn bombs_are_bounded() {
    // A hundred megabytes of zeros in a hundred kilobytes, behind the end of the archive.
    let mut layer = tar(&[file("x", b"x")]);
    layer.resize(100 << 20, 0);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&layer).unwrap();
    let packed = packed.finish().unwrap();
    assert!(packed.len() < 1 << 20);
    refused("behind the end", &docker_archive(&[packed], &[]), "bytes behind its end");
}

#[test]
fn images_whose_documents_lie() {
    let layer = tar(&[file("bin/sh", b"#!")]);
    let good = docker_archive(std::slice::from_ref(&layer), &["good:1"]);
    let own = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = |diff_ids: &str| {
        format!(r#"{{"os":"linux","architecture":"{own}","rootfs":{{"diff_ids":[{diff_ids}]}}}}"#)
    };
    let one = std::slice::from_ref(&layer);
    let zeros = format!("\"sha256:{}\"", "0".repeat(64));
    refused(
        "another layer",
        &archive_of(&config(&zeros), one, &[]),
        "another content than its digest",
    );
    refused("no layers", &archive_of(&config(""), one, &[]), "do not fit");
    refused(
        "a path for a digest",
        &archive_of(&config("\"../../x\""), one, &[]),
        "is not a digest",
    );
    refused("no document", &archive_of("[", one, &[]), "is not one");
    let other = config(&zeros).replace(own, "vax");
    refused("another machine", &archive_of(&other, one, &[]), "linux/vax");
    let large = format!("{{\"a\":\"{}\"}}", "x".repeat(5 << 20));
    refused("a long document", &archive_of(&large, one, &[]), "too long");
    let manifest = br#"[{"Config":"../../../etc/passwd","Layers":[]}]"#;
    refused("a configuration of the host", &tar(&[file("manifest.json", manifest)]), "has no");
    let circle = [
        file("manifest.json", br#"[{"Config":"a","Layers":[]}]"#),
        link("a", b'2', "b"),
        link("b", b'2', "a"),
    ];
    refused("links in a circle", &tar(&circle), "has no `a`");
    refused("no images", &tar(&[file("manifest.json", b"[]")]), "holds no image");
    refused("half of it", &good[..good.len() - 2000], "");
    let index = br#"{"manifests":[{"digest":"sha256:../../../../etc/passwd","size":1}]}"#;
    refused("an index of paths", &tar(&[file("index.json", index)]), "is not a digest");
}

/// An OCI archive whose index names a blob that is another one.
#[test]
fn blobs_are_what_their_digest_says() {
    let digest = "ab".repeat(32);
    let index = format!(r#"{{"manifests":[{{"digest":"sha256:{digest}","size":2}}]}}"#);
    let archive = tar(&[
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", index.as_bytes()),
        file(&format!("blobs/sha256/{digest}"), b"{}"),
    ]);
    refused("a manifest", &archive, "another content than its digest");
}

#[test]
fn what_is_right_is_taken_and_shares_its_layers() {
    let world = World::new();
    let base = tar(&[
        item("bin", b'5'),
        file("bin/sh", b"#!"),
        file("etc/gone", b"x"),
        link("bin/ash", b'1', "bin/sh"),
        link("etc/link", b'2', "/nowhere"),
    ]);
    let top = tar(&[file("etc/.wh.gone", b""), file("etc/new", b"y")]);
    let path = put(&world, &docker_archive(&[base.clone(), top], &["team/app:1", "app"]));
    let made = load(&world, &path).unwrap();
    assert_eq!((made.len(), made[0].layers.len()), (1, 2));
    assert_eq!(made[0].config.user.as_deref(), Some("agent"));
    let other = put(&world, &docker_archive(&[base.clone(), tar(&[file("z", b"")])], &["other:1"]));
    let second = load(&world, &other).unwrap();
    assert_eq!(second[0].layers[0], made[0].layers[0]);
    assert_eq!(world.kept("layers").len(), 3);
    let all = templates(&world.images());
    let mut names: Vec<&String> = all.iter().flat_map(|template| &template.references).collect();
    names.sort();
    assert_eq!(names, ["app:latest", "other:1", "team/app:1"]);
    // The same again is the same, whatever it is called.
    let name = Reference::parse("third:1").unwrap();
    let again = load_images(&world.images(), &path, Some(&name), &Steps::default()).unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!(world.kept("layers").len(), 3);
    let many: Vec<Vec<u8>> =
        (0..20).map(|at| tar(&[file(&format!("f{at}"), b"x"), file("last", &[at])])).collect();
    let path = put(&world, &docker_archive(&many, &["many:1"]));
    assert_eq!(load(&world, &path).unwrap()[0].layers.len(), 6);
}

#[test]
fn a_compressed_archive_is_taken_too() {
    let world = World::new();
    let archive = docker_archive(&[tar(&[file("bin/sh", b"#!")])], &["packed:1"]);
    let path = world.path("image.tar.gz");
    let mut packed =
        flate2::write::GzEncoder::new(File::create(&path).unwrap(), flate2::Compression::fast());
    packed.write_all(&archive).unwrap();
    packed.finish().unwrap();
    assert_eq!(load(&world, &path).unwrap()[0].name, "packed:1");
}
