//! What a process gives up before it touches anything that a guest wrote.
//!
//! A [`Jail`] is built by the launcher, prepared while allocation is still allowed, and entered either by a child between
//! `fork` and `exec` ([`crate::spawn::Launch::jail`]) or by the calling process ([`Jail::enter`]). It is entered in the
//! named stages of [`Stage`], in that order. Whatever the running kernel cannot do is in the [`JailReport`]; whatever it
//! can do and refuses is an error. The default is the tightest jail: no file, no network, no privilege.

mod landlock;
mod privileges;
mod report;
mod syscalls;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

pub use self::landlock::FileAccess;
use self::landlock::{FileRule, Ruleset};
pub use self::privileges::{Capabilities, Identity};
pub use self::report::{JailReport, Outcome, Stage};
pub use self::syscalls::{SystemCalls, networking, privileged, refuse_in_every_thread};

/// Why a jail could not be prepared or entered.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A path that was to stay reachable cannot be opened.
    #[error("{} cannot be opened for the jail", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The Landlock rules were refused.
    #[error("the file rules of the jail were refused")]
    Rules {
        /// What the library said.
        #[source]
        source: ::landlock::RulesetError,
    },
    /// The system-call filter could not be compiled.
    #[error("the system-call filter of the jail could not be built")]
    Filter {
        /// What the library said.
        #[source]
        source: seccompiler::BackendError,
    },
    /// Other threads run: they would stay outside.
    #[error(
        "a process with {threads} threads cannot enter a jail: only the calling thread would be inside"
    )]
    Threads {
        /// How many run.
        threads: usize,
    },
    /// A stage failed.
    #[error("the jail could not be entered at the stage {stage}")]
    Enter {
        /// The stage.
        stage: Stage,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The rules of a jail; see the module.
#[derive(Debug)]
pub struct Jail {
    files: Vec<FileRule>,
    identity: Option<Identity>,
    keep: Capabilities,
    tcp: bool,
    system_calls: Option<SystemCalls>,
}

impl Default for Jail {
    fn default() -> Self {
        Self::new()
    }
}

impl Jail {
    /// The tightest jail: no file, no TCP, no signals or abstract sockets to the outside, no capability.
    pub fn new() -> Self {
        Self {
            files: Vec::new(),
            identity: None,
            keep: Capabilities::empty(),
            tcp: false,
            system_calls: None,
        }
    }

    /// Lets the process reach this path and all below it. Opened when the jail is prepared; missing is an error.
    #[must_use]
    pub fn allow_path(mut self, path: impl Into<PathBuf>, access: FileAccess) -> Self {
        self.files.push(FileRule::path(path.into(), access));
        self
    }

    /// Like [`Jail::allow_path`] for a path that some systems lack.
    #[must_use]
    pub fn allow_path_if_present(self, path: impl AsRef<Path>, access: FileAccess) -> Self {
        if path.as_ref().exists() { self.allow_path(path.as_ref(), access) } else { self }
    }

    /// Lets the process reach the open file, or all below the open directory (`O_PATH` is enough).
    #[must_use]
    pub fn allow_open(mut self, file: OwnedFd, access: FileAccess) -> Self {
        self.files.push(FileRule::open(file, access));
        self
    }

    /// Lets the process connect and listen by TCP. Landlock does not see other protocols: see [`networking`].
    #[must_use]
    pub fn allow_tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Changes to this user and group, without supplementary groups. Only root may.
    #[must_use]
    pub fn run_as(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Keeps these capabilities where the process has them; all others go for ever.
    #[must_use]
    pub fn keep_capabilities(mut self, keep: Capabilities) -> Self {
        self.keep = keep;
        self
    }

    /// Filters system calls, as the last stage.
    #[must_use]
    pub fn system_calls(mut self, filter: SystemCalls) -> Self {
        self.system_calls = Some(filter);
        self
    }

    /// Enters the jail with the calling process, which must have a single thread.
    ///
    /// Also makes the process non-dumpable: no core dump, no `ptrace` by the same user, `/proc/PID` belongs to root.
    pub fn enter(self) -> Result<JailReport, JailError> {
        let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
        if threads != 1 {
            return Err(JailError::Threads { threads });
        }
        let prepared = self.prepare()?;
        let mut stage = Stage::Identity;
        prepared.enter(&mut stage).map_err(|source| JailError::Enter { stage, source })?;
        privileges::forbid_dumps()
            .map_err(|source| JailError::Enter { stage: Stage::NotDumpable, source })?;
        let mut report = prepared.report;
        report.add(Stage::NotDumpable, Outcome::Applied);
        Ok(report)
    }

    /// Does everything that allocates, so that a child can enter between `fork` and `exec`.
    pub(crate) fn prepare(self) -> Result<Prepared, JailError> {
        let mut report = JailReport::default();
        if self.identity.is_some() {
            report.add(Stage::Identity, Outcome::Applied);
        }
        report.add(Stage::Capabilities, Outcome::Applied);
        report.add(Stage::NoNewPrivileges, Outcome::Applied);
        let ruleset = Ruleset::build(self.files, self.tcp, &mut report)?;
        let filter =
            self.system_calls.map(|filter| filter.compile(&mut report)).transpose()?.flatten();
        Ok(Prepared { identity: self.identity, keep: self.keep, ruleset, filter, report })
    }
}

/// A jail ready to be entered without allocation.
#[derive(Debug)]
pub(crate) struct Prepared {
    identity: Option<Identity>,
    keep: Capabilities,
    ruleset: Option<Ruleset>,
    filter: Option<seccompiler::BpfProgram>,
    pub(crate) report: JailReport,
}

impl Prepared {
    /// Enters; `stage` tells how far it came. Async-signal-safe: system calls on memory made before, nothing else.
    pub(crate) fn enter(&self, stage: &mut Stage) -> io::Result<()> {
        *stage = Stage::Identity;
        // The bounding set can only be lowered while the process still has CAP_SETPCAP.
        privileges::lower_bounding_set(self.keep)?;
        if let Some(identity) = self.identity {
            privileges::become_identity(identity)?;
        }
        *stage = Stage::Capabilities;
        privileges::drop_capabilities(self.keep)?;
        *stage = Stage::NoNewPrivileges;
        privileges::forbid_new()?;
        *stage = Stage::Files;
        if let Some(ruleset) = &self.ruleset {
            ruleset.restrict_self()?;
        }
        *stage = Stage::SystemCalls;
        if let Some(filter) = &self.filter {
            syscalls::apply(filter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
