//! The command line: a pure function of the specification and the numbers of the inherited descriptors.
//!
//! Options that QEMU parses by commas carry only fixed text and numbers; names go into JSON. What QEMU 10 removed
//! (`-chardev fd`, `-no-hpet`, short boolean options) is not used.

use hutch_sys::jail::FileAccess;
use serde_json::json;

use super::discover::Version;
use crate::arch::Architecture;
use crate::{Accelerator, DiskUse, StartError, VmSpec};

/// Largest number of virtual CPUs that we give.
const CPUS_MAX: u32 = 255;
/// Less memory than this boots no kernel of a distribution.
const MEMORY_MIN_MIB: u32 = 64;
/// What a virtio disk can say as its serial number.
const DISK_SERIAL_MAX: usize = 20;
/// Entries of the queue of a [`DiskUse::Exchange`]: a request has at most two pieces less.
const EXCHANGE_QUEUE: u32 = 512;
/// QEMU numbers virtio-serial ports 1 to 30 on one device.
const PORTS_MAX: usize = 30;

/// Size of the translation cache. Left alone, QEMU takes up to 1 GiB.
const TB_SIZE_MIB: u32 = 256;

/// QEMU's own system-call filter: no programs, no other user, no scheduling, nothing obsolete.
pub(super) const SANDBOX: &str =
    "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// Kernel words that every guest gets.
const KERNEL_WORDS: &[&str] = &[
    // A panic resets at once, and a reset ends the VM.
    "panic=-1", "quiet",
];

/// Kernel words for emulation; see `docs/design/002-qemu-under-emulation.md` for what each saves.
const EMULATED_KERNEL_WORDS: &[&str] = &[
    // Nothing is speculated in the guest: the protections would cost without protecting. The host protects itself.
    "mitigations=off",
    // The kernel tests its ciphers at each boot; the same tests passed where it was built.
    "cryptomgr.notests",
];

/// Numbers that the descriptors have in QEMU.
#[derive(Debug)]
pub(super) struct Descriptors {
    pub(super) control: i32,
    pub(super) serial: i32,
    pub(super) kernel: i32,
    pub(super) initramfs: i32,
    pub(super) disks: Vec<i32>,
    pub(super) ports: Vec<i32>,
    pub(super) memory: Option<MemoryFile>,
    /// Where the state of a saved VM is read from.
    pub(super) state: Option<i32>,
}

/// A file that guest memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryFile {
    pub(super) descriptor: i32,
    pub(super) mapping: Mapping,
}

/// How it is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mapping {
    /// What the guest writes goes to the file.
    Shared,
    /// What the guest writes stays with it. QEMU before 8.2 opens the file for writing all the same.
    Private,
    /// The same, and QEMU opens the file for reading only.
    PrivateOfReadOnly,
}

impl Mapping {
    /// How a QEMU of this version maps the memory of a saved VM.
    pub(super) fn of_snapshot(version: Version) -> Self {
        if version >= MAPS_READ_ONLY { Self::PrivateOfReadOnly } else { Self::Private }
    }

    /// What QEMU's opening of the file asks for.
    pub(super) fn access(self) -> FileAccess {
        match self {
            Self::Shared | Self::Private => FileAccess::Write,
            Self::PrivateOfReadOnly => FileAccess::Read,
        }
    }

    fn options(self) -> &'static str {
        match self {
            Self::Shared => "share=on",
            Self::Private => "share=off",
            Self::PrivateOfReadOnly => "share=off,readonly=on,rom=off",
        }
    }
}

/// From here on QEMU can map a file privately that it opens for reading only (`rom=off`).
const MAPS_READ_ONLY: Version = Version { major: 8, minor: 2 };

/// Refuses what no VM can have, before anything is made.
pub(super) fn check(spec: &VmSpec) -> Result<(), StartError> {
    let refuse = |what: String| Err(StartError::Spec { what });
    if !(1..=CPUS_MAX).contains(&spec.cpus) {
        return refuse(format!("{} CPUs: 1 to {CPUS_MAX} are possible", spec.cpus));
    }
    if spec.memory_mib < MEMORY_MIN_MIB {
        return refuse(format!(
            "{} MiB of memory: at least {MEMORY_MIN_MIB} are needed",
            spec.memory_mib
        ));
    }
    if spec.ports.len() > PORTS_MAX {
        return refuse(format!("{} ports: at most {PORTS_MAX} are possible", spec.ports.len()));
    }
    let plain = |name: &str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    for (at, name) in spec.ports.iter().enumerate() {
        if !plain(name) || spec.ports.iter().skip(at + 1).any(|other| other == name) {
            return refuse(format!("a port named {name:?}"));
        }
    }
    for (at, disk) in spec.disks.iter().enumerate() {
        let twice = spec.disks.iter().skip(at + 1).any(|other| other.serial == disk.serial);
        if !plain(&disk.serial) || disk.serial.len() > DISK_SERIAL_MAX || twice {
            return refuse(format!("a disk with the serial number {:?}", disk.serial));
        }
    }
    for word in &spec.kernel_arguments {
        if word.is_empty() || !word.bytes().all(|byte| byte.is_ascii_graphic()) {
            return refuse(format!("the kernel argument {word:?}"));
        }
    }
    Ok(())
}

/// Builds the command line without the program. `of_the_host` are kernel words that the host decides.
pub(super) fn build(
    spec: &VmSpec,
    architecture: &Architecture,
    version: Version,
    of_the_host: &[String],
    descriptors: &Descriptors,
) -> Vec<String> {
    let mut line = CommandLine::default();
    line.flag("-nodefaults");
    line.flag("-no-user-config");
    line.option("-display", "none");
    // The guest does not run before the control connection stands, so that no event is missed.
    line.flag("-S");
    // A guest's reset ends the VM, and says that it was a reset.
    line.flag("-no-reboot");
    line.option("-sandbox", SANDBOX);
    line.option("-machine", format!("{},memory-backend=ram", architecture.machine));
    line.option(
        "-accel",
        match spec.accelerator {
            Accelerator::Kvm => "kvm".to_owned(),
            Accelerator::Tcg => format!("tcg,thread=multi,tb-size={TB_SIZE_MIB}"),
        },
    );
    line.option("-cpu", cpu(spec.accelerator, architecture, version));
    line.option("-smp", format!("cpus={0},sockets=1,cores={0},threads=1", spec.cpus));
    line.option("-m", format!("{}M", spec.memory_mib));
    line.option("-object", memory(spec.memory_mib, descriptors.memory));
    if descriptors.state.is_some() {
        // What is to be left out must be said before the state is read.
        line.option("-incoming", "defer");
    }

    line.option("-chardev", format!("socket,id=control,fd={}", descriptors.control));
    line.option("-mon", "chardev=control,mode=control");
    line.option("-chardev", format!("socket,id=serial,fd={}", descriptors.serial));
    line.option("-serial", "chardev:serial");

    line.option("-kernel", inherited(descriptors.kernel));
    line.option("-initrd", inherited(descriptors.initramfs));
    line.option("-append", kernel_command_line(spec, architecture, of_the_host));

    line.option("-object", "rng-builtin,id=entropy");
    line.option("-device", "virtio-rng-pci,rng=entropy");
    for (at, (disk, descriptor)) in spec.disks.iter().zip(&descriptors.disks).enumerate() {
        line.disk(at, disk.usage, &disk.serial, *descriptor);
    }
    if !spec.ports.is_empty() {
        line.option("-device", port_bus(spec.accelerator, spec.ports.len()));
    }
    for (at, (name, descriptor)) in spec.ports.iter().zip(&descriptors.ports).enumerate() {
        line.option("-chardev", format!("socket,id=port{at},fd={descriptor}"));
        let device = json!({
            "driver": "virtserialport", "bus": "ports.0", "nr": at + 1, "chardev": format!("port{at}"), "name": name,
        });
        line.option("-device", device.to_string());
    }
    line.0
}

/// The guest's memory.
fn memory(mib: u32, file: Option<MemoryFile>) -> String {
    match file {
        None => format!("memory-backend-ram,id=ram,size={mib}M"),
        Some(MemoryFile { descriptor, mapping }) => format!(
            "memory-backend-file,id=ram,size={mib}M,mem-path={},{}",
            inherited(descriptor),
            mapping.options()
        ),
    }
}

/// The device that the ports are on.
///
/// It has no more queues than are used, and an interrupt for each: with one interrupt for all, the guest's kernel looks
/// through 64 queues at every message. Under emulation a message is passed on by the processor's own thread: waking
/// another for it costs more than the work.
fn port_bus(accelerator: Accelerator, ports: usize) -> String {
    // Port 0 is the console's; each port has two queues, and the device has two for control.
    let max_ports = ports + 1;
    let vectors = 2 * (max_ports + 1) + 1;
    let ioeventfd = match accelerator {
        Accelerator::Kvm => "on",
        Accelerator::Tcg => "off",
    };
    format!(
        "virtio-serial-pci,id=ports,max_ports={max_ports},vectors={vectors},ioeventfd={ioeventfd}"
    )
}

/// The processor that the guest sees: everything that there is, but for what makes an emulated one slow.
pub(super) fn cpu(
    accelerator: Accelerator,
    architecture: &Architecture,
    version: Version,
) -> String {
    match accelerator {
        Accelerator::Kvm => "host".to_owned(),
        Accelerator::Tcg => {
            let without = architecture.emulated_without.iter();
            let named = without.filter(|(_, since)| version >= *since).map(|(name, _)| *name);
            ["max"].into_iter().chain(named).collect::<Vec<_>>().join(",-")
        }
    }
}

/// The kernel's words, ours first: the last of two that disagree wins in the kernel.
fn kernel_command_line(
    spec: &VmSpec,
    architecture: &Architecture,
    of_the_host: &[String],
) -> String {
    let mut words = vec![format!("console={}", architecture.console)];
    words.extend(KERNEL_WORDS.iter().map(|&word| word.to_owned()));
    if spec.accelerator == Accelerator::Tcg {
        let emulated = EMULATED_KERNEL_WORDS.iter().chain(architecture.emulated_kernel_words);
        words.extend(emulated.map(|&word| word.to_owned()));
    }
    words.extend_from_slice(of_the_host);
    words.extend(spec.kernel_arguments.iter().cloned());
    words.join(" ")
}

/// A path by which QEMU opens a descriptor that it inherited. Needs no permission on the path that it came from.
fn inherited(descriptor: i32) -> String {
    format!("/proc/self/fd/{descriptor}")
}

#[derive(Debug, Default)]
struct CommandLine(Vec<String>);

impl CommandLine {
    fn flag(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.push(name.to_owned());
        self.0.push(value.into());
    }

    fn disk(&mut self, at: usize, usage: DiskUse, serial: &str, descriptor: i32) {
        // Sets are numbered from 1; the number is all that connects a set with a block device.
        let set = at + 1;
        self.option("-add-fd", format!("fd={descriptor},set={set}"));
        let block = json!({
            // Raw, always: with a guessed format the guest could write a header that names a file of the host.
            "driver": "raw",
            "node-name": format!("disk{at}"),
            "read-only": usage == DiskUse::Image,
            // What the guest frees is free on the host.
            "discard": if usage == DiskUse::Exchange { "ignore" } else { "unmap" },
            "detect-zeroes": if usage == DiskUse::Data { "unmap" } else { "off" },
            // Through the host's page cache: a guest's write survives the end of QEMU, and its flush is an fsync.
            "cache": { "direct": false, "no-flush": usage == DiskUse::Exchange },
            "file": {
                "driver": "file",
                "filename": format!("/dev/fdset/{set}"),
                // The only way that works in the system-call filter of every version.
                "aio": "threads",
                // A second VM on the same data disk would destroy it.
                "locking": "on",
            },
        });
        self.option("-blockdev", block.to_string());
        let mut device = json!({
            "driver": "virtio-blk-pci", "drive": format!("disk{at}"), "serial": serial,
            // A full disk of the host is an error that the guest sees, not a VM that stops for ever.
            "rerror": "report",
        });
        if let Some(device) = device.as_object_mut() {
            if usage != DiskUse::Image {
                device.insert("werror".to_owned(), json!("report"));
            }
            if usage == DiskUse::Exchange {
                // A megabyte in pages is one request.
                device.insert("queue-size".to_owned(), json!(EXCHANGE_QUEUE));
                device.insert("num-queues".to_owned(), json!(1));
            }
        }
        self.option("-device", device.to_string());
    }
}

#[cfg(test)]
mod tests;
