//! The fixed block in front of each entry.

use super::{BLOCK, BLOCK_BYTES};
use crate::entry::{Extent, LayerError};

/// A block that is a header, with a checksum that is right.
#[derive(Debug, Clone)]
pub(super) struct Header(pub(super) [u8; BLOCK]);

const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
/// Where an old GNU header has its first four extents, and how many fit a block of more.
const GNU_SPARSE: usize = 386;
const GNU_SPARSE_IN_HEADER: usize = 4;
const GNU_SPARSE_IN_BLOCK: usize = 21;

impl Header {
    /// None = a block of zeros, which ends an archive.
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Option<Self>, LayerError> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Self(block);
        let stored = number(&header.0[CHECKSUM]);
        if stored != Some(header.checksum()) {
            return Err(LayerError::Damaged("a header of the archive has a wrong checksum"));
        }
        Ok(Some(header))
    }

    /// The sum of all bytes, those of the checksum itself taken as spaces.
    pub(super) fn checksum(&self) -> i64 {
        let all: i64 = self.0.iter().copied().map(i64::from).sum();
        let own: i64 = self.0[CHECKSUM].iter().copied().map(i64::from).sum();
        all - own + 8 * i64::from(b' ')
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    /// The path from both of its fields.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = text(&self.0[345..500]);
        // GNU's own format has other things there.
        if &self.0[257..263] == b"ustar\0" && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(super) fn size(&self) -> Result<u64, LayerError> {
        let size = number(&self.0[124..136]);
        size.and_then(|size| u64::try_from(size).ok())
            .ok_or(LayerError::Damaged("a size in the archive is no number"))
    }

    pub(super) fn mode(&self) -> u16 {
        let mode = number(&self.0[100..108]).unwrap_or(0) & 0o7777;
        u16::try_from(mode).unwrap_or(0)
    }

    pub(super) fn mtime(&self) -> i64 {
        number(&self.0[136..148]).unwrap_or(0)
    }

    pub(super) fn owner(&self) -> Result<(u32, u32), LayerError> {
        let id = |field: &[u8]| {
            number(field)
                .and_then(|id| u32::try_from(id).ok())
                .ok_or(LayerError::Damaged("an owner in the archive is no number"))
        };
        Ok((id(&self.0[108..116])?, id(&self.0[116..124])?))
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Option<(u32, u32)> {
        let part = |field: &[u8]| number(field).and_then(|part| u32::try_from(part).ok());
        Some((part(&self.0[329..337])?, part(&self.0[337..345])?))
    }

    /// Of an old GNU sparse file: the size with holes, the first extents, and whether blocks with more follow.
    pub(super) fn gnu_sparse(&self) -> Option<(u64, Vec<Extent>, bool)> {
        let size = number(&self.0[483..495]).and_then(|size| u64::try_from(size).ok())?;
        let extents = gnu_extents(&self.0[GNU_SPARSE..], GNU_SPARSE_IN_HEADER)?;
        Some((size, extents, self.0[482] != 0))
    }
}

/// The extents in a block that follows a header, and whether another one follows.
pub(super) fn gnu_sparse_block(block: &[u8; BLOCK]) -> Option<(Vec<Extent>, bool)> {
    Some((gnu_extents(block, GNU_SPARSE_IN_BLOCK)?, block[504] != 0))
}

fn gnu_extents(fields: &[u8], most: usize) -> Option<Vec<Extent>> {
    let mut extents = Vec::new();
    for field in fields.chunks_exact(24).take(most) {
        if field[0] == 0 {
            break;
        }
        let part = |field: &[u8]| number(field).and_then(|part| u64::try_from(part).ok());
        extents.push(Extent { offset: part(&field[..12])?, length: part(&field[12..])? });
    }
    Some(extents)
}

/// Everything before the first zero byte.
fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Octal digits, or a number in base 256 that the first byte announces. An empty field is 0.
fn number(field: &[u8]) -> Option<i64> {
    match field.first()? {
        0x80 => field[1..].iter().try_fold(0_i64, |sum, &byte| {
            sum.checked_mul(256).and_then(|sum| sum.checked_add(i64::from(byte)))
        }),
        0xff => field[1..].iter().try_fold(-1_i64, |sum, &byte| {
            sum.checked_mul(256).and_then(|sum| sum.checked_add(i64::from(byte)))
        }),
        _ => {
            let digits = text(field).trim_ascii();
            digits.iter().try_fold(0_i64, |sum, &byte| {
                let digit = matches!(byte, b'0'..=b'7').then(|| i64::from(byte - b'0'))?;
                sum.checked_mul(8)?.checked_add(digit)
            })
        }
    }
}

/// How many bytes fill the last block of content of this size.
pub(super) fn padding(size: u64) -> u64 {
    (BLOCK_BYTES - size % BLOCK_BYTES) % BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_two_bases() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(&[0; 8]), Some(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0, 2]), Some(0x1_0002));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(b"9"), None);
        assert_eq!(number(&[0x80, 255, 255, 255, 255, 255, 255, 255, 255, 255]), None);
    }
}
