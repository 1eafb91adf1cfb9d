use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::entry::{Entry, EntryPath, Extent, Kind, LayerError, Limits, Metadata};

type Found = Vec<(String, Kind, Metadata, Vec<u8>)>;

fn all(archive: &[u8], limits: Limits) -> Result<Found, LayerError> {
    let mut reader = Reader::new(archive, limits);
    let mut found = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map_err(LayerError::Read)?;
        let path = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
        found.push((path, entry.kind, entry.metadata, content));
    }
    Ok(found)
}

fn entry(path: &[u8], kind: Kind) -> Entry {
    let metadata = Metadata { mode: 0o644, ..Metadata::default() };
    Entry { path: EntryPath::parse(path).unwrap(), kind, metadata }
}

/// An archive by the real program.
#[expect(
    clippy::disallowed_methods,
    reason = "a program of the test's own, without the clean environment"
)]
fn gnu_tar(directory: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(directory).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn what_is_written_is_read_again() {
    let long = [b"d/".as_slice(), &[b'n'; 200], b"/", &[0xff; 200]].concat();
    let mut metadata = Metadata {
        mode: 0o4755,
        uid: 4_000_000_000,
        gid: 100_000,
        mtime: -5,
        mtime_nsec: 250_000_000,
        ..Metadata::default()
    };
    metadata.xattrs.insert(b"security.capability".to_vec(), b"\x01\0\n=\0".to_vec());
    let first =
        Entry { metadata: metadata.clone(), ..entry(&long, Kind::File { size: 3, extents: None }) };
    let mut writer = Writer::new(Vec::new());
    writer.append(&entry(b"", Kind::Directory), &mut std::io::empty()).unwrap();
    writer.append(&first, &mut b"abc".as_slice()).unwrap();
    let link = Kind::HardLink(EntryPath::parse(&long).unwrap());
    for kind in [
        link,
        Kind::Symlink(vec![b't'; 300]),
        Kind::CharacterDevice { major: 5, minor: 1 },
        Kind::BlockDevice { major: 8, minor: 70_000 },
        Kind::Fifo,
        Kind::Directory,
        Kind::Whiteout,
        Kind::Opaque,
    ] {
        writer.append(&entry(b"e/x", kind), &mut std::io::empty()).unwrap();
    }
    let archive = writer.finish().unwrap();
    assert_eq!(archive.len() % BLOCK, 0);
    let found = all(&archive, Limits::default()).unwrap();
    assert_eq!(found[0].0, "");
    assert_eq!(found[1].0.as_bytes(), String::from_utf8_lossy(&long).as_bytes());
    assert_eq!(found[1].2, metadata);
    assert_eq!(found[1].3, b"abc");
    let kinds: Vec<&Kind> = found[2..].iter().map(|(_, kind, ..)| kind).collect();
    assert_eq!(kinds[0], &Kind::HardLink(EntryPath::parse(&long).unwrap()));
    assert_eq!(kinds[1], &Kind::Symlink(vec![b't'; 300]));
    assert_eq!(kinds[2], &Kind::CharacterDevice { major: 5, minor: 1 });
    assert_eq!(kinds[3], &Kind::BlockDevice { major: 8, minor: 70_000 });
    assert_eq!(kinds[4..], [&Kind::Fifo, &Kind::Directory, &Kind::Whiteout, &Kind::Opaque]);
    assert!(found[2..].iter().all(|(path, ..)| path == "e/x"), "{found:?}");
}

#[test]
fn the_real_tar_reads_what_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.tar");
    let mut writer = Writer::new(File::create(&path).unwrap());
    let file = entry(&[b'x'; 180], Kind::File { size: 5, extents: None });
    writer.append(&file, &mut b"hello".as_slice()).unwrap();
    writer.append(&entry(b"wide \xc3\xa4", Kind::Directory), &mut std::io::empty()).unwrap();
    writer.finish().unwrap();
    let path = path.to_str().unwrap();
    let list = gnu_tar(directory.path(), &["-tf", path, "--quoting-style=literal"]);
    assert_eq!(String::from_utf8(list).unwrap(), format!("{}\nwide ä/\n", "x".repeat(180)));
}

#[test]
fn sparse_files_of_all_versions_keep_their_holes() {
    let directory = tempfile::tempdir().unwrap();
    let mut file = File::create(directory.path().join("holes")).unwrap();
    file.write_all(b"start").unwrap();
    for place in (1..40_u64).map(|part| part * (1 << 20)) {
        file.seek(std::io::SeekFrom::Start(place)).unwrap();
        file.write_all(&[7; 4096]).unwrap();
    }
    file.set_len(100 << 20).unwrap();
    for format in [
        ["--format=gnu", "--sparse"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ] {
        let arguments = [format.as_slice(), &["--sparse", "-cf", "-", "holes"]].concat();
        let archive = gnu_tar(directory.path(), &arguments);
        assert!(archive.len() < 1 << 20);
        let found = all(&archive, Limits::default()).unwrap();
        let (path, kind, _, content) = &found[0];
        assert_eq!(path, "holes", "{format:?}");
        let Kind::File { size, extents: Some(extents) } = kind else { panic!("{kind:?}") };
        assert_eq!(*size, 100 << 20);
        assert!(extents.contains(&Extent { offset: 39 << 20, length: 4096 }), "{extents:?}");
        let stored: u64 = extents.iter().map(|extent| extent.length).sum();
        assert_eq!(stored, content.len() as u64);
        assert!(content.starts_with(b"start"));
        assert!(content.ends_with(&[7; 4096]));
    }
}

#[test]
fn old_formats_and_odd_names_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let name = "new\nline \\ \u{fc} *";
    File::create(directory.path().join(name)).unwrap().write_all(b"x").unwrap();
    for format in ["v7", "oldgnu", "gnu", "ustar", "posix"] {
        let archive = gnu_tar(directory.path(), &[&format!("--format={format}"), "-cf", "-", "."]);
        let found = all(&archive, Limits::default()).unwrap();
        assert_eq!(found[0].1, Kind::Directory, "{format}");
        assert_eq!(found[1].0, name, "{format}");
        assert_eq!(found[1].3, b"x", "{format}");
    }
}

#[test]
fn a_cut_archive_is_damaged() {
    let mut writer = Writer::new(Vec::new());
    writer
        .append(&entry(b"a", Kind::File { size: 1000, extents: None }), &mut [1; 1000].as_slice())
        .unwrap();
    let archive = writer.finish().unwrap();
    for length in [1, 511, 513, 1400, 1530] {
        assert!(all(&archive[..length], Limits::default()).is_err(), "{length}");
    }
    // Without the two blocks that end it, as some writers leave them out.
    assert!(all(&archive[..1536], Limits::default()).is_ok());
}

#[test]
fn limits_hold() {
    let mut writer = Writer::new(Vec::new());
    for name in [b"a", b"b"] {
        let file = entry(name, Kind::File { size: 600, extents: None });
        writer.append(&file, &mut [1; 600].as_slice()).unwrap();
    }
    let archive = writer.finish().unwrap();
    let limits = Limits::default();
    let error = all(&archive, Limits { bytes: 1000, ..limits }).unwrap_err().to_string();
    assert_eq!(error, "the layer is refused: it has more than 1000 bytes");
    assert!(all(&archive, Limits { entries: 1, ..limits }).is_err());
    assert!(all(&archive, Limits { names: 1, ..limits }).is_err());
    assert!(all(&archive, Limits { entries: 2, bytes: 1200, names: 2 }).is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_survived(
        blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), BLOCK), 0..4)
    ) {
        let _ignored = all(&blocks.concat(), Limits::default());
    }

    /// Headers whose checksum is right, so that more than the checksum is tried.
    #[test]
    fn any_header_is_survived(
        mut block in proptest::collection::vec(any::<u8>(), BLOCK),
        kind in prop::sample::select(b"01234567xgLKS\0".to_vec()),
        rest in proptest::collection::vec(any::<u8>(), 0..2000),
    ) {
        block[124..136].copy_from_slice(b"00000000777\0");
        block[108..124].copy_from_slice(b"0000000\x000000000\0");
        block[156] = kind;
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().copied().map(u32::from).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let _ignored = all(&[block, rest].concat(), Limits::default());
    }
}
