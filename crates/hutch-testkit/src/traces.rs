//! What of an environment can be seen from outside: its processes and mounts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// A process that belongs to an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
    /// Its arguments, joined by spaces.
    pub arguments: String,
}

impl Process {
    /// Sends it a signal; that it is already gone is not an error.
    pub fn signal(&self, signal: Signal) {
        signal_process(self.pid, signal);
    }
}

/// Sends a signal; that the process is already gone is not an error.
pub fn signal_process(pid: u32, signal: Signal) {
    let raw = i32::try_from(pid).expect("process numbers are small");
    let pid = Pid::from_raw(raw).expect("process numbers are positive");
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot signal process {raw}: {error}"),
    }
}

/// Every living process that names something below `root` in its arguments, or holds something there open, or is there.
#[must_use]
pub fn processes(root: &Path) -> Vec<Process> {
    let own = std::process::id();
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Whatever ends while we look at it does not count.
        if pid != own && belongs(&entry.path(), root).unwrap_or(false) {
            found.push(Process {
                pid,
                program: program(&entry.path()),
                arguments: arguments(&entry.path()),
            });
        }
    }
    found
}

/// Whether the process is alive (a zombie is not).
#[must_use]
pub fn alive(pid: u32) -> bool {
    state(Path::new(&format!("/proc/{pid}"))).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Mount points below `root`, in our mount namespace.
#[must_use]
pub fn mounts(root: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo is readable");
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|point| point.starts_with(root))
        .collect()
}

fn belongs(process: &Path, root: &Path) -> io::Result<bool> {
    if state(process).is_none_or(|state| matches!(state, 'Z' | 'X')) {
        return Ok(false);
    }
    if arguments(process).contains(&*root.to_string_lossy()) {
        return Ok(true);
    }
    if fs::read_link(process.join("cwd")).is_ok_and(|directory| directory.starts_with(root)) {
        return Ok(true);
    }
    for descriptor in fs::read_dir(process.join("fd"))? {
        if fs::read_link(descriptor?.path()).is_ok_and(|file| file.starts_with(root)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The state letter of `stat`, which stands after the name in parentheses.
fn state(process: &Path) -> Option<char> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    stat[stat.rfind(')')? + 1..].trim_start().chars().next()
}

fn arguments(process: &Path) -> String {
    let raw = fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw).replace('\0', " ").trim_end().to_owned()
}

/// The file name of the program; what it calls itself where that cannot be read.
fn program(process: &Path) -> String {
    let link = fs::read_link(process.join("exe")).ok();
    let name =
        link.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
    name.unwrap_or_else(|| {
        fs::read_to_string(process.join("comm")).unwrap_or_default().trim_end().to_owned()
    })
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[test]
    fn a_process_is_found_by_its_directory_and_is_gone_when_it_ended() {
        let root = tempfile::tempdir().unwrap();
        let mut child = hutch_sys::spawn::command("cat")
            .current_dir(root.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        crate::eventually("it is seen", std::time::Duration::from_secs(5), || {
            processes(root.path())
                .into_iter()
                .find(|process| process.pid == pid && process.program == "cat")
        });
        assert!(alive(pid));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(processes(root.path()).is_empty());
        assert!(!alive(pid));
    }
}
