//! Finds the QEMU of this machine and reads its version.
//!
//! Asking QEMU for its version loads all of its libraries, which is a tenth of a warm start. So the answer is written
//! down with what tells this program from another, and whoever knows the answer passes it on.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hutch_sys::process::ProcessIdentity;
use hutch_sys::spawn;
use serde::{Deserialize, Serialize};

use super::Qemu;
use crate::arch;

/// Where a system or its administrator puts programs.
const DIRECTORIES: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/libexec"];
/// The oldest that has what we use (`-sandbox`, JSON devices, the machine options) and that we test with.
const OLDEST: Version = Version { major: 7, minor: 2 };
/// A QEMU that does not answer for so long is not one.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// The version of the file with the answer; another one is as good as none.
const FORMAT_VERSION: u32 = 1;
/// That file has about 200 bytes.
const KNOWN_MAX: u64 = 16 * 1024;

/// A QEMU version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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

/// A text that is not two numbers with a dot between them.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a version like `{OLDEST}`")]
pub struct VersionError(String);

impl FromStr for Version {
    type Err = VersionError;
    fn from_str(text: &str) -> Result<Self, VersionError> {
        let numbers = text.split_once('.').and_then(|(major, minor)| {
            Some(Self { major: major.parse().ok()?, minor: minor.parse().ok()? })
        });
        numbers.ok_or_else(|| VersionError(text.to_owned()))
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
        let program = program(path)?;
        let said = version_output(&program)
            .map_err(|source| DiscoverError::Run { path: program.clone(), source })?;
        let Some(version) = parse_version(&said) else {
            return Err(DiscoverError::NotQemu { path: program });
        };
        Self::known(program, version)
    }

    /// The same; the answer is kept in the file `cache` for as long as the program is the same.
    pub fn discover_once(path: Option<&Path>, cache: &Path) -> Result<Self, DiscoverError> {
        let program = program(path)?;
        let identity = identity(&program);
        if let (Some(known), Some(identity)) = (Known::read(cache), &identity)
            && known.program == program
            && known.identity == *identity
        {
            return Self::known(program, known.version);
        }
        let found = Self::discover(Some(&program))?;
        if let Some(identity) = identity {
            let version = found.version;
            Known { format_version: FORMAT_VERSION, program, identity, version }.write(cache);
        }
        Ok(found)
    }

    /// A QEMU whose version somebody has found out. Asks nobody.
    pub fn known(program: PathBuf, version: Version) -> Result<Self, DiscoverError> {
        if version < OLDEST {
            return Err(DiscoverError::TooOld { path: program, found: version });
        }
        Ok(Self { program, version })
    }
}

/// Where it is.
fn program(path: Option<&Path>) -> Result<PathBuf, DiscoverError> {
    let architecture = arch::native();
    match path {
        Some(path) => Ok(path.to_owned()),
        None => DIRECTORIES
            .iter()
            .map(|directory| Path::new(directory).join(architecture.program))
            .find(|candidate| candidate.is_file())
            .ok_or(DiscoverError::Missing {
                program: architecture.program,
                debian_package: architecture.debian_package,
            }),
    }
}

/// What tells this program file from every other and from its own later content.
fn identity(program: &Path) -> Option<String> {
    let of = std::fs::metadata(program).ok()?;
    let changed = (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
    Some(format!("{} {} {} {changed:?}", of.dev(), of.ino(), of.len()))
}

/// The answer of a program, as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    format_version: u32,
    program: PathBuf,
    identity: String,
    version: Version,
}

impl Known {
    /// Whatever is wrong with the file, the program can be asked again.
    fn read(cache: &Path) -> Option<Self> {
        let content = hutch_store::atomic::read(cache, KNOWN_MAX).ok()?;
        let known: Self = serde_json::from_slice(&content).ok()?;
        (known.format_version == FORMAT_VERSION).then_some(known)
    }

    fn write(&self, cache: &Path) {
        // A path that is not UTF-8 cannot be written down; the program is asked each time.
        if let Ok(content) = serde_json::to_vec_pretty(self)
            && let Err(error) = hutch_store::atomic::write(cache, &content)
        {
            tracing::info!(%error, "the version of the virtual machine monitor is not kept");
        }
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
    fn a_version_is_read_as_it_is_shown() {
        let version = Version { major: 10, minor: 2 };
        assert_eq!(version.to_string().parse(), Ok(version));
        for text in ["", "7", "7.", ".2", "7.2.1", "a.b", "7.2 "] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }

    /// A program that says a version and counts how often it was asked.
    #[expect(clippy::disallowed_methods, reason = "a program of the test's own")]
    fn fake(path: &Path, version: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let asked = path.with_extension("asked");
        let script = format!(
            "#!/bin/sh\necho x >> {}\necho QEMU emulator version {version}\n",
            asked.display()
        );
        std::fs::write(path, script).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_program_is_asked_once_and_again_when_it_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let (program, cache) = (directory.path().join("qemu"), directory.path().join("qemu.json"));
        let found = || Qemu::discover_once(Some(&program), &cache).unwrap().version().to_string();
        let asked =
            || std::fs::read_to_string(program.with_extension("asked")).unwrap().lines().count();
        fake(&program, "9.1.0");
        assert_eq!([found(), found(), found()], ["9.1", "9.1", "9.1"]);
        assert_eq!(asked(), 1);
        std::fs::remove_file(&program).unwrap();
        fake(&program, "10.0.0");
        assert_eq!([found(), found()], ["10.0", "10.0"]);
        assert_eq!(asked(), 2);
        #[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
        std::fs::write(&cache, "{").unwrap();
        assert_eq!(found(), "10.0");
        assert_eq!(asked(), 3);
    }

    #[test]
    fn an_old_version_is_refused_whoever_says_it() {
        let old = Version { major: 7, minor: 1 };
        let error = Qemu::known("/q".into(), old).unwrap_err();
        assert!(matches!(error, DiscoverError::TooOld { .. }), "{error}");
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
