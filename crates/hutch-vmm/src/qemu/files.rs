//! The files of a VM, opened by us: QEMU is given descriptors and opens nothing by a path of the user's.
//!
//! Files that several VMs stand on are marked as used by the descriptor that QEMU inherits, until it has ended.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hutch_store::lock::mark_used;
use rustix::fs::{MemfdFlags, OFlags, SealFlags, fcntl_add_seals, fcntl_getfl, memfd_create};

use crate::{DiskSpec, DiskUse, StartError};

/// Opens a file that QEMU only reads, so that it can open `/proc/self/fd/N` again.
///
/// If QEMU runs as another user who may not read the file, it gets a sealed copy in memory.
pub(super) fn open_for_reading(
    what: &'static str,
    path: &Path,
    as_other_user: bool,
) -> Result<File, StartError> {
    let failed = |source| StartError::File { what, path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("not a regular file")));
    }
    if as_other_user && metadata.mode() & 0o004 == 0 {
        return copy_in_memory(&mut file).map_err(failed);
    }
    mark_used(&file).map_err(failed)?;
    Ok(file)
}

fn copy_in_memory(file: &mut File) -> io::Result<File> {
    let mut copy =
        File::from(memfd_create("image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    io::copy(file, &mut copy)?;
    fcntl_add_seals(
        &copy,
        SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
    )?;
    Ok(copy)
}

/// Gives the disk's file with just the access that the disk has.
pub(super) fn disk(disk: DiskSpec) -> Result<OwnedFd, StartError> {
    let resources = |source| StartError::Resources { source };
    let mode =
        fcntl_getfl(disk.file.as_fd()).map_err(|error| resources(error.into()))? & OFlags::RWMODE;
    let file = match (disk.usage == DiskUse::Image, mode) {
        (true, OFlags::RDONLY) => disk.file,
        (false, OFlags::RDWR) => return Ok(disk.file),
        // QEMU could otherwise write through the descriptor, whatever the device says.
        (true, _) => {
            let path = format!("/proc/self/fd/{}", disk.file.as_raw_fd());
            File::open(path).map_err(resources)?.into()
        }
        (false, _) => {
            return Err(StartError::Spec {
                what: format!("the disk {:?} writable: its file is not open for it", disk.serial),
            });
        }
    };
    // Many stand on it, and none of them makes it.
    mark_used(&file).map_err(resources)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_private_file_is_copied_for_another_user_and_the_copy_is_sealed() {
        let mut source = tempfile::NamedTempFile::new().unwrap();
        source.write_all(b"kernel").unwrap();
        let copied = open_for_reading("kernel", source.path(), true).unwrap();
        assert_eq!(copied.metadata().unwrap().nlink(), 0);
        let mut again = File::options()
            .read(true)
            .open(format!("/proc/self/fd/{}", copied.as_raw_fd()))
            .unwrap();
        let mut content = String::new();
        again.read_to_string(&mut content).unwrap();
        assert_eq!(content, "kernel");
        assert!((&copied).write_all(b"x").is_err());

        let direct = open_for_reading("kernel", source.path(), false).unwrap();
        assert_eq!(direct.metadata().unwrap().nlink(), 1);
        source.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).unwrap();
        let readable = open_for_reading("kernel", source.path(), true).unwrap();
        assert_eq!(readable.metadata().unwrap().nlink(), 1);
    }

    #[test]
    fn a_file_that_vms_stand_on_is_used_as_long_as_its_descriptor_lives() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let used = || hutch_store::lock::is_used(file.path());
        assert!(!used());
        let kernel = open_for_reading("kernel", file.path(), false).unwrap();
        let spec = DiskSpec {
            file: File::open(file.path()).unwrap().into(),
            usage: DiskUse::Image,
            serial: "template".to_owned(),
        };
        let disk = disk(spec).unwrap();
        let inherited = kernel.try_clone().unwrap();
        drop((kernel, disk));
        assert!(used());
        drop(inherited);
        assert!(!used());
    }

    #[test]
    fn missing_files_and_directories_are_named() {
        let error = open_for_reading("initramfs", Path::new("/nonexistent/x"), false).unwrap_err();
        assert_eq!(error.to_string(), "the initramfs /nonexistent/x cannot be opened");
        assert!(open_for_reading("kernel", Path::new("/"), false).is_err());
    }

    #[test]
    fn a_read_only_disk_loses_the_right_to_write() {
        let file = tempfile::tempfile().unwrap();
        let spec = |file: &File, read_only| DiskSpec {
            file: file.try_clone().unwrap().into(),
            usage: if read_only { DiskUse::Image } else { DiskUse::Data },
            serial: "template".to_owned(),
        };
        let mut given = File::from(disk(spec(&file, true)).unwrap());
        assert!(given.write_all(b"x").is_err());
        let mut given = File::from(disk(spec(&file, false)).unwrap());
        given.write_all(b"x").unwrap();

        let readable = File::open("/proc/self/exe").unwrap();
        assert!(matches!(disk(spec(&readable, false)), Err(StartError::Spec { .. })));
    }
}
