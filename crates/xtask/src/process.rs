//! Running other programs with the developer's environment, and the places of this repository.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
    crate_directory.ancestors().nth(2).unwrap_or(crate_directory).to_owned()
}

/// Where cargo builds to. Always below the repository: the tests and the documentation name it.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Where the optimised host programs are.
pub(crate) fn release() -> PathBuf {
    target().join("release")
}

/// A command that inherits our environment, in the root of the repository.
#[expect(
    clippy::disallowed_methods,
    reason = "a developer's tool passes the developer's environment on"
)]
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    command
}

/// A variable of the developer's environment.
#[expect(
    clippy::disallowed_methods,
    reason = "a developer's tool reads the developer's environment"
)]
pub(crate) fn environment(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Cargo, the one that runs us, building below the repository.
pub(crate) fn cargo() -> Command {
    let mut command = command(environment("CARGO").unwrap_or_else(|| "cargo".into()));
    command.env("CARGO_TARGET_DIR", target());
    command
}

/// Whether we run as root.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Runs to the end; an error names the command unless it succeeded.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", line(command));
    }
    Ok(())
}

/// Runs to the end and gives standard output as text.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", line(command)))?;
    if !output.status.success() {
        bail!("{} failed: {}", line(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} printed no UTF-8", line(command)))
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// A process that ends with us.
#[derive(Debug)]
pub(crate) struct End(pub(crate) Child);

impl Drop for End {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _gone = self.0.kill();
            let _reaped = self.0.wait();
        }
    }
}
