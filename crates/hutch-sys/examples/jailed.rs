//! Enters a jail that allows the directory of the first argument and tries to get out: a part for the tests to run.
//!
//! Writes one line for each attempt: its name and `no` or `YES`.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;

use hutch_sys::jail::{FileAccess, Jail, SystemCalls, networking, privileged};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let allowed = arguments.next().ok_or("a directory is needed")?;
    let port: u16 = arguments.next().ok_or("a port is needed")?.parse()?;
    let filter = arguments.next().is_some_and(|word| word == "filter");
    let inherited = File::open("/etc/passwd")?;

    let mut jail = Jail::new().allow_path(&allowed, FileAccess::Write);
    if filter {
        jail = jail.system_calls(SystemCalls::AllBut([networking(), privileged()].concat()));
    }
    let report = jail.enter()?;

    let mut out = io::stdout();
    let mut tell = |attempt: &str, succeeded: bool| {
        writeln!(out, "{attempt} {}", if succeeded { "YES" } else { "no" })
    };
    let inside = Path::new(&allowed);
    tell("complete", report.weaknesses().is_empty())?;
    tell(
        "write-inside",
        File::create(inside.join("new")).is_ok_and(|mut file| file.write_all(b"x").is_ok()),
    )?;
    tell("read-outside", File::open("/etc/passwd").is_ok())?;
    tell("list-outside", fs::read_dir("/").is_ok())?;
    tell("dotdot", File::open(inside.join("../outside")).is_ok())?;
    tell("symlink-out", File::open(inside.join("link")).is_ok())?;
    tell("create-outside", File::create(inside.join("../created")).is_ok())?;
    tell("rename-out", fs::rename(inside.join("new"), inside.join("../moved")).is_ok())?;
    tell("link-in", fs::hard_link(inside.join("../outside"), inside.join("linked")).is_ok())?;
    tell("reopen-inherited", reopen(&inherited).is_ok())?;
    tell("execute", hutch_sys::spawn::command("/bin/true").status().is_ok())?;
    tell("own-memory", File::open("/proc/self/mem").is_ok())?;
    tell(
        "parent-memory",
        File::open(format!("/proc/{}/mem", std::os::unix::process::parent_id())).is_ok(),
    )?;
    tell("tcp-connect", TcpStream::connect(("127.0.0.1", port)).is_ok())?;
    tell("tcp-listen", TcpListener::bind("127.0.0.1:0").is_ok())?;
    tell("udp", UdpSocket::bind("127.0.0.1:0").is_ok())?;
    tell("signal-parent", signal_parent().is_ok())?;
    Ok(())
}

fn reopen(file: &File) -> io::Result<File> {
    use std::os::fd::AsRawFd as _;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn signal_parent() -> io::Result<()> {
    let parent = rustix::process::getppid().ok_or(io::ErrorKind::NotFound)?;
    Ok(rustix::process::test_kill_process(parent)?)
}
