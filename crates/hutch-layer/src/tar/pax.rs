//! Extended headers of POSIX: `LENGTH KEY=VALUE\n`, again and again.

use std::collections::BTreeMap;

use super::{EXTENTS_MAX, XATTR_KEY};
use crate::entry::{Extent, LayerError};

/// What an extended header says about the entry after it.
#[derive(Debug, Clone, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    /// Seconds and nanoseconds.
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// GNU's sparse files, version 1.0: the map stands before the content.
    pub(super) sparse_in_content: bool,
    /// Size with the holes.
    pub(super) sparse_size: Option<u64>,
    /// GNU's sparse files, versions 0.0 and 0.1: the map.
    pub(super) sparse_map: Vec<u64>,
    sparse_name: Option<Vec<u8>>,
}

const DAMAGED: LayerError = LayerError::Damaged("an extended header of the archive");

impl Pax {
    pub(super) fn parse(mut text: &[u8]) -> Result<Self, LayerError> {
        let mut pax = Self::default();
        while !text.is_empty() {
            let space = text.iter().take(20).position(|&byte| byte == b' ').ok_or(DAMAGED)?;
            let length: usize = decimal(&text[..space])?;
            let record = text.get(space + 1..length).ok_or(DAMAGED)?;
            let record = record.strip_suffix(b"\n").ok_or(DAMAGED)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(DAMAGED)?;
            pax.set(&record[..equals], &record[equals + 1..])?;
            text = &text[length..];
        }
        // The path of version 0.1 and 1.0 is only a stand-in for those who do not know them.
        if let Some(name) = pax.sparse_name.take() {
            pax.path = Some(name);
        }
        Ok(pax)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), LayerError> {
        if let Some(name) = key.strip_prefix(XATTR_KEY) {
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(decimal(value)?),
            b"uid" => self.uid = Some(decimal(value)?),
            b"gid" => self.gid = Some(decimal(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            b"GNU.sparse.major" => self.sparse_in_content = value == b"1",
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse_size = Some(decimal(value)?);
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_map.push(decimal(value)?),
            b"GNU.sparse.map" => {
                for number in value.split(|&byte| byte == b',') {
                    self.sparse_map.push(decimal(number)?);
                }
            }
            _ => {}
        }
        if self.sparse_map.len() > EXTENTS_MAX * 2 {
            return Err(LayerError::TooMuch {
                what: "holes in one file",
                limit: EXTENTS_MAX as u64,
            });
        }
        Ok(())
    }

    /// The map of holes of versions 0.0 and 0.1.
    pub(super) fn extents(&self) -> Result<Option<Vec<Extent>>, LayerError> {
        if self.sparse_size.is_none() || self.sparse_in_content {
            return Ok(None);
        }
        extents(&self.sparse_map).map(Some)
    }
}

/// Pairs of offset and length.
pub(super) fn extents(numbers: &[u64]) -> Result<Vec<Extent>, LayerError> {
    let pairs = numbers.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(LayerError::Damaged("a map of holes in the archive"));
    }
    Ok(pairs.map(|pair| Extent { offset: pair[0], length: pair[1] }).collect())
}

/// Digits and nothing else.
pub(super) fn decimal<N: std::str::FromStr>(text: &[u8]) -> Result<N, LayerError> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok().filter(|_| digits);
    text.and_then(|text| text.parse().ok()).ok_or(DAMAGED)
}

/// Seconds, with a fraction perhaps, before 1970 perhaps.
fn time(text: &[u8]) -> Result<(i64, u32), LayerError> {
    let text = std::str::from_utf8(text).map_err(|_| DAMAGED)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| DAMAGED)?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| DAMAGED)?;
    Ok(match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => (seconds.saturating_sub(1), 1_000_000_000 - nanoseconds),
        _ => (seconds, nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_by_their_length() {
        let pax = Pax::parse(
            b"13 path=a\nb=\n21 mtime=-1.25000000\n29 SCHILY.xattr.user.x=\n=\n\0\x01\n",
        )
        .unwrap();
        assert_eq!(pax.path.unwrap(), b"a\nb=");
        assert_eq!(pax.mtime, Some((-2, 750_000_000)));
        assert_eq!(pax.xattrs[b"user.x".as_slice()], b"\n=\n\0\x01");
    }

    #[test]
    fn records_that_lie_are_refused() {
        for text in [
            b"99999999999999999999 path=a\n".as_slice(),
            b"7 path=a\n",
            b"5 a=b",
            b"0 a=b\n",
            b"x",
            b"9 size=-1\n",
            b"30 path=a\n",
            b"4 ab\n",
            b"3 \n",
        ] {
            assert!(Pax::parse(text).is_err(), "{}", text.escape_ascii());
        }
    }
}
