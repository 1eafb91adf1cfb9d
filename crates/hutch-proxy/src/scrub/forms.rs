//! The spellings in which a reflected secret comes back.
//!
//! Letters are compared without case, so digits of hexadecimal and percent forms are given once. Base64 is given without
//! what stands around the secret: as `Basic` credentials, where a user name precedes it, it is one of three shifts.

use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// All spellings of a secret, with repetitions.
pub(super) fn of(secret: &[u8]) -> Vec<Vec<u8>> {
    if secret.len() < super::SHORTEST {
        return Vec::new();
    }
    let mut forms = vec![secret.to_vec(), hex::encode(secret).into_bytes()];
    for shift in 0..3 {
        forms.push(base64(secret, shift, &STANDARD_NO_PAD));
        forms.push(base64(secret, shift, &URL_SAFE_NO_PAD));
    }
    // As JavaScript's `encodeURIComponent`, strictly, and as a form.
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let lenient = |byte: u8| unreserved(byte) || b"!'()*".contains(&byte);
    forms.push(each(secret, |byte| if lenient(byte) { vec![byte] } else { percent(byte) }));
    forms.push(each(secret, |byte| if unreserved(byte) { vec![byte] } else { percent(byte) }));
    forms.push(each(secret, |byte| match byte {
        b' ' => b"+".to_vec(),
        byte if unreserved(byte) => vec![byte],
        byte => percent(byte),
    }));
    forms.push(each(secret, percent));
    // JSON: what must be escaped; with slashes; as for HTML; everything.
    let must = |byte: u8| byte == b'"' || byte == b'\\';
    forms.push(each(secret, |byte| if must(byte) { vec![b'\\', byte] } else { vec![byte] }));
    forms.push(each(secret, |byte| {
        if must(byte) || byte == b'/' { vec![b'\\', byte] } else { vec![byte] }
    }));
    forms.push(each(secret, |byte| match byte {
        b'"' | b'\\' => vec![b'\\', byte],
        b'<' | b'>' | b'&' | b'\'' => unicode(byte),
        byte => vec![byte],
    }));
    forms.push(each(secret, unicode));
    // HTML, with names and with numbers.
    forms.push(each(secret, |byte| match byte {
        b'&' => b"&amp;".to_vec(),
        b'<' => b"&lt;".to_vec(),
        b'>' => b"&gt;".to_vec(),
        b'"' => b"&quot;".to_vec(),
        b'\'' => b"&#39;".to_vec(),
        byte => vec![byte],
    }));
    forms.push(each(secret, |byte| match byte {
        b'&' => b"&amp;".to_vec(),
        b'<' => b"&lt;".to_vec(),
        b'>' => b"&gt;".to_vec(),
        b'"' => b"&#34;".to_vec(),
        b'\'' => b"&#x27;".to_vec(),
        byte => vec![byte],
    }));
    forms
}

fn each(secret: &[u8], form: impl Fn(u8) -> Vec<u8>) -> Vec<u8> {
    secret.iter().flat_map(|byte| form(*byte)).collect()
}

fn percent(byte: u8) -> Vec<u8> {
    format!("%{byte:02x}").into_bytes()
}

fn unicode(byte: u8) -> Vec<u8> {
    format!("\\u{byte:04x}").into_bytes()
}

/// The characters that the secret alone decides when so many other bytes (modulo 3) stand before it.
fn base64(secret: &[u8], shift: usize, engine: &impl base64::Engine) -> Vec<u8> {
    let mut bytes = vec![0; shift];
    bytes.extend_from_slice(secret);
    let text = engine.encode(&bytes).into_bytes();
    // A character is six bits; those that hold a bit of the other bytes are left out.
    let first = (shift * 8).div_ceil(6);
    let last = bytes.len() * 8 / 6;
    text.get(first..last).unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use ::base64::Engine as _;

    use super::*;

    #[test]
    fn base64_is_found_whatever_stands_around() {
        let secret = b"sk-0123456789-+/?";
        for before in ["", "a", "ab", "x-access-token:", "user:"] {
            for after in ["", "b", "bc", "bcd"] {
                let text = STANDARD.encode([before.as_bytes(), secret, after.as_bytes()].concat());
                let form = base64(secret, before.len() % 3, &STANDARD_NO_PAD);
                assert!(form.len() > secret.len());
                let form = String::from_utf8(form).unwrap();
                assert!(text.contains(&form), "{before} {after} {text} {form}");
            }
        }
    }

    #[test]
    fn the_known_spellings_are_there() {
        let forms = of(b"a\"b/c d&e");
        for expected in [
            "a\"b/c d&e",
            "6122622f6320642665",
            "a%22b%2fc%20d%26e",
            "a%22b%2fc+d%26e",
            "%61%22%62%2f%63%20%64%26%65",
            "a\\\"b/c d&e",
            "a\\\"b\\/c d&e",
            "a\\\"b/c d\\u0026e",
            "a&quot;b/c d&amp;e",
        ] {
            assert!(forms.iter().any(|form| form == expected.as_bytes()), "{expected}");
        }
        assert!(of(b"short").is_empty());
    }
}
