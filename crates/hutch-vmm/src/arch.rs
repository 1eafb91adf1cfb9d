//! Every fact that depends on the architecture: one table each, and nothing of the kind elsewhere in this crate.

use std::borrow::Cow;

use crate::qemu::Version;

/// What differs from one architecture to the next.
#[derive(Debug)]
pub(crate) struct Architecture {
    /// The VMM's program.
    pub(crate) program: &'static str,
    /// The Debian package that has it.
    pub(crate) debian_package: &'static str,
    /// Machine type with its options: nothing that a guest of ours has a driver for but does not need.
    pub(crate) machine: &'static str,
    /// Kernel name of the console that the machine's serial port is.
    pub(crate) console: &'static str,
    /// Further kernel words that this machine wants under emulation.
    pub(crate) emulated_kernel_words: &'static [&'static str],
    /// Features that the emulated processor shall not have, and the QEMU from which on they have names.
    pub(crate) emulated_without: &'static [(&'static str, Version)],
    /// The guest of the probe, if there is one for this architecture.
    pub(crate) stub: Option<Stub>,
}

/// A guest that does what a kernel does first and then ends QEMU with a status.
#[derive(Debug, Clone)]
pub(crate) struct Stub {
    /// It is the machine's firmware.
    pub(crate) firmware: Cow<'static, [u8]>,
    /// The device by which it ends QEMU.
    pub(crate) arguments: &'static [&'static str],
    /// QEMU's exit status if all went well.
    pub(crate) status: i32,
}

/// PCs: q35 is the machine that 7.2 and 10 both have with PCI Express and without legacy IDE and floppy.
static X86_64: Architecture = Architecture {
    program: "qemu-system-x86_64",
    debian_package: "qemu-system-x86",
    machine: "q35,sata=off,smbus=off,usb=off,vmport=off,hpet=off",
    console: "ttyS0",
    // The check of the timer fails when the host is too busy to emulate it in time, and the kernel panics. The counter
    // of all virtual processors is the host's clock: it need not be watched. And time is not taken at each interrupt,
    // which reads it twice and runs code that the kernel patches while other processors run it (see the design note).
    emulated_kernel_words: &["no_timer_check", "tsc=reliable", "tsc=noirqtime"],
    // "Fast strings": with them kernel and C library copy and clear memory byte by byte, in one instruction that QEMU
    // emulates as a loop.
    emulated_without: &[
        ("erms", Version { major: 7, minor: 2 }),
        ("fsrm", Version { major: 7, minor: 2 }),
        ("fzrm", Version { major: 8, minor: 0 }),
        ("fsrs", Version { major: 8, minor: 0 }),
        ("fsrc", Version { major: 8, minor: 0 }),
    ],
    stub: Some(Stub {
        firmware: Cow::Borrowed(include_bytes!("qemu/stub/x86_64.bin")),
        arguments: &["-device", "isa-debug-exit,iobase=0xf4,iosize=4"],
        // The device gives twice the byte, plus one.
        status: 42 * 2 + 1,
    }),
};

static AARCH64: Architecture = Architecture {
    program: "qemu-system-aarch64",
    debian_package: "qemu-system-arm",
    machine: "virt,gic-version=max,usb=off",
    console: "ttyAMA0",
    emulated_kernel_words: &[],
    emulated_without: &[],
    stub: None,
};

/// The architecture that this program was built for: a guest is always of the host's.
pub(crate) fn native() -> &'static Architecture {
    if cfg!(target_arch = "aarch64") { &AARCH64 } else { &X86_64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_named_without_a_version_so_that_each_qemu_has_them() {
        for architecture in [&X86_64, &AARCH64] {
            let (name, _) = architecture.machine.split_once(',').unwrap();
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
        }
    }
}
