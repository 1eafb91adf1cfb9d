//! Warm starts: which snapshot belongs to a start, and how it is made.
//!
//! After a start that had none, one is made in the background by the keeper's program, for the next start of the same
//! shape; `hutch warm` makes it at once. A start never depends on it.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hutch_image::Template;
use hutch_store::Layout;
use hutch_sys::spawn::Launch;
use hutch_vmm::qemu::Qemu;

use crate::failure::{Blame, Failure};
use crate::keeper_client;
use crate::printer::guest_sentence;
use crate::settings::{Machine, Settings};

/// How sandboxes start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum StartMode {
    /// Resumed from a snapshot where there is one; where there is none it is made.
    #[default]
    Warm,
    /// Always from the kernel.
    Cold,
}

/// Something that is no way to start.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a way to start: `warm` or `cold`")]
pub(crate) struct StartModeError(String);

impl FromStr for StartMode {
    type Err = StartModeError;
    fn from_str(text: &str) -> Result<Self, StartModeError> {
        match text {
            "warm" => Ok(Self::Warm),
            "cold" => Ok(Self::Cold),
            _ => Err(StartModeError(text.to_owned())),
        }
    }
}

impl fmt::Display for StartMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Warm => "warm",
            Self::Cold => "cold",
        })
    }
}

/// Programs and libraries that every session needs, by their names in a Debian template; what is missing is left out.
const FILES: &[&str] = &[
    "/usr/bin/bash",
    "/usr/bin/dash",
    "/usr/bin/env",
    "/usr/bin/ls",
    "/usr/bin/cat",
    "/usr/bin/sudo",
    "/usr/bin/id",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/profile",
    "/etc/bash.bashrc",
    "/etc/ld.so.cache",
];
/// The same in the directory of the architecture's libraries.
const LIBRARIES: &[&str] = &["libc.so.6", "libtinfo.so.6", "libselinux.so.1", "libpcre2-8.so.0"];

/// What a snapshot is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotPlan<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) kernel: &'a Path,
    pub(crate) initramfs: &'a Path,
    pub(crate) template: &'a Template,
    pub(crate) accelerator: hutch_vmm::Accelerator,
    pub(crate) qemu: &'a Qemu,
    pub(crate) machine: Machine,
    pub(crate) limit: u64,
}

/// The command that makes it.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotCommand {
    program: PathBuf,
    arguments: Vec<OsString>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    /// It was made now.
    Now,
    /// It was there.
    Before,
    /// Another command is at it.
    ByAnother,
}

impl SnapshotPlan<'_> {
    /// The plan as a command.
    pub(crate) fn command(&self, program: PathBuf) -> SnapshotCommand {
        let mut arguments: Vec<OsString> = vec!["snapshot".into()];
        let mut add = |flag: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            arguments.extend([flag.into(), value.as_ref().to_owned()]);
        };
        add("--images", &self.layout.images);
        add("--runtime", &self.layout.runtime);
        add("--kernel", &self.kernel);
        add("--initramfs", &self.initramfs);
        for layer in &self.template.layers {
            add("--template-layer", layer);
        }
        add("--accelerator", &keeper_client::accelerator_word(self.accelerator));
        add("--qemu", &self.qemu.program());
        add("--qemu-version", &self.qemu.version().to_string());
        add("--cpus", &self.machine.cpus.to_string());
        add("--memory-mib", &self.machine.memory_mib.to_string());
        add("--disk-bytes", &self.machine.disk_bytes.to_string());
        add("--limit", &self.limit.to_string());
        let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        for file in FILES {
            add("--file", file);
        }
        for library in LIBRARIES {
            add("--file", &format!("{libraries}/{library}"));
        }
        SnapshotCommand { program, arguments }
    }
}

impl SnapshotCommand {
    /// Has it made while we go on, and after we have ended. A failure is noted beside the snapshots.
    pub(crate) fn in_background(&self) -> Result<(), Failure> {
        let mut launch = Launch::new(&self.program);
        launch.args(&self.arguments).args(["--background"]).new_session();
        launch.start().map(drop).map_err(|error| Failure::from_error(Blame::Host, &error))
    }

    /// Has it made and waits for it. Blocks.
    pub(crate) fn now(&self) -> Result<Made, Failure> {
        let failed = |error: std::io::Error| {
            Failure::host(format!("{} cannot be run: {error}", self.program.display()))
        };
        let output = hutch_sys::spawn::command(&self.program)
            .args(&self.arguments)
            .output()
            .map_err(failed)?;
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            let why = guest_sentence(&said(&output.stderr));
            return Err(Failure::host(format!("no snapshot was made: {why}"))
                .hint("sandboxes start without one, slower"));
        }
        match said(&output.stdout).as_str() {
            "made" => Ok(Made::Now),
            "exists" => Ok(Made::Before),
            "busy" => Ok(Made::ByAnother),
            other => Err(Failure::bug(format!("the maker of snapshots said `{other}`"))),
        }
    }
}

impl Settings {
    /// Bytes that all snapshots may take.
    pub(crate) fn snapshot_limit(&self) -> u64 {
        self.snapshots.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read_as_they_are_shown() {
        for mode in [StartMode::Warm, StartMode::Cold] {
            assert_eq!(mode.to_string().parse::<StartMode>().unwrap(), mode);
        }
        let error = "hot".parse::<StartMode>().unwrap_err();
        assert_eq!(error.to_string(), "`hot` is not a way to start: `warm` or `cold`");
    }

    #[test]
    fn what_the_maker_says_decides() {
        let said = |script: &str| {
            SnapshotCommand {
                program: "/bin/sh".into(),
                arguments: ["-c", script].map(OsString::from).into(),
            }
            .now()
        };
        assert_eq!(said("echo made").unwrap(), Made::Now);
        assert_eq!(said("echo exists").unwrap(), Made::Before);
        assert_eq!(said("echo busy").unwrap(), Made::ByAnother);
        let failure = format!("{:?}", said("echo no room >&2; exit 1").unwrap_err());
        assert!(failure.contains("no snapshot was made: no room"), "{failure}");
        assert!(said("echo else").is_err());
    }
}
