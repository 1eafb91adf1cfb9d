//! Takes apart a chunked body, strictly (RFC 9112, 7.1), without a copy.
//!
//! Pure. Extensions are dropped: nobody uses them but to be read in two ways.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, header};

use crate::head::{Fault, parse_fields};

/// The longest line with a chunk's size.
const LONGEST_LINE: usize = 256;
/// The longest trailer.
const LONGEST_TRAILER: usize = 16 << 10;

/// Reads a chunked body.
#[derive(Debug, Default)]
pub struct Chunked {
    state: State,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailer,
    Done,
}

/// The next part of a body.
#[derive(Debug, PartialEq, Eq)]
pub enum Part {
    /// Bytes.
    Data(Bytes),
    /// The end, with the trailer's fields.
    End(HeaderMap),
}

impl Chunked {
    /// Whether the end was read.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes the next part from what arrived; none if more is needed.
    pub fn next(&mut self, arrived: &mut BytesMut) -> Result<Option<Part>, Fault> {
        loop {
            match self.state {
                State::Size => {
                    let Some(line) = line(arrived, LONGEST_LINE)? else { return Ok(None) };
                    let size = size(&line)?;
                    self.state = if size == 0 { State::Trailer } else { State::Data(size) };
                }
                State::Data(left) => {
                    if arrived.is_empty() {
                        return Ok(None);
                    }
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(arrived.len());
                    let left = left - count as u64;
                    self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                    return Ok(Some(Part::Data(arrived.split_to(count).freeze())));
                }
                State::DataEnd => {
                    if !b"\r\n".starts_with(&arrived[..arrived.len().min(2)]) {
                        return Err(Fault::Body);
                    }
                    if arrived.len() < 2 {
                        return Ok(None);
                    }
                    arrived.advance(2);
                    self.state = State::Size;
                }
                State::Trailer => {
                    let Some(fields) = trailer(arrived)? else { return Ok(None) };
                    self.state = State::Done;
                    return Ok(Some(Part::End(fields)));
                }
                State::Done => return Ok(None),
            }
        }
    }
}

/// Takes a line without its end.
fn line(arrived: &mut BytesMut, longest: usize) -> Result<Option<BytesMut>, Fault> {
    let Some(end) = arrived.iter().position(|byte| *byte == b'\n') else {
        return if arrived.len() > longest { Err(Fault::Body) } else { Ok(None) };
    };
    if end == 0 || arrived[end - 1] != b'\r' || end > longest {
        return Err(Fault::Body);
    }
    let mut line = arrived.split_to(end + 1);
    line.truncate(end - 1);
    Ok(Some(line))
}

fn size(line: &[u8]) -> Result<u64, Fault> {
    let digits = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    let (digits, extension) = line.split_at(digits);
    let printable = extension.iter().all(|byte| matches!(byte, b'\t' | b' '..=b'~'));
    if !(1..=15).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_hexdigit) || !printable
    {
        return Err(Fault::Body);
    }
    let digits = std::str::from_utf8(digits).map_err(|_| Fault::Body)?;
    u64::from_str_radix(digits, 16).map_err(|_| Fault::Body)
}

fn trailer(arrived: &mut BytesMut) -> Result<Option<HeaderMap>, Fault> {
    let end = match arrived.as_ref() {
        [b'\r', b'\n', ..] => Some(0),
        bytes => bytes.windows(4).position(|part| part == b"\r\n\r\n").map(|end| end + 2),
    };
    let Some(end) = end else {
        let broken = arrived.len() > LONGEST_TRAILER || has_bare_line_end(arrived);
        return if broken { Err(Fault::Body) } else { Ok(None) };
    };
    let lines = arrived.split_to(end);
    arrived.advance(2);
    if lines.len() > LONGEST_TRAILER || has_bare_line_end(&lines) {
        return Err(Fault::Body);
    }
    let mut fields = parse_fields(lines.strip_suffix(b"\r\n").unwrap_or(&lines))?;
    // What frames, routes or authenticates a request means nothing after it, to whoever reads it properly.
    for name in [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::HOST,
        header::CONNECTION,
        header::AUTHORIZATION,
        header::PROXY_AUTHORIZATION,
        header::COOKIE,
        header::TRAILER,
        header::TE,
        header::UPGRADE,
        header::EXPECT,
    ] {
        fields.remove(name);
    }
    Ok(Some(fields))
}

fn has_bare_line_end(bytes: &[u8]) -> bool {
    let mut before = 0;
    bytes.iter().any(|byte| {
        let bare = *byte == b'\n' && before != b'\r';
        before = *byte;
        bare
    })
}

#[cfg(test)]
mod tests;
