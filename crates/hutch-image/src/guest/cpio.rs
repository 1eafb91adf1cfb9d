//! Writes the kernel's initramfs format: cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Entries are sorted by path and have no time, so the same content gives the same bytes.

use std::collections::BTreeMap;
use std::io::{self, Write};

/// What one path of the archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A directory; parents of other entries are made without being asked for.
    Directory,
    /// A regular file with its content and permission bits.
    File { content: Vec<u8>, mode: u32 },
}

/// An archive being collected in memory: an initramfs is a few megabytes.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
}

const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TRAILER: &str = "TRAILER!!!";

impl Archive {
    /// Adds a path, relative and without a leading slash, and the directories above it.
    pub(crate) fn add(&mut self, path: &str, entry: Entry) {
        for (at, _) in path.match_indices('/') {
            self.entries.entry(path[..at].to_owned()).or_insert(Entry::Directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }

    /// Writes the whole archive; parents come before children because a prefix sorts first.
    pub(crate) fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut inode = 0;
        for (path, entry) in &self.entries {
            inode += 1;
            match entry {
                Entry::Directory => write_entry(out, inode, TYPE_DIRECTORY | 0o755, 2, path, &[])?,
                Entry::File { content, mode } => {
                    write_entry(out, inode, TYPE_FILE | mode, 1, path, content)?;
                }
            }
        }
        write_entry(out, 0, 0, 1, TRAILER, &[])
    }
}

fn write_entry(
    out: &mut dyn Write,
    inode: u32,
    mode: u32,
    links: u32,
    path: &str,
    content: &[u8],
) -> io::Result<()> {
    let size = u32::try_from(content.len())
        .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, "a file of 4 GiB or more"))?;
    let name_size = path.len() + 1;
    // Fields: inode, mode, uid, gid, links, time, size, device and its minor, special device and its minor, name, check.
    write!(
        out,
        "070701{inode:08X}{mode:08X}{0:08X}{0:08X}{links:08X}{0:08X}{size:08X}{0:08X}{0:08X}{0:08X}{0:08X}{name_size:08X}{0:08X}{path}\0",
        0
    )?;
    // The header is 110 bytes; name and content each end on a multiple of four.
    pad(out, 110 + name_size)?;
    out.write_all(content)?;
    pad(out, content.len())
}

fn pad(out: &mut dyn Write, length: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..length.wrapping_neg() % 4])
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::Stdio;

    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.add("lib/modules/b.ko", Entry::File { content: vec![7; 4097], mode: 0o644 });
        archive.add("init", Entry::File { content: b"#!".to_vec(), mode: 0o755 });
        archive.add("dev", Entry::Directory);
        archive.add("lib/modules/a.ko", Entry::File { content: Vec::new(), mode: 0o644 });
        archive
    }

    #[test]
    fn the_same_content_gives_the_same_bytes_in_any_order() {
        let mut other = Archive::default();
        other.add("lib/modules/a.ko", Entry::File { content: Vec::new(), mode: 0o644 });
        other.add("dev", Entry::Directory);
        other.add("init", Entry::File { content: b"#!".to_vec(), mode: 0o755 });
        other.add("lib/modules/b.ko", Entry::File { content: vec![7; 4097], mode: 0o644 });
        let (mut one, mut two) = (Vec::new(), Vec::new());
        sample().write_to(&mut one).unwrap();
        other.write_to(&mut two).unwrap();
        assert_eq!(one, two);
        assert_eq!(one.len() % 4, 0);
    }

    #[test]
    fn the_real_cpio_lists_what_was_written() {
        let mut child = hutch_sys::spawn::command("cpio")
            .args(["-itv", "--numeric-uid-gid", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut bytes = Vec::new();
        sample().write_to(&mut bytes).unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let mut listing = String::new();
        child.stdout.take().unwrap().read_to_string(&mut listing).unwrap();
        assert!(child.wait().unwrap().success());
        let lines: Vec<Vec<&str>> =
            listing.lines().map(|line| line.split_whitespace().collect()).collect();
        let seen: Vec<(&str, &str, &str)> =
            lines.iter().map(|line| (line[0], line[4], line[line.len() - 1])).collect();
        assert_eq!(
            seen,
            [
                ("drwxr-xr-x", "0", "dev"),
                ("-rwxr-xr-x", "2", "init"),
                ("drwxr-xr-x", "0", "lib"),
                ("drwxr-xr-x", "0", "lib/modules"),
                ("-rw-r--r--", "0", "lib/modules/a.ko"),
                ("-rw-r--r--", "4097", "lib/modules/b.ko"),
            ]
        );
    }
}
