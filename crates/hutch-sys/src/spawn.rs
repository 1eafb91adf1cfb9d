//! Starting programs: always with an empty environment, so that nothing of ours leaks by default.

use std::ffi::OsStr;
use std::process::Command;

/// A command with a cleared environment but for a fixed `PATH` and `LANG=C.UTF-8`.
#[expect(clippy::disallowed_methods, reason = "this is the wrapper that the ban points to")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8");
    command
}
