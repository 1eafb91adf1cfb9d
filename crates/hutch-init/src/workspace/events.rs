//! Makes watchers in the guest notice what happened on the host.
//!
//! The kernel tells inotify only of changes made through it. So the change is made again, on the hidden mount and by the
//! thread that the worker knows: it answers as if that were done and does nothing. Each name is first marked as to be
//! asked for again, so that the worker can say what makes the change possible (that a name which another program has
//! seen by now does not exist yet).

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use hutch_wire::workspace::{Entry, EntryKind, Event};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;

use super::SeenCounter;
use super::device::Device;
use super::port::Requests;

/// How often a creation is tried: another program may see the name between the mark and the change.
const TRIES: usize = 3;
/// Names that are listed ahead: changes on the host wait meanwhile.
const LISTED_MAX: usize = 2048;
/// Bytes of names read at once.
const LISTING_BUFFER: usize = 32 << 10;

/// The thread's work.
#[derive(Debug)]
pub(super) struct Watchers {
    mount_point: PathBuf,
    device: Arc<Device>,
    requests: Arc<Requests>,
}

impl Watchers {
    pub(super) fn new(mount_point: &Path, device: Arc<Device>, requests: Arc<Requests>) -> Self {
        Self { mount_point: mount_point.to_owned(), device, requests }
    }

    /// Acts on events until there can be no more.
    pub(super) fn run(&self, events: &Receiver<Event>) {
        let mut seen = SeenCounter::default();
        loop {
            let event = match events.try_recv() {
                Ok(event) => event,
                Err(_) => {
                    seen.say(&self.requests);
                    let Ok(event) = events.recv() else { return };
                    event
                }
            };
            // What cannot be shown (gone again, too long) is missed by watchers, not by anyone who looks.
            self.show(&event).ok();
            seen.add(&self.requests);
        }
    }

    fn show(&self, event: &Event) -> io::Result<()> {
        match event {
            Event::Created { entry, kind } => self.created(entry, *kind),
            Event::Deleted { entry, directory } => {
                let (at, name) = self.open(entry)?;
                self.expire(entry);
                let flags = if *directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
                Ok(rustix::fs::unlinkat(at, &*name, flags)?)
            }
            Event::Renamed { from, to } => {
                let ((from_at, name), (to_at, new_name)) = (self.open(from)?, self.open(to)?);
                self.expire(from);
                self.expire(to);
                Ok(rustix::fs::renameat(from_at, &*name, to_at, &*new_name)?)
            }
            Event::Modified { entry, closed } => self.modified(entry, *closed),
            Event::Attributes { entry } => {
                let (at, name) = self.open(entry)?;
                let found = rustix::fs::statat(&at, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
                // Both times together mean a change of attributes to inotify.
                touch(&at, &name, access_time(&found), modification_time(&found))
            }
            Event::Listed { directory } => self.list(directory),
        }
    }

    /// Reads a directory, so that the kernel has its names and their attributes before programs ask.
    fn list(&self, directory: &[u8]) -> io::Result<()> {
        let directory = self.directory(directory, OFlags::RDONLY)?;
        // A listing that the kernel has kept brings no attributes.
        rustix::fs::fadvise(&directory, 0, None, rustix::fs::Advice::DontNeed).ok();
        let mut buffer = Vec::with_capacity(LISTING_BUFFER);
        let mut names = rustix::fs::RawDir::new(directory, buffer.spare_capacity_mut());
        for _ in 0..LISTED_MAX {
            let Some(name) = names.next() else { return Ok(()) };
            name?;
        }
        Ok(())
    }

    fn created(&self, entry: &Entry, kind: EntryKind) -> io::Result<()> {
        let (at, name) = self.open(entry)?;
        let mode = Mode::RUSR | Mode::WUSR;
        for _ in 0..TRIES {
            self.expire(entry);
            let made = match kind {
                EntryKind::Directory => rustix::fs::mkdirat(&at, &*name, mode | Mode::XUSR),
                EntryKind::Link => rustix::fs::symlinkat(c"x", &at, &*name),
                EntryKind::File => make_node(&at, &name, FileType::RegularFile),
                EntryKind::Fifo => make_node(&at, &name, FileType::Fifo),
                EntryKind::Socket => make_node(&at, &name, FileType::Socket),
            };
            match made {
                Err(Errno::EXIST) => {}
                result => return Ok(result?),
            }
        }
        Ok(())
    }

    fn modified(&self, entry: &Entry, closed: bool) -> io::Result<()> {
        let (at, name) = self.open(entry)?;
        let found = rustix::fs::statat(&at, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        // While a file is open for writing it cannot be executed: a program is not opened for this.
        let program = found.st_mode & 0o111 != 0;
        if closed && !program {
            let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            if let Ok(file) = rustix::fs::openat(&at, &*name, flags, Mode::empty()) {
                let size = u64::try_from(found.st_size).unwrap_or(0);
                return Ok(rustix::fs::ftruncate(file, size)?);
            }
        }
        // The modification time alone means a change of content to inotify.
        let keep = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        touch(&at, &name, keep, modification_time(&found))
    }

    /// The directory of an entry. Links are not followed: the host replaced a directory, then, and the event is late.
    fn open(&self, entry: &Entry) -> io::Result<(OwnedFd, CString)> {
        let directory = self.directory(&entry.directory, OFlags::PATH)?;
        Ok((directory, CString::new(entry.name.to_vec())?))
    }

    fn directory(&self, path: &[u8], access: OFlags) -> io::Result<OwnedFd> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &self.mount_point, flags | OFlags::PATH, Mode::empty())?;
        let stay = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        Ok(rustix::fs::openat2(root, CString::new(path)?, flags | access, Mode::empty(), stay)?)
    }

    fn expire(&self, entry: &Entry) {
        self.device.expire(entry.node, &entry.name);
    }
}

fn make_node(at: &OwnedFd, name: &CString, kind: FileType) -> Result<(), Errno> {
    rustix::fs::mknodat(at, &**name, kind, Mode::RUSR | Mode::WUSR, 0)
}

fn touch(at: &OwnedFd, name: &CString, access: Timespec, modification: Timespec) -> io::Result<()> {
    let times = Timestamps { last_access: access, last_modification: modification };
    Ok(rustix::fs::utimensat(at, &**name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn access_time(found: &Stat) -> Timespec {
    Timespec { tv_sec: found.st_atime, tv_nsec: found.st_atime_nsec.try_into().unwrap_or(0) }
}

fn modification_time(found: &Stat) -> Timespec {
    Timespec { tv_sec: found.st_mtime, tv_nsec: found.st_mtime_nsec.try_into().unwrap_or(0) }
}
