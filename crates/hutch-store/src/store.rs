//! Create, list, load, update and remove sandboxes.
//!
//! ```text
//!   .new-XXXX ──rename──▶ <name> ──rename──▶ .trash-XXXX ──▶ gone
//! ```
//!
//! Whatever is left under a name with a dot by a crash is removed by the next [`Store::open`]; whoever still works on one
//! holds its lock.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::atomic::{self, FileError, sync_directory};
use crate::disk::{self, DiskError};
use crate::layout::{Layout, LayoutError, SandboxPaths, make_private};
use crate::lock::{Lock, LockError};
use crate::name::{SandboxId, SandboxName, random_hex};
use crate::record::{
    self, Draft, FORMAT_VERSION, FormatError, KeeperRecord, LastEnd, SandboxRecord,
};

/// Start of the name of a sandbox that is being made.
const NEW: &str = ".new-";
/// Start of the name of a sandbox that is being removed.
const TRASH: &str = ".trash-";
/// No file of ours is larger.
const RECORD_MAX: u64 = 1024 * 1024;
/// How long somebody else may hold a lock that is only ever held for an instant.
const INSTANT: Duration = Duration::from_secs(10);

/// All sandboxes of one user.
#[derive(Debug, Clone)]
pub struct Store {
    layout: Layout,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A directory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A lock.
    #[error(transparent)]
    Lock(#[from] LockError),
}

/// Why a sandbox could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Every name that was allowed is taken.
    #[error("a sandbox named `{name}` exists already")]
    Exists {
        /// The last name that was tried.
        name: SandboxName,
    },
    /// Its data disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Anything else on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random(#[source] getrandom::Error),
}

/// Why a sandbox's files could not be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No such sandbox.
    #[error("there is no sandbox named `{name}`")]
    NotFound {
        /// Its name.
        name: SandboxName,
    },
    /// The content cannot be used.
    #[error("{} cannot be used", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The file cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a sandbox could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// No such sandbox, nor remains of one.
    #[error("there is no sandbox named `{}`", name.display())]
    NotFound {
        /// Its name.
        name: OsString,
    },
    /// It runs, or somebody else removes it.
    #[error("the sandbox `{}` is running", name.display())]
    Running {
        /// Its name.
        name: OsString,
    },
    /// Anything else.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One entry of [`Store::list`].
#[derive(Debug)]
pub struct Listed {
    /// The directory's name; a valid sandbox name unless the entry is broken.
    pub name: OsString,
    /// Somebody holds its lock.
    pub running: bool,
    /// What is written about it, or why that cannot be read.
    pub record: Result<SandboxRecord, LoadError>,
}

impl Store {
    /// Makes the directories where they are missing, and removes what crashes left behind.
    pub fn open(layout: Layout) -> Result<Self, StoreError> {
        layout.prepare()?;
        let store = Self { layout };
        store.sweep()?;
        Ok(store)
    }

    /// Where everything is.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The files of one sandbox.
    pub fn paths(&self, name: &SandboxName) -> SandboxPaths {
        self.layout.sandbox(name)
    }

    /// Held by a command over "look for one, else make one", so that two do not both make one.
    pub fn lock_creation(&self, at_most: Duration) -> Result<Lock, LockError> {
        Lock::take(&self.layout.state.join("create.lock"), at_most)
    }

    /// Makes a sandbox under the first of the names that is free. For one fixed name give that one alone; see
    /// [`SandboxName::and_numbered`].
    pub fn create(
        &self,
        draft: &Draft,
        names: impl IntoIterator<Item = SandboxName>,
    ) -> Result<SandboxRecord, CreateError> {
        self.create_with(draft, names, |path| disk::create(path, draft.disk_bytes))
    }

    /// [`Self::create`] with another way to make the data disk.
    fn create_with(
        &self,
        draft: &Draft,
        names: impl IntoIterator<Item = SandboxName>,
        make_disk: impl FnOnce(&Path) -> Result<(), DiskError>,
    ) -> Result<SandboxRecord, CreateError> {
        let mut names = names.into_iter().peekable();
        // Not worth making a disk for.
        let mut last = None;
        while let Some(name) = names.next_if(|name| self.exists(name)) {
            last = Some(name);
        }
        if let (None, Some(name)) = (names.peek(), last) {
            return Err(CreateError::Exists { name });
        }

        let unfinished = Unfinished::new(self)?;
        make_disk(&unfinished.paths.data())?;
        make_private(&unfinished.paths.logs()).map_err(StoreError::from)?;
        let mut record = SandboxRecord {
            format_version: FORMAT_VERSION,
            id: SandboxId::random().map_err(CreateError::Random)?,
            name: SandboxName::suggest("sandbox", Path::new("/")),
            agent: draft.agent.clone(),
            template: draft.template.clone(),
            workspaces: draft.workspaces.clone(),
            cpus: draft.cpus,
            memory_mib: draft.memory_mib,
            disk_bytes: draft.disk_bytes,
            created_at: Timestamp::now(),
            labels: draft.labels.clone(),
            machine_id: random_hex::<16>().map_err(CreateError::Random)?,
            idle_timeout_s: draft.idle_timeout_s,
            docker: draft.docker,
            environment: draft.environment.clone(),
            inspect: None,
        };
        for name in names {
            record.name = name;
            atomic::write(&unfinished.paths.record(), &record::print(&record))
                .map_err(StoreError::from)?;
            if unfinished.publish(self, &record.name)? {
                return Ok(record);
            }
        }
        Err(CreateError::Exists { name: record.name })
    }

    fn exists(&self, name: &SandboxName) -> bool {
        fs::symlink_metadata(self.paths(name).directory).is_ok()
    }

    /// All sandboxes by name. One that cannot be read is in the list, with the reason.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let mut listed = Vec::new();
        for name in self.entries(|name| !name.as_encoded_bytes().starts_with(b"."))? {
            let record = match name.to_str().map(SandboxName::parse) {
                Some(Ok(parsed)) => match self.load(&parsed) {
                    // Removed between the two looks.
                    Err(LoadError::NotFound { .. }) => continue,
                    loaded => loaded,
                },
                Some(Err(error)) => Err(self.broken_name(&name, error.to_string())),
                None => Err(self.broken_name(&name, "its name is not UTF-8".to_owned())),
            };
            let lock = self.layout.sandboxes().join(&name).join("lock");
            // A lock that cannot be examined is no reason to hide the others.
            let running = Lock::is_held(&lock).unwrap_or(false);
            if let (false, Ok(record)) = (running, &record) {
                self.sweep_runtime(record);
            }
            listed.push(Listed { name, running, record });
        }
        listed.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listed)
    }

    fn broken_name(&self, name: &OsStr, what: String) -> LoadError {
        LoadError::Format {
            path: self.layout.sandboxes().join(name),
            source: FormatError::Invalid { what },
        }
    }

    /// Reads what is written about a sandbox.
    pub fn load(&self, name: &SandboxName) -> Result<SandboxRecord, LoadError> {
        let paths = self.paths(name);
        if !self.exists(name) {
            return Err(LoadError::NotFound { name: name.clone() });
        }
        let path = paths.record();
        let content = atomic::read(&path, RECORD_MAX).map_err(StoreError::from)?;
        let format = |source| LoadError::Format { path: path.clone(), source };
        let record: SandboxRecord = record::parse(&content).map_err(format)?;
        record.check().map_err(format)?;
        if record.name != *name {
            let what = format!("it is the record of `{}`", record.name);
            return Err(format(FormatError::Invalid { what }));
        }
        Ok(record)
    }

    /// Changes what is written about a sandbox; nobody else does so meanwhile. Its name and number stay.
    pub fn update(
        &self,
        name: &SandboxName,
        change: impl FnOnce(&mut SandboxRecord),
    ) -> Result<SandboxRecord, LoadError> {
        let _lock = self.lock_records()?;
        let old = self.load(name)?;
        let mut new = old.clone();
        change(&mut new);
        (new.format_version, new.name, new.id) = (FORMAT_VERSION, old.name, old.id);
        atomic::write(&self.paths(name).record(), &record::print(&new))
            .map_err(StoreError::from)?;
        Ok(new)
    }

    /// Removes a sandbox, or what remains of one: any name from [`Self::list`]. One that runs is refused after
    /// `at_most`, in which a keeper that is about to end may do so.
    pub fn remove(&self, name: impl AsRef<OsStr>, at_most: Duration) -> Result<(), RemoveError> {
        let name = name.as_ref();
        let not_found = || RemoveError::NotFound { name: name.to_owned() };
        // Whatever the name is, nothing outside the directory of all sandboxes can be meant.
        let bytes = name.as_encoded_bytes();
        if bytes.is_empty() || bytes.starts_with(b".") || bytes.contains(&b'/') {
            return Err(not_found());
        }
        let path = self.layout.sandboxes().join(name);
        let metadata = fs::symlink_metadata(&path).map_err(|_| not_found())?;
        let _lock = if metadata.is_dir() {
            match Lock::take(&path.join("lock"), at_most) {
                Ok(lock) => Some(lock),
                Err(LockError::Held { .. }) => {
                    return Err(RemoveError::Running { name: name.to_owned() });
                }
                Err(LockError::Gone { .. }) => return Err(not_found()),
                // A directory on a full disk without a lock file: nobody holds what is not there.
                Err(LockError::File(FileError::DiskFull { .. })) => None,
                Err(error) => return Err(StoreError::from(error).into()),
            }
        } else {
            None
        };
        let trash = self.unused_path(TRASH)?;
        fs::rename(&path, &trash).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => not_found(),
            _ => StoreError::from(FileError::new("remove", &path, error)).into(),
        })?;
        sync_directory(&self.layout.sandboxes()).map_err(StoreError::from)?;
        remove_all(&trash).map_err(StoreError::from)?;
        Ok(())
    }

    /// Removes what a keeper that was killed left in the runtime directory. Untidy, but no reason to refuse anything, so
    /// that what cannot be removed stays.
    fn sweep_runtime(&self, record: &SandboxRecord) {
        let paths = self.paths(&record.name);
        // Where the dead keeper had its files, not where a new one would have them: the environment may be another.
        let Ok(Some(keeper)) = self.read_optional::<KeeperRecord>(&paths.keeper()) else { return };
        let socket = keeper.socket.as_path();
        if socket.file_name() != self.layout.socket(&record.id).file_name() {
            return;
        }
        let scratch = socket.with_extension("vm");
        let left = |path: &Path| fs::symlink_metadata(path).is_ok();
        if !left(socket) && !left(&scratch) {
            return;
        }
        // A new keeper takes the lock first, and waits for us.
        if let Ok(_lock) = Lock::take_existing(&paths.lock()) {
            drop(fs::remove_file(socket));
            drop(remove_all(&scratch));
        }
    }

    /// The file with the policy that new sandboxes begin with: `users`, which `docker sandbox` reads too, when it exists;
    /// else our own, made with `content` when there is none. Neither is ever written over.
    pub fn default_proxy_config(
        &self,
        users: Option<&Path>,
        content: &str,
    ) -> Result<PathBuf, StoreError> {
        if let Some(users) = users
            && fs::symlink_metadata(users).is_ok()
        {
            return Ok(users.to_owned());
        }
        let path = self.layout.default_proxy_config();
        if fs::symlink_metadata(&path).is_err() {
            make_private(&self.layout.config)?;
            atomic::write_new_file(&path, content.as_bytes())?;
        }
        Ok(path)
    }

    /// Takes the lock that says "running". The keeper does so for its whole life.
    pub fn lock(&self, name: &SandboxName, at_most: Duration) -> Result<Lock, LockError> {
        Lock::take(&self.paths(name).lock(), at_most)
    }

    /// Says whether a keeper runs the sandbox.
    pub fn is_running(&self, name: &SandboxName) -> Result<bool, LockError> {
        if !self.exists(name) {
            return Ok(false);
        }
        Lock::is_held(&self.paths(name).lock())
    }

    /// Which keeper runs the sandbox; `None` where none does, or one has not got so far.
    pub fn keeper(&self, name: &SandboxName) -> Result<Option<KeeperRecord>, LoadError> {
        let keeper: Option<KeeperRecord> = self.read_optional(&self.paths(name).keeper())?;
        Ok(keeper.filter(|keeper| keeper.process().is_alive()))
    }

    /// Writes down which keeper runs the sandbox; the caller holds its lock.
    pub fn write_keeper(&self, name: &SandboxName, keeper: &KeeperRecord) -> Result<(), FileError> {
        atomic::write_for_now(&self.paths(name).keeper(), &record::print(keeper))
    }

    /// How the sandbox ended last; `None` before its first end.
    pub fn last_end(&self, name: &SandboxName) -> Result<Option<LastEnd>, LoadError> {
        self.read_optional(&self.paths(name).status())
    }

    /// Writes down what is to be known of this run should nobody get to say how it ended; the caller holds its lock.
    pub fn expect_end(&self, name: &SandboxName, end: &LastEnd) -> Result<(), FileError> {
        atomic::write_for_now(&self.paths(name).status(), &record::print(end))
    }

    /// Writes down how the sandbox ended; the caller holds its lock.
    pub fn write_last_end(&self, name: &SandboxName, end: &LastEnd) -> Result<(), FileError> {
        atomic::write(&self.paths(name).status(), &record::print(end))
    }

    fn read_optional<T: serde::de::DeserializeOwned>(
        &self,
        path: &Path,
    ) -> Result<Option<T>, LoadError> {
        match atomic::read(path, RECORD_MAX) {
            Ok(content) => record::parse(&content)
                .map(Some)
                .map_err(|source| LoadError::Format { path: path.to_owned(), source }),
            Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// Held for an instant by whoever changes records or makes and sweeps names with a dot.
    fn lock_records(&self) -> Result<Lock, StoreError> {
        Ok(Lock::take(&self.layout.state.join("lock"), INSTANT)?)
    }

    /// A path beside the sandboxes that does not exist yet.
    fn unused_path(&self, start: &str) -> Result<PathBuf, StoreError> {
        let sandboxes = self.layout.sandboxes();
        let random = random_hex::<8>().map_err(|error| {
            FileError::new("name a file in", &sandboxes, io::Error::other(error))
        })?;
        Ok(sandboxes.join(format!("{start}{random}")))
    }

    fn entries(&self, wanted: impl Fn(&OsStr) -> bool) -> Result<Vec<OsString>, FileError> {
        let sandboxes = self.layout.sandboxes();
        let failed = |error| FileError::new("list", &sandboxes, error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&sandboxes).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if wanted(&name) {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Removes what crashes left behind.
    fn sweep(&self) -> Result<(), StoreError> {
        let leftover = |name: &OsStr| {
            let name = name.as_encoded_bytes();
            name.starts_with(NEW.as_bytes()) || name.starts_with(TRASH.as_bytes())
        };
        let leftovers = self.entries(leftover)?;
        if leftovers.is_empty() {
            return Ok(());
        }
        // Whoever makes a directory holds this until it holds the directory's own lock.
        // Untidy, but no reason to refuse a command: the next one tries again.
        let Ok(_lock) = self.lock_records() else { return Ok(()) };
        for name in leftovers {
            let path = self.layout.sandboxes().join(name);
            match Lock::take_existing(&path.join("lock")) {
                Err(LockError::Held { .. }) => {}
                // Again: a leftover that cannot be removed now harms nobody.
                _ => drop(remove_all(&path)),
            }
        }
        Ok(())
    }
}

/// A sandbox that has no name yet; dropping it removes it.
struct Unfinished {
    paths: SandboxPaths,
    _lock: Lock,
}

impl Unfinished {
    fn new(store: &Store) -> Result<Self, StoreError> {
        let _records = store.lock_records()?;
        let paths = SandboxPaths { directory: store.unused_path(NEW)? };
        make_private(&paths.directory)?;
        match Lock::take(&paths.lock(), Duration::ZERO) {
            Ok(lock) => Ok(Self { paths, _lock: lock }),
            Err(error) => {
                drop(remove_all(&paths.directory));
                Err(error.into())
            }
        }
    }

    /// Gives it its name, unless something has that name. The record inside must say the same name already.
    fn publish(&self, store: &Store, name: &SandboxName) -> Result<bool, StoreError> {
        let target = store.paths(name).directory;
        sync_directory(&self.paths.directory)?;
        let renamed =
            renameat_with(CWD, &self.paths.directory, CWD, &target, RenameFlags::NOREPLACE);
        match renamed {
            Ok(()) => {
                sync_directory(&store.layout.sandboxes())?;
                Ok(true)
            }
            Err(rustix::io::Errno::EXIST) => Ok(false),
            Err(error) => Err(FileError::new("make", &target, error.into()).into()),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // After `publish` there is nothing of this name any more.
        drop(remove_all(&self.paths.directory));
    }
}

/// Removes a file or a directory with everything in it; what is not there is fine.
fn remove_all(path: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
