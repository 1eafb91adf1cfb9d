//! A guest that attacks its host: a keeper started on a sandbox with an init of ours instead of Hutch's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::environment::{TestEnvironment, files};
use crate::invocation::Running;
use crate::sandbox::TestSandbox;

/// What the guest does; `hostile-init` knows the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Its kernel panics at once.
    Panic,
    /// It writes to every port and the console without end.
    Flood,
    /// It writes random bytes to every port.
    Garbage,
    /// It announces the longest messages there are.
    HugeFrames,
    /// It never says a word.
    Silence,
}

impl Attack {
    fn word(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Flood => "flood",
            Self::Garbage => "garbage",
            Self::HugeFrames => "huge-frames",
            Self::Silence => "silence",
        }
    }
}

/// Starts the sandbox's keeper as the command line would, but with the hostile guest.
#[track_caller]
pub fn start(environment: &TestEnvironment, sandbox: &TestSandbox<'_>, attack: Attack) -> Running {
    let stage = environment.stage();
    let initramfs = environment.path(format!("{}.cpio", attack.word()));
    let init = fs::read(stage.guest_program("hostile-init")).expect("hostile-init is staged");
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys"] {
        archive.add(directory, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, &init);
    archive.add("attack", 0o100_644, attack.word().as_bytes());
    environment.write(&initramfs, archive.finish());

    environment
        .program(stage.programs().join("hutch-keeper"))
        .args(["--state".as_ref(), environment.state().as_os_str()])
        .args(["--runtime".as_ref(), environment.path("run/hutch").as_os_str()])
        .args(["--images".as_ref(), environment.images().as_os_str()])
        .args(["--sandbox", sandbox.name()])
        .args(["--kernel".as_ref(), image(&environment.images(), "kernel").as_os_str()])
        .args(["--initramfs".as_ref(), initramfs.as_os_str()])
        .args(["--template-layer".as_ref(), template_layer(&environment.images()).as_os_str()])
        .args([
            "--accelerator",
            "tcg",
            "--idle-timeout",
            "0",
            "--boot-timeout",
            "20",
            "--ready-fd",
            "1",
        ])
        .start()
}

/// A file of the prepared images, by its name without extension.
#[track_caller]
#[must_use]
pub fn image(images: &Path, name: &str) -> PathBuf {
    let all = files(images);
    all.iter()
        .find(|file| file.file_stem().is_some_and(|stem| stem == name))
        .unwrap_or_else(|| panic!("no {name} among {all:#?}"))
        .clone()
}

/// The largest layer of the prepared templates: a whole root file system.
#[track_caller]
#[must_use]
pub fn template_layer(images: &Path) -> PathBuf {
    let all = files(&images.join("layers")).into_iter();
    let size = |file: &PathBuf| fs::metadata(file).map_or(0, |of| of.len());
    all.max_by_key(size).expect("the prepared images have a layer")
}

/// Memory of a process that is its own and present; 0 when it is gone.
#[must_use]
pub fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        })
        .map_or(0, |kibibytes| kibibytes * 1024)
}

/// A cpio archive in the format of an initramfs (`newc`, Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory or file with its type and permissions.
    pub fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let length = u32::try_from(content.len()).expect("a program of a test is small");
        let name_length = u32::try_from(name.len() + 1).expect("a name is short");
        self.bytes.extend_from_slice(b"070701");
        for field in [self.entries, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0] {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    /// The whole archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Account, Invocation};

    #[test]
    fn cpio_reads_the_archive() {
        let mut archive = Archive::default();
        archive.add("directory", 0o040_755, &[]);
        archive.add("file", 0o100_755, b"12345");
        let bytes = archive.finish();
        let listed = Invocation::new("cpio", Account::own())
            .args(["-t", "--quiet"])
            .stdin(bytes)
            .run()
            .success();
        assert_eq!(listed.lines(), ["directory", "file"]);
    }
}
