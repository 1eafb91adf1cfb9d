//! Runs the host's tools (apt, mmdebstrap, mkfs, …): output line by line, a full log, and one clear error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Why a tool of the host did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Not installed.
    #[error("{program} is not installed (it is in the package {package})")]
    Missing {
        /// The program.
        program: String,
        /// The package that has it.
        package: &'static str,
    },
    /// Cannot be started, or its output cannot be read.
    #[error("failed to run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        source: io::Error,
    },
    /// Ended with an error.
    #[error("{program} failed ({status}): {last_line} (full log: {})", log.display())]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The line of its output that most likely tells why.
        last_line: String,
        /// Everything it printed.
        log: PathBuf,
    },
}

const MAX_LINE: u64 = 64 << 10;

/// How tools are run for one piece of work.
#[derive(Debug)]
pub(crate) struct Toolbox {
    /// Added to the clean environment of each tool: proxy settings and the like, chosen by the caller.
    environment: Vec<(OsString, OsString)>,
    log: File,
    log_path: PathBuf,
    /// Handed to each tool as its standard input, where it reads as empty. So the work's lock is held until the last
    /// tool is gone, even when we are killed before it.
    lock: File,
}

impl Toolbox {
    /// Tools that log to `log_path`, which starts empty, and hold `lock`.
    pub(crate) fn new(
        environment: &[(OsString, OsString)],
        log_path: &Path,
        lock: &File,
    ) -> io::Result<Self> {
        if let Some(parent) = log_path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        Ok(Self {
            environment: environment.to_vec(),
            log: File::create(log_path)?,
            log_path: log_path.to_owned(),
            lock: lock.try_clone()?,
        })
    }

    /// A command in the tools' environment, whose program is in `package`.
    pub(crate) fn tool(&self, program: impl AsRef<OsStr>, package: &'static str) -> Tool<'_> {
        let mut command = hutch_sys::spawn::command(program.as_ref());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let program = program.as_ref().to_string_lossy().into_owned();
        Tool { toolbox: self, command, shown: program.clone(), program, package }
    }

    /// Fails when `program` is not installed, before any work is done that would be for nothing.
    ///
    /// `version` is an option with which it does nothing but tell its version.
    pub(crate) fn require(
        &self,
        program: &str,
        version: &str,
        package: &'static str,
    ) -> Result<(), ToolError> {
        match self.tool(program, package).arg(version).output() {
            // Some programs tell their version and fail.
            Ok(_) | Err(ToolError::Failed { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes a line of ours between those of the tools.
    fn note(&self, line: &str) -> io::Result<()> {
        (&self.log).write_all(line.as_bytes())?;
        (&self.log).write_all(b"\n")
    }

    fn copy_lines(
        &self,
        output: impl io::Read,
        on_line: &mut dyn FnMut(&str),
        reason: &mut Reason,
    ) -> io::Result<()> {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        loop {
            line.clear();
            // Bounded, so that a tool that prints no line end cannot fill our memory.
            if (&mut output).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&line);
            // A progress meter rewrites its line with carriage returns; only what stays is worth keeping.
            let mut parts = text.trim_end_matches(['\n', '\r']).split('\r').peekable();
            while let Some(part) = parts.next() {
                if parts.peek().is_none() {
                    self.note(part)?;
                    reason.see(part);
                }
                on_line(part);
            }
        }
    }
}

/// One run of a tool.
#[derive(Debug)]
pub(crate) struct Tool<'a> {
    toolbox: &'a Toolbox,
    command: Command,
    program: String,
    /// Whose failure it is, when `program` only starts another.
    shown: String,
    package: &'static str,
}

impl Tool<'_> {
    /// The program that does the work, where this one only starts it.
    pub(crate) fn on_behalf_of(mut self, program: &str) -> Self {
        program.clone_into(&mut self.shown);
        self
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs in `directory`.
    pub(crate) fn current_dir(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs to the end; each line of both outputs goes to the log and to `on_line`.
    pub(crate) fn run(mut self, on_line: &mut dyn FnMut(&str)) -> Result<(), ToolError> {
        let mut reason = Reason::default();
        let status = self.stream(on_line, &mut reason).map_err(|source| self.not_run(source))?;
        if status.success() {
            return Ok(());
        }
        let log = self.toolbox.log_path.clone();
        let last_line = reason.into_line();
        Err(ToolError::Failed { program: self.shown, status, last_line, log })
    }

    /// Runs to the end and returns what it printed on both outputs.
    pub(crate) fn output(self) -> Result<String, ToolError> {
        let mut output = String::new();
        self.run(&mut |line| {
            output.push_str(line);
            output.push('\n');
        })?;
        Ok(output)
    }

    /// Runs to the end; `take` gets its standard output as a stream, only the other output is lines for the log.
    pub(crate) fn read(
        mut self,
        take: &mut dyn FnMut(&mut dyn io::Read) -> io::Result<()>,
    ) -> Result<(), ToolError> {
        let mut reason = Reason::default();
        let status = self.stream_to(take, &mut reason).map_err(|source| self.not_run(source))?;
        if status.success() {
            return Ok(());
        }
        let log = self.toolbox.log_path.clone();
        let last_line = reason.into_line();
        Err(ToolError::Failed { program: self.shown, status, last_line, log })
    }

    fn stream_to(
        &mut self,
        take: &mut dyn FnMut(&mut dyn io::Read) -> io::Result<()>,
        reason: &mut Reason,
    ) -> io::Result<ExitStatus> {
        let input = self.toolbox.lock.try_clone()?;
        let (mut output, theirs) = io::pipe()?;
        let (errors, their_errors) = io::pipe()?;
        self.command.stdin(input).stdout(theirs).stderr(their_errors);
        self.toolbox.note(&format!("$ {:?}", self.command))?;
        let mut child = self.command.spawn()?;
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        let toolbox = self.toolbox;
        let (taken, logged) = std::thread::scope(|scope| {
            // Both at once: a program that waits for room in one of them never ends.
            let lines = scope.spawn(|| toolbox.copy_lines(errors, &mut |_| {}, reason));
            let taken = take(&mut output);
            drop(output);
            (taken, lines.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into())))
        });
        let status = child.wait()?;
        taken.and(logged).map(|()| status)
    }

    fn stream(
        &mut self,
        on_line: &mut dyn FnMut(&str),
        reason: &mut Reason,
    ) -> io::Result<ExitStatus> {
        let input = self.toolbox.lock.try_clone()?;
        let (output, theirs) = io::pipe()?;
        self.command.stdin(input).stdout(theirs.try_clone()?).stderr(theirs);
        self.toolbox.note(&format!("$ {:?}", self.command))?;
        let mut child = self.command.spawn()?;
        // The command still has our copies of the writing end: without this the pipe would never end.
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        let result = self.toolbox.copy_lines(output, on_line, reason);
        if result.is_err() {
            // Nobody reads its output any more; it is ended, not left to fill the disk.
            let _gone_already = child.kill();
        }
        let status = child.wait()?;
        result.map(|()| status)
    }

    fn not_run(&self, source: io::Error) -> ToolError {
        let program = self.program.clone();
        if source.kind() == io::ErrorKind::NotFound {
            ToolError::Missing { program, package: self.package }
        } else {
            ToolError::Run { program, source }
        }
    }
}

/// Finds the line of a failed tool's output that a person wants to see.
#[derive(Debug, Default)]
struct Reason {
    disk_full: Option<String>,
    first_error: Option<String>,
    last: String,
}

impl Reason {
    fn see(&mut self, line: &str) {
        let line = line.trim();
        if line.is_empty() {
            return;
        }
        if self.disk_full.is_none() && line.contains("No space left on device") {
            self.disk_full = Some(line.to_owned());
        }
        // Of several errors (of apt and mmdebstrap, of dpkg, of pip) the first is the cause, the others follow from it.
        let is_error = ["E: ", "dpkg: error", "ERROR: ", "npm error "]
            .iter()
            .any(|mark| line.starts_with(mark) && !line.starts_with("npm error code "));
        if self.first_error.is_none() && is_error {
            self.first_error = Some(line.to_owned());
        }
        line.clone_into(&mut self.last);
    }

    fn into_line(self) -> String {
        self.disk_full.or(self.first_error).unwrap_or(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toolbox(directory: &Path) -> Toolbox {
        let lock = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(directory.join("lock"))
            .unwrap();
        let environment = [("GIVEN".into(), "value".into())];
        Toolbox::new(&environment, &directory.join("logs/build.log"), &lock).unwrap()
    }

    #[test]
    fn both_outputs_arrive_by_line_and_in_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let tools = toolbox(directory.path());
        let script = "echo one; printf '10%%\\r20%%\\n' >&2; echo \"$GIVEN\"; cat; printf end";
        let output = tools.tool("sh", "dash").args(["-c", script]).output().unwrap();
        assert_eq!(output, "one\n10%\n20%\nvalue\nend\n");
        let log = std::fs::read_to_string(directory.path().join("logs/build.log")).unwrap();
        assert!(log.starts_with("$ "), "{log}");
        assert!(log.contains("\nvalue\n"), "{log}");
    }

    #[test]
    fn a_failure_tells_the_first_error_and_where_the_log_is() {
        let directory = tempfile::tempdir().unwrap();
        let tools = toolbox(directory.path());
        let script = "echo hello; echo 'E: cause'; echo 'E: consequence'; echo bye; exit 3";
        let error = tools.tool("sh", "dash").args(["-c", script]).output().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("E: cause (full log: "), "{text}");
        assert!(text.contains("build.log"), "{text}");
    }

    #[test]
    fn a_full_disk_is_the_reason_whatever_else_was_said() {
        let mut reason = Reason::default();
        for line in ["E: other", "tar: x: No space left on device", "last"] {
            reason.see(line);
        }
        assert_eq!(reason.into_line(), "tar: x: No space left on device");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let directory = tempfile::tempdir().unwrap();
        let error = toolbox(directory.path()).tool("no-such-tool", "tools").output().unwrap_err();
        assert_eq!(error.to_string(), "no-such-tool is not installed (it is in the package tools)");
    }
}
