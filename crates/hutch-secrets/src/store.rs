//! `secrets.json` in the configuration directory: what the user gave us, and the tokens of sign-ins.
//!
//! One file for this user alone, written as a whole (temporary file, fsync, rename) under a lock. A file that others can
//! read, that is a link, or that somebody else owns is refused and never repaired silently: whoever could read it may
//! have done so.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Version of the file's form.
const FORMAT_VERSION: u32 = 1;
const FILE: &str = "secrets.json";
const LOCK: &str = "secrets.lock";
/// Largest file that is read.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// How long a writer waits for another one.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// flock(2) knows no time-out, so the lock is tried again that often.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Why the store could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file system operation failed.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was to be done: `read`, `write`.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is not a file of ours alone.
    #[error("{} {what}; it is not used", path.display())]
    Unsafe {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// It cannot be understood. Carries no source, which could quote a value.
    #[error("{} is not a secret store of format version {FORMAT_VERSION} (line {line})", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where reading stopped.
        line: usize,
    },
    /// Another process has held the lock for too long.
    #[error("{} is locked by another process", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

/// A service's name: lower-case letters, digits and `-`, at most 64.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceName(String);

/// Why a text is no service's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a service's name has 1 to 64 lower-case letters, digits and `-`")]
pub struct ServiceNameError;

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, ServiceNameError> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ServiceNameError)
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ServiceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What is kept for one service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// A key that the user gave.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional")]
    pub api_key: Option<Secret>,
    /// The tokens of a sign-in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth: Option<Tokens>,
}

/// The tokens of a sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tokens {
    /// Sent as a bearer.
    #[serde(with = "required")]
    pub access: Secret,
    /// Exchanged for a new access token.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional")]
    pub refresh: Option<Secret>,
    /// The signed statement of who signed in, which some services take as a credential too.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "optional")]
    pub id: Option<Secret>,
    /// When the access token expires, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// What the tokens are good for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
}

mod required {
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    use crate::Secret;

    pub(super) fn serialize<S: Serializer>(secret: &Secret, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(secret.expose())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Secret, D::Error> {
        Secret::parse(String::deserialize(d)?).map_err(de::Error::custom)
    }
}

mod optional {
    use serde::{Deserializer, Serializer};

    use crate::Secret;

    #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        secret: &Option<Secret>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match secret {
            Some(secret) => s.serialize_str(secret.expose()),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Secret>, D::Error> {
        super::required::deserialize(d).map(Some)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    format_version: u32,
    services: BTreeMap<String, Entry>,
}

/// What tells one state of a file from another: time of change, size, identity. None where no file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(Option<[i64; 5]>);

impl Stamp {
    /// The present state of what the path leads to.
    pub fn of(path: &Path) -> Self {
        Self(fs::metadata(path).ok().map(|found| {
            let inode = found.ino().cast_signed();
            let size = found.size().cast_signed();
            [found.mtime(), found.mtime_nsec(), found.ctime_nsec(), size, inode]
        }))
    }
}

/// The store of one configuration directory.
#[derive(Debug, Clone)]
pub struct Store {
    directory: PathBuf,
}

impl Store {
    /// The store in this directory. Nothing is read or made yet.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into() }
    }

    /// The file's present state, to know whether to read it again.
    pub fn stamp(&self) -> Stamp {
        Stamp::of(&self.directory.join(FILE))
    }

    /// Everything that is kept. No file is an empty store.
    pub fn read(&self) -> Result<BTreeMap<String, Entry>, StoreError> {
        let path = self.directory.join(FILE);
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened =
            OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(StoreError::Unsafe { path, what: "is a symbolic link" });
            }
            Err(source) => return Err(StoreError::Io { step: "read", path, source }),
        };
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(StoreError::Io { step: "examine", path, source }),
        };
        let wrong = if !metadata.is_file() {
            Some("is not a regular file")
        } else if metadata.uid() != rustix::process::geteuid().as_raw() {
            Some("belongs to another user")
        } else if metadata.mode() & 0o077 != 0 {
            Some("can be read or changed by other users (it must have mode 0600)")
        } else if metadata.len() > FILE_MAX {
            Some("is far larger than it can be")
        } else {
            None
        };
        if let Some(what) = wrong {
            return Err(StoreError::Unsafe { path, what });
        }
        let mut text = Zeroizing::new(Vec::new());
        if let Err(source) = file.take(FILE_MAX).read_to_end(&mut text) {
            return Err(StoreError::Io { step: "read", path, source });
        }
        match serde_json::from_slice::<Content>(&text) {
            Ok(content) if content.format_version == FORMAT_VERSION => Ok(content.services),
            Ok(_) => Err(StoreError::Format { path, line: 1 }),
            Err(error) => Err(StoreError::Format { path, line: error.line() }),
        }
    }

    /// Changes a service's entry, which is made when there is none, under the lock. One that is empty afterwards goes.
    /// Says whether there was one.
    pub fn change(
        &self,
        service: &ServiceName,
        change: impl FnOnce(&mut Entry),
    ) -> Result<bool, StoreError> {
        self.prepare()?;
        let _lock = self.lock()?;
        let mut services = self.read()?;
        let existed = services.contains_key(service.as_str());
        let entry = services.entry(service.as_str().to_owned()).or_default();
        change(entry);
        if *entry == Entry::default() {
            services.remove(service.as_str());
        }
        self.write(services)?;
        Ok(existed)
    }

    /// Removes all that is kept for a service; says whether there was anything.
    pub fn remove(&self, service: &ServiceName) -> Result<bool, StoreError> {
        // Where nothing is, nothing is made.
        if !self.read()?.contains_key(service.as_str()) {
            return Ok(false);
        }
        self.change(service, |entry| *entry = Entry::default())
    }

    /// Makes the directory, or refuses one that others may change.
    fn prepare(&self) -> Result<(), StoreError> {
        let path = self.directory.clone();
        if let Err(source) = DirBuilder::new().recursive(true).mode(0o700).create(&path) {
            return Err(StoreError::Io { step: "make the directory", path, source });
        }
        match fs::metadata(&path) {
            Ok(found) if found.uid() != rustix::process::geteuid().as_raw() => {
                Err(StoreError::Unsafe { path, what: "belongs to another user" })
            }
            Ok(found) if found.mode() & 0o022 != 0 => {
                Err(StoreError::Unsafe { path, what: "can be changed by other users" })
            }
            Ok(_) => Ok(()),
            Err(source) => Err(StoreError::Io { step: "examine", path, source }),
        }
    }

    fn lock(&self) -> Result<File, StoreError> {
        let path = self.directory.join(LOCK);
        let opened = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(source) => return Err(StoreError::Io { step: "open", path, source }),
        };
        let started = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if started.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(LOCK_RETRY);
                }
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Locked { path }),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    return Err(StoreError::Io { step: "lock", path, source: error.into() });
                }
            }
        }
    }

    fn write(&self, services: BTreeMap<String, Entry>) -> Result<(), StoreError> {
        let path = self.directory.join(FILE);
        let content = Content { format_version: FORMAT_VERSION, services };
        let written = serde_json::to_vec_pretty(&content)
            .map_err(io::Error::other)
            .map(Zeroizing::new)
            .and_then(|text| self.replace(&path, &text));
        written.map_err(|source| StoreError::Io { step: "write", path, source })
    }

    fn replace(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        let mut random = [0_u8; 6];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let temporary = self.directory.join(format!(".write-{}", hex::encode(random)));
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
            file.write_all(text)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().inspect_err(|_| {
            // The name is ours alone; it may never have been made.
            drop(fs::remove_file(&temporary));
        })
    }
}

#[cfg(test)]
mod tests;
