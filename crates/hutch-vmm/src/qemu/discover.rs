//! Finds the QEMU of this machine and reads its version.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_sys::process::ProcessIdentity;
use hutch_sys::spawn;

use super::Qemu;
use crate::arch;

/// Where a system or its administrator puts programs.
const DIRECTORIES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/libexec"];
/// The oldest that has what we use (`-sandbox`, JSON devices, the machine options) and that we test with.
const OLDEST: Version = Version { major: 7, minor: 2 };
/// A QEMU that does not answer for so long is not one.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A QEMU version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Why there is no QEMU to use.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// There is none.
    #[error(
        "{program} is not installed: install the package {debian_package} (apt install {debian_package})"
    )]
    Missing {
        /// The program looked for.
        program: &'static str,
        /// The Debian package that has it.
        debian_package: &'static str,
    },
    /// The path that was given cannot be run.
    #[error("{} cannot be run", path.display())]
    Run {
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The program does not say its version as QEMU does.
    #[error("{} does not say a version as QEMU does", path.display())]
    NotQemu {
        /// The path.
        path: PathBuf,
    },
    /// The program is too old.
    #[error("{} is QEMU {found}; version {OLDEST} or newer is needed", path.display())]
    TooOld {
        /// The path.
        path: PathBuf,
        /// Its version.
        found: Version,
    },
}

impl Qemu {
    /// Finds the QEMU for this machine's architecture, or takes the one at `path`, and asks its version. Blocks for as
    /// long as QEMU takes to start, about 50 ms.
    pub fn discover(path: Option<&Path>) -> Result<Self, DiscoverError> {
        let architecture = arch::native();
        let program = match path {
            Some(path) => path.to_owned(),
            None => DIRECTORIES
                .iter()
                .map(|directory| Path::new(directory).join(architecture.program))
                .find(|candidate| candidate.is_file())
                .ok_or(DiscoverError::Missing {
                    program: architecture.program,
                    debian_package: architecture.debian_package,
                })?,
        };
        let said = version_output(&program)
            .map_err(|source| DiscoverError::Run { path: program.clone(), source })?;
        let Some(version) = parse_version(&said) else {
            return Err(DiscoverError::NotQemu { path: program });
        };
        if version < OLDEST {
            return Err(DiscoverError::TooOld { path: program, found: version });
        }
        Ok(Self { program, version })
    }
}

/// Runs `--version`, with an end to it whatever the program is.
fn version_output(program: &Path) -> io::Result<String> {
    let (reader, writer) = io::pipe()?;
    let mut command = spawn::command(program);
    command
        .arg("--version")
        .stdin(std::process::Stdio::null())
        .stdout(writer)
        .stderr(std::process::Stdio::null());
    let mut child = command.spawn()?;
    // Our copy of the write end.
    drop(command);
    if let Ok(process) = ProcessIdentity::of(child.id()).and_then(|identity| identity.open())
        && !process.wait_ended(ANSWER_WITHIN)?
    {
        child.kill()?;
    }
    child.wait()?;
    let mut said = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(reader, 4096), &mut said)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// `QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)` gives 7.2.
fn parse_version(said: &str) -> Option<Version> {
    let (_, version) = said.lines().next()?.split_once("QEMU emulator version ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some(Version { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_several_distributions_are_understood() {
        let version = |said| parse_version(said).map(|version| version.to_string());
        assert_eq!(
            version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright"),
            Some("7.2".into())
        );
        assert_eq!(
            version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"),
            Some("10.0".into())
        );
        assert_eq!(version("QEMU emulator version 9.1.50-dirty"), Some("9.1".into()));
        assert_eq!(version("QEMU emulator version x"), None);
        assert_eq!(version(""), None);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(Version { major: 10, minor: 0 } > Version { major: 7, minor: 2 });
    }

    #[test]
    fn the_qemu_of_this_machine_is_found() {
        let qemu = Qemu::discover(None).unwrap();
        assert!(qemu.version() >= OLDEST);
    }

    #[test]
    fn another_program_is_not_qemu() {
        let error = Qemu::discover(Some(Path::new("/bin/true"))).unwrap_err();
        assert!(matches!(error, DiscoverError::NotQemu { .. }), "{error}");
    }

    #[test]
    fn a_missing_path_is_named() {
        let error = Qemu::discover(Some(Path::new("/nonexistent/qemu"))).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/qemu cannot be run");
    }
}
