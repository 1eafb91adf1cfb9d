//! Finding sandboxes by what a person typed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_agents::nearest;
use hutch_store::atomic;
use hutch_store::{
    CreateError, KeeperRecord, Listed, LoadError, Lock, RemoveError, SandboxId, SandboxName,
    SandboxRecord, Store,
};

use crate::failure::{Blame, Failure, chain};
use crate::plugin::Face;
use crate::settings::Settings;
use crate::start::OTHER_CREATION;

/// How long a keeper that has just ended may hold its lock.
const LAST_STEPS: Duration = Duration::from_secs(10);
/// No file that names a keeper is longer.
const KEEPER_MAX: u64 = 64 * 1024;

/// The sandboxes of this user.
#[derive(Debug)]
pub(crate) struct Sandboxes {
    store: Store,
    face: Face,
}

impl Sandboxes {
    /// Opens the store, which makes its directories.
    pub(crate) fn open(settings: &Settings, face: Face) -> Result<Self, Failure> {
        let store = Store::open(settings.layout.clone())
            .map_err(|error| Failure::from_error(Blame::Host, &error))?;
        Ok(Self { store, face })
    }

    /// The store itself.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// All of them, broken ones included.
    pub(crate) fn list(&self) -> Result<Vec<Listed>, Failure> {
        self.store.list().map_err(|error| Failure::from_error(Blame::Host, &error))
    }

    /// Keeps every other command from making a sandbox, whose template would not be known as used yet.
    pub(crate) fn hold_creation(&self) -> Result<Lock, Failure> {
        self.store
            .lock_creation(OTHER_CREATION)
            .map_err(|error| Failure::from_error(Blame::Host, &error))
    }

    /// The digests of templates that sandboxes stand on. One whose record cannot be read may stand on any.
    pub(crate) fn templates_in_use(&self) -> Result<BTreeSet<String>, Failure> {
        self.list()?
            .into_iter()
            .map(|listed| match listed.record {
                Ok(record) => Ok(record.template.digest),
                Err(_) => Err(Failure::host(format!(
                    "it is not known which template the sandbox `{}` stands on: its record cannot be used",
                    listed.name.to_string_lossy().escape_debug()
                ))
                .hint("remove that sandbox first")),
            })
            .collect()
    }

    /// The record of the sandbox with this name.
    pub(crate) fn load(&self, text: &str) -> Result<SandboxRecord, Failure> {
        let name = SandboxName::parse(text).map_err(|_| self.unknown(text))?;
        self.store.load(&name).map_err(|error| match error {
            LoadError::NotFound { .. } => self.unknown(text),
            error => self.broken(text, &error),
        })
    }

    /// The name of a sandbox, whether its record can be read or not.
    pub(crate) fn name(&self, text: &str) -> Result<SandboxName, Failure> {
        let name = SandboxName::parse(text).map_err(|_| self.unknown(text))?;
        if self.store.paths(&name).directory.symlink_metadata().is_ok() {
            Ok(name)
        } else {
            Err(self.unknown(text))
        }
    }

    /// The record of the sandbox with this name, if there is one.
    pub(crate) fn find(&self, text: &str) -> Result<Option<SandboxRecord>, Failure> {
        let Ok(name) = SandboxName::parse(text) else { return Ok(None) };
        match self.store.load(&name) {
            Ok(record) => Ok(Some(record)),
            Err(LoadError::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.broken(text, &error)),
        }
    }

    /// Removes a sandbox, or what remains of one, with what a keeper that was killed left in the runtime directory.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<(), RemoveError> {
        let leftovers = self.sockets(name);
        self.store.remove(name, LAST_STEPS)?;
        for socket in leftovers {
            // What is not there was removed by its keeper.
            let _gone = std::fs::remove_file(&socket);
            let _gone = std::fs::remove_dir_all(socket.with_extension("vm"));
        }
        Ok(())
    }

    /// Where the sandbox's keeper listens or listened, as far as anything says so.
    fn sockets(&self, name: &OsStr) -> Vec<PathBuf> {
        let Some(Ok(name)) = name.to_str().map(SandboxName::parse) else { return Vec::new() };
        let by_record =
            self.store.load(&name).ok().map(|record| self.store.layout().socket(&record.id));
        // The record may be damaged, and the keeper may have had another runtime directory.
        let by_keeper = atomic::read(&self.store.paths(&name).keeper(), KEEPER_MAX)
            .ok()
            .and_then(|text| serde_json::from_slice::<KeeperRecord>(&text).ok())
            .map(|keeper| keeper.socket.as_path().to_owned())
            .filter(|socket| is_socket_name(socket));
        by_record.into_iter().chain(by_keeper).collect()
    }

    /// The names of all sandboxes, for suggestions.
    pub(crate) fn names(&self) -> Vec<String> {
        let listed = self.store.list().unwrap_or_default();
        listed.into_iter().filter_map(|listed| listed.name.into_string().ok()).collect()
    }

    /// There is no sandbox of this name.
    pub(crate) fn unknown(&self, text: &str) -> Failure {
        let program = self.face.program();
        let names = self.names();
        let hint = match nearest(text, names.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("see what there is: {program} ls"),
        };
        Failure::user(format!("there is no sandbox named `{text}`")).hint(hint)
    }

    /// The files of the sandbox cannot be used.
    fn broken(&self, text: &str, error: &LoadError) -> Failure {
        Failure::host(format!("the sandbox `{text}` cannot be used: {}", chain(error)))
            .hint(format!("remove it: {} rm {text}", self.face.program()))
    }
}

/// Whatever a damaged file says, nothing but a keeper's socket is removed.
fn is_socket_name(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("sock"))
        && path
            .file_stem()
            .and_then(OsStr::to_str)
            .is_some_and(|stem| SandboxId::parse(stem).is_ok())
}

/// A sandbox could not be made.
pub(crate) fn not_created(error: &CreateError) -> Failure {
    match error {
        CreateError::Exists { name } => {
            Failure::user(format!("a sandbox named `{name}` exists already"))
                .hint("choose another name with --name")
        }
        error => Failure::from_error(Blame::Host, error),
    }
}

/// A sandbox could not be removed.
pub(crate) fn not_removed(error: &RemoveError) -> Failure {
    Failure::from_error(Blame::Host, error)
}
