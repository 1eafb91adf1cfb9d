//! Starting programs: always with an empty environment, so that nothing of ours leaks by default.
//!
//! [`command`] is for tools that we run and wait for. [`Launch`] is for the long-lived programs of a sandbox: they get the
//! descriptors that are named and no other, a session of their own, limits, a jail, and they die with us.
//!
//! In the child, between `fork` and `exec`: session → limits → descriptors → jail → death signal → is the parent alive?
//! The death signal comes after the jail because a change of user clears it (`PR_SET_PDEATHSIG`, prctl(2)).

mod launcher;

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use command_fds::{CommandFdExt as _, FdMapping};
pub use rustix::process::Resource;

use crate::jail::{Jail, JailError, JailReport, Stage};

/// A command with a cleared environment but for a fixed `PATH` and `LANG=C.UTF-8`.
#[expect(clippy::disallowed_methods, reason = "this is the wrapper that the ban points to")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8");
    command
}

/// Why a program could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The jail could not be prepared, or not be entered.
    #[error("{program} could not be jailed")]
    Jail {
        /// The program.
        program: String,
        /// Which stage, and why.
        #[source]
        source: JailError,
    },
    /// A descriptor could not be prepared.
    #[error("the descriptors for {program} could not be prepared")]
    Descriptors {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The program could not be started.
    #[error("{program} could not be started")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A program about to be started; see the module.
#[derive(Debug)]
pub struct Launch {
    command: Command,
    inherited: Vec<FdMapping>,
    limits: Vec<(Resource, u64)>,
    session: bool,
    dies_with_us: bool,
    jail: Option<Jail>,
}

/// A started program and what its jail holds.
#[derive(Debug)]
pub struct Launched {
    /// The process. Dropping it neither kills nor reaps.
    pub child: Child,
    /// Empty when no jail was asked for.
    pub report: JailReport,
}

/// The first number of an inherited descriptor in the child, after the standard ones.
const FIRST_INHERITED: i32 = 3;

impl Launch {
    /// A program with an empty environment, standard streams on `/dev/null`, and no other descriptor.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = command(program);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self {
            command,
            inherited: Vec::new(),
            limits: Vec::new(),
            session: false,
            dies_with_us: false,
            jail: None,
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of the otherwise empty environment.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.env(name, value);
        self
    }

    /// Sets the standard input.
    pub fn stdin(&mut self, stream: impl Into<Stdio>) -> &mut Self {
        self.command.stdin(stream);
        self
    }

    /// Sets the standard output.
    pub fn stdout(&mut self, stream: impl Into<Stdio>) -> &mut Self {
        self.command.stdout(stream);
        self
    }

    /// Sets the standard error.
    pub fn stderr(&mut self, stream: impl Into<Stdio>) -> &mut Self {
        self.command.stderr(stream);
        self
    }

    /// Hands a descriptor over and says which number it has in the child: 3, 4, 5, … in the order of the calls.
    pub fn inherit(&mut self, descriptor: impl Into<OwnedFd>) -> i32 {
        let taken = i32::try_from(self.inherited.len()).unwrap_or(i32::MAX - FIRST_INHERITED);
        let child_fd = FIRST_INHERITED + taken;
        self.inherited.push(FdMapping { parent_fd: descriptor.into(), child_fd });
        child_fd
    }

    /// Sets both the soft and the hard limit of a resource.
    pub fn limit(&mut self, resource: Resource, value: u64) -> &mut Self {
        self.limits.push((resource, value));
        self
    }

    /// Starts it in a session of its own: no controlling terminal, no Ctrl-C meant for us.
    pub fn new_session(&mut self) -> &mut Self {
        self.session = true;
        self
    }

    /// Has the kernel kill it (`SIGKILL`) when this process ends in whatever way.
    pub fn die_with_parent(&mut self) -> &mut Self {
        self.dies_with_us = true;
        self
    }

    /// Jails it before it runs its first instruction.
    pub fn jail(&mut self, jail: Jail) -> &mut Self {
        self.jail = Some(jail);
        self
    }

    /// Starts it. Blocks for about a millisecond.
    pub fn start(self) -> Result<Launched, LaunchError> {
        let Self { mut command, inherited, limits, session, dies_with_us, jail } = self;
        let program = command.get_program().to_string_lossy().into_owned();
        let jail = match jail.map(Jail::prepare).transpose() {
            Ok(jail) => jail,
            Err(source) => return Err(LaunchError::Jail { program, source }),
        };
        let report = jail.as_ref().map(|jail| jail.report.clone()).unwrap_or_default();
        let (failed_stage, told) = match io::pipe() {
            Ok(pipe) => pipe,
            Err(source) => return Err(LaunchError::Descriptors { program, source }),
        };
        launcher::before_exec_first(&mut command, session, limits);
        if let Err(collision) = command.fd_mappings(inherited) {
            return Err(LaunchError::Descriptors { program, source: io::Error::other(collision) });
        }
        launcher::before_exec_last(&mut command, jail, dies_with_us, told);
        match launcher::spawn(command) {
            Ok(child) => Ok(Launched { child, report }),
            Err(source) => Err(match launcher::stage(failed_stage) {
                Some(stage) => {
                    LaunchError::Jail { program, source: JailError::Enter { stage, source } }
                }
                None => LaunchError::Start { program, source },
            }),
        }
    }
}

#[cfg(test)]
mod tests;
