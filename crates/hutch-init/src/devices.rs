//! Finds the host's ports by name and its disks by serial number, and waits for those that are still coming.
//!
//! The kernel says that a device came on a uevent socket; that only wakes us. What counts is what sysfs shows then, so
//! a lost or forged event costs a look and nothing else.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hutch_wire::guest::TemplateDisk;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

const PORTS: &str = "/sys/class/virtio-ports";
const BLOCK: &str = "/sys/block";
/// Multicast group of the kernel's own events.
const KERNEL_EVENTS: u32 = 1;
/// Longest time between two looks even when no event comes: names can come without one.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A device that did not come.
#[derive(Debug, thiserror::Error)]
#[error("no {kind} named {name} came within {} seconds", waited.as_secs())]
pub(crate) struct DeviceMissing {
    kind: &'static str,
    name: String,
    waited: Duration,
}

/// Tells when devices come; created before the first look, so that nothing falls in between.
#[derive(Debug)]
pub(crate) struct Devices {
    /// Without it we look again after short times.
    events: Option<OwnedFd>,
}

impl Devices {
    /// Starts listening.
    pub(crate) fn listen() -> Self {
        Self { events: event_socket().ok() }
    }

    /// The device file of the virtio-serial port of this name.
    pub(crate) fn port(&self, name: &str, limit: Duration) -> Result<PathBuf, DeviceMissing> {
        self.find("virtio-serial port", name, limit, || find(Path::new(PORTS), "name", name))
    }

    /// The device file of the disk with this serial number.
    pub(crate) fn disk(&self, serial: &str, limit: Duration) -> Result<PathBuf, DeviceMissing> {
        self.find("disk", serial, limit, || find(Path::new(BLOCK), "serial", serial))
    }

    /// The device files of the template's disks, the lowest layer first.
    pub(crate) fn template_disks(&self, limit: Duration) -> Result<Vec<PathBuf>, DeviceMissing> {
        self.wait("disk", "template", limit, || template_disks(Path::new(BLOCK)))
            .map(|devices| devices.iter().map(|device| Path::new("/dev").join(device)).collect())
    }

    fn find(
        &self,
        kind: &'static str,
        name: &str,
        limit: Duration,
        look: impl Fn() -> Option<String>,
    ) -> Result<PathBuf, DeviceMissing> {
        self.wait(kind, name, limit, look).map(|device| Path::new("/dev").join(device))
    }

    fn wait<T>(
        &self,
        kind: &'static str,
        name: &str,
        limit: Duration,
        look: impl Fn() -> Option<T>,
    ) -> Result<T, DeviceMissing> {
        let start = Instant::now();
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            if start.elapsed() >= limit {
                return Err(DeviceMissing { kind, name: name.to_owned(), waited: limit });
            }
            self.next_event();
        }
    }

    fn next_event(&self) {
        let Some(events) = &self.events else {
            std::thread::sleep(Duration::from_millis(2));
            return;
        };
        let mut fds = [PollFd::new(events, PollFlags::IN)];
        let limit = Timespec::try_from(LOOK_AGAIN).ok();
        if poll(&mut fds, limit.as_ref()) == Ok(0) {
            return;
        }
        // Drained, so that one look answers a burst. A full socket reports an error once and is then empty enough.
        let mut buffer = [0_u8; 4096];
        while !matches!(
            recv(events, &mut buffer, RecvFlags::DONTWAIT).map(|(count, _)| count),
            Ok(0) | Err(Errno::AGAIN)
        ) {}
    }
}

fn event_socket() -> rustix::io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(KOBJECT_UEVENT),
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
    Ok(socket)
}

/// The entry of a sysfs class whose attribute has this value.
fn find(class: &Path, attribute: &str, value: &str) -> Option<String> {
    all(class, attribute).find_map(|(name, found)| (found == value).then_some(name))
}

/// The entries of a sysfs class that have this attribute, with its value.
fn all(class: &Path, attribute: &str) -> impl Iterator<Item = (String, String)> {
    let entries = fs::read_dir(class).into_iter().flatten().flatten();
    entries.filter_map(move |entry| {
        let found = fs::read_to_string(entry.path().join(attribute)).ok()?;
        // Serial numbers are padded with zero bytes.
        let found = found.trim_end_matches(['\n', '\0', ' ']).to_owned();
        Some((entry.file_name().into_string().ok()?, found))
    })
}

/// The template's disks in their order, once all of them are there.
fn template_disks(class: &Path) -> Option<Vec<String>> {
    let mut found: Vec<(TemplateDisk, String)> = all(class, "serial")
        .filter_map(|(name, serial)| Some((TemplateDisk::parse(&serial)?, name)))
        .collect();
    found.sort_by_key(|(disk, _)| disk.layer);
    let layers = found.first()?.0.layers;
    let complete = found.iter().map(|(disk, _)| *disk).eq(TemplateDisk::all(layers));
    complete.then(|| found.into_iter().map(|(_, name)| name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(entries: &[(&str, &str)]) -> tempfile::TempDir {
        class_of("name", entries)
    }

    #[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
    fn class_of(attribute: &str, entries: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (entry, name) in entries {
            let path = directory.path().join(entry);
            fs::create_dir(&path).unwrap();
            fs::write(path.join(attribute), name).unwrap();
        }
        directory
    }

    #[test]
    fn a_device_is_found_by_its_whole_name() {
        let class = class(&[("vport1p1", "hutch.channel.x\n"), ("vport1p2", "hutch.channel\n")]);
        let found = find(class.path(), "name", "hutch.channel");
        assert_eq!(found.as_deref(), Some("vport1p2"));
        assert_eq!(find(class.path(), "name", "hutch"), None);
    }

    #[test]
    fn a_padded_serial_number_is_the_same_number() {
        let class = class(&[("vda", "data\0\0\0")]);
        assert_eq!(find(class.path(), "name", "data").as_deref(), Some("vda"));
    }

    #[test]
    fn the_templates_disks_are_taken_in_their_order_when_all_are_there() {
        let disks = [("vda", "template.1.3"), ("vdb", "data"), ("vdc", "template.0.3\0\0")];
        let class = class_of("serial", &disks);
        assert_eq!(template_disks(class.path()), None);
        let class = class_of("serial", &[disks.as_slice(), &[("vdd", "template.2.3")]].concat());
        assert_eq!(template_disks(class.path()).unwrap(), ["vdc", "vda", "vdd"]);
        let alone = class_of("serial", &[("vda", "template.0.1")]);
        assert_eq!(template_disks(alone.path()).unwrap(), ["vda"]);
    }

    #[test]
    fn a_device_without_the_attribute_is_passed_over() {
        let class = class(&[("vda", "data")]);
        fs::create_dir(class.path().join("loop0")).unwrap();
        assert_eq!(find(class.path(), "name", "data").as_deref(), Some("vda"));
    }

    #[test]
    fn a_device_that_never_comes_is_named() {
        let devices = Devices { events: None };
        let error = devices
            .wait("disk", "data", Duration::from_millis(1), || None::<()>)
            .expect_err("nothing is there");
        assert_eq!(error.to_string(), "no disk named data came within 0 seconds");
    }
}
