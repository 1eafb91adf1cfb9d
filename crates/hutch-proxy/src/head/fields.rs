//! Field lines: of a head, and of a chunked body's trailer.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::Fault;

/// Reads field lines, separated by CR LF.
pub(crate) fn parse(bytes: &[u8]) -> Result<HeaderMap, Fault> {
    let mut fields = HeaderMap::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").unwrap_or(rest.len());
        let line = &rest[..end];
        rest = rest.get(end + 2..).unwrap_or_default();
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(Fault::Folded);
        }
        let colon = line.iter().position(|byte| *byte == b':').ok_or(Fault::Field)?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        // Keeps out whitespace before the colon: it is no part of a name.
        if !name.iter().all(|byte| is_token(*byte)) {
            return Err(Fault::Field);
        }
        let name = HeaderName::from_bytes(name).map_err(|_| Fault::Field)?;
        let value = trim(value);
        if !value.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~' | 0x80..)) {
            return Err(Fault::Field);
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| Fault::Field)?;
        fields.try_append(name, value).map_err(|_| Fault::TooManyFields)?;
        if fields.len() > super::MOST_FIELDS {
            return Err(Fault::TooManyFields);
        }
    }
    Ok(fields)
}

/// The one `Content-Length`, digits alone.
pub(crate) fn content_length(fields: &HeaderMap) -> Result<Option<u64>, Fault> {
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let value = match (lengths.next(), lengths.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value.as_bytes(),
        (Some(_), Some(_)) => return Err(Fault::Length),
    };
    let plain = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    let length = std::str::from_utf8(value).ok().filter(|_| plain);
    length.and_then(|digits| digits.parse().ok()).map(Some).ok_or(Fault::Length)
}

/// The comma-separated tokens of all fields of this name, in lower case.
pub(super) fn tokens(fields: &HeaderMap, name: &HeaderName) -> Result<Vec<String>, Fault> {
    let mut tokens = Vec::new();
    for value in fields.get_all(name) {
        for token in value.to_str().map_err(|_| Fault::Field)?.split(',') {
            // `TE: trailers;q=0.5`
            let token = token.split(';').next().unwrap_or_default().trim_matches([' ', '\t']);
            if !token.is_empty() {
                tokens.push(token.to_ascii_lowercase());
            }
        }
    }
    Ok(tokens)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn trim(bytes: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = bytes.iter().position(|byte| !blank(byte)).unwrap_or(bytes.len());
    let end = bytes.iter().rposition(|byte| !blank(byte)).map_or(start, |end| end + 1);
    &bytes[start..end]
}
