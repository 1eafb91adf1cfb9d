//! The role `hutch-keeper snapshot`: makes the saved VM that sandboxes of one shape start from.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use hutch_keeper::snapshot::{self, Making, Shape, SnapshotError};
use hutch_store::{MakeError, Snapshots};

use crate::{AcceleratorArgument, QemuArguments};

/// Make the saved machine that sandboxes start from; started by `hutch`, not by people
#[derive(Debug, Parser)]
#[command(name = "hutch-keeper snapshot")]
pub(crate) struct Arguments {
    /// Directory of guest images, templates and snapshots
    #[arg(long)]
    images: PathBuf,
    /// Directory for what must have a name while it is made
    #[arg(long)]
    runtime: PathBuf,
    /// Kernel image
    #[arg(long)]
    kernel: PathBuf,
    /// Initramfs
    #[arg(long)]
    initramfs: PathBuf,
    /// Disk image of a layer of the template, the lowest first
    #[arg(long = "template-layer", required = true)]
    template_layers: Vec<PathBuf>,
    /// What runs the guest
    #[arg(long)]
    accelerator: AcceleratorArgument,
    #[command(flatten)]
    qemu: QemuArguments,
    /// Virtual CPUs
    #[arg(long)]
    cpus: u32,
    /// Memory in MiB
    #[arg(long)]
    memory_mib: u32,
    /// Size of the data disk in bytes
    #[arg(long)]
    disk_bytes: u64,
    /// File of the template that should be in memory
    #[arg(long = "file")]
    files: Vec<PathBuf>,
    /// Seconds until init must be ready
    #[arg(long, default_value_t = 120)]
    boot_timeout: u64,
    /// Give way to everything else, and do not try again soon what failed
    #[arg(long)]
    background: bool,
    /// Bytes that all snapshots may take; those used longest ago go
    #[arg(long)]
    limit: Option<u64>,
}

/// What came of it, as one word on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Made,
    Exists,
    Busy,
    /// It failed not long ago, and was not tried again.
    FailedBefore,
}

/// How long a snapshot that could not be made is not tried again by itself.
const TRY_AGAIN: Duration = Duration::from_secs(60 * 60);

impl Outcome {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Made => "made",
            Self::Exists => "exists",
            Self::Busy => "busy",
            Self::FailedBefore => "failed before",
        }
    }
}

pub(crate) fn run(
    arguments: Arguments,
) -> Result<Outcome, Box<dyn std::error::Error + Send + Sync>> {
    hutch_keeper::give_up_at_start()?;
    let qemu = arguments.qemu.discover()?;
    let snapshots = Snapshots::new(&arguments.images);
    let shape = Shape {
        accelerator: arguments.accelerator.into(),
        cpus: arguments.cpus,
        memory_mib: arguments.memory_mib,
        disk_bytes: arguments.disk_bytes,
        kernel: arguments.kernel,
        initramfs: arguments.initramfs,
        template_layers: arguments.template_layers,
    };
    let making = Making {
        vmm: &qemu,
        snapshots: &snapshots,
        shape: &shape,
        files: arguments.files,
        runtime: &arguments.runtime,
        boot_timeout: Duration::from_secs(arguments.boot_timeout),
    };
    if arguments.background {
        // What runs in sandboxes comes first. Without the right to give way it is made all the same.
        let _as_it_is = rustix::process::nice(19);
        if snapshots.failed_within(&shape.key(&qemu)?, TRY_AGAIN) {
            return Ok(Outcome::FailedBefore);
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let made = runtime.block_on(async {
        match snapshot::make(&making).await {
            // QEMU before 8.1 can crash an emulated guest (docs/design/002): rare, so that a second try is as good as
            // certain.
            Err(error) if error.is_of_guest() => {
                tracing::warn!(reason = crate::sentence(&error), "trying once more");
                snapshot::make(&making).await
            }
            made => made,
        }
    });
    let outcome = match made {
        Ok(_) => Outcome::Made,
        Err(SnapshotError::Store(MakeError::Exists)) => Outcome::Exists,
        Err(SnapshotError::Store(MakeError::Busy)) => Outcome::Busy,
        Err(error) => {
            if let Ok(key) = shape.key(&qemu) {
                snapshots.note_failure(&key, &crate::sentence(&error));
            }
            return Err(error.into());
        }
    };
    if let Some(limit) = arguments.limit {
        for removed in snapshots.prune(limit) {
            tracing::info!(key = removed.key.as_str(), "removed, to keep to the limit");
        }
    }
    Ok(outcome)
}
