use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::elf;

fn sized(mut stream: Vec<u8>, content: &[u8]) -> Vec<u8> {
    stream.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes());
    stream
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn xz(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    liblzma::read::XzEncoder::new(content, 0).read_to_end(&mut out).unwrap();
    sized(out, content)
}

/// What the lz4 tool writes with `-l`, without looking for anything to compress.
fn lz4(content: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for block in content.chunks(8 << 20) {
        // A block of literals alone: a token, the rest of its length, and the bytes.
        let mut packed = vec![0xf0];
        let mut rest = block.len() - 15;
        while rest >= 255 {
            packed.push(255);
            rest -= 255;
        }
        packed.push(u8::try_from(rest).unwrap());
        packed.extend_from_slice(block);
        out.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
        out.extend_from_slice(&packed);
    }
    sized(out, content)
}

#[test]
fn each_compression_of_a_kernel_is_undone() {
    let kernel = elf::vmlinux(9 << 20);
    let zstd = sized(zstd::encode_all(&kernel[..], 1).unwrap(), &kernel);
    for payload in [zstd, xz(&kernel), gzip(&kernel), lz4(&kernel)] {
        let head = payload[..4].to_vec();
        let found = extract(&elf::boot_image(&payload)).unwrap();
        assert!(found == kernel, "payload {head:02x?}");
    }
}

#[test]
fn what_cannot_be_booted_directly_is_refused() {
    let kernel = gzip(&elf::elf(&[(elf::NOTE, b"")], &[]));
    assert!(matches!(extract(&elf::boot_image(&kernel)), Err(VmlinuxError::NoPvhEntry)));
    assert!(matches!(extract(b"MZ"), Err(VmlinuxError::NoBootHeader)));
    assert!(matches!(
        extract(&elf::boot_image(b"no such format")),
        Err(VmlinuxError::UnknownCompression)
    ));
    let mut image = elf::boot_image(&gzip(&elf::vmlinux(100)));
    image.truncate(2100);
    assert!(matches!(extract(&image), Err(VmlinuxError::Truncated)));
}

#[test]
fn an_image_that_ends_in_its_header_is_refused() {
    for length in 0..0x260 {
        let mut image = elf::boot_image(b"");
        image.truncate(length);
        assert!(extract(&image).is_err(), "{length}");
    }
}

proptest! {
    #[test]
    fn a_broken_image_is_no_panic(at in 0_usize..4096, byte: u8, length in 0_usize..5000) {
        let kernel = elf::vmlinux(1000);
        let payload = sized(zstd::encode_all(&kernel[..], 1).unwrap(), &kernel);
        let mut image = elf::boot_image(&payload);
        let whole = image.len();
        image.truncate(length);
        if let Some(target) = image.get_mut(at) {
            *target = byte;
        }
        let found = extract(&image);
        // What follows the payload does not count.
        prop_assert!(found.is_err() || length + 64 >= whole);
    }

    #[test]
    fn any_lz4_payload_is_no_kernel_and_no_panic(payload: Vec<u8>) {
        let mut stream = vec![0x02, 0x21, 0x4c, 0x18];
        stream.extend(payload);
        prop_assert!(extract(&elf::boot_image(&stream)).is_err());
    }
}
