//! Landlock: which files can be opened, no TCP, no signals to the outside (landlock(7)).
#![expect(
    unsafe_code,
    reason = "two system calls that no library offers without allocation or at all"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, Scope, make_bitflags,
};

use super::JailError;
use super::report::{JailReport, Outcome, Stage};

/// The newest interface whose rights we know; the library leaves out what the kernel lacks.
const NEWEST: ABI = ABI::V7;

/// What may be done with a path and all below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileAccess {
    /// Read files and list directories.
    Read,
    /// The same, and run programs.
    Execute,
    /// Read and change anything, but for device nodes and running programs.
    Write,
    /// Open a device node to read and write, and control it by `ioctl`.
    Device,
}

impl FileAccess {
    fn rights(self) -> BitFlags<AccessFs> {
        let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        match self {
            Self::Read => read,
            Self::Execute => read | AccessFs::Execute,
            Self::Device => make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}),
            Self::Write => {
                AccessFs::from_all(NEWEST)
                    & !make_bitflags!(AccessFs::{Execute | MakeChar | MakeBlock | IoctlDev})
            }
        }
    }
}

/// One path or open file, and what may be done with it.
#[derive(Debug)]
pub(crate) struct FileRule {
    place: Place,
    access: FileAccess,
}

#[derive(Debug)]
enum Place {
    Path(PathBuf),
    Open(OwnedFd),
}

impl FileRule {
    pub(crate) fn path(path: PathBuf, access: FileAccess) -> Self {
        Self { place: Place::Path(path), access }
    }

    pub(crate) fn open(file: OwnedFd, access: FileAccess) -> Self {
        Self { place: Place::Open(file), access }
    }

    fn into_parts(self) -> Result<(File, BitFlags<AccessFs>), JailError> {
        let (file, path) = match self.place {
            Place::Open(file) => (File::from(file), PathBuf::from("an open file")),
            Place::Path(path) => {
                let mut options = File::options();
                options.read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC);
                match options.open(&path) {
                    Ok(file) => (file, path),
                    Err(source) => return Err(JailError::Path { path, source }),
                }
            }
        };
        let metadata = file.metadata().map_err(|source| JailError::Path { path, source })?;
        let rights = self.access.rights();
        // The kernel refuses rights that mean nothing on a file that is no directory.
        let rights = if metadata.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) };
        Ok((file, rights))
    }
}

/// A finished set of rules.
#[derive(Debug)]
pub(crate) struct Ruleset {
    rules: OwnedFd,
}

impl Ruleset {
    /// Builds the rules; none when the kernel has no Landlock. The report says what the kernel lacks.
    pub(crate) fn build(
        files: Vec<FileRule>,
        tcp: bool,
        report: &mut JailReport,
    ) -> Result<Option<Self>, JailError> {
        let interface = interface_version();
        report_for(interface, tcp, report);
        let refused = |source: RulesetError| JailError::Rules { source };
        let mut ruleset = landlock::Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))
            .map_err(refused)?;
        if !tcp {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST)).map_err(refused)?;
        }
        ruleset = ruleset.scope(Scope::from_all(NEWEST)).map_err(refused)?;
        let mut ruleset = ruleset.create().map_err(refused)?;
        for rule in files {
            let (file, rights) = rule.into_parts()?;
            ruleset = ruleset.add_rule(PathBeneath::new(file, rights)).map_err(refused)?;
        }
        Ok(Option::<OwnedFd>::from(ruleset).map(|rules| Self { rules }))
    }

    /// Restricts the calling thread. Async-signal-safe.
    pub(crate) fn restrict_self(&self) -> io::Result<()> {
        let rules = self.rules.as_fd().as_raw_fd();
        // SAFETY: the call takes a descriptor, open because we borrow it, and a flag word; it reads no memory of ours.
        let result = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, rules, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Which version of Landlock the running kernel has; 0 when none or switched off at boot.
fn interface_version() -> i64 {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel wants a null pointer and a size of 0 and reads no memory (landlock_create_ruleset(2)).
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            VERSION,
        )
    };
    version.max(0)
}

/// Writes down what this version of the interface cannot do.
fn report_for(interface: i64, tcp: bool, report: &mut JailReport) {
    let since = |needed: i64, what: &str, linux: &str| {
        if interface >= needed {
            Outcome::Applied
        } else {
            Outcome::Unavailable {
                reason: format!("{what} (needs Linux {linux} with Landlock enabled)"),
            }
        }
    };
    report.add(
        Stage::Files,
        match interface {
            0 => since(1, "not confined to its own files", "5.13"),
            1 | 2 => Outcome::Partial {
                missing: "truncation of other files is not prevented (needs Linux 6.2)".to_owned(),
            },
            _ => Outcome::Applied,
        },
    );
    if !tcp {
        report.add(Stage::Network, since(4, "TCP is not prevented by Landlock", "6.7"));
    }
    report.add(
        Stage::Scope,
        since(6, "signals to processes of the same user are not prevented", "6.12"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(interface: i64) -> Vec<String> {
        let mut report = JailReport::default();
        report_for(interface, false, &mut report);
        report.weaknesses()
    }

    #[test]
    fn each_older_kernel_is_said_to_lack_more() {
        assert_eq!(report(7), Vec::<String>::new());
        assert_eq!(report(5).len(), 1);
        assert_eq!(report(3).len(), 2);
        assert_eq!(report(2).len(), 3);
        let none = report(0);
        assert!(none.first().unwrap().contains("needs Linux 5.13"), "{none:?}");
    }

    #[test]
    fn writing_includes_neither_devices_nor_running_programs() {
        let rights = FileAccess::Write.rights();
        assert!(rights.contains(AccessFs::WriteFile | AccessFs::Truncate | AccessFs::Refer));
        assert!(!rights.intersects(
            AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev
        ));
    }

    #[test]
    fn a_missing_path_is_named() {
        let error = Ruleset::build(
            vec![FileRule::path("/nonexistent/place".into(), FileAccess::Read)],
            false,
            &mut JailReport::default(),
        )
        .unwrap_err();
        assert!(error.to_string().contains("/nonexistent/place"), "{error}");
    }
}
