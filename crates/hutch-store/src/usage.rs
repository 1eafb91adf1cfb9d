//! How much of the disk something takes: blocks, not lengths, because disks and memory files are mostly holes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Bytes that these files and directories take, with everything below them. Links are not followed but for the paths
/// themselves; a file with several names counts once. What cannot be looked at counts nothing.
pub fn bytes_on_disk(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> u64 {
    let mut seen = HashSet::new();
    let mut bytes = 0_u64;
    for path in paths {
        let Ok(path) = path.as_ref().canonicalize() else { continue };
        add(&path, &mut seen, &mut bytes);
    }
    bytes
}

fn add(path: &Path, seen: &mut HashSet<(u64, u64)>, bytes: &mut u64) {
    let Ok(of) = fs::symlink_metadata(path) else { return };
    if !seen.insert((of.dev(), of.ino())) {
        return;
    }
    // Blocks of 512 bytes, whatever the file system's are (stat(2)).
    *bytes = bytes.saturating_add(of.blocks().saturating_mul(512));
    if of.is_dir()
        && let Ok(entries) = fs::read_dir(path)
    {
        for entry in entries.flatten() {
            add(&entry.path(), seen, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt as _, symlink};

    use super::*;

    #[test]
    fn holes_links_and_second_names_count_nothing() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("data");
        fs::create_dir(&data).unwrap();
        let file = File::create(data.join("file")).unwrap();
        file.write_all_at(&[1; 64 * 1024], 0).unwrap();
        file.set_len(1 << 40).unwrap();
        file.sync_all().unwrap();
        let alone = bytes_on_disk([&data]);
        assert!((64 * 1024..1 << 20).contains(&alone), "{alone}");
        fs::hard_link(data.join("file"), data.join("again")).unwrap();
        symlink("/usr", data.join("elsewhere")).unwrap();
        assert!(bytes_on_disk([&data]) < alone + 64 * 1024);
        assert_eq!(bytes_on_disk([&data, &data.join("file")]), bytes_on_disk([&data]));
        let link = base.path().join("link");
        symlink(&data, &link).unwrap();
        assert_eq!(bytes_on_disk([&link]), bytes_on_disk([&data]));
        assert_eq!(bytes_on_disk([base.path().join("nothing")]), 0);
    }
}
