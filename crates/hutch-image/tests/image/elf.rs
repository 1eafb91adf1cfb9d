//! Makes small ELF files: as much of one as the code under test looks at.

/// `PT_NOTE`.
pub(crate) const NOTE: u32 = 4;

const HEADER: usize = 64;
const PROGRAM: usize = 56;
const SECTION: usize = 64;

/// An x86-64 ELF file with these program headers (type, content) and these sections (name, content).
pub(crate) fn elf(programs: &[(u32, &[u8])], sections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut names = b"\0".to_vec();
    let mut all = sections.to_vec();
    all.push((".shstrtab", b""));
    let name_offsets: Vec<usize> = all
        .iter()
        .map(|(name, _)| {
            let at = names.len();
            names.extend_from_slice(name.as_bytes());
            names.push(0);
            at
        })
        .collect();
    let last = all.len() - 1;
    all[last].1 = &names;

    let data_at = HEADER + programs.len() * PROGRAM;
    let mut data = Vec::new();
    let mut place = |content: &[u8]| {
        data.resize(data.len().next_multiple_of(8), 0);
        let at = data_at + data.len();
        data.extend_from_slice(content);
        (at as u64, content.len() as u64)
    };
    let program_places: Vec<_> = programs.iter().map(|(_, content)| place(content)).collect();
    let section_places: Vec<_> = all.iter().map(|(_, content)| place(content)).collect();
    data.resize(data.len().next_multiple_of(8), 0);
    let sections_at = (data_at + data.len()) as u64;

    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    put16(&mut out, &[2, 62]);
    put32(&mut out, &[1]);
    put64(&mut out, &[0, HEADER as u64, sections_at]);
    put32(&mut out, &[0]);
    let counts = [HEADER, PROGRAM, programs.len(), SECTION, all.len() + 1, all.len()];
    put16(&mut out, &counts.map(|count| u16::try_from(count).expect("small")));
    for ((kind, _), (at, length)) in programs.iter().zip(program_places) {
        put32(&mut out, &[*kind, 4]);
        put64(&mut out, &[at, 0, 0, length, length, 4]);
    }
    out.extend_from_slice(&data);
    out.resize(out.len() + SECTION, 0);
    for (name, (at, length)) in name_offsets.into_iter().zip(section_places) {
        // PROGBITS, or STRTAB for the names, which come last.
        let kind =
            if out.len() as u64 == sections_at + (SECTION * all.len()) as u64 { 3 } else { 1 };
        put32(&mut out, &[u32::try_from(name).expect("small"), kind]);
        put64(&mut out, &[0, 0, at, length]);
        put32(&mut out, &[0, 0]);
        put64(&mut out, &[1, 0]);
    }
    out
}

/// A kernel with the note that makes it bootable directly, and `padding` bytes of content.
pub(crate) fn vmlinux(padding: usize) -> Vec<u8> {
    let mut note = Vec::new();
    put32(&mut note, &[4, 4, 18]);
    note.extend_from_slice(b"Xen\0");
    put32(&mut note, &[0x100_0000]);
    elf(&[(NOTE, &note)], &[(".text", &vec![0x90; padding])])
}

/// A kernel module that depends on others.
pub(crate) fn module(depends: &str) -> Vec<u8> {
    let info = format!("license=GPL\0depends={depends}\0name=x\0");
    elf(&[], &[(".modinfo", info.as_bytes())])
}

/// An x86 boot image around a payload that is compressed already, with `trailer` counted into its length.
pub(crate) fn boot_image(payload: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: u8 = 3;
    let mut image = vec![0; (usize::from(SETUP_SECTORS) + 1) * 512];
    image[0x1f1] = SETUP_SECTORS;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
    let length = u32::try_from(payload.len()).expect("small");
    image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
    image.extend_from_slice(&[0xcc; 16]);
    image.extend_from_slice(payload);
    image.extend_from_slice(&[0xcc; 64]);
    image
}

fn put16(out: &mut Vec<u8>, values: &[u16]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

fn put32(out: &mut Vec<u8>, values: &[u32]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}

fn put64(out: &mut Vec<u8>, values: &[u64]) {
    values.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes()));
}
