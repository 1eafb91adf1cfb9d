//! Measures a shared directory from inside a guest, one line a row: name, tab, value, tab, unit.
//!
//! `workspace-bench DIRECTORY SCALE` as an ordinary program; as PID 1 it first makes a guest of the kernel that has just
//! started: modules, the template disk as root, the virtio-fs `workspace` on `/mnt`; it measures there and powers off.
//! So both shares are measured by the same program in the same kind of VM.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a report is what this program is for"
)]

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::chroot;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

const MEBIBYTE: usize = 1 << 20;

fn main() -> io::Result<()> {
    if std::process::id() == 1 {
        if let Err(error) = become_guest().and_then(|scale| measure(Path::new("/mnt"), scale)) {
            println!("failed: {error}");
        }
        println!("end");
        rustix::fs::sync();
        reboot(RebootCommand::PowerOff)?;
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, scale] = arguments.as_slice() else {
        eprintln!("usage: workspace-bench DIRECTORY SCALE");
        return Err(io::ErrorKind::InvalidInput.into());
    };
    measure(Path::new(directory), scale.parse().map_err(io::Error::other)?)
}

/// Prepares the guest; gives the scale from the kernel's command line.
fn become_guest() -> io::Result<usize> {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        mount(kind, place, kind, MountFlags::empty(), None)?;
    }
    for module in fs::read_to_string("/lib/modules/hutch.order")?.lines() {
        let file = File::open(Path::new("/lib/modules").join(module))?;
        // One that is there already is fine; one that is missing shows below.
        let _loaded = finit_module(file, c"", 0);
    }
    fs::create_dir("/template")?;
    let disk = wait_for("/dev/vda")?;
    ["erofs", "squashfs"]
        .into_iter()
        .find(|kind| mount(&disk, "/template", *kind, MountFlags::RDONLY, None).is_ok())
        .ok_or_else(|| io::Error::other("the template disk cannot be mounted"))?;
    mount("workspace", "/template/mnt", "virtiofs", MountFlags::empty(), None)?;
    for (kind, place) in
        [("devtmpfs", "/template/dev"), ("proc", "/template/proc"), ("tmpfs", "/template/tmp")]
    {
        mount(kind, place, kind, MountFlags::empty(), None)?;
    }
    let words = fs::read_to_string("/proc/cmdline")?;
    chroot("/template")?;
    std::env::set_current_dir("/")?;
    let scale = words.split_whitespace().find_map(|word| word.strip_prefix("scale=")?.parse().ok());
    scale.ok_or_else(|| io::Error::other("no scale"))
}

fn wait_for(path: &str) -> io::Result<PathBuf> {
    let path = PathBuf::from(path);
    let started = Instant::now();
    while !path.exists() {
        if started.elapsed() > Duration::from_secs(10) {
            return Err(io::Error::other(format!("there is no {}", path.display())));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(path)
}

/// All rows. The host has made `stat`, `read`, `big` and `repository` below the directory, never looked at from here.
fn measure(directory: &Path, scale: usize) -> io::Result<()> {
    let stat = paths(&directory.join("stat"), scale * 20);
    row("cold stat", per(&stat, |path| fs::symlink_metadata(path).map(drop))?);
    row("warm stat", per(&stat, |path| fs::symlink_metadata(path).map(drop))?);
    let read = paths(&directory.join("read"), scale * 10);
    row("open+read", per(&read, |path| fs::read(path).map(drop))?);
    row("open+read again", per(&read, |path| fs::read(path).map(drop))?);

    let made = directory.join("made");
    fs::create_dir(&made)?;
    let made = paths(&made, scale * 5);
    let content = vec![b'x'; 4096];
    row("create+write", per(&made, |path| File::create(path)?.write_all(&content))?);
    row("unlink", per(&made, |path| fs::remove_file(path))?);

    let repository = directory.join("repository");
    row("git status", git_status(&repository)?);
    row("git status again", git_status(&repository)?);

    let (read, took) = timed(|| read_all(&directory.join("big")))?;
    rate("sequential read", read, took);
    let (written, took) = timed(|| write_all(&directory.join("written"), scale * MEBIBYTE))?;
    rate("sequential write", written, took);
    Ok(())
}

fn paths(directory: &Path, count: usize) -> Vec<PathBuf> {
    (0..count).map(|number| directory.join(format!("file-{number:05}"))).collect()
}

/// Microseconds a path.
fn per(
    paths: &[PathBuf],
    mut action: impl FnMut(&Path) -> io::Result<()>,
) -> io::Result<(f64, &'static str)> {
    let ((), took) = timed(|| paths.iter().try_for_each(|path| action(path)))?;
    let count = u32::try_from(paths.len()).map_err(io::Error::other)?;
    Ok((took.as_secs_f64() * 1e6 / f64::from(count), "µs"))
}

fn git_status(repository: &Path) -> io::Result<(f64, &'static str)> {
    let mut git = hutch_sys::spawn::command("git");
    git.args(["-c", "safe.directory=*", "status", "--porcelain"]).current_dir(repository);
    git.env("HOME", "/tmp").stdin(Stdio::null());
    let (output, took) = timed(|| git.output())?;
    if !output.status.success() || !output.stdout.is_empty() {
        return Err(io::Error::other(format!("git status: {output:?}")));
    }
    Ok((took.as_secs_f64() * 1e3, "ms"))
}

fn read_all(path: &Path) -> io::Result<usize> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; MEBIBYTE];
    let mut total = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(total),
            length => total += length,
        }
    }
}

fn write_all(path: &Path, bytes: usize) -> io::Result<usize> {
    let mut file = File::create(path)?;
    let buffer = vec![b'y'; MEBIBYTE];
    for _ in 0..bytes / MEBIBYTE {
        file.write_all(&buffer)?;
    }
    file.sync_all()?;
    Ok(bytes)
}

fn timed<T>(action: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Duration)> {
    let started = Instant::now();
    Ok((action()?, started.elapsed()))
}

fn row(name: &str, (value, unit): (f64, &str)) {
    println!("{name}\t{value:.2}\t{unit}");
}

fn rate(name: &str, bytes: usize, took: Duration) {
    let mebibytes = u32::try_from(bytes / MEBIBYTE).unwrap_or(u32::MAX);
    row(name, (f64::from(mebibytes) / took.as_secs_f64(), "MiB/s"));
}
