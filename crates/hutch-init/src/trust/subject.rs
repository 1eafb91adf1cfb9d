//! The hash that OpenSSL finds a certificate by in a directory: of its subject, in a form of its own
//! (`X509_NAME_hash`, `x509_name_canon` of OpenSSL).

use super::sha1::sha1;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const UTF8: u8 = 0x0c;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;
const VERSION: u8 = 0xa0;

/// The hash of a certificate's subject. `None` when it cannot be read.
pub(super) fn hash(certificate: &[u8]) -> Option<u32> {
    let mut names = subject(certificate)?;
    let mut canonical = Vec::new();
    while !names.is_empty() {
        let mut set = Vec::new();
        let mut attributes = element(&mut names, SET)?;
        while !attributes.is_empty() {
            let mut attribute = element(&mut attributes, SEQUENCE)?;
            let object = element(&mut attribute, OBJECT)?;
            let (kind, value) = any(&mut attribute)?;
            let (kind, value) = match kind {
                UTF8 | PRINTABLE | IA5 => (UTF8, canonical_text(value)),
                other => (other, value.to_vec()),
            };
            let pair = [write(OBJECT, object), write(kind, &value)].concat();
            set.extend_from_slice(&write(SEQUENCE, &pair));
        }
        canonical.extend_from_slice(&write(SET, &set));
    }
    let [a, b, c, d, ..] = sha1(&canonical);
    Some(u32::from_le_bytes([a, b, c, d]))
}

/// Lower case, without white space at the ends, and one space for any inside.
fn canonical_text(text: &[u8]) -> Vec<u8> {
    let words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.map(<[u8]>::to_ascii_lowercase).collect::<Vec<_>>().join(&b' ')
}

/// What is inside the subject of a certificate (RFC 5280, section 4.1).
fn subject(certificate: &[u8]) -> Option<&[u8]> {
    let mut whole = certificate;
    let mut signed = element(&mut whole, SEQUENCE)?;
    let mut fields = element(&mut signed, SEQUENCE)?;
    if fields.first() == Some(&VERSION) {
        any(&mut fields)?;
    }
    // Serial number, algorithm, issuer, validity.
    for _ in 0..4 {
        any(&mut fields)?;
    }
    element(&mut fields, SEQUENCE)
}

/// Takes an element of this kind and gives what is in it.
fn element<'a>(from: &mut &'a [u8], kind: u8) -> Option<&'a [u8]> {
    any(from).filter(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Takes an element (X.690) and gives its kind and what is in it.
fn any<'a>(from: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[kind, length], mut rest) = from.split_first_chunk::<2>()?;
    let length = match length {
        0..=0x7f => usize::from(length),
        0x81..=0x83 => {
            let (bytes, after) = rest.split_at_checked(usize::from(length & 0x7f))?;
            rest = after;
            bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        }
        _ => return None,
    };
    let (value, after) = rest.split_at_checked(length)?;
    *from = after;
    Some((kind, value))
}

fn write(kind: u8, value: &[u8]) -> Vec<u8> {
    let [.., a, b, c] = value.len().to_be_bytes();
    let mut out = vec![kind];
    match value.len() {
        0..=0x7f => out.push(c),
        0x80..=0xff => out.extend_from_slice(&[0x81, c]),
        0x100..=0xffff => out.extend_from_slice(&[0x82, b, c]),
        _ => out.extend_from_slice(&[0x83, a, b, c]),
    }
    out.extend_from_slice(value);
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trust::pem;

    #[test]
    fn the_hash_is_openssls() {
        for (text, expected) in [
            (include_str!("testdata/one.pem"), 0xb218_4455),
            (include_str!("testdata/two.pem"), 0xaff2_e6b0),
        ] {
            let der = pem::certificates(text.as_bytes())[0].der().unwrap();
            assert_eq!(hash(&der), Some(expected));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            hash(&bytes);
        }

        #[test]
        fn a_cut_certificate_is_survived(cut in 0_usize..400) {
            let whole = pem::certificates(include_bytes!("testdata/one.pem"))[0].der().unwrap();
            hash(&whole[..cut.min(whole.len())]);
        }
    }
}
