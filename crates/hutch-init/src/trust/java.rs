//! Java's bundle in its own format, JKS: a list of entries and a digest over it with a password that everybody knows.
//!
//! The format is described in the JDK's `sun.security.provider.JavaKeyStore`.

use super::sha1::sha1;

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const KEY: u32 = 1;
const TRUSTED: u32 = 2;
const PASSWORD: &str = "changeit";
const SALT: &[u8] = b"Mighty Aphrodite";
const DIGEST: usize = 20;
const CERTIFICATE_KIND: &[u8] = b"X.509";
/// Names of our entries start with this.
const ALIAS: &str = "hutch-proxy-ca";

/// The bundle with these certificates in place of ours that were in it. `None` for anything but a whole bundle.
pub(super) fn with_certificates(bundle: &[u8], certificates: &[Vec<u8>]) -> Option<Vec<u8>> {
    let (body, digest) = bundle.split_last_chunk::<DIGEST>()?;
    if digest_of(body) != *digest {
        return None;
    }
    let mut reader = Reader(body);
    if reader.u32()? != MAGIC || reader.u32()? != VERSION {
        return None;
    }
    let count = reader.u32()?;
    let mut kept = 0_u32;
    let mut entries = Vec::new();
    for _ in 0..count {
        let start = reader.0;
        let alias = reader.entry()?;
        if !alias.starts_with(ALIAS.as_bytes()) {
            kept += 1;
            entries.extend_from_slice(start.get(..start.len() - reader.0.len())?);
        }
    }
    if !reader.0.is_empty() {
        return None;
    }
    for (number, certificate) in certificates.iter().enumerate() {
        kept += 1;
        write_entry(&mut entries, &format!("{ALIAS}-{number}"), certificate);
    }
    let mut out = Vec::with_capacity(entries.len() + 32);
    for number in [MAGIC, VERSION, kept] {
        out.extend_from_slice(&number.to_be_bytes());
    }
    out.extend_from_slice(&entries);
    out.extend_from_slice(&digest_of(&out));
    Some(out)
}

fn digest_of(body: &[u8]) -> [u8; DIGEST] {
    let password: Vec<u8> = PASSWORD.encode_utf16().flat_map(u16::to_be_bytes).collect();
    sha1(&[&password, SALT, body].concat())
}

fn write_entry(out: &mut Vec<u8>, alias: &str, certificate: &[u8]) {
    let short = |length: usize| u16::try_from(length).unwrap_or_default().to_be_bytes();
    out.extend_from_slice(&TRUSTED.to_be_bytes());
    out.extend_from_slice(&short(alias.len()));
    out.extend_from_slice(alias.as_bytes());
    // When it was added: the same for all, so that the same content gives the same bytes.
    out.extend_from_slice(&0_u64.to_be_bytes());
    out.extend_from_slice(&short(CERTIFICATE_KIND.len()));
    out.extend_from_slice(CERTIFICATE_KIND);
    out.extend_from_slice(&u32::try_from(certificate.len()).unwrap_or_default().to_be_bytes());
    out.extend_from_slice(certificate);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Bytes after their length in two bytes.
    fn short(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_be_bytes(self.take(2)?.try_into().ok()?);
        self.take(length.into())
    }

    /// Bytes after their length in four bytes.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        self.take(length)
    }

    /// Reads over an entry and gives its alias.
    fn entry(&mut self) -> Option<&'a [u8]> {
        let kind = self.u32()?;
        let alias = self.short()?;
        self.take(8)?;
        let certificates = match kind {
            KEY => {
                self.long()?;
                self.u32()?
            }
            TRUSTED => 1,
            _ => return None,
        };
        for _ in 0..certificates {
            self.short()?;
            self.long()?;
        }
        Some(alias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bundle with one certificate of somebody else's and a key.
    fn bundle() -> Vec<u8> {
        let mut out = Vec::new();
        for number in [MAGIC, VERSION, 2] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        write_entry(&mut out, "other", b"certificate of another");
        out.extend_from_slice(&KEY.to_be_bytes());
        out.extend_from_slice(
            b"\0\x01k\0\0\0\0\0\0\0\0\0\0\0\x02xx\0\0\0\x01\0\x05X.509\0\0\0\x01c",
        );
        out.extend_from_slice(&digest_of(&out));
        out
    }

    #[test]
    fn ours_are_replaced_and_others_stay() {
        let first = with_certificates(&bundle(), &[b"one".to_vec(), b"two".to_vec()]).unwrap();
        assert!(first.windows(3).any(|part| part == b"one"));
        let second = with_certificates(&first, &[b"three".to_vec()]).unwrap();
        assert!(!second.windows(3).any(|part| part == b"one"));
        assert!(second.windows(7).any(|part| part == b"another"));
        assert_eq!(second[8..12], 3_u32.to_be_bytes());
        assert_eq!(with_certificates(&second, &[b"three".to_vec()]).unwrap(), second);
        assert_eq!(with_certificates(&second, &[]).unwrap(), bundle());
    }

    #[test]
    fn what_is_no_whole_bundle_is_left_alone() {
        let whole = bundle();
        for length in 0..whole.len() {
            assert!(with_certificates(&whole[..length], &[]).is_none());
            let mut cut = whole[..length].to_vec();
            cut.extend_from_slice(&digest_of(&cut));
            assert!(length == whole.len() - DIGEST || with_certificates(&cut, &[]).is_none());
        }
    }
}
