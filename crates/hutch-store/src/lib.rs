//! Every file that Hutch keeps: where it is, who may write it, and in which format.
//!
//! The layout is described for people in `docs/state-layout.md`; this crate is the only code that knows it.
//!
//! ```text
//!   layout     where everything is: a pure function of the environment
//!   programs   where the other programs of Hutch are
//!   name       names and numbers that can only be built by parsing
//!   record     what is written down about a sandbox
//!   store      create, list, load, update, remove
//!   lock       who may do something now, and who runs
//!   disk       the sandbox's data disk
//!   snapshots  saved VMs that sandboxes start from
//!   usage      how much of the disk something takes
//!   atomic     how a file is written
//! ```
//!
//! Two invariants: a sandbox's directory appears complete or not at all (made under another name, then renamed), and a
//! sandbox runs exactly while somebody holds its `lock`, which the kernel releases however the holder ends.

pub mod atomic;
pub mod disk;
pub mod layout;
pub mod lock;
pub mod name;
pub mod programs;
pub mod record;
pub mod snapshots;
pub mod store;
pub mod usage;

pub use self::atomic::FileError;
pub use self::disk::DiskError;
pub use self::layout::{Layout, LayoutError, LayoutInputs, SandboxPaths};
pub use self::lock::{Lock, LockError};
pub use self::name::{AGENT_WORDS, NameError, SandboxId, SandboxName};
pub use self::programs::{Program, ProgramError, Programs};
pub use self::record::{
    DockerStart, Draft, HostPath, KeeperRecord, LastEnd, SandboxRecord, TemplateReference,
    Workspace,
};
pub use self::snapshots::{
    FindError, MakeError, Making, SnapshotFiles, SnapshotKey, SnapshotUse, Snapshots, Unneeded,
};
pub use self::store::{CreateError, Listed, LoadError, RemoveError, Store, StoreError};
