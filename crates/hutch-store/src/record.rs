//! What is written down about a sandbox.
//!
//! Every file carries `format_version`. A file of a newer version is refused with a sentence that says so, before its
//! other fields are looked at.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use hutch_policy::settings::Inspect;
use hutch_sys::process::ProcessIdentity;
use jiff::Timestamp;
use serde::de::{DeserializeOwned, Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::name::{SandboxId, SandboxName};

/// The version that this code writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// What a caller says about a sandbox to be made; the store adds identity and time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The agent's name.
    pub agent: String,
    /// The template its root file system comes from.
    pub template: TemplateReference,
    /// Directories and files of the host; the first one is where sessions start.
    pub workspaces: Vec<Workspace>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Nominal size of the data disk in bytes; the file is sparse.
    pub disk_bytes: u64,
    /// Seconds without activity after which it stops by itself; 0 = never.
    pub idle_timeout_s: u64,
    /// Shown by `inspect`.
    pub labels: BTreeMap<String, String>,
    /// Variables of every session. No secrets: the file is plain text.
    pub environment: BTreeMap<String, String>,
    /// When its Docker engine starts.
    pub docker: DockerStart,
}

/// A sandbox as it is on disk (`sandbox.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Number, random, never reused.
    pub id: SandboxId,
    /// What a person calls it; also the directory's name.
    pub name: SandboxName,
    /// The agent's name.
    pub agent: String,
    /// The template its root file system comes from.
    pub template: TemplateReference,
    /// Directories and files of the host; the first one is where sessions start.
    pub workspaces: Vec<Workspace>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest memory in MiB.
    pub memory_mib: u32,
    /// Nominal size of the data disk in bytes; the file is sparse.
    pub disk_bytes: u64,
    /// When it was made: RFC 3339 with nanoseconds.
    pub created_at: Timestamp,
    /// Shown by `inspect`.
    pub labels: BTreeMap<String, String>,
    /// The guest's `/etc/machine-id`: 32 lower-case hexadecimal digits.
    pub machine_id: String,
    /// Seconds without activity after which it stops by itself; 0 = never.
    pub idle_timeout_s: u64,
    /// Variables of every session.
    pub environment: BTreeMap<String, String>,
    /// Which connections have their TLS terminated, where that was said of this sandbox; else the settings decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inspect: Option<Inspect>,
    /// When its Docker engine starts.
    #[serde(default)]
    pub docker: DockerStart,
}

/// When a sandbox's Docker engine starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DockerStart {
    /// When it is first used.
    #[default]
    Lazy,
    /// With the sandbox.
    Eager,
}

/// Which template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateReference {
    /// How a person named it: `shell`.
    pub name: String,
    /// `sha256:…` of what it was made from.
    pub digest: String,
}

/// A directory or file of the host that the sandbox sees at the same path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workspace {
    /// Absolute, without `.`, `..` or links.
    pub path: HostPath,
    /// The sandbox may not change it.
    pub read_only: bool,
}

/// An absolute path of the host: any bytes.
///
/// Written as a string where it is UTF-8, else as `{"hex": "…"}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPath(PathBuf);

/// A path that is not absolute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is not an absolute path", path.display())]
pub struct HostPathError {
    /// The path.
    pub path: PathBuf,
}

impl HostPath {
    /// Takes an absolute path.
    pub fn new(path: impl Into<PathBuf>) -> Result<Self, HostPathError> {
        let path = path.into();
        if path.is_absolute() { Ok(Self(path)) } else { Err(HostPathError { path }) }
    }

    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// The bytes of the path.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_os_str().as_bytes()
    }
}

impl Serialize for HostPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("hex", &hex::encode(self.as_bytes()))?;
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for HostPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathVisitor;
        impl<'de> Visitor<'de> for PathVisitor {
            type Value = HostPath;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an absolute path, or {\"hex\": …}")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<HostPath, E> {
                HostPath::new(text).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<HostPath, A::Error> {
                let (key, value) = map
                    .next_entry::<String, String>()?
                    .ok_or_else(|| A::Error::missing_field("hex"))?;
                if key != "hex" {
                    return Err(A::Error::unknown_field(&key, &["hex"]));
                }
                let bytes = hex::decode(value).map_err(A::Error::custom)?;
                HostPath::new(OsString::from_vec(bytes)).map_err(A::Error::custom)
            }
        }
        deserializer.deserialize_any(PathVisitor)
    }
}

/// Which keeper runs a sandbox (`keeper.json`); means something only while the lock is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeeperRecord {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The keeper's process number.
    pub pid: u32,
    /// When that process started, in clock ticks after boot.
    pub start_time: u64,
    /// Its socket, wherever the runtime directory of the command that started it was.
    pub socket: HostPath,
}

impl KeeperRecord {
    /// The process it names.
    pub fn process(&self) -> ProcessIdentity {
        ProcessIdentity { pid: self.pid, start_time: self.start_time }
    }
}

/// How a sandbox ended last (`status.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastEnd {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// When.
    pub at: Timestamp,
    /// The guest synced and unmounted everything and powered off.
    pub clean: bool,
    /// One sentence.
    pub reason: String,
    /// After a failure the last lines of the guest's console, printable.
    #[serde(default)]
    pub console: Vec<String>,
}

/// Why a file's content cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A later version of Hutch wrote it.
    #[error(
        "it has format {found}, and this version of hutch reads up to {FORMAT_VERSION}: use a newer hutch"
    )]
    Newer {
        /// Its version.
        found: u32,
    },
    /// Damaged, truncated, or something else.
    #[error("it is damaged")]
    Damaged(#[source] serde_json::Error),
    /// A field has a value that it cannot have.
    #[error("it is damaged: {what}")]
    Invalid {
        /// Which, and why.
        what: String,
    },
}

/// Only what every version has.
#[derive(Deserialize)]
struct Versioned {
    format_version: u32,
}

/// Reads a file's content, its version first.
pub(crate) fn parse<T: DeserializeOwned>(content: &[u8]) -> Result<T, FormatError> {
    let Versioned { format_version } =
        serde_json::from_slice(content).map_err(FormatError::Damaged)?;
    if format_version > FORMAT_VERSION {
        return Err(FormatError::Newer { found: format_version });
    }
    serde_json::from_slice(content).map_err(FormatError::Damaged)
}

/// The file's content, for people to read too.
pub(crate) fn print<T: Serialize>(value: &T) -> Vec<u8> {
    // Only maps with keys that are no strings and failing `Serialize` implementations give an error, and there are none.
    let mut content = serde_json::to_vec_pretty(value).unwrap_or_default();
    content.push(b'\n');
    content
}

impl SandboxRecord {
    /// Refuses values that a VM cannot be made from.
    pub(crate) fn check(&self) -> Result<(), FormatError> {
        let invalid = |what: &str| Err(FormatError::Invalid { what: what.to_owned() });
        if !crate::name::is_lower_hex(&self.machine_id, 32) {
            return invalid("machine_id is not 32 lower-case hexadecimal digits");
        }
        if self.cpus == 0 || self.memory_mib == 0 || self.disk_bytes == 0 {
            return invalid("cpus, memory_mib and disk_bytes must be above 0");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_are_text_are_written_as_text() {
        let path = HostPath::new("/srv/ä b").unwrap();
        assert_eq!(serde_json::to_string(&path).unwrap(), "\"/srv/ä b\"");
        let path = HostPath::new(OsString::from_vec(b"/\xff".to_vec())).unwrap();
        assert_eq!(serde_json::to_string(&path).unwrap(), r#"{"hex":"2fff"}"#);
    }

    #[test]
    fn other_paths_are_refused() {
        for text in
            [r#""relative""#, r#"{"hex":"zz"}"#, r#"{"hex":"41"}"#, "{}", "1", r#"{"x":"2f"}"#]
        {
            assert!(serde_json::from_str::<HostPath>(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_path_survives(bytes in proptest::collection::vec(1_u8.., 0..100)) {
            let path = HostPath::new(OsString::from_vec([b"/".to_vec(), bytes].concat())).unwrap();
            let text = serde_json::to_vec(&path).unwrap();
            prop_assert_eq!(serde_json::from_slice::<HostPath>(&text).unwrap(), path);
        }

        #[test]
        fn parsing_a_record_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let parsed: Result<SandboxRecord, _> = parse(&bytes);
            prop_assert!(parsed.is_err());
        }
    }
}
