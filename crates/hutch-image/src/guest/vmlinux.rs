//! Takes the uncompressed kernel out of an x86 bzImage, so that the guest does not have to decompress it.
//!
//! Under emulation the kernel's own decompressor costs about a second of each cold boot. The result is booted through
//! its PVH entry, which is an ELF note; without that note the bzImage is the only way to boot.

use std::io::Read;

use object::read::elf::{ElfFile64, ProgramHeader as _};

use object::LittleEndian;
use object::elf::NoteType;

/// Why there is no bootable ELF image in a kernel file.
#[derive(Debug, thiserror::Error)]
pub enum VmlinuxError {
    /// Not an x86 kernel with the boot protocol's magic number.
    #[error("no x86 boot header")]
    NoBootHeader,
    /// The header points outside of the file.
    #[error("the boot header's payload ends after the file")]
    Truncated,
    /// Compressed in a way that is not supported.
    #[error("unknown compression of the kernel's payload")]
    UnknownCompression,
    /// The payload does not decompress.
    #[error("failed to decompress the kernel's payload")]
    Decompress(#[source] std::io::Error),
    /// The payload is larger than any kernel.
    #[error("the kernel's payload is larger than {MAX_VMLINUX} bytes")]
    TooLarge,
    /// What came out cannot be booted directly.
    #[error("the kernel has no PVH entry")]
    NoPvhEntry,
}

/// No distribution kernel without debug information comes near this.
const MAX_VMLINUX: usize = 512 << 20;

/// `XEN_ELFNOTE_PHYS32_ENTRY`: the 32-bit entry point of the PVH boot protocol.
const PHYS32_ENTRY: NoteType = NoteType(18);

/// Returns the ELF kernel inside `image`, a bzImage, checked to have a PVH entry.
pub(crate) fn extract(image: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    let vmlinux = decompress(payload(image)?)?;
    if has_pvh_entry(&vmlinux) { Ok(vmlinux) } else { Err(VmlinuxError::NoPvhEntry) }
}

/// The compressed payload, by Documentation/arch/x86/boot.rst.
fn payload(image: &[u8]) -> Result<&[u8], VmlinuxError> {
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(VmlinuxError::NoBootHeader);
    }
    let word = |at: usize| -> Result<usize, VmlinuxError> {
        let bytes = image.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        let value = u32::from_le_bytes(bytes.ok_or(VmlinuxError::Truncated)?);
        usize::try_from(value).map_err(|_| VmlinuxError::Truncated)
    };
    // Protocol 2.08 brought the payload fields.
    let version = image.get(0x206..0x208).and_then(|bytes| bytes.try_into().ok());
    if u16::from_le_bytes(version.ok_or(VmlinuxError::Truncated)?) < 0x0208 {
        return Err(VmlinuxError::NoBootHeader);
    }
    // Zero means four, for kernels of another age.
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    let end = start.checked_add(word(0x24c)?).ok_or(VmlinuxError::Truncated)?;
    image.get(start..end).ok_or(VmlinuxError::Truncated)
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    // All but gzip are followed by four bytes with the uncompressed size, which are not part of the stream.
    let sized = &payload[..payload.len().saturating_sub(4)];
    let failed = VmlinuxError::Decompress;
    match payload {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            read_bounded(zstd::stream::read::Decoder::new(sized).map_err(failed)?)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read_bounded(liblzma::read::XzDecoder::new(sized)),
        [0x1f, 0x8b, ..] => read_bounded(flate2::read::GzDecoder::new(payload)),
        [0x02, 0x21, 0x4c, 0x18, ..] => legacy_lz4(sized.get(4..).unwrap_or_default()),
        _ => Err(VmlinuxError::UnknownCompression),
    }
}

fn read_bounded(stream: impl Read) -> Result<Vec<u8>, VmlinuxError> {
    let mut out = Vec::new();
    stream.take(MAX_VMLINUX as u64 + 1).read_to_end(&mut out).map_err(VmlinuxError::Decompress)?;
    if out.len() > MAX_VMLINUX { Err(VmlinuxError::TooLarge) } else { Ok(out) }
}

/// The lz4 tool's legacy format, which the kernel's build uses: blocks of at most 8 MiB, each after its packed size.
fn legacy_lz4(mut stream: &[u8]) -> Result<Vec<u8>, VmlinuxError> {
    let mut out = Vec::new();
    while let Some((size, rest)) = stream.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let block = rest.get(..size).ok_or(VmlinuxError::Truncated)?;
        let block = lz4_flex::block::decompress(block, 8 << 20)
            .map_err(|error| VmlinuxError::Decompress(std::io::Error::other(error)))?;
        out.extend_from_slice(&block);
        if out.len() > MAX_VMLINUX {
            return Err(VmlinuxError::TooLarge);
        }
        stream = &rest[size..];
    }
    Ok(out)
}

fn has_pvh_entry(vmlinux: &[u8]) -> bool {
    let Ok(elf) = ElfFile64::<LittleEndian>::parse(vmlinux) else { return false };
    let endian = elf.endian();
    elf.elf_program_headers().iter().any(|header| {
        let Ok(Some(mut notes)) = header.notes(endian, vmlinux) else { return false };
        while let Ok(Some(note)) = notes.next() {
            if note.name() == b"Xen" && note.n_type(endian) == PHYS32_ENTRY {
                return true;
            }
        }
        false
    })
}

#[cfg(test)]
mod tests;
