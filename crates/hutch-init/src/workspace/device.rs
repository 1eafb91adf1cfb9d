//! `/dev/fuse` and the mount that belongs to it.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

/// Room for the largest request: 1 MiB of data and its headers. The kernel refuses smaller ones.
pub(super) const REQUEST_BUFFER: usize = (1 << 20) + (64 << 10);
/// What the kernel reads ahead of a program: two requests, so that one is on its way while the other is taken in.
const READ_AHEAD_KIB: u32 = 2048;

/// The connection to the kernel.
#[derive(Debug)]
pub(super) struct Device(OwnedFd);

impl Device {
    /// Opens the device and mounts it on a directory.
    ///
    /// The kernel checks permissions itself (`default_permissions`) with the owners and modes that the worker shows, for
    /// every user of the guest (`allow_other`). Device nodes of the host mean nothing here.
    pub(super) fn mount(mount_point: &Path) -> io::Result<Self> {
        // Reading does not wait: the pump waits for the port at the same time.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={}",
            device.as_raw_fd(),
            1 << 20,
        );
        let options = CString::new(options)?;
        mount("hutch", mount_point, "fuse", MountFlags::NODEV, Some(&*options))?;
        Ok(Self(device))
    }

    /// The descriptor, to wait for it.
    pub(super) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Takes the kernel's next request; `EAGAIN` when there is none.
    pub(super) fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::read(&self.0, buffer)
    }

    /// Gives the kernel one whole message.
    pub(super) fn write(&self, message: &[u8]) -> Result<(), Errno> {
        rustix::io::write(&self.0, message).map(drop)
    }

    /// Has the kernel ask again what a name stands for, without dropping what is mounted there.
    pub(super) fn expire(&self, node: u64, name: &[u8]) {
        const INVAL_ENTRY: i32 = 3;
        const EXPIRE_ONLY: u32 = 1;
        let Ok(name_len) = u32::try_from(name.len()) else { return };
        let len = 16 + 16 + name_len + 1;
        let message = [
            &len.to_le_bytes()[..],
            &INVAL_ENTRY.to_le_bytes(),
            &0_u64.to_le_bytes(),
            &node.to_le_bytes(),
            &name_len.to_le_bytes(),
            &EXPIRE_ONLY.to_le_bytes(),
            name,
            &[0],
        ]
        .concat();
        // Nothing to expire is no fault.
        self.write(&message).ok();
    }
}

/// Lets the kernel read ahead as much as one request carries: its own default is 128 KiB. Only possible after the first
/// answer, which sets it. Slower without, never wrong.
pub(super) fn read_ahead(device: u64) {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let file = fs::File::options().write(true).open(path);
    file.and_then(|mut file| {
        io::Write::write_all(&mut file, READ_AHEAD_KIB.to_string().as_bytes())
    })
    .ok();
}
