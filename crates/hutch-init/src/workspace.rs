//! The workspaces' file system in the guest: FUSE, with the host's worker at the other end of a port.
//!
//! ```text
//!   programs ─▶ kernel ─▶ /dev/fuse ◀── requests, replies ──▶ port ◀─▶ worker on the host   [`pump`]
//!                 ▲           ▲◀─ notifications ◀─ queue ◀────┤   a thread of their own: the kernel may hold a
//!                 │                                           │   notification up until a reply comes
//!                 └── changes for watchers ◀── events ◀───────┘   [`events`]
//! ```
//!
//! Messages are passed on as they are: what they mean is between the kernel and the worker ([`hutch_wire::workspace`]
//! has the few that are ours). When the port is lost the connection is aborted, so that programs get errors and never
//! hang.

mod ahead;
mod bulk;
mod device;
mod events;
mod local;
mod port;
mod pump;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use hutch_wire::workspace::{Hello, OPCODE_HELLO, OPCODE_SEEN, Seen, VERSION};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};

use self::ahead::Told;
use self::bulk::Bulk;
use self::device::Device;
use self::port::{Replies, Requests};
use self::pump::Pump;
use crate::log;

/// Why the workspaces' file system cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// `/dev/fuse` cannot be opened, or the mount was refused.
    #[error("the workspaces' file system cannot be mounted on {}: {source}", mount_point.display())]
    Mount {
        /// Where.
        mount_point: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The port failed before anything was mounted.
    #[error("the workspace port cannot be used: {0}")]
    Port(#[source] io::Error),
    /// The worker does not answer.
    #[error("the host does not serve the workspaces: {0}")]
    Worker(#[source] io::Error),
    /// No more threads.
    #[error("no thread for the workspaces: {0}")]
    Thread(#[source] io::Error),
}

/// The mounted file system and its threads.
#[derive(Debug)]
pub struct WorkspacePump {
    mount_point: PathBuf,
}

/// Mounts the workspaces' file system on an existing directory and starts to pass messages. Returns when the worker has
/// answered: number `i` of the workspaces is then there under the decimal name `i`. `bulk` is the open disk of large
/// contents, if the host has given one.
pub fn start(
    port: OwnedFd,
    bulk: Option<OwnedFd>,
    mount_point: &Path,
) -> Result<WorkspacePump, WorkspaceError> {
    rustix::io::ioctl_fionbio(&port, true).map_err(|error| WorkspaceError::Port(error.into()))?;
    let port = Arc::new(port);
    let requests = Arc::new(Requests::new(Arc::clone(&port)));
    let (notify, notifications) = channel();
    let (tell, told) = channel();
    let (announce, announced) = channel();
    let device = Device::mount(mount_point)
        .map_err(|source| WorkspaceError::Mount { mount_point: mount_point.to_owned(), source })?;
    let pump = WorkspacePump { mount_point: mount_point.to_owned() };
    let device = Arc::new(device);
    let events = events::Watchers::new(mount_point, Arc::clone(&device), Arc::clone(&requests));
    spawn("workspace-events", move || {
        announce.send(rustix::thread::gettid()).ok();
        events.run(&told);
    })?;
    let event_thread =
        announced.recv().map_err(|_| WorkspaceError::Thread(io::ErrorKind::Other.into()))?;
    // Before the kernel's first request, which waits in the device.
    let event_thread = event_thread.as_raw_pid().unsigned_abs();
    let hello = Hello { version: VERSION, event_thread };
    let hello =
        hello.encode().map_err(|_| WorkspaceError::Port(io::ErrorKind::InvalidData.into()))?;
    requests.send_own(OPCODE_HELLO, &hello).map_err(WorkspaceError::Port)?;
    {
        let (device, requests) = (Arc::clone(&device), Arc::clone(&requests));
        spawn("workspace-notify", move || pass_notifications(&device, &requests, &notifications))?;
    }
    {
        let mount_point = mount_point.to_owned();
        let told = Told::new(event_thread);
        let pump =
            Pump::new(device, requests, Replies::new(port), Bulk::new(bulk), notify, tell, told);
        spawn("workspace-pump", move || abort(&mount_point, pump.run()))?;
    }
    // The first look waits until the worker has answered the kernel's first request.
    let root =
        rustix::fs::stat(mount_point).map_err(|error| WorkspaceError::Worker(error.into()))?;
    device::read_ahead(root.st_dev);
    Ok(pump)
}

impl WorkspacePump {
    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Writes back what is still in memory, then unmounts, also while files are open: who uses them gets errors. The
    /// threads end with the mount and the port.
    pub fn stop(self) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if let Ok(root) = rustix::fs::open(&self.mount_point, flags, Mode::empty()) {
            rustix::fs::syncfs(root).ok();
        }
        // Forced, because a request without an answer would otherwise never end once the mount has no name.
        Ok(unmount(&self.mount_point, UnmountFlags::FORCE | UnmountFlags::DETACH)?)
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), WorkspaceError> {
    let builder = thread::Builder::new().name(name.to_owned());
    builder.spawn(work).map(drop).map_err(WorkspaceError::Thread)
}

/// Ends the file system for everybody: whoever waits for an answer gets an error, and so does whoever asks later.
fn abort(mount_point: &Path, end: io::Result<()>) {
    match end {
        // Unmounted: the usual end.
        Ok(()) => return,
        Err(error) => log::warn(format!("workspaces lost: {error}")),
    }
    // Forcing aborts the connection before it fails because the file system is in use.
    unmount(mount_point, UnmountFlags::FORCE).ok();
}

/// Notifications to the kernel, in order.
fn pass_notifications(device: &Device, requests: &Requests, notifications: &Receiver<Vec<u8>>) {
    let mut seen = SeenCounter::default();
    loop {
        let message = match notifications.try_recv() {
            Ok(message) => message,
            Err(_) => {
                seen.say(requests);
                let Ok(message) = notifications.recv() else { return };
                message
            }
        };
        // It is no fault when the kernel knows nothing of what is out of date.
        device.write(&message).ok();
        seen.add(requests);
    }
}

/// How many messages were dealt with since the host was told.
#[derive(Debug, Default)]
struct SeenCounter {
    count: u32,
}

impl SeenCounter {
    /// Telling costs a message: so many are told at once.
    const AT_ONCE: u32 = 256;

    fn add(&mut self, requests: &Requests) {
        self.count += 1;
        if self.count >= Self::AT_ONCE {
            self.say(requests);
        }
    }

    fn say(&mut self, requests: &Requests) {
        let count = std::mem::take(&mut self.count);
        if count > 0
            && let Ok(body) = (Seen { count }).encode()
        {
            // If the port is lost, its reader says so.
            requests.send_own(OPCODE_SEEN, &body).ok();
        }
    }
}
