//! `config.toml`.

use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::{Table, Value};

use super::Accel;
use crate::failure::Failure;
use crate::nearest::nearest;
use crate::size::{ByteSize, CpuCount, IdleTime};

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
    "qemu",
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
    /// The QEMU program.
    pub(crate) qemu: Option<PathBuf>,
    /// Template of new sandboxes.
    pub(crate) template: Option<String>,
}

impl FileConfig {
    /// Reads the file; one that does not exist says nothing.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map_err(|(what, hint)| {
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

    /// Reads the text of the file; an error is what is wrong, and advice where there is some.
    pub(crate) fn parse(text: &str) -> Result<Self, (String, Option<String>)> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let line = error.span().map_or(1, |span| {
                text.bytes().take(span.start).filter(|byte| *byte == b'\n').count() + 1
            });
            (format!("line {line}: {}", error.message().trim()), None)
        })?;
        let mut config = Self::default();
        for (key, value) in table {
            config.set(&key, &value)?;
        }
        Ok(config)
    }

    fn set(&mut self, key: &str, value: &Value) -> Result<(), (String, Option<String>)> {
        match key {
            "accel" => self.accel = Some(parsed(key, value)?),
            "boot_timeout" => self.boot_timeout = Some(parsed(key, value)?),
            "cpus" => self.cpus = Some(parsed(key, value)?),
            "detach_keys" => self.detach_keys = Some(string(key, value)?.to_owned()),
            "disk" => self.disk = Some(parsed(key, value)?),
            "idle_timeout" => self.idle_timeout = Some(parsed(key, value)?),
            "kernel" => self.kernel = Some(path(key, value)?),
            "kernel_modules" => self.kernel_modules = Some(path(key, value)?),
            "memory" => self.memory = Some(parsed(key, value)?),
            "qemu" => self.qemu = Some(path(key, value)?),
            "template" => self.template = Some(string(key, value)?.to_owned()),
            _ => {
                let hint = nearest(key, KEYS.iter().copied()).map_or_else(
                    || format!("the keys are {}", KEYS.join(", ")),
                    |near| format!("did you mean `{near}`?"),
                );
                return Err((format!("there is no setting `{key}`"), Some(hint)));
            }
        }
        Ok(())
    }
}

fn string<'v>(key: &str, value: &'v Value) -> Result<&'v str, (String, Option<String>)> {
    value.as_str().ok_or_else(|| (format!("`{key}` must be a string in quotes"), None))
}

fn path(key: &str, value: &Value) -> Result<PathBuf, (String, Option<String>)> {
    let path = PathBuf::from(string(key, value)?);
    if path.is_absolute() {
        return Ok(path);
    }
    Err((format!("`{key}` must be an absolute path, not `{}`", path.display()), None))
}

/// A number or a string, whichever a person finds natural.
fn parsed<T: FromStr<Err: std::error::Error>>(
    key: &str,
    value: &Value,
) -> Result<T, (String, Option<String>)> {
    let text = match value {
        Value::Integer(number) => number.to_string(),
        Value::String(text) => text.clone(),
        _ => return Err((format!("`{key}` must be a number or a string"), None)),
    };
    text.parse().map_err(|error: T::Err| (format!("`{key}`: {error}"), None))
}
