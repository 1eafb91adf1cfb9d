//! The reader of layers: archives with their entries, whiteouts and opaque directories, and one layer on another.
//!
//! The input is blocks of an archive. The checksum of each header is put right, because otherwise nothing but the checksum
//! would be tried. The first byte says where a second archive begins, which is laid over the first.

use std::fs::File;
use std::io;

use hutch_layer::erofs::{Image, Writer};
use hutch_layer::{EntryPath, LayerError, Limits, Tree, tar};

const BLOCK: usize = 512;
/// Small, so that the limits are reached too.
const LIMITS: Limits = Limits { entries: 200, bytes: 1 << 20, names: 64 << 10 };

/// What is read becomes an image that can be read, and the same archive of it again gives the same image.
pub fn check(data: &[u8]) {
    let Some((&split, bytes)) = data.split_first() else { return };
    let bytes = with_checksums(bytes);
    let at = (usize::from(split) * BLOCK).min(bytes.len());
    let (lower, upper) = bytes.split_at(at);
    let mut writer = Writer::new(file(), file());
    let Ok(mut tree) = read(lower, &mut writer) else { return };
    if let Ok(upper) = read(upper, &mut writer) {
        let mut alone = upper.clone();
        alone.take_directories_from(&tree);
        tree.lay_over(&upper);
    }
    let image = writer.finish(&tree).expect("a tree can be written");
    let again = made_again(image);
    let third = made_again(again.try_clone().expect("a file can be duplicated"));
    assert_eq!(bytes_of(&again), bytes_of(&third));
    // For the lowest layer nothing is left that hides something.
    tree.settle();
    let mut archive = tar::Writer::new(Vec::new());
    let image = Image::open(third, LIMITS).expect("an image of ours");
    let written = image.walk(&mut |entry, content| archive.append(&entry, content));
    written.expect("an image of ours");
}

fn read(archive: &[u8], writer: &mut Writer) -> Result<Tree, LayerError> {
    Tree::from_tar(&mut tar::Reader::new(archive, LIMITS), writer)
}

/// From an image to an archive, and to an image again.
fn made_again(image: File) -> File {
    // Two archives may have been in it.
    let limits = Limits { entries: 1000, bytes: 4 << 20, names: 1 << 20 };
    let image = Image::open(image, limits).expect("an image of ours");
    let mut archive = tar::Writer::new(Vec::new());
    let shown = image.walk(&mut |entry, content| {
        let path = entry.path.as_bytes();
        assert!(path.split(|&byte| byte == b'/').all(|name| name != b".." && name != b"."));
        assert_eq!(EntryPath::parse(path).expect("a path of ours"), entry.path);
        archive.append(&entry, content)
    });
    shown.expect("an image of ours can be read");
    let archive = archive.finish().expect("memory can be written");
    let mut writer = Writer::new(file(), file());
    let mut reader = tar::Reader::new(archive.as_slice(), limits);
    let tree = Tree::from_tar(&mut reader, &mut writer).expect("an archive of ours");
    writer.finish(&tree).expect("a tree can be written")
}

fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for block in bytes.chunks_exact_mut(BLOCK) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().copied().map(u32::from).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    bytes
}

fn file() -> File {
    tempfile::tempfile().expect("a file can be made")
}

fn bytes_of(mut file: &File) -> Vec<u8> {
    use io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.seek(io::SeekFrom::Start(0)).expect("a file has a start");
    file.read_to_end(&mut bytes).expect("a file can be read");
    bytes
}
