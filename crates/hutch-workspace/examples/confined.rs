//! Enters the worker's jail for a writable and a read-only workspace and tries to get out: a part for the tests to run.
//!
//! Arguments: the writable directory, the read-only one. Writes one line for each attempt: its name and `no` or `YES`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;

use hutch_workspace::{Prepared, WorkerSpec, WorkspaceSpec, confine};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let writable = arguments.next().ok_or("a writable directory is needed")?;
    let fixed = arguments.next().ok_or("a read-only directory is needed")?;
    let (writable, fixed) = (Path::new(&writable), Path::new(&fixed));
    let spec =
        WorkerSpec::new(vec![WorkspaceSpec::new(writable, false), WorkspaceSpec::new(fixed, true)]);
    let prepared = Prepared::open(spec)?;
    let report = confine(&prepared)?;
    let mut out = io::stdout();
    let mut tell = |attempt: &str, succeeded: bool| {
        writeln!(out, "{attempt} {}", if succeeded { "YES" } else { "no" })
    };
    tell("complete", report.weaknesses().is_empty())?;
    tell("root", rustix::process::geteuid().is_root())?;
    tell("read-inside", fs::read(fixed.join("file")).is_ok())?;
    tell("write-inside", File::create(writable.join("new")).is_ok())?;
    tell("write-read-only", File::create(fixed.join("new")).is_ok())?;
    tell("remove-read-only", fs::remove_file(fixed.join("file")).is_ok())?;
    let parent = writable.join("..");
    tell("read-outside", fs::read(parent.join("outside")).is_ok())?;
    tell("write-outside", File::create(parent.join("made")).is_ok())?;
    tell("link-out", fs::hard_link(writable.join("file"), parent.join("linked")).is_ok())?;
    tell("link-in", fs::hard_link(parent.join("outside"), writable.join("linked")).is_ok())?;
    tell("rename-out", fs::rename(writable.join("new"), parent.join("moved")).is_ok())?;
    tell("read-passwd", fs::read("/etc/passwd").is_ok())?;
    tell("list-root", fs::read_dir("/").is_ok())?;
    tell("own-memory", File::open("/proc/self/mem").is_ok())?;
    tell("proc-root", File::open("/proc/self/root/etc/passwd").is_ok())?;
    tell("execute", hutch_sys::spawn::command("/bin/true").status().is_ok())?;
    tell("tcp", TcpStream::connect("127.0.0.1:1").is_err_and(|error| refused(&error)))?;
    tell("listen", TcpListener::bind("127.0.0.1:0").is_ok())?;
    tell("udp", UdpSocket::bind("127.0.0.1:0").is_ok())?;
    tell("unix", UnixStream::connect("/nonexistent").is_err_and(|error| missing(&error)))?;
    let other = rustix::process::Pid::from_raw(1).ok_or("a process")?;
    tell("signal", rustix::process::kill_process(other, rustix::process::Signal::CONT).is_ok())?;
    let unshared = rustix::thread::UnshareFlags::NEWUSER;
    #[expect(deprecated, reason = "the name without this note is in a newer version")]
    let unshare = rustix::thread::unshare(unshared);
    tell("namespace", unshare.is_ok())?;
    Ok(())
}

/// The network was asked and said no.
fn refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ConnectionRefused
}

/// The socket was made and the name looked for.
fn missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
