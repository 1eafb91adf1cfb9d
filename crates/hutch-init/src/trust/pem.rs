//! Certificates in text (RFC 7468), as far as bundles need it: found, compared, taken out, written.

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";
const LINE: usize = 64;
/// A certificate is not longer than this.
const CERTIFICATE_MAX: usize = 64 * 1024;

/// A certificate as base64 without white space: two of the same content are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate(String);

impl Certificate {
    fn new(text: &str) -> Option<Self> {
        let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let base64 = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=');
        let fits = !text.is_empty() && text.len() <= CERTIFICATE_MAX;
        (fits && text.bytes().all(base64)).then_some(Self(text))
    }

    /// Whether this is the text of the certificate. Ends at the first difference: a bundle has many others.
    fn is_in(&self, text: &str) -> bool {
        text.bytes().filter(|byte| !byte.is_ascii_whitespace()).eq(self.0.bytes())
    }

    /// Its bytes.
    pub(super) fn der(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(self.0.len() / 4 * 3);
        let (mut bits, mut count) = (0_u32, 0);
        for byte in self.0.trim_end_matches('=').bytes() {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(value);
            count += 6;
            if count >= 8 {
                count -= 8;
                let [.., byte] = (bits >> count).to_be_bytes();
                out.push(byte);
                bits &= (1 << count) - 1;
            }
        }
        Some(out)
    }
}

/// A certificate's place in a text.
struct Found<'a> {
    start: usize,
    end: usize,
    inside: &'a str,
}

/// All certificates in a text; what else is in it does not matter.
pub(super) fn certificates(text: &[u8]) -> Vec<Certificate> {
    let text = String::from_utf8_lossy(text);
    find(&text).into_iter().filter_map(|one| Certificate::new(one.inside)).collect()
}

/// The text without these certificates. Ends with a line's end.
pub(super) fn without(text: &[u8], gone: &[&Certificate]) -> Vec<u8> {
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    for found in find(&text) {
        if gone.iter().any(|one| one.is_in(found.inside)) {
            out.push_str(&text[at..found.start]);
            at = found.end;
        }
    }
    out.push_str(&text[at..]);
    if !out.is_empty() && !out.ends_with('\n') {
        out.push('\n');
    }
    out.into_bytes()
}

/// The certificates as text.
pub(super) fn write(certificates: &[Certificate]) -> String {
    let mut out = String::new();
    for Certificate(base64) in certificates {
        out.push_str(BEGIN);
        out.push('\n');
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, next) = rest.split_at(rest.len().min(LINE));
            out.push_str(line);
            out.push('\n');
            rest = next;
        }
        out.push_str(END);
        out.push('\n');
    }
    out
}

fn find(text: &str) -> Vec<Found<'_>> {
    let mut all = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find(BEGIN).map(|found| at + found) {
        let inside = start + BEGIN.len();
        let Some(length) = text[inside..].find(END) else { break };
        let mut end = inside + length + END.len();
        if text[end..].starts_with("\r\n") {
            end += 2;
        } else if text[end..].starts_with('\n') {
            end += 1;
        }
        all.push(Found { start, end, inside: &text[inside..inside + length] });
        at = end;
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(base64: &str) -> String {
        format!("{BEGIN}\n{base64}\n{END}\n")
    }

    #[test]
    fn certificates_are_found_among_other_things_and_compared_by_content() {
        let text = format!("# a comment\n{}x\n{BEGIN}\r\nYW\r\nJj\r\n{END}\r\n", one("YWJj"));
        let found = certificates(text.as_bytes());
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], found[1]);
        assert_eq!(found[0].der().unwrap(), b"abc");
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest_as_it_is() {
        let text = format!("# one\n{}# two\n{}# end", one("YWJj"), one("ZGVm"));
        let gone = certificates(one("YWJj").as_bytes());
        let left = without(text.as_bytes(), &gone.iter().collect::<Vec<_>>());
        assert_eq!(
            String::from_utf8(left).unwrap(),
            format!("# one\n# two\n{}# end\n", one("ZGVm"))
        );
    }

    #[test]
    fn what_is_no_certificate_is_none() {
        for text in [BEGIN, &format!("{BEGIN}\n{END}"), &format!("{BEGIN}\na b!\n{END}"), ""] {
            assert!(certificates(text.as_bytes()).is_empty(), "{text}");
        }
    }

    #[test]
    fn padding_is_no_content() {
        for (base64, bytes) in [("YQ==", "a"), ("YWI=", "ab"), ("YWJj", "abc"), ("/+8=", "")] {
            let der = certificates(one(base64).as_bytes())[0].der().unwrap();
            if bytes.is_empty() {
                assert_eq!(der, [0xff, 0xef]);
            } else {
                assert_eq!(der, bytes.as_bytes());
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(?s)(-----BEGIN CERTIFICATE-----|-----END CERTIFICATE-----|[A-Za-z\n ü]){0,40}") {
            let all = certificates(text.as_bytes());
            let left = without(text.as_bytes(), &all.iter().collect::<Vec<_>>());
            for one in certificates(&left) {
                prop_assert!(!all.contains(&one));
            }
        }

        #[test]
        fn what_is_written_is_read(base64 in "[A-Za-z0-9+/]{1,300}") {
            let all = vec![Certificate(base64)];
            prop_assert_eq!(certificates(write(&all).as_bytes()), all);
        }
    }
}
