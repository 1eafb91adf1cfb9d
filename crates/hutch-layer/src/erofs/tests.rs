use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::entry::{Entry, EntryPath, Extent, Kind, LayerError, Limits, Metadata};
use crate::tree::Tree;

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> File {
        let path = self.0.path().join(name);
        File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap()
    }

    fn writer(&self) -> Writer {
        Writer::new(self.file("image"), self.file("tails"))
    }

    fn image(&self) -> Image {
        Image::open(File::open(self.0.path().join("image")).unwrap(), Limits::default()).unwrap()
    }
}

fn metadata(mode: u16) -> Metadata {
    Metadata {
        mode,
        uid: 1000,
        gid: 70_000,
        mtime: 1_700_000_000,
        mtime_nsec: 5,
        ..Metadata::default()
    }
}

fn add(tree: &mut Tree, writer: &mut Writer, path: &[u8], kind: Kind, content: &[u8]) {
    let entry = Entry { path: EntryPath::parse(path).unwrap(), kind, metadata: metadata(0o640) };
    let stored = match &entry.kind {
        Kind::File { size, extents } => Some(
            writer.add(*size, extents.as_deref(), &entry.metadata.xattrs, &mut &*content).unwrap(),
        ),
        _ => None,
    };
    tree.insert(entry, stored).unwrap();
}

fn add_file(tree: &mut Tree, writer: &mut Writer, path: &[u8], content: &[u8]) {
    let kind = Kind::File { size: content.len() as u64, extents: None };
    add(tree, writer, path, kind, content);
}

type Found = BTreeMap<Vec<u8>, Vec<(Kind, Metadata, Vec<u8>)>>;

fn all(image: &Image) -> Result<Found, LayerError> {
    let mut found = Found::new();
    image.walk(&mut |entry, content| {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).map_err(LayerError::Read)?;
        let at = found.entry(entry.path.as_bytes().to_vec()).or_default();
        at.push((entry.kind, entry.metadata, bytes));
        Ok(())
    })?;
    Ok(found)
}

/// What the authors' own program says of the image, and what it takes out of it.
#[expect(
    clippy::disallowed_methods,
    reason = "a program of the test's own, without the clean environment"
)]
fn fsck(place: &Place) -> std::path::PathBuf {
    let tree = place.0.path().join("tree");
    let output = Command::new("fsck.erofs")
        .arg(format!("--extract={}", tree.display()))
        .arg("--force")
        .arg(place.0.path().join("image"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    tree
}

/// So many bytes that do not repeat with the blocks.
fn bytes(size: usize) -> Vec<u8> {
    (0..=250).cycle().take(size).collect()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn everything_that_a_file_system_has_survives() {
    let place = Place::new();
    let (mut tree, mut writer) = (Tree::default(), place.writer());
    let sizes = [0, 1, 3900, 4032, 4033, 4095, 4096, 4097, 8192, 300_000];
    for size in sizes {
        let content = bytes(size);
        add_file(&mut tree, &mut writer, format!("files/{size}").as_bytes(), &content);
    }
    for number in 0..2000 {
        add_file(&mut tree, &mut writer, format!("many/name of file {number}").as_bytes(), b"x");
    }
    let hard = Kind::HardLink(EntryPath::parse(b"files/4097").unwrap());
    add(&mut tree, &mut writer, b"a/hard", hard, b"");
    add(&mut tree, &mut writer, b"link", Kind::Symlink(b"/etc/../x".to_vec()), b"");
    add(&mut tree, &mut writer, b"long link", Kind::Symlink(vec![b'l'; 4090]), b"");
    add(&mut tree, &mut writer, b"null", Kind::CharacterDevice { major: 1, minor: 3 }, b"");
    add(&mut tree, &mut writer, b"disk", Kind::BlockDevice { major: 259, minor: 70_000 }, b"");
    add(&mut tree, &mut writer, b"pipe", Kind::Fifo, b"");
    add(&mut tree, &mut writer, b"gone", Kind::Whiteout, b"");
    add(&mut tree, &mut writer, b"only mine", Kind::Directory, b"");
    add(&mut tree, &mut writer, b"only mine", Kind::Opaque, b"");
    let odd = b"odd \xff\n\x01 name".as_slice();
    add_file(&mut tree, &mut writer, odd, b"odd");
    let extents = vec![Extent { offset: 10, length: 3 }, Extent { offset: 9 << 20, length: 5 }];
    let sparse = Kind::File { size: (10 << 20) + 1, extents: Some(extents) };
    add(&mut tree, &mut writer, b"holes", sparse, b"abcdefgh");
    let mut capable = metadata(0o4755);
    capable.xattrs.insert(b"security.capability".to_vec(), b"\x01\0\0\x02".to_vec());
    capable.xattrs.insert(b"user.note".to_vec(), vec![b'n'; 300]);
    capable.xattrs.insert(b"system.posix_acl_access".to_vec(), b"\x02\0\0\0".to_vec());
    let content = writer.add(5, None, &capable.xattrs, &mut b"hello".as_slice()).unwrap();
    let path = EntryPath::parse(b"bin/capable").unwrap();
    let kind = Kind::File { size: 5, extents: None };
    tree.insert(Entry { path, kind, metadata: capable.clone() }, Some(content)).unwrap();
    let image = writer.finish(&tree).unwrap();
    assert!(image.metadata().unwrap().len() < 6 << 20, "the holes take no room");

    let found = all(&place.image()).unwrap();
    for size in sizes {
        let (kind, of, content) = &found[format!("files/{size}").as_bytes()][0];
        let (size, hard) = (size as u64, Kind::HardLink(EntryPath::parse(b"a/hard").unwrap()));
        assert!(*kind == Kind::File { size, extents: None } || *kind == hard, "{kind:?}");
        assert_eq!(*of, metadata(0o640));
        assert_eq!(*content, bytes(content.len()));
    }
    assert_eq!(found[b"a/hard".as_slice()][0].2.len(), 4097);
    assert_eq!(found[b"link".as_slice()][0].0, Kind::Symlink(b"/etc/../x".to_vec()));
    assert_eq!(found[b"long link".as_slice()][0].0, Kind::Symlink(vec![b'l'; 4090]));
    assert_eq!(found[b"null".as_slice()][0].0, Kind::CharacterDevice { major: 1, minor: 3 });
    let disk = Kind::BlockDevice { major: 259, minor: 70_000 };
    assert_eq!(found[b"disk".as_slice()][0].0, disk);
    assert_eq!(found[b"pipe".as_slice()][0].0, Kind::Fifo);
    assert_eq!(found[b"gone".as_slice()][0].0, Kind::Whiteout);
    let mine: Vec<&Kind> = found[b"only mine".as_slice()].iter().map(|found| &found.0).collect();
    assert_eq!(mine, [&Kind::Directory, &Kind::Opaque]);
    assert_eq!(found[odd][0].2, b"odd");
    assert_eq!(found[b"bin/capable".as_slice()][0].1, capable);
    let holes = &found[b"holes".as_slice()][0].2;
    assert_eq!(holes.len(), (10 << 20) + 1);
    assert_eq!(&holes[8..15], b"\0\0abc\0\0");
    assert_eq!(&holes[(9 << 20) - 1..(9 << 20) + 6], b"\0defgh\0");
    assert_eq!(found.keys().filter(|path| path.starts_with(b"many/")).count(), 2000);
}

#[test]
fn the_authors_program_takes_the_same_out() {
    let place = Place::new();
    let (mut tree, mut writer) = (Tree::default(), place.writer());
    for size in [0, 5, 4000, 4090, 4096, 5000, 100_000] {
        let content = bytes(size);
        add_file(&mut tree, &mut writer, format!("d/{size}").as_bytes(), &content);
    }
    for number in 0..3000 {
        let path = format!("many/{number:0>100}");
        add_file(&mut tree, &mut writer, path.as_bytes(), number.to_string().as_bytes());
    }
    add(&mut tree, &mut writer, b"link", Kind::Symlink(b"d/5".to_vec()), b"");
    writer.finish(&tree).unwrap();
    let root = fsck(&place);
    for size in [0, 5, 4000, 4090, 4096, 5000, 100_000] {
        let content = read(&root.join(format!("d/{size}")));
        assert_eq!(content.len(), size);
        assert_eq!(content, bytes(size));
    }
    assert_eq!(std::fs::read_dir(root.join("many")).unwrap().count(), 3000);
    assert_eq!(read(&root.join(format!("many/{:0>100}", 2999))), b"2999");
    assert_eq!(std::fs::read_link(root.join("link")).unwrap(), Path::new("d/5"));
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let make = || {
        let place = Place::new();
        let (mut tree, mut writer) = (Tree::default(), place.writer());
        add_file(&mut tree, &mut writer, b"a/b", b"content");
        writer.finish(&tree).unwrap();
        read(&place.0.path().join("image"))
    };
    assert_eq!(make(), make());
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "a program of the test's own, without the clean environment"
)]
fn images_of_the_authors_program_are_read() {
    let place = Place::new();
    let tree = place.0.path().join("made");
    std::fs::create_dir_all(tree.join("d/e")).unwrap();
    for (name, size) in [("small", 10), ("d/block", 4096), ("d/e/large", 70_001)] {
        File::create(tree.join(name)).unwrap().write_all(&vec![b'c'; size]).unwrap();
    }
    std::os::unix::fs::symlink("small", tree.join("link")).unwrap();
    let image = place.0.path().join("image");
    let made = Command::new("mkfs.erofs").arg(&image).arg(&tree).output().unwrap();
    assert!(made.status.success());
    let found = all(&place.image()).unwrap();
    assert_eq!(found[b"small".as_slice()][0].2, b"cccccccccc");
    assert_eq!(found[b"d/block".as_slice()][0].2.len(), 4096);
    assert_eq!(found[b"d/e/large".as_slice()][0].2, vec![b'c'; 70_001]);
    assert_eq!(found[b"link".as_slice()][0].0, Kind::Symlink(b"small".to_vec()));
    let packed = Command::new("mkfs.erofs").arg("-zlz4").arg(&image).arg(&tree).output().unwrap();
    assert!(packed.status.success());
    assert!(all(&place.image()).unwrap_err().to_string().contains("compressed"));
}

fn sample() -> Vec<u8> {
    let place = Place::new();
    let (mut tree, mut writer) = (Tree::default(), place.writer());
    add_file(&mut tree, &mut writer, b"a/b", &[b'c'; 5000]);
    add(&mut tree, &mut writer, b"a/link", Kind::Symlink(b"b".to_vec()), b"");
    let extents = vec![Extent { offset: 9000, length: 5 }];
    let sparse = Kind::File { size: 90_000, extents: Some(extents) };
    add(&mut tree, &mut writer, b"a/holes", sparse, b"abcde");
    writer.finish(&tree).unwrap();
    read(&place.0.path().join("image"))
}

proptest! {
    #[test]
    fn a_damaged_image_is_survived(changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..20)) {
        let place = Place::new();
        let mut bytes = sample();
        // Contents are no structure.
        let start = bytes.len() - 8192;
        for (at, value) in changes {
            let at = usize::from(at) % 9216;
            let at = if at < 1024 { 1024 + at % 128 } else { start + (at - 1024) };
            bytes[at] = value;
        }
        place.file("image").write_all(&bytes).unwrap();
        let limits = Limits { entries: 1000, bytes: 1 << 20, ..Limits::default() };
        if let Ok(image) = Image::open(File::open(place.0.path().join("image")).unwrap(), limits) {
            let _ignored = all(&image);
        }
    }
}
