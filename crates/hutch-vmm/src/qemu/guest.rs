//! Guests for the tests: a few machine instructions in the file format of a kernel, which boot in 0.1 s.
//!
//! The image looks like a Linux kernel to QEMU, which runs its setup code in real mode, where the firmware's disk calls
//! still work. The format is described in the kernel's `Documentation/arch/x86/boot.rst`.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::{Accelerator, DiskSpec, DiskUse, Memory, VmSpec};

/// Where the setup code starts, after the header that it has to jump over.
const CODE: usize = 0x270;
const SETUP_SECTORS: u8 = 7;

/// The instructions of a guest.
#[derive(Debug, Clone, Default)]
pub(super) struct Guest(Vec<u8>);

impl Guest {
    pub(super) fn new() -> Self {
        Self::default()
    }

    fn code(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Writes what is in `al` to the serial port when it is ready: push ax; mov dx, 0x3fd; in; test 0x20; jz back; …
    fn put_al(self) -> Self {
        self.code(&[
            0x50, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x58, 0xba, 0xf8, 0x03, 0xee,
        ])
    }

    /// Writes a text to the serial port.
    pub(super) fn say(self, text: &str) -> Self {
        text.bytes().fold(self, |guest, byte| guest.code(&[0xb0, byte]).put_al())
    }

    /// Powers off: `SLP_EN` in the register where the firmware puts power management.
    pub(super) fn power_off(self) -> Self {
        self.code(&[0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef]).hang()
    }

    /// Resets by port 0xcf9.
    pub(super) fn reset(self) -> Self {
        self.code(&[0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee]).hang()
    }

    /// Uses all of a processor for ever.
    pub(super) fn hang(self) -> Self {
        self.code(&[0xeb, 0xfe])
    }

    /// Writes to the serial port for ever, as fast as it can: mov dx, 0x3f8; mov al, 'x'; out; jmp back.
    pub(super) fn flood(self) -> Self {
        self.code(&[0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd])
    }

    /// Says a digit that it keeps in memory, counting up, for ever, with a pause after each: mov al, [bx]; … inc.
    pub(super) fn count(self) -> Self {
        // mov ax, 0x3000; mov fs, ax; mov byte fs:[0], '0'
        let counting = self.code(&[0xb8, 0x00, 0x30, 0x8e, 0xe0, 0x64, 0xc6, 0x06, 0, 0, b'0']);
        let start = counting.0.len();
        // mov al, fs:[0]; put; inc byte fs:[0]; cmp byte fs:[0], '9'+1; jne +6; mov byte fs:[0], '0'
        let mut counting = counting
            .code(&[0x64, 0xa0, 0x00, 0x00])
            .put_al()
            .code(&[0x64, 0xfe, 0x06, 0, 0, 0x64, 0x80, 0x3e, 0, 0, b'9' + 1, 0x75, 0x06])
            .code(&[0x64, 0xc6, 0x06, 0, 0, b'0'])
            // mov ecx, 2000000; dec ecx; jnz back
            .code(&[0x66, 0xb9, 0x80, 0x84, 0x1e, 0x00, 0x66, 0x49, 0x75, 0xfc]);
        let back = counting.0.len() + 3 - start;
        let back = u16::try_from(back).expect("a short guest").wrapping_neg().to_le_bytes();
        counting = counting.code(&[0xe9, back[0], back[1]]);
        counting
    }

    /// Reads a sector of a disk and says `0` and its first byte, or `1` for an error.
    pub(super) fn read_sector(self, disk: u8, sector: u32) -> Self {
        self.disk_call(0x42, disk, sector).code(&[0x64, 0xa0, 0x00, 0x00]).put_al()
    }

    /// Writes a sector that starts with this byte, and says `0` or `1` for an error.
    pub(super) fn write_sector(self, disk: u8, sector: u32, first: u8) -> Self {
        self.code(&[0xb8, 0x00, 0x30, 0x8e, 0xe0, 0x64, 0xc6, 0x06, 0x00, 0x00, first])
            .disk_call(0x43, disk, sector)
    }

    /// INT 13h with a packet on the stack that names one sector and the memory at 3000:0000, to which `fs` points after.
    fn disk_call(self, function: u8, disk: u8, sector: u32) -> Self {
        let [a, b, c, d] = sector.to_le_bytes();
        self.code(&[
            0x66, 0x6a, 0x00, 0x66, 0x68, a, b, c, d, 0x68, 0x00, 0x30, 0x6a, 0x00, 0x6a, 0x01,
            0x6a, 0x10,
        ])
        // mov si, sp; mov ah, function; mov al, 0; mov dl, disk; int 13h; setc bl; add sp, 16
        .code(&[
            0x89,
            0xe6,
            0xb4,
            function,
            0xb0,
            0x00,
            0xb2,
            0x80 + disk,
            0xcd,
            0x13,
            0x0f,
            0x92,
            0xc3,
        ])
        .code(&[0x83, 0xc4, 0x10, 0xb8, 0x00, 0x30, 0x8e, 0xe0])
        // mov al, bl; add al, '0'
        .code(&[0x88, 0xd8, 0x04, b'0'])
        .put_al()
    }

    /// The kernel image.
    fn image(&self) -> Vec<u8> {
        let setup = (usize::from(SETUP_SECTORS) + 1) * 512;
        assert!(CODE + self.0.len() <= setup, "the guest is too long");
        let mut image = vec![0; setup + 4096];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[SETUP_SECTORS]);
        put(0x1fe, &[0x55, 0xaa]);
        put(0x200, &[0xeb, u8::try_from(CODE - 0x202).expect("a short jump")]);
        put(0x202, b"HdrS");
        put(0x206, &0x020c_u16.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x0010_0000_u32.to_le_bytes());
        put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
        put(CODE, &self.0);
        image
    }
}

/// A directory with everything that a VM needs.
#[derive(Debug)]
pub(super) struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    pub(super) fn new(guest: &Guest) -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        place.put("kernel", &guest.image());
        place.put("initramfs", &[0; 512]);
        place
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::io::Write::write_all(&mut File::create(&path).unwrap(), content).unwrap();
        path
    }

    pub(super) fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.path("serial.log")).unwrap_or_default())
            .into_owned()
    }

    pub(super) fn spec(&self) -> VmSpec {
        VmSpec {
            accelerator: Accelerator::Tcg,
            cpus: 1,
            memory_mib: 64,
            memory: Memory::Anonymous,
            kernel: self.path("kernel"),
            initramfs: self.path("initramfs"),
            kernel_arguments: Vec::new(),
            disks: Vec::new(),
            ports: vec!["hutch.channel".to_owned(), "hutch.workspace".to_owned()],
            serial_log: self.path("serial.log"),
            vmm_log: self.path("vmm.log"),
            scratch: self.directory.path().to_owned(),
        }
    }
}

pub(super) fn disk(path: &Path, read_only: bool, serial: &str) -> DiskSpec {
    let file: OwnedFd = File::options().read(true).write(!read_only).open(path).unwrap().into();
    let usage = if read_only { DiskUse::Image } else { DiskUse::Data };
    DiskSpec { file, usage, serial: serial.to_owned() }
}
