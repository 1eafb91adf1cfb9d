//! One workspace: its root, whose it is, and what in it the guest may not change.
//!
//! The root is opened once, at the start; renames of its parents do not matter afterwards. A read-only workspace that
//! lies inside a writable one is protected in the writable one as well, by where things are at the moment of the change
//! (the kernel's path of the held file), not by how the guest came to know them: a file that the host replaced there, or
//! moved there, is protected too, and no parent of a protected place can be moved or removed by the guest.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, Statx};
use rustix::io::Errno;

use crate::abi::Name;
use crate::host::{Handle, ProcFd, status};
use crate::owner::{self, Owners};
use crate::spec::WorkspaceSpec;

/// File systems whose other users' changes this machine's kernel does not see (`linux/magic.h`).
const REMOTE: [u64; 9] = [
    0x6969,
    0x517B,
    0xFE53_4D42,
    0xFF53_4D42,
    0x6573_5546,
    0x0102_1997,
    0x5346_414F,
    0x00C3_6400,
    0x7461_636F,
];

/// An opened workspace, not served yet.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) path: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) root: Handle,
    pub(crate) status: Statx,
    /// Where the path's last component is; none for `/`.
    parent: Option<(OwnedFd, Vec<u8>)>,
}

/// Why a workspace cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("the workspace {} cannot be opened", path.display())]
pub struct OpenError {
    /// Its path.
    pub path: PathBuf,
    /// What the system said.
    #[source]
    pub source: std::io::Error,
}

impl Opened {
    /// Opens a workspace's root. The path has no symbolic links: they were resolved when the user named it.
    pub(crate) fn open(spec: &WorkspaceSpec) -> Result<Self, OpenError> {
        let path = spec.path();
        let fail = |source: Errno| OpenError { path: path.to_owned(), source: source.into() };
        if !path.is_absolute() {
            return Err(fail(Errno::INVAL));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).map_err(fail)?;
        let status = status(&root).map_err(fail)?;
        let parent = match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) => {
                let parent = rustix::fs::open(parent, flags, Mode::empty()).map_err(fail)?;
                Some((parent, name.as_bytes().to_vec()))
            }
            _ => None,
        };
        let path = path.to_owned();
        Ok(Self { path, read_only: spec.read_only, root: Arc::new(root), status, parent })
    }
}

/// A place that stays as it is.
#[derive(Debug)]
struct Protected {
    root: Handle,
    parent: OwnedFd,
    name: Vec<u8>,
}

impl Protected {
    /// Where it is now: the place that was named, and wherever the host moved what was there.
    fn paths(&self, proc: &ProcFd) -> Result<[PathBuf; 2], Errno> {
        let named = to_path(proc.path(&self.parent)?).join(OsStr::from_bytes(&self.name));
        Ok([named, to_path(proc.path(&*self.root)?)])
    }
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes))
}

/// One workspace being served.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) read_only: bool,
    pub(crate) root: Handle,
    pub(crate) owners: Owners,
    /// Owner to give what the guest creates, where it would not be that by itself.
    pub(crate) create_as: Option<(u32, u32)>,
    /// Whether changes can be watched at all.
    pub(crate) local: bool,
    protected: Vec<Protected>,
    has_records: AtomicBool,
}

impl Space {
    /// Makes a space of `opened[index]`, with protection of the read-only ones inside it.
    pub(crate) fn new(
        opened: &[Opened],
        index: usize,
        owners: Owners,
        create_as: Option<(u32, u32)>,
    ) -> Result<Self, Errno> {
        let own = &opened[index];
        let inside =
            |other: &&Opened| other.read_only && !own.read_only && is_below(&other.path, &own.path);
        let mut protected = Vec::new();
        for other in opened.iter().filter(inside) {
            if let Some((parent, name)) = &other.parent {
                protected.push(Protected {
                    root: Arc::clone(&other.root),
                    parent: parent.try_clone().map_err(|_| Errno::MFILE)?,
                    name: name.clone(),
                });
            }
        }
        let kind = rustix::fs::fstatfs(&*own.root)?.f_type;
        let local = !REMOTE.contains(&u64::try_from(kind).unwrap_or(0));
        let has_records = AtomicBool::new(owner::marked(&own.root));
        Ok(Self {
            read_only: own.read_only,
            root: Arc::clone(&own.root),
            owners,
            create_as,
            local,
            protected,
            has_records,
        })
    }

    pub(crate) fn has_records(&self) -> bool {
        self.has_records.load(Ordering::Relaxed)
    }

    /// Says that a record is about to be made.
    pub(crate) fn will_record(&self) {
        if !self.has_records.swap(true, Ordering::Relaxed) {
            // Without the mark, the records are shown until the sandbox stops.
            owner::mark(&self.root).ok();
        }
    }

    /// Says whether the guest may change the held file itself.
    pub(crate) fn may_change(&self, proc: &ProcFd, handle: &OwnedFd) -> Result<(), Errno> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        if self.protected.is_empty() {
            return Ok(());
        }
        let path = to_path(proc.path(handle)?);
        self.refuse_if(proc, |protected| path.starts_with(protected))
    }

    /// Says whether the guest may change what `name` in the held directory stands for: make it, remove it, replace it.
    pub(crate) fn may_change_entry(
        &self,
        proc: &ProcFd,
        directory: &OwnedFd,
        name: Name<'_>,
    ) -> Result<(), Errno> {
        if self.read_only {
            return Err(Errno::ROFS);
        }
        if self.protected.is_empty() {
            return Ok(());
        }
        let path = to_path(proc.path(directory)?).join(OsStr::from_bytes(name.bytes()));
        // Below a protected place, the place itself, or a parent of it that would take it along.
        self.refuse_if(proc, |protected| {
            path.starts_with(protected) || protected.starts_with(&path)
        })
    }

    fn refuse_if(&self, proc: &ProcFd, touches: impl Fn(&Path) -> bool) -> Result<(), Errno> {
        for protected in &self.protected {
            if protected.paths(proc)?.iter().any(|path| touches(path)) {
                return Err(Errno::ROFS);
            }
        }
        Ok(())
    }
}

/// Says whether `path` lies in `root`, or is it.
fn is_below(path: &Path, root: &Path) -> bool {
    path.starts_with(root)
}
