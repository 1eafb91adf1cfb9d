//! A machine of a test's own: an images directory, and a `PATH` on which some programs are scripts of the test.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use hutch_image::Progress;

/// What `apt-get indextargets` says on this machine.
const TARGETS: &str = "http://mirror.test/debian|Debian|Debian|main|bookworm";

pub(crate) struct World {
    directory: tempfile::TempDir,
}

impl World {
    /// A machine with a configured mirror and nothing behind it.
    pub(crate) fn new() -> Self {
        let world = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        fs::create_dir(world.path("bin")).expect("a new directory");
        world.program("apt-config", "exit 0");
        world.program("python3", "exit 1");
        world.program("apt-get", &format!("echo '{TARGETS}'"));
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// Writes a file, and the directories above it.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("below the directory")).expect("directories");
        File::create(&path).and_then(|mut file| file.write_all(content)).expect("a file");
        path
    }

    /// Puts a shell script in the way of a program; each call of it adds a line to the file `calls`.
    pub(crate) fn program(&self, name: &str, script: &str) {
        let calls = self.path("calls");
        let text = format!("#!/bin/sh\necho \"{name} $*\" >>'{}'\n{script}\n", calls.display());
        let path = self.file(&format!("bin/{name}"), text.as_bytes());
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("our own file");
    }

    /// How often a program was called with arguments that contain `part`.
    pub(crate) fn calls(&self, program: &str, part: &str) -> usize {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let start = format!("{program} ");
        text.lines().filter(|line| line.starts_with(&start) && line.contains(part)).count()
    }

    /// The environment of tools on this machine.
    pub(crate) fn environment(&self) -> Vec<(OsString, OsString)> {
        let mut path = self.path("bin").into_os_string();
        path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
        vec![("PATH".into(), path)]
    }

    /// Everything below the images directory but logs and locks.
    pub(crate) fn kept(&self, kind: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.images().join(kind)) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .filter(|name| name != "lock")
            .collect();
        names.sort();
        names
    }
}

/// Remembers the steps it is told.
#[derive(Default)]
pub(crate) struct Steps(Mutex<Vec<String>>);

impl Steps {
    pub(crate) fn seen(&self) -> Vec<String> {
        self.0.lock().expect("no test panics in it").clone()
    }
}

impl Progress for Steps {
    fn step(&self, what: &str) {
        self.0.lock().expect("no test panics in it").push(what.to_owned());
    }

    fn advance(&self, _done: u64, _total: Option<u64>, _unit: &str) {}
}

/// An error with its causes, as a person sees it.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// The real content of a file.
pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).expect("a readable file")
}
