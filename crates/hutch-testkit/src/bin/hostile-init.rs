//! PID 1 of a guest that attacks its host: what it does is the word in the file `/attack`.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};

fn main() {
    for (kind, place) in [("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")] {
        // Without them there is nothing to attack with, and the test that waits for the attack says so.
        let _missing = mount(kind, place, kind, MountFlags::empty(), None);
    }
    let attack = fs::read_to_string("/attack").unwrap_or_default();
    match attack.trim() {
        // The end of PID 1 is a kernel panic.
        "panic" => {}
        "flood" => write_everywhere(|| vec![b'A'; 64 * 1024]),
        "huge-frames" => write_everywhere(|| vec![0xff; 64 * 1024]),
        "garbage" => write_everywhere(random),
        _ => sleep(),
    }
}

/// Writes to every port and to the console, for ever.
fn write_everywhere(bytes: fn() -> Vec<u8>) {
    let mut targets = wait_for_ports();
    targets.push(PathBuf::from("/dev/console"));
    for target in targets {
        thread::spawn(move || {
            let Ok(mut file) = File::options().write(true).open(&target) else { return };
            while file.write_all(&bytes()).is_ok() {}
        });
    }
    sleep()
}

/// The devices of the virtio-serial ports, at least two, once they are there.
fn wait_for_ports() -> Vec<PathBuf> {
    loop {
        let ports: Vec<_> = fs::read_dir("/sys/class/virtio-ports")
            .into_iter()
            .flatten()
            .flatten()
            .map(|port| Path::new("/dev").join(port.file_name()))
            .collect();
        if ports.len() >= 2 {
            return ports;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn random() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    if let Ok(mut source) = File::open("/dev/urandom") {
        drop(source.read_exact(&mut bytes));
    }
    bytes
}

fn sleep() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}
