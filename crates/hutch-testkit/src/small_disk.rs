//! A file system that is small enough to be filled.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::account::Account;
use crate::invocation::Invocation;

/// An ext4 file system in a file, mounted; needs root.
#[derive(Debug)]
pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// Makes one of `bytes`.
    #[track_caller]
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let account = Account::root();
        let directory =
            tempfile::Builder::new().prefix("hd-").tempdir_in("/tmp").expect("/tmp is writable");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), open).expect("a new directory can be opened up");
        let image = directory.path().join("image");
        File::create(&image)
            .and_then(|file| file.set_len(bytes))
            .expect("a sparse file can be made");
        let disk = Self { directory };
        fs::create_dir(disk.path()).expect("a directory can be made");
        // No blocks are kept for root: it is root that fills it.
        Invocation::new("mkfs.ext4", account)
            .args(["-q", "-m", "0"])
            .args([&image])
            .run()
            .success();
        Invocation::new("mount", account)
            .args(["-o", "loop"])
            .args([&image, &disk.path()])
            .run()
            .success();
        disk
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// Fills it to the last byte.
    #[track_caller]
    pub fn fill(&self) {
        let mut file = File::create(self.filler()).expect("the filler can be made");
        for size in [1 << 20, 4096, 1] {
            let piece = vec![0_u8; size];
            loop {
                match file.write(&piece) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("cannot fill {}: {error}", self.path().display()),
                }
            }
        }
        file.sync_all().expect("what was written can be synced");
    }

    /// Fills it but for so many bytes.
    #[track_caller]
    pub fn fill_but(&self, bytes: u64) {
        self.fill();
        let file = File::options().write(true).open(self.filler()).expect("the filler is there");
        let length = file.metadata().expect("it can be examined").len();
        file.set_len(length.saturating_sub(bytes)).expect("it can be cut");
        file.sync_all().expect("what was cut can be synced");
    }

    /// Frees what [`SmallDisk::fill`] took.
    #[track_caller]
    pub fn drain(&self) {
        fs::remove_file(self.filler()).expect("the filler is there");
        rustix::fs::sync();
    }

    /// Free bytes.
    #[track_caller]
    #[must_use]
    pub fn free(&self) -> u64 {
        let status = rustix::fs::statvfs(self.path()).expect("it is mounted");
        status.f_bavail * status.f_frsize
    }

    fn filler(&self) -> PathBuf {
        Path::new(&self.path()).join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmount =
            Invocation::new("umount", Account::own()).args(["--lazy"]).args([self.path()]).run();
        if !std::thread::panicking() {
            unmount.success();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_root_it_can_be_filled_and_drained() {
        let disk = SmallDisk::new(8 << 20);
        assert!(disk.free() > 1 << 20);
        disk.fill();
        assert_eq!(disk.free(), 0);
        disk.drain();
        assert!(disk.free() > 1 << 20);
        disk.fill_but(1 << 20);
        assert!((1 << 19..1 << 21).contains(&disk.free()), "{}", disk.free());
    }
}
