//! The sandbox protocol: what the host asks of init in the guest.
//!
//! The host opens every stream of this version (the guest will open the streams of captured connections). The payload
//! of an open request is one [`Open`] in postcard; on a [`Open::Control`] or [`Open::Exec`] stream follow messages
//! ([`crate::message`]), on every other stream raw bytes.
//!
//! ```text
//!   host                                       init
//!    │ Open::Control ─────────────────────────▶ │  once, first
//!    │ ControlRequest::Attach(AttachSpec) ────▶ │  mounts the sandbox's disks and workspace, starts its container
//!    │ ◀──────────────── ControlReply::Attached │
//!    │ Open::Exec, Open::Stdio{exec, …} ──────▶ │  exec stream number names the session
//!    │ ExecSpec, then ExecRequest… ───────────▶ │
//!    │ ◀──────────── ExecEvent::Started, …      │
//! ```
//!
//! Everything before `Attach` is the same for every sandbox of a template: that is the moment of a snapshot.

use serde::{Deserialize, Serialize};

/// Name of the virtio-serial port that carries the multiplexed channel.
pub const CHANNEL_PORT: &str = "hutch.channel";
/// Name of the virtio-serial port that carries raw FUSE messages between init and the workspace worker.
pub const WORKSPACE_PORT: &str = "hutch.workspace";
/// Start of the serial numbers of the template's read-only disks, see [`TemplateDisk`].
const TEMPLATE_DISK: &str = "template";
/// Serial number of the sandbox's own data disk.
pub const DATA_DISK: &str = "data";
/// Serial number of the disk that large contents of workspaces' files go by, see [`crate::workspace::bulk`].
pub const BULK_DISK: &str = "bulk";

/// A read-only disk of the template: one for each of its layers.
///
/// Its serial number says which layer it is, of how many, so that the guest knows what to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateDisk {
    /// Which layer, from 0, the lowest first.
    pub layer: u8,
    /// How many there are.
    pub layers: u8,
}

impl TemplateDisk {
    /// All disks of a template with so many layers.
    pub fn all(layers: u8) -> impl Iterator<Item = Self> {
        (0..layers).map(move |layer| Self { layer, layers })
    }

    /// The serial number: at most 20 bytes, as virtio-blk has room for.
    pub fn serial(self) -> String {
        format!("{TEMPLATE_DISK}.{}.{}", self.layer, self.layers)
    }

    /// The disk that a serial number means; none for another kind of disk.
    pub fn parse(serial: &str) -> Option<Self> {
        let numbers = serial.strip_prefix(TEMPLATE_DISK)?.strip_prefix('.')?;
        let (layer, layers) = numbers.split_once('.')?;
        let disk = Self { layer: layer.parse().ok()?, layers: layers.parse().ok()? };
        (disk.layer < disk.layers && disk.serial() == serial).then_some(disk)
    }
}

/// A byte string: paths, arguments and variables are not always UTF-8.
pub type Bytes = serde_bytes::ByteBuf;

/// What a new stream is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Open {
    /// The host's one control stream: [`ControlRequest`] one way, [`ControlReply`] the other, one reply a request.
    Control,
    /// Init's log as raw lines of text (init writes, the host only reads).
    Log,
    /// A session: one [`ExecSpec`], then [`ExecRequest`]s one way, [`ExecEvent`]s the other.
    ///
    /// The end of the host's direction, clean or by a reset, kills a session that is not detached, with everything that it
    /// started.
    Exec,
    /// Standard input or output of the session whose exec stream has this number.
    Stdio {
        /// Number of the exec stream.
        exec: u32,
        /// Which of them.
        which: Stdio,
    },
    /// What the sandbox has changed of its template, as the archive of a layer (init writes, the host only reads). It is
    /// whole where the stream ends, and not where it is reset.
    Changes,
}

/// One of a session's byte streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Stdio {
    /// Host to guest; the host's half-close is the process's end of file.
    Stdin,
    /// Guest to host.
    Stdout,
    /// Guest to host.
    Stderr,
    /// Both ways: the terminal of a session with a tty.
    Tty,
}

/// A request on the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// Makes the prepared VM this sandbox. Once only.
    Attach(Box<AttachSpec>),
    /// Is init alive; also sets the clock when it is off by more than a second.
    Ping {
        /// Host's wall clock, nanoseconds since 1970.
        realtime_ns: u64,
    },
    /// Ends every process, syncs, unmounts and powers off. The reply comes before the power goes.
    PowerOff,
    /// From now on these are the proxy's certificates that every tool trusts, in place of those before.
    Trust {
        /// PEM.
        ca_pem: String,
        /// Variables of [`AttachSpec::environment`] that have another value from now on, for sessions that begin later.
        environment: Vec<(Bytes, Bytes)>,
    },
    /// Before `Attach`: does everything that is the same for each sandbox of the template, so that the machine can be
    /// saved. After the reply init waits for a new connection on the port, and takes no more bytes of this one.
    Prepare {
        /// Files of the template, absolute, whose content should be in memory; what is not there is left out.
        files: Vec<Bytes>,
    },
}

/// The reply to a [`ControlRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlReply {
    /// The sandbox is ready for sessions.
    Attached,
    /// Answer to a ping.
    Pong,
    /// The certificates are where every tool looks.
    Trusted,
    /// The machine can be saved.
    Prepared,
    /// Everything is synced and unmounted; the power goes now.
    PoweringOff,
    /// It did not work: one sentence.
    Failed {
        /// What failed and why.
        reason: String,
    },
}

/// Everything that makes a prepared VM one particular sandbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachSpec {
    /// Fresh random bytes from the host, credited to the kernel's pool before anything else runs.
    pub entropy: Bytes,
    /// Host's wall clock, nanoseconds since 1970.
    pub realtime_ns: u64,
    /// Host name in the sandbox.
    pub hostname: String,
    /// 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// Time zone name of the host, if known (`Europe/Berlin`).
    pub time_zone: Option<String>,
    /// Directories and files of the host, in the order to mount them (outer before inner). Number `i` is the child
    /// named by the decimal `i` of the FUSE root served on [`WORKSPACE_PORT`].
    pub workspaces: Vec<WorkspaceMount>,
    /// Environment of every session, before the session's own.
    pub environment: Vec<(Bytes, Bytes)>,
    /// The user that sessions run as unless they say otherwise.
    pub user: String,
    /// Certificates, PEM, of the sandbox's proxy: put where every tool looks. Empty = there is no network.
    pub ca_pem: String,
    /// When the sandbox's Docker engine starts.
    pub engine: EngineStart,
}

/// When a sandbox's Docker engine starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum EngineStart {
    /// When somebody connects to its socket.
    #[default]
    FirstConnection,
    /// At once.
    Attach,
}

impl std::fmt::Debug for AttachSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither entropy nor environment values are for logs.
        f.debug_struct("AttachSpec")
            .field("hostname", &self.hostname)
            .field("workspaces", &self.workspaces)
            .finish_non_exhaustive()
    }
}

/// One workspace as it appears in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceMount {
    /// Absolute path, the same as on the host.
    pub path: Bytes,
    /// Mounted read-only (the host enforces it too).
    pub read_only: bool,
    /// A directory, or a single file.
    pub directory: bool,
}

/// A process to run in the sandbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// Program and arguments; the program is looked for in the session's `PATH`.
    pub argv: Vec<Bytes>,
    /// Variables on top of the sandbox's environment and the user's `HOME`, `USER`, `SHELL`, `PATH`.
    pub environment: Vec<(Bytes, Bytes)>,
    /// Working directory; `None` = the first workspace, or the user's home where there is none.
    pub directory: Option<Bytes>,
    /// `<name|uid>[:<group|gid>]`; `None` = the sandbox's user.
    pub user: Option<String>,
    /// A terminal of this size ([`Stdio::Tty`] is then the only byte stream).
    pub tty: Option<WindowSize>,
    /// Whether a [`Stdio::Stdin`] stream comes; without it standard input is `/dev/null`.
    pub stdin: bool,
    /// All capabilities, instead of the usual container's set.
    pub privileged: bool,
    /// The session goes on when the exec stream ends; no byte streams, output goes to `/dev/null`.
    pub detached: bool,
    /// Files that its program is to find in the home of the sandbox's user, in this order.
    pub seeds: Vec<SeedFile>,
}

impl std::fmt::Debug for ExecSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Arguments and variables may hold secrets.
        f.debug_struct("ExecSpec")
            .field("arguments", &self.argv.len())
            .field("user", &self.user)
            .field("tty", &self.tty)
            .field("detached", &self.detached)
            .finish_non_exhaustive()
    }
}

/// A file in the home of the sandbox's user: what is missing in it is added, and nothing that is there is changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeedFile {
    /// Below the home directory.
    pub path: String,
    /// How it is written.
    pub format: SeedFormat,
    /// What is done.
    pub action: SeedAction,
    /// Its content, in its format.
    pub content: String,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeedFormat {
    /// Merged key by key; missing elements are added to lists.
    Json,
    /// The same.
    Toml,
    /// Written where there is no file.
    Text,
}

/// What is done with a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeedAction {
    /// What is missing is added.
    Merge,
    /// What was added and is unchanged goes again.
    TakeBack,
}

/// Terminal size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// What the host may ask of a running session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecRequest {
    /// The terminal has a new size.
    Resize(WindowSize),
    /// Send this Linux signal number: to the foreground process group of a terminal, else to the session's process group.
    Signal(u8),
    /// From now on the session survives the end of its exec stream.
    Detach,
}

/// What init says about a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecEvent {
    /// It runs, with this process number inside the sandbox.
    Started {
        /// Process number as the sandbox sees it.
        pid: u32,
    },
    /// It could not be started.
    Failed {
        /// Why.
        kind: ExecFailure,
        /// One sentence naming the program, directory or user.
        message: String,
    },
    /// It ended by itself. Comes after the last byte of its output was sent, or two seconds after its end when
    /// something it left behind still holds the output open.
    Exited {
        /// Exit status.
        code: u8,
    },
    /// A signal ended it.
    Signaled {
        /// Linux signal number.
        signal: u8,
    },
}

/// Why a session could not be started; decides the exit status as shells do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExecFailure {
    /// No such program: 127.
    NotFound,
    /// Found, but it cannot be run: 126.
    NotExecutable,
    /// User, directory or another part of the request is wrong: 126.
    Invalid,
    /// The sandbox cannot start processes now (limits, shutting down): 125.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_disk_is_known_by_its_serial_number() {
        for disk in TemplateDisk::all(3).chain(TemplateDisk::all(u8::MAX)) {
            assert!(disk.serial().len() <= 20);
            assert_eq!(TemplateDisk::parse(&disk.serial()), Some(disk));
        }
        for serial in
            ["", "data", "template", "template.", "template.1.1", "template.0.01", "template.0.300"]
        {
            assert_eq!(TemplateDisk::parse(serial), None, "{serial}");
        }
    }
}
