//! Measures a shared directory from inside a guest, one line a row: name, tab, value, tab, unit.
//!
//! `workspace-bench DIRECTORY SCALE GROUP…` as an ordinary program; as PID 1 it first makes a guest of the kernel that has
//! just started: modules, the template disk as root, the virtio-fs `workspace` on `/mnt`; it measures there and powers off.
//! So both shares are measured by the same program in the same kind of VM, and by paths relative to the directory: the
//! way to it, which is longer in a sandbox, is no property of the share.
//!
//! Groups of rows: `stat`, `read`, `make`, `git`, `big` (sequential read), `written` (sequential write).

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

use rustix::fs::{Advice, fadvise};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

const MEBIBYTE: usize = 1 << 20;
/// How often large files are read and written.
const PASSES: usize = 5;

fn main() -> io::Result<()> {
    if std::process::id() == 1 {
        if let Err(error) = become_guest().and_then(|task| task.measure(Path::new("/mnt"))) {
            println!("failed: {error}");
        }
        println!("end");
        rustix::fs::sync();
        reboot(RebootCommand::PowerOff)?;
        return Ok(());
    }
    let arguments: Vec<String> = std::env::args().collect();
    let [_, directory, scale, groups @ ..] = arguments.as_slice() else {
        eprintln!("usage: workspace-bench DIRECTORY SCALE GROUP…");
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let scale = scale.parse().map_err(io::Error::other)?;
    Task { scale, groups: groups.to_vec() }.measure(Path::new(directory))
}

/// How much of what is measured.
struct Task {
    scale: usize,
    groups: Vec<String>,
}

/// Prepares the guest; gives the task from the kernel's command line.
fn become_guest() -> io::Result<Task> {
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
    let word = |name: &str| words.split_whitespace().find_map(|word| word.strip_prefix(name));
    let scale = word("scale=").and_then(|scale| scale.parse().ok());
    let groups = word("groups=").unwrap_or_default().split(',').map(str::to_owned).collect();
    Ok(Task { scale: scale.ok_or_else(|| io::Error::other("no scale"))?, groups })
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

impl Task {
    /// The rows of the groups. The host has made `stat`, `read`, `big` and `repository` below the directory, never looked
    /// at from here.
    fn measure(&self, directory: &Path) -> io::Result<()> {
        std::env::set_current_dir(directory)?;
        let scale = self.scale;
        if self.groups.iter().any(|group| group == "big" || group == "written") {
            touch_memory();
        }
        for group in &self.groups {
            match group.as_str() {
                "stat" => {
                    let stat = paths("stat", scale * 20);
                    row("cold stat", per(&stat, |path| fs::symlink_metadata(path).map(drop))?);
                    row("warm stat", per(&stat, |path| fs::symlink_metadata(path).map(drop))?);
                }
                "read" => {
                    let read = paths("read", scale * 10);
                    row("open+read", per(&read, |path| fs::read(path).map(drop))?);
                    row("open+read again", per(&read, |path| fs::read(path).map(drop))?);
                }
                "make" => {
                    fs::create_dir("made")?;
                    let made = paths("made", scale * 5);
                    let content = vec![b'x'; 4096];
                    let make = |path: &Path| File::create(path)?.write_all(&content);
                    row("create+write", per(&made, make)?);
                    row("unlink", per(&made, |path| fs::remove_file(path))?);
                }
                "git" => {
                    let repository = Path::new("repository");
                    row("git status", git_status(repository)?);
                    row("git status again", git_status(repository)?);
                }
                "big" => {
                    // A pass takes less than a second: the disk, and whoever else is there, show in one alone.
                    let pass = |_| {
                        let file = File::open("big")?;
                        // Nothing of it is in the guest's cache. That takes the guest a while, whatever the share.
                        fadvise(&file, 0, None, Advice::DontNeed)?;
                        timed(|| read_all(file))
                    };
                    let passes = (0..PASSES).map(pass);
                    rate("sequential read", &passes.collect::<io::Result<Vec<_>>>()?);
                }
                "written" => {
                    let write = |_| timed(|| write_all(Path::new("written"), scale * MEBIBYTE));
                    let passes = (0..PASSES).map(write);
                    rate("sequential write", &passes.collect::<io::Result<Vec<_>>>()?);
                }
                _ => return Err(io::Error::other(format!("no group {group}"))),
            }
        }
        Ok(())
    }
}

fn paths(directory: &str, count: usize) -> Vec<PathBuf> {
    let directory = Path::new(directory);
    (0..count).map(|number| directory.join(format!("file-{number:05}"))).collect()
}

/// Has the guest use more memory than any row will, and give it back: what the host takes to find memory for a guest is
/// its own matter, more for the VM that is measured first than for the second.
fn touch_memory() {
    drop(std::hint::black_box(vec![1_u8; 600 * MEBIBYTE]));
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

fn read_all(mut file: File) -> io::Result<usize> {
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

/// The median of several passes.
fn rate(name: &str, passes: &[(usize, Duration)]) {
    let mut rates: Vec<f64> = passes
        .iter()
        .map(|(bytes, took)| {
            let mebibytes = u32::try_from(bytes / MEBIBYTE).unwrap_or(u32::MAX);
            f64::from(mebibytes) / took.as_secs_f64()
        })
        .collect();
    rates.sort_by(f64::total_cmp);
    row(name, (rates.get(rates.len() / 2).copied().unwrap_or(0.0), "MiB/s"));
}
