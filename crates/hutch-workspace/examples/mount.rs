//! Mounts a directory through worker and pump, until standard input ends: for measurements and for looking around.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use hutch_workspace::{Prepared, WorkerSpec, WorkspaceSpec};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(host), Some(mount_point)) = (arguments.next(), arguments.next()) else {
        return Err("usage: mount HOST_DIRECTORY MOUNT_POINT".into());
    };
    let (worker, guest) = UnixStream::pair()?;
    let prepared = Prepared::open(WorkerSpec::new(vec![WorkspaceSpec::new(&host, false)]))?;
    rustix::process::umask(rustix::fs::Mode::empty());
    let serving = std::thread::spawn(move || prepared.serve(worker.into()));
    let pump = hutch_init::workspace::start(guest.into(), None, &mount_point)?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    pump.stop()?;
    drop(serving);
    Ok(())
}
