//! What the user's login shell exports: keys that are set in `~/.bashrc`, `~/.zshrc` and the like.
//!
//! The shell is run as login **and** interactive shell (`-lic`), because the start files of distributions return early in
//! a shell that is not interactive. It gets an environment of our making, no input, no terminal, a session of its own,
//! and a few seconds; it prints the wanted variables and no other after a random mark, so that whatever start files print
//! is not taken for a value. Only shells whose `printf` is part of the shell are asked: an external one would show the
//! values in its arguments.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, PipeReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use hutch_sys::spawn::{Launch, LaunchError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

use crate::secret::Secret;
use crate::store::Stamp;

/// How long a shell may take.
pub const TIME_MAX: Duration = Duration::from_secs(5);
/// How much it may print: start files may be talkative.
const OUTPUT_MAX: usize = 1024 * 1024;
/// The `PATH` that a login starts with.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Files below the home directory that a login shell reads.
const START_FILES: [&str; 11] = [
    ".bashrc",
    ".bash_profile",
    ".bash_login",
    ".bash_aliases",
    ".profile",
    ".zshrc",
    ".zprofile",
    ".zshenv",
    ".zlogin",
    ".config/fish/config.fish",
    ".config/environment",
];
/// Files of the system that it reads.
const SYSTEM_FILES: [&str; 5] =
    ["/etc/profile", "/etc/bash.bashrc", "/etc/zsh/zshenv", "/etc/zsh/zshrc", "/etc/zsh/zprofile"];

/// Whose shell is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The home directory.
    pub home: PathBuf,
    /// The user's name.
    pub user: String,
    /// The shell, an absolute path.
    pub shell: PathBuf,
}

/// Why the login shell gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum LoginShellError {
    /// A shell that we do not know how to ask.
    #[error("{} is not one of the shells that can be asked (bash, zsh, fish, sh, dash, ash)", shell.display())]
    Unsupported {
        /// The shell.
        shell: PathBuf,
    },
    /// It could not be started.
    #[error("the login shell could not be started")]
    Start(#[from] LaunchError),
    /// Talking to it failed.
    #[error("the login shell could not be read")]
    Read(#[from] io::Error),
    /// It took longer than [`TIME_MAX`].
    #[error("{} did not answer within {} seconds: its start files wait for something", shell.display(), TIME_MAX.as_secs())]
    Time {
        /// The shell.
        shell: PathBuf,
    },
    /// It printed too much, or ended before it had answered.
    #[error("{} ended without an answer: its start files end the shell or run another program", shell.display())]
    Answer {
        /// The shell.
        shell: PathBuf,
    },
}

/// What the start files are now, to know whether to ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamps(Vec<Stamp>);

impl Stamps {
    /// The present state.
    pub fn of(home: &Path) -> Self {
        let own = START_FILES.iter().map(|file| home.join(file));
        let system = SYSTEM_FILES.iter().map(PathBuf::from);
        Self(own.chain(system).map(|file| Stamp::of(&file)).collect())
    }
}

/// Asks the shell for these variables; those that are unset, empty or no credential are left out.
///
/// Blocks for as long as the start files take, at most [`TIME_MAX`].
pub fn variables(
    login: &Login,
    names: &[&str],
) -> Result<BTreeMap<String, Secret>, LoginShellError> {
    let names: Vec<&str> = names.iter().copied().filter(|name| is_variable(name)).collect();
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let deadline = Instant::now() + TIME_MAX;
    let found = ask(login, "-lic", &names, deadline)?;
    let bash = login.shell.file_name() == Some(OsStr::new("bash"));
    let missing: Vec<&str> =
        names.iter().copied().filter(|name| !found.contains_key(*name)).collect();
    if !bash || missing.is_empty() || !login.home.join(".bashrc").exists() {
        return Ok(found);
    }
    // A login shell of bash reads a profile, and ~/.bashrc only if that says so; a terminal's shell reads ~/.bashrc.
    match ask(login, "-ic", &missing, deadline) {
        Ok(more) => Ok(found.into_iter().chain(more).collect()),
        Err(error) if found.is_empty() => Err(error),
        Err(_) => Ok(found),
    }
}

/// Starts the shell once, in this mode, and reads what it prints.
fn ask(
    login: &Login,
    mode: &str,
    names: &[&str],
    deadline: Instant,
) -> Result<BTreeMap<String, Secret>, LoginShellError> {
    let mut random = [0_u8; 16];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let mark = hex::encode(random);
    let script = script(&login.shell, &mark, names)
        .ok_or_else(|| LoginShellError::Unsupported { shell: login.shell.clone() })?;

    let (output, printed) = io::pipe()?;
    let mut launch = Launch::new(&login.shell);
    launch
        .args([mode, &script])
        .env("HOME", &login.home)
        .env("USER", &login.user)
        .env("LOGNAME", &login.user)
        .env("SHELL", &login.shell)
        .env("PATH", PATH)
        .env("TERM", "dumb")
        .stdout(printed)
        .new_session()
        .die_with_parent();
    // Killed, whatever happens below.
    let group = Group(launch.start()?.child);
    let answer = read_answer(output, &mark, names.len(), deadline);
    drop(group);
    match answer {
        Ok(values) => Ok(pair(names, &values)),
        Err(Unanswered::Time) => Err(LoginShellError::Time { shell: login.shell.clone() }),
        Err(Unanswered::Ended) => Err(LoginShellError::Answer { shell: login.shell.clone() }),
        Err(Unanswered::Io(error)) => Err(LoginShellError::Read(error)),
    }
}

/// Names and values, without what is unset or no credential.
fn pair(names: &[&str], values: &[Zeroizing<Vec<u8>>]) -> BTreeMap<String, Secret> {
    let value = |bytes: &[u8]| Secret::parse(std::str::from_utf8(bytes).ok()?).ok();
    names
        .iter()
        .zip(values)
        .filter_map(|(name, bytes)| Some(((*name).to_owned(), value(bytes)?)))
        .collect()
}

/// Only such a name may become part of the script.
fn is_variable(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.len() <= 128
}

/// What prints the mark and then the values, each ended by a NUL. None for a shell that we do not know.
fn script(shell: &Path, mark: &str, names: &[&str]) -> Option<String> {
    // `builtin` also passes by functions and aliases of the name; `sh` has only the name itself, but as a built-in.
    let (print, fish) = match shell.file_name().and_then(OsStr::to_str)? {
        "bash" | "zsh" => ("builtin printf", false),
        "fish" => ("builtin printf", true),
        "sh" | "dash" | "ash" => ("printf", false),
        _ => return None,
    };
    let values: Vec<String> = names
        .iter()
        // Unset must be no error where start files say `set -u`.
        .map(|name| if fish { format!("\"${name}\"") } else { format!("\"${{{name}-}}\"") })
        .collect();
    Some(format!(r"{print} '%s\0' '{mark}' {}", values.join(" ")))
}

/// A shell and all that it started, ended when this goes.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            // It leads its own session, and is not reaped yet: the number is its own. It may have ended by itself.
            kill_process_group(group, Signal::KILL).ok();
        }
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

enum Unanswered {
    Time,
    Ended,
    Io(io::Error),
}

/// Reads until all values are there: what the shell does afterwards (logout files) is not waited for.
fn read_answer(
    mut output: PipeReader,
    mark: &str,
    count: usize,
    deadline: Instant,
) -> Result<Vec<Zeroizing<Vec<u8>>>, Unanswered> {
    // Reserved at once: a vector that grows leaves copies behind.
    let mut seen = Zeroizing::new(Vec::with_capacity(OUTPUT_MAX));
    let mut chunk = Zeroizing::new([0_u8; 16 * 1024]);
    // Where the mark may begin: what is before was looked through.
    let mut from = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Unanswered::Time);
        }
        let wait = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&output, PollFlags::IN)], Some(&wait)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(Unanswered::Io(error.into())),
        }
        let got = output.read(&mut chunk[..]).map_err(Unanswered::Io)?;
        if got == 0 || seen.len() + got > OUTPUT_MAX {
            return Err(Unanswered::Ended);
        }
        seen.extend_from_slice(&chunk[..got]);
        match find(&seen[from..], mark) {
            Some(at) => {
                from += at;
                if let Some(values) = parse(&seen[from..], mark, count) {
                    return Ok(values);
                }
            }
            None => from = seen.len().saturating_sub(mark.len()),
        }
    }
}

/// Where the mark is, with the NUL that ends it.
fn find(seen: &[u8], mark: &str) -> Option<usize> {
    let mark = [mark.as_bytes(), b"\0"].concat();
    seen.windows(mark.len()).position(|window| window == mark)
}

/// The values after the mark, once all are there.
fn parse(seen: &[u8], mark: &str, count: usize) -> Option<Vec<Zeroizing<Vec<u8>>>> {
    let rest = seen.get(find(seen, mark)? + mark.len() + 1..)?;
    if rest.iter().filter(|byte| **byte == 0).count() < count {
        return None;
    }
    let values = rest.split(|byte| *byte == 0).take(count);
    Some(values.map(|value| Zeroizing::new(value.to_vec())).collect())
}

#[cfg(test)]
mod tests;
