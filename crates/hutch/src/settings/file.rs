//! `config.toml`.

use std::io;
use std::path::{Path, PathBuf};

use hutch_agents::Agents;
use toml::Table;

use super::Accel;
use super::fields::{Fields, Wrong};
use super::network::NetworkConfig;
use super::registries::RegistriesConfig;
use crate::failure::Failure;
use crate::size::{ByteSize, CpuCount, IdleTime};
use crate::warm::StartMode;

/// Every key, for suggestions.
const KEYS: &[&str] = &[
    "accel",
    "boot_timeout",
    "cpus",
    "detach_keys",
    "disk",
    "idle_timeout",
    "kernel",
    "kernel_modules",
    "memory",
    "network",
    "qemu",
    "registries",
    "snapshots",
    "start",
    "template",
];

/// What the configuration file says; `None` where it does not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FileConfig {
    /// What runs a sandbox's machine: `auto`, `kvm`, `tcg`.
    pub(crate) accel: Option<Accel>,
    /// How long a start may take.
    pub(crate) boot_timeout: Option<IdleTime>,
    /// Virtual CPUs of new sandboxes.
    pub(crate) cpus: Option<CpuCount>,
    /// Key sequence that leaves a session.
    pub(crate) detach_keys: Option<String>,
    /// Disk of new sandboxes.
    pub(crate) disk: Option<ByteSize>,
    /// Time without activity after which new sandboxes stop.
    pub(crate) idle_timeout: Option<IdleTime>,
    /// Kernel image for guests.
    pub(crate) kernel: Option<PathBuf>,
    /// Modules of that kernel.
    pub(crate) kernel_modules: Option<PathBuf>,
    /// Memory of new sandboxes.
    pub(crate) memory: Option<ByteSize>,
    /// The network of sandboxes.
    pub(crate) network: NetworkConfig,
    /// The QEMU program.
    pub(crate) qemu: Option<PathBuf>,
    /// How registries of images are reached.
    pub(crate) registries: RegistriesConfig,
    /// Space for snapshots.
    pub(crate) snapshots: Option<ByteSize>,
    /// Whether sandboxes are resumed from a snapshot: `warm`, `cold`.
    pub(crate) start: Option<StartMode>,
    /// Template of new sandboxes.
    pub(crate) template: Option<String>,
}

impl FileConfig {
    /// Reads the file; one that does not exist says nothing.
    pub(crate) fn read(path: &Path, agents: &Agents) -> Result<Self, Failure> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, agents).map_err(|(what, hint)| {
                Failure::user(format!("{}: {what}", path.display())).hint_if(hint)
            }),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(Self::default())
            }
            Err(error) => Err(Failure::host(format!("{} cannot be read: {error}", path.display()))),
        }
    }

    /// Reads the text of the file.
    pub(crate) fn parse(text: &str, agents: &Agents) -> Result<Self, Wrong> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| {
                text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
            });
            (format!("line {line}: {}", error.message().trim()), None)
        })?;
        let fields = Fields::of_file(&table, KEYS)?;
        Ok(Self {
            accel: fields.parsed("accel")?,
            boot_timeout: fields.parsed("boot_timeout")?,
            cpus: fields.parsed("cpus")?,
            detach_keys: fields.text("detach_keys")?.map(str::to_owned),
            disk: fields.parsed("disk")?,
            idle_timeout: fields.parsed("idle_timeout")?,
            kernel: fields.path("kernel")?,
            kernel_modules: fields.path("kernel_modules")?,
            memory: fields.parsed("memory")?,
            network: fields
                .value("network")
                .map(|value| NetworkConfig::parse(value, agents))
                .transpose()?
                .unwrap_or_default(),
            qemu: fields.path("qemu")?,
            registries: fields
                .value("registries")
                .map(RegistriesConfig::parse)
                .transpose()?
                .unwrap_or_default(),
            snapshots: fields.parsed("snapshots")?,
            start: fields.parsed("start")?,
            template: fields.text("template")?.map(str::to_owned),
        })
    }
}
