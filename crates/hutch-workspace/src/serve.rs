//! From a spec to a served stream, in two steps: [`Prepared::open`] opens the workspaces with all rights that the worker
//! was started with, [`Prepared::serve`] works for the guest, in the jail.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::fs::FileType;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::abi::Reply;
use crate::bulk::Bulk;
use crate::count::Counts;
use crate::locked::locked;
use crate::nodes::Nodes;
use crate::notify::Notifier;
use crate::owner::Owners;
use crate::port::{ReceiveError, Receiver, Sender};
use crate::server::{Answer, Server};
use crate::space::{OpenError, Opened, Space};
use crate::spec::{FORMAT_VERSION, WorkerSpec};
use crate::watch::{self, Watcher};

/// Requests worked on at once. More would not be faster: what is slow on the host (a disk's flush) does not get faster
/// by company, and this many are enough that a short request finds a free thread.
const THREADS: usize = 8;
/// Descriptors that nodes leave to everything else: files open for one request, listings, the stream.
const DESCRIPTORS_RESERVED: u64 = 512;
/// Descriptors for nodes where the system allows as many: each also keeps an inode in the host's memory.
const DESCRIPTORS_MAX: u64 = 200_000;

/// Why a guest is no longer, or never was, served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The spec is of another version.
    #[error("the spec has format {found}, this worker understands {FORMAT_VERSION}")]
    Format {
        /// What it has.
        found: u32,
    },
    /// A workspace cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Something that the work needs is missing.
    #[error("{what} is not available")]
    Setup {
        /// What.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The stream ended otherwise than by the guest's end.
    #[error("the guest's requests cannot be followed any further")]
    Receive(#[from] ReceiveError),
}

/// The workspaces, opened.
#[derive(Debug)]
pub struct Prepared {
    spec: WorkerSpec,
    pub(crate) opened: Vec<Opened>,
    watches_max: usize,
    descriptors_max: Option<usize>,
    bulk: Option<Bulk>,
    counts: Arc<Counts>,
}

impl Prepared {
    /// Opens every workspace of the spec.
    pub fn open(spec: WorkerSpec) -> Result<Self, ServeError> {
        if spec.format_version != FORMAT_VERSION {
            return Err(ServeError::Format { found: spec.format_version });
        }
        let opened: Result<Vec<_>, _> = spec.workspaces.iter().map(Opened::open).collect();
        Ok(Self {
            opened: opened?,
            spec,
            watches_max: watch::watches_max(),
            descriptors_max: None,
            bulk: None,
            counts: Arc::default(),
        })
    }

    /// Large contents go by this file ([`crate::bulk::file`]), which is a disk of the guest.
    #[must_use]
    pub fn with_bulk(mut self, file: Option<OwnedFd>) -> Self {
        self.bulk = file.map(Bulk);
        self
    }

    /// Lowers the watches that are placed at most.
    #[must_use]
    pub fn with_watches_max(mut self, watches_max: usize) -> Self {
        self.watches_max = watches_max;
        self
    }

    /// Lowers the files that are held open at most.
    #[must_use]
    pub fn with_descriptors_max(mut self, descriptors_max: usize) -> Self {
        self.descriptors_max = Some(descriptors_max);
        self
    }

    /// How often the guest will have asked for what.
    pub fn counts(&self) -> Arc<Counts> {
        Arc::clone(&self.counts)
    }

    /// Serves the stream until the other end closes it.
    pub fn serve(self, port: OwnedFd) -> Result<(), ServeError> {
        let setup = |what| move |source: io::Error| ServeError::Setup { what, source };
        let stream = UnixStream::from(port);
        let reading = stream.try_clone().map_err(setup("a second handle of the stream"))?;
        let sender = Sender::new(stream).map_err(setup("a second handle of the stream"))?;
        let sender = Arc::new(sender);
        let server = self.server(Arc::clone(&sender))?;
        let receiver = Mutex::new(Receiver::new(reading));
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                // Without it the guest would go on to believe what is old: better no workspace than that.
                if catch_unwind(AssertUnwindSafe(|| server.watcher.run(&server))).is_err() {
                    tracing::error!("the watcher of the host's changes has failed");
                    sender.close();
                }
            });
            let workers: Vec<_> =
                (0..THREADS).map(|_| scope.spawn(|| work(&server, &receiver, &sender))).collect();
            let results: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            server.notifier.close();
            server.watcher.stop();
            results.into_iter().find_map(|result| result.unwrap_or(Ok(())).err())
        });
        result.map_or(Ok(()), |error| Err(error.into()))
    }

    fn server(self, sender: Arc<Sender>) -> Result<Server, ServeError> {
        let setup = |what| {
            move |source: rustix::io::Errno| ServeError::Setup { what, source: source.into() }
        };
        let nodes = Nodes::new(self.descriptors_max.unwrap_or_else(descriptors_for_nodes));
        let (mut spaces, mut roots) = (Vec::new(), Vec::new());
        let groups: HashSet<u32> = rustix::process::getgroups()
            .unwrap_or_default()
            .into_iter()
            .map(|group| group.as_raw())
            .chain([rustix::process::getegid().as_raw()])
            .collect();
        for (index, opened) in self.opened.iter().enumerate() {
            let (owners, create_as) = self.owners(opened, &groups);
            let space = Space::new(&self.opened, index, owners, create_as)
                .map_err(setup("the file system of a workspace"))?;
            roots.push(nodes.add_root(index, Arc::clone(&space.root), &opened.status));
            spaces.push(space);
        }
        let watcher = Watcher::new(self.watches_max).map_err(setup("inotify"))?;
        let notifier = Notifier::new(sender);
        Server::new(spaces, roots, nodes, watcher, notifier, self.bulk, self.counts)
            .map_err(setup("/proc/self/fd"))
    }

    /// Whose files are the agent's: the worker's own; of a worker that is root, those of the workspace's owner.
    fn owners(&self, opened: &Opened, groups: &HashSet<u32>) -> (Owners, Option<(u32, u32)>) {
        let own_uid = rustix::process::geteuid().as_raw();
        let own_gid = rustix::process::getegid().as_raw();
        let (uid, gid) = (opened.status.stx_uid, opened.status.stx_gid);
        let for_other = own_uid == 0 && uid != 0;
        let owners = Owners {
            host_uid: if for_other { uid } else { own_uid },
            host_gid: if own_uid == 0 { gid } else { own_gid },
            host_groups: if for_other { HashSet::new() } else { groups.clone() },
            guest_uid: self.spec.guest_uid,
            guest_gid: self.spec.guest_gid,
        };
        (owners, for_other.then_some((uid, gid)))
    }

    /// The paths, whether they are read-only, whether they are directories.
    pub(crate) fn places(&self) -> impl Iterator<Item = (&Path, bool, bool)> {
        self.opened.iter().map(|opened| {
            let kind = FileType::from_raw_mode(opened.status.stx_mode.into());
            (opened.path.as_path(), opened.read_only, kind == FileType::Directory)
        })
    }

    /// Where the workspaces are.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.places().map(|(path, ..)| path.to_owned()).collect()
    }
}

/// One thread's life: take the turn, read a message, give the turn away, answer.
///
/// The turn is kept while the answer is a matter of microseconds and nothing else has come yet: giving it away wakes
/// another thread, which costs more than the answer and is in vain when the guest waits for that.
fn work(server: &Server, receiver: &Mutex<Receiver>, sender: &Sender) -> Result<(), ReceiveError> {
    let mut body = Vec::new();
    let mut reply = Reply::new();
    let mut kept = None;
    loop {
        let mut turn = kept.take().unwrap_or_else(|| locked(receiver));
        let received = turn.receive(&mut body);
        kept = match &received {
            Ok(Some(header)) if header.is_short() && turn.is_drained() => Some(turn),
            _ => None,
        };
        let header = match received {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(()),
            Err(error) => {
                // The other threads shall not take up the stream in the middle of a message.
                sender.close();
                return Err(error);
            }
        };
        if server.answer(&header, &body, &mut reply) == Answer::Send
            && sender.reply(&reply, header.changes()).is_err()
        {
            return Ok(());
        }
    }
}

/// Raises the limit of open files as far as it goes, and says how many of them nodes may hold.
fn descriptors_for_nodes() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let wanted = DESCRIPTORS_MAX + DESCRIPTORS_RESERVED;
    let highest = limit.maximum.unwrap_or(wanted).min(wanted);
    let raised = Rlimit { current: Some(highest), maximum: limit.maximum };
    let allowed = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => highest,
        Err(_) => limit.current.unwrap_or(highest),
    };
    usize::try_from(allowed.saturating_sub(DESCRIPTORS_RESERVED).max(16)).unwrap_or(16)
}
