//! Answers requests: one method per operation, each bounded in time and memory, all of them callable at once.
//!
//! Files are never opened for the guest: it is told that opening needs no server (`ENOSYS` to `OPEN` and `OPENDIR`, which
//! saves two round trips a file), and each read or write opens the file for itself. That works because a node stays the
//! same file until the guest forgets it, also when its name is gone; permissions are checked by the guest's kernel
//! (`default_permissions`) against the shown owner, and again by the host against the host user. `O_TRUNC` arrives as a
//! change of size, `O_APPEND` with each write. Locks (`flock`, `fcntl`) stay in the guest: they do not reach the host.
//!
//! A write opens and closes the file before it is answered, so that a program which the guest just built can be run by
//! the host at once (an open writer makes `execve` fail with `ETXTBSY`).

mod ahead;
mod attributes;
mod data;
mod directory;
mod echo;
mod entries;
mod lookup;
mod xattrs;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hutch_wire::workspace::{Hello, OPCODE_HELLO, OPCODE_SEEN, Seen};
use rustix::io::Errno;

use self::directory::Streams;
pub(crate) use self::echo::{Echo, Expected};
use crate::abi::{
    DATA_MAX, Header, Init, MAJOR, MINOR, Malformed, NameError, Reply, Request, init_flag,
};
use crate::bulk::Bulk;
use crate::count::Counts;
use crate::host::{Handle, ProcFd};
use crate::nodes::{Node, Nodes};
use crate::notify::Notifier;
use crate::space::Space;
use crate::watch::Watcher;

/// Seconds that the guest may believe what is watched. Long: a change is told.
const VALID: u64 = 86_400;

/// Everything that the threads share.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) spaces: Vec<Space>,
    /// Root nodes, in the order of the spaces.
    pub(crate) roots: Vec<Arc<Node>>,
    pub(crate) nodes: Nodes,
    pub(crate) proc: ProcFd,
    pub(crate) watcher: Watcher,
    pub(crate) notifier: Notifier,
    pub(crate) echo: Echo,
    pub(crate) counts: Arc<Counts>,
    /// Where large contents go, if there is one.
    bulk: Option<Bulk>,
    streams: Streams,
    /// Files held open for writing since their creation.
    creators: AtomicUsize,
    /// The kernel can be told to ask again without dropping what is mounted.
    pub(crate) expire_only: AtomicBool,
}

/// Whether a reply is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is in the buffer, finished.
    Send,
    /// The operation has none.
    Nothing,
}

impl Server {
    pub(crate) fn new(
        spaces: Vec<Space>,
        roots: Vec<Arc<Node>>,
        nodes: Nodes,
        watcher: Watcher,
        notifier: Notifier,
        bulk: Option<Bulk>,
        counts: Arc<Counts>,
    ) -> Result<Self, Errno> {
        Ok(Self {
            spaces,
            roots,
            nodes,
            proc: ProcFd::open()?,
            watcher,
            notifier,
            echo: Echo::default(),
            counts,
            bulk,
            streams: Streams::default(),
            creators: AtomicUsize::new(0),
            expire_only: AtomicBool::new(true),
        })
    }

    /// Answers one message. Whatever it holds, the guest gets an error at worst.
    pub(crate) fn answer(&self, header: &Header, body: &[u8], reply: &mut Reply) -> Answer {
        reply.clear();
        self.counts.add(header.opcode);
        let request = match Request::parse(header, body) {
            Ok(request) => request,
            Err(error) => return fail(header, reply, errno_of(error)),
        };
        match &request {
            Request::Forget { count } => {
                self.forget(header.node, *count);
                return Answer::Nothing;
            }
            Request::BatchForget { nodes } => {
                for &(node, count) in nodes {
                    self.forget(node, count);
                }
                return Answer::Nothing;
            }
            Request::Own { opcode, body } => {
                self.own_message(*opcode, body);
                return Answer::Nothing;
            }
            _ => {}
        }
        // A bug in one operation must not take the workspace away from the guest.
        let result = catch_unwind(AssertUnwindSafe(|| self.serve(header, &request, reply)));
        match result {
            Ok(Ok(())) => {
                reply.finish(header.unique, reply.code());
                Answer::Send
            }
            Ok(Err(error)) => fail(header, reply, error),
            Err(_) => fail(header, reply, Errno::IO),
        }
    }

    fn serve(
        &self,
        header: &Header,
        request: &Request<'_>,
        reply: &mut Reply,
    ) -> Result<(), Errno> {
        let event = self.echo.is_event_thread(header.pid);
        let node = header.node;
        match *request {
            Request::Init(init) => self.init(init, reply),
            Request::Destroy => Ok(()),
            Request::Lookup { name } => self.lookup(node, name, event, reply),
            Request::GetAttributes => self.get_attributes(node, reply),
            Request::SetAttributes(changes) => self.set_attributes(node, changes, event, reply),
            Request::ReadLink => self.read_link(node, reply),
            Request::Symlink { name, target } => self.symlink(node, name, target, event, reply),
            Request::MakeNode { name, mode } => self.make_node(node, name, mode, event, reply),
            Request::MakeDirectory { name, mode } => {
                self.make_directory(node, name, mode, event, reply)
            }
            Request::Unlink { name } => self.remove(node, name, false, event, reply),
            Request::RemoveDirectory { name } => self.remove(node, name, true, event, reply),
            Request::Rename { name, to, new_name, flags } => {
                self.rename((node, name), (to, new_name), flags, event, reply)
            }
            Request::Link { node: of, name } => self.link(of, node, name, reply),
            Request::Read(read) => self.read(node, read, reply),
            Request::Write(write) => self.write(node, write, reply),
            Request::StatFs => self.stat_fs(node, reply),
            Request::Release { handle } => self.release(node, handle),
            Request::Fsync { data_only } => self.fsync(node, data_only),
            Request::FsyncDirectory { data_only } => self.fsync_directory(node, data_only),
            Request::SetXattr { name, value, flags } => self.set_xattr(node, name, value, flags),
            Request::GetXattr { name, size } => self.get_xattr(node, name, size, reply),
            Request::ListXattr { size } => self.list_xattr(node, size, reply),
            Request::RemoveXattr { name } => self.remove_xattr(node, name),
            Request::ReadDirectory(read) => self.read_directory(node, read, false, reply),
            Request::ReadDirectoryPlus(read) => self.read_directory(node, read, true, reply),
            Request::Create { name, create } => self.create(node, name, create, event, reply),
            Request::TemporaryFile(create) => self.temporary_file(node, create, reply),
            Request::Fallocate(range) => self.fallocate(node, range),
            Request::Seek { offset, whence } => self.seek(node, offset, whence, reply),
            Request::CopyRange { from, to_node, to, length } => {
                self.copy_range((node, from), (to_node, to), length, reply)
            }
            Request::SyncFs => self.sync_fs(),
            // Without an answer to OPEN, OPENDIR, FLUSH, ACCESS, STATX, INTERRUPT, …, the kernel does what we want.
            Request::Interrupt | Request::Other => Err(Errno::NOSYS),
            Request::Forget { .. } | Request::BatchForget { .. } | Request::Own { .. } => Ok(()),
        }
    }

    fn init(&self, init: Init, reply: &mut Reply) -> Result<(), Errno> {
        const WANTED: u32 = init_flag::ASYNC_READ
            | init_flag::BIG_WRITES
            | init_flag::DO_READDIRPLUS
            | init_flag::ASYNC_DIO
            | init_flag::NO_OPEN_SUPPORT
            | init_flag::PARALLEL_DIROPS
            | init_flag::ABORT_ERROR
            | init_flag::MAX_PAGES
            | init_flag::CACHE_SYMLINKS
            | init_flag::NO_OPENDIR_SUPPORT
            | init_flag::EXPLICIT_INVAL_DATA
            | init_flag::HANDLE_KILLPRIV_V2;
        // Requests in the background (read-ahead, releases) at once, and from where on the kernel holds back.
        const BACKGROUND: u16 = 64;
        const CONGESTED: u16 = 48;
        const DATA_PAGES: u16 = 256;
        if init.major < MAJOR {
            return Err(Errno::PROTO);
        }
        self.expire_only.store(init.major > MAJOR || init.minor >= 38, Ordering::Relaxed);
        reply.put_u32(MAJOR);
        reply.put_u32(MINOR.min(init.minor));
        if init.major > MAJOR {
            // The kernel comes again with our version.
            return Ok(());
        }
        let data_max = u32::try_from(DATA_MAX).unwrap_or(u32::MAX);
        reply.put_u32(init.max_readahead.min(data_max));
        reply.put_u32(init.flags & WANTED);
        reply.put_u16(BACKGROUND);
        reply.put_u16(CONGESTED);
        reply.put_u32(data_max);
        // Times have nanoseconds.
        reply.put_u32(1);
        reply.put_u16(DATA_PAGES);
        reply.put_u16(0);
        reply.put(&[0; 32]);
        Ok(())
    }

    fn own_message(&self, opcode: u32, body: &[u8]) {
        match opcode {
            OPCODE_HELLO => {
                if let Ok(hello) = Hello::decode(body) {
                    self.echo.set_event_thread(hello.event_thread);
                }
            }
            OPCODE_SEEN => {
                if let Ok(seen) = Seen::decode(body) {
                    self.notifier.seen(seen.count);
                }
            }
            _ => {}
        }
    }

    fn forget(&self, id: u64, count: u64) {
        if let Some(node) = self.nodes.forget(id, count) {
            self.watcher.unwatch(&node);
            self.drop_creator(&node);
        }
    }

    /// The node and its descriptor.
    fn held(&self, id: u64) -> Result<(Arc<Node>, Handle), Errno> {
        let node = self.nodes.find(id)?;
        let handle = self.nodes.handle(&node)?;
        Ok((node, handle))
    }

    /// The same for a directory.
    fn held_directory(&self, id: u64) -> Result<(Arc<Node>, Handle), Errno> {
        let (node, handle) = self.held(id)?;
        if node.is_directory() { Ok((node, handle)) } else { Err(Errno::NOTDIR) }
    }

    /// The same for a regular file: nothing else is ever opened.
    fn held_file(&self, id: u64) -> Result<(Arc<Node>, Handle), Errno> {
        let (node, handle) = self.held(id)?;
        match node.kind {
            rustix::fs::FileType::RegularFile => Ok((node, handle)),
            rustix::fs::FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    pub(crate) fn space(&self, node: &Node) -> Result<&Space, Errno> {
        self.spaces.get(node.space).ok_or(Errno::STALE)
    }
}

fn errno_of(error: Malformed) -> Errno {
    match error {
        Malformed::Name(NameError::TooLong) => Errno::NAMETOOLONG,
        Malformed::Name(NameError::NotOneComponent)
        | Malformed::Body
        | Malformed::Length { .. } => Errno::INVAL,
    }
}

fn fail(header: &Header, reply: &mut Reply, error: Errno) -> Answer {
    reply.clear();
    // Our own lack of descriptors is the machine's, not the program's in the guest.
    let error = if error == Errno::MFILE { Errno::NFILE } else { error };
    reply.finish(header.unique, -error.raw_os_error());
    Answer::Send
}
