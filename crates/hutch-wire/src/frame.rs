//! One frame of the multiplexed byte stream, as bytes, and the greeting that comes before the first.
//!
//! ```text
//!   greeting   magic (8) │ length u32 │ version min u16, max u16 │ four limits, each u32 │ ignored by this version
//!   frame      length u32 │ kind u8 │ stream u32 │ payload of `length - 5` bytes
//! ```
//!
//! Numbers are little-endian. Lengths are checked against the receiver's limits before anything is kept, and the bytes
//! of a data frame are handed on as they come, so that a frame that never ends holds no memory.

use thiserror::Error;

use crate::{Limits, VERSION_MAX, VERSION_MIN};

/// First bytes of a connection.
pub const MAGIC: [u8; 8] = *b"hutchmux";
/// Bytes of a greeting before its variable part: magic and length.
pub const HELLO_PREFIX: usize = 12;
/// Longest variable part of a greeting; later versions may add to it.
const HELLO_REST_MAX: usize = 256;
/// The variable part that this version writes and needs.
const HELLO_REST: usize = 20;
/// Bytes of a frame before its payload.
pub const HEADER: usize = 9;
/// Bytes of a frame that its length counts besides the payload.
const COUNTED: u32 = 5;
/// Longest reason in bytes.
pub const REASON_MAX: usize = 512;

const OPEN: u8 = 1;
const DATA: u8 = 2;
const END: u8 = 3;
const RESET: u8 = 4;
const WINDOW: u8 = 5;
const BYE: u8 = 6;

/// How a peer broke the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// The first bytes are not ours.
    #[error("it does not start with the greeting of this protocol")]
    Greeting,
    /// A limit in the greeting that nobody can work with.
    #[error("its greeting announces a limit of zero")]
    ZeroLimit,
    /// A frame kind that the version does not know.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// A frame length that the kind does not allow.
    #[error("a frame of kind {kind} with a length of {length}")]
    Length { kind: u8, length: u32 },
    /// A number that the peer may not open now.
    #[error("it opened stream {0} out of order")]
    OpenOrder(u32),
    /// A frame on a stream that was never opened or whose direction has ended.
    #[error("a frame of kind {kind} on stream {stream}, where none may come")]
    NotOpen { kind: u8, stream: u32 },
    /// More data than we allowed.
    #[error("it sent {length} bytes on stream {stream} where {credit} were allowed")]
    OverWindow { stream: u32, length: u32, credit: u32 },
    /// A credit that adds up to more than the whole window.
    #[error("it raised the window of stream {0} over its size")]
    WindowOverflow(u32),
    /// It opens streams beyond the limit and never ends those that we refused.
    #[error("it opened streams without end")]
    TooManyStreams,
}

/// The greeting: the versions that a side speaks, and what it is ready to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version.
    pub version_min: u16,
    /// Newest version.
    pub version_max: u16,
    /// Largest frame payload that this side takes.
    pub frame_payload: u32,
    /// Bytes that this side takes on a stream before it has consumed any.
    pub stream_window: u32,
    /// Largest payload of an open request that this side takes.
    pub open_payload: u32,
    /// Streams that this side holds at once.
    pub streams: u32,
}

impl Hello {
    /// Our own greeting.
    #[must_use]
    pub fn ours(limits: Limits) -> Self {
        Self {
            version_min: VERSION_MIN,
            version_max: VERSION_MAX,
            frame_payload: limits.frame_payload,
            stream_window: limits.stream_window,
            open_payload: u32::try_from(limits.open_payload).unwrap_or(u32::MAX),
            streams: u32::try_from(limits.streams).unwrap_or(u32::MAX),
        }
    }

    /// The greeting as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HELLO_PREFIX + HELLO_REST);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&20_u32.to_le_bytes());
        bytes.extend_from_slice(&self.version_min.to_le_bytes());
        bytes.extend_from_slice(&self.version_max.to_le_bytes());
        for limit in [self.frame_payload, self.stream_window, self.open_payload, self.streams] {
            bytes.extend_from_slice(&limit.to_le_bytes());
        }
        bytes
    }

    /// How many bytes follow this prefix.
    pub fn rest(prefix: &[u8; HELLO_PREFIX]) -> Result<usize, Violation> {
        let (magic, length) = prefix.split_at(MAGIC.len());
        let length = number(length) as usize;
        if magic != MAGIC || !(HELLO_REST..=HELLO_REST_MAX).contains(&length) {
            return Err(Violation::Greeting);
        }
        Ok(length)
    }

    /// Reads what follows the prefix; what it has beyond our version's part is for later versions.
    pub fn decode(rest: &[u8]) -> Result<Self, Violation> {
        let Some((known, _later)) = rest.split_first_chunk::<HELLO_REST>() else {
            return Err(Violation::Greeting);
        };
        let hello = Self {
            version_min: u16::from_le_bytes([known[0], known[1]]),
            version_max: u16::from_le_bytes([known[2], known[3]]),
            frame_payload: number(&known[4..8]),
            stream_window: number(&known[8..12]),
            open_payload: number(&known[12..16]),
            streams: number(&known[16..20]),
        };
        // A side that takes no streams or no open payload is merely never asked.
        if hello.frame_payload == 0 || hello.stream_window == 0 {
            return Err(Violation::ZeroLimit);
        }
        Ok(hello)
    }

    /// The version to speak with a side that greeted like this: the lower newest, if the other also speaks it.
    #[must_use]
    pub fn settle(&self, theirs: &Self) -> Option<u16> {
        let version = self.version_max.min(theirs.version_max);
        (version >= self.version_min && version >= theirs.version_min).then_some(version)
    }
}

/// Little-endian number of up to four bytes.
fn number(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, byte| (sum << 8) | u32::from(*byte))
}

/// A frame to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Opens a stream.
    Open { stream: u32, payload: &'a [u8] },
    /// The sender's direction of the stream ends.
    End { stream: u32 },
    /// The sender neither reads nor writes the stream any more.
    Reset { stream: u32, reason: &'a str },
    /// The receiver may send so many bytes more.
    Window { stream: u32, increment: u32 },
    /// The connection ends.
    Bye { reason: &'a str },
}

impl Frame<'_> {
    /// Appends the frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Open { stream, payload } => append(out, OPEN, stream, payload),
            Self::End { stream } => append(out, END, stream, &[]),
            Self::Reset { stream, reason } => append(out, RESET, stream, cut(reason).as_bytes()),
            Self::Window { stream, increment } => {
                append(out, WINDOW, stream, &increment.to_le_bytes());
            }
            Self::Bye { reason } => append(out, BYE, 0, cut(reason).as_bytes()),
        }
    }
}

/// Appends the header of a data frame; its payload has to follow.
pub fn encode_data_header(out: &mut Vec<u8>, stream: u32, length: u32) {
    header(out, DATA, stream, length);
}

fn append(out: &mut Vec<u8>, kind: u8, stream: u32, payload: &[u8]) {
    // Every payload is bounded far below this by the caller's limits.
    header(out, kind, stream, u32::try_from(payload.len()).unwrap_or(u32::MAX - COUNTED));
    out.extend_from_slice(payload);
}

fn header(out: &mut Vec<u8>, kind: u8, stream: u32, payload: u32) {
    out.extend_from_slice(&payload.saturating_add(COUNTED).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&stream.to_le_bytes());
}

/// The reason cut at [`REASON_MAX`] bytes, between characters.
#[must_use]
pub fn cut(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_MAX)]
}

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// A stream is opened.
    Open { stream: u32, payload: Vec<u8> },
    /// A data frame starts; its bytes come as [`Piece::Data`].
    DataStart { stream: u32, length: u32 },
    /// Bytes of the data frame that started last.
    Data { stream: u32, bytes: &'a [u8] },
    /// The peer's direction ends.
    End { stream: u32 },
    /// The peer gave the stream up.
    Reset { stream: u32, reason: String },
    /// The peer allows more bytes.
    Window { stream: u32, increment: u32 },
    /// The peer ends the connection.
    Bye { reason: String },
}

/// Cuts the incoming bytes, in pieces of any size, into frames.
#[derive(Debug)]
pub struct Decoder {
    frame_payload: u32,
    open_payload: usize,
    state: State,
    /// The frame's header, then the payload of a frame that is no data frame: at most the open payload.
    kept: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Header,
    Payload { kind: u8, stream: u32, length: usize },
    Data { stream: u32, missing: u32 },
}

impl Decoder {
    /// A decoder that holds its peer to our limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            frame_payload: limits.frame_payload,
            open_payload: limits.open_payload,
            state: State::Header,
            kept: Vec::new(),
        }
    }

    /// The next piece, taken from the front of `input`; `None` when all of it was taken.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, Violation> {
        loop {
            match self.state {
                State::Header => {
                    if !self.keep(input, HEADER) {
                        return Ok(None);
                    }
                    if let Some(start) = self.start()? {
                        return Ok(Some(start));
                    }
                }
                State::Data { missing: 0, .. } => self.state = State::Header,
                State::Data { stream, missing } => {
                    let length = input.len().min(missing as usize);
                    if length == 0 {
                        return Ok(None);
                    }
                    let bytes = take(input, length);
                    let taken = u32::try_from(length).unwrap_or(missing);
                    self.state = State::Data { stream, missing: missing - taken };
                    return Ok(Some(Piece::Data { stream, bytes }));
                }
                State::Payload { kind, stream, length } => {
                    if !self.keep(input, length) {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    let payload = std::mem::take(&mut self.kept);
                    return complete(kind, stream, payload).map(Some);
                }
            }
        }
    }

    /// Fills `kept` up to `length` bytes; tells whether they are all there.
    fn keep(&mut self, input: &mut &[u8], length: usize) -> bool {
        let missing = length - self.kept.len();
        self.kept.extend_from_slice(take(input, missing.min(input.len())));
        self.kept.len() == length
    }

    /// Judges the header that is complete.
    fn start<'a>(&mut self) -> Result<Option<Piece<'a>>, Violation> {
        let length = number(&self.kept[..4]);
        let kind = self.kept[4];
        let stream = number(&self.kept[5..HEADER]);
        self.kept.clear();
        let bad = Violation::Length { kind, length };
        let payload = length.checked_sub(COUNTED).ok_or_else(|| bad.clone())?;
        let (min, max) = match kind {
            OPEN => (0, self.open_payload),
            DATA => (1, self.frame_payload as usize),
            END => (0, 0),
            RESET | BYE => (0, REASON_MAX),
            WINDOW => (4, 4),
            _ => return Err(Violation::Kind(kind)),
        };
        if !(min..=max).contains(&(payload as usize)) {
            return Err(bad);
        }
        if kind == DATA {
            self.state = State::Data { stream, missing: payload };
            return Ok(Some(Piece::DataStart { stream, length: payload }));
        }
        self.state = State::Payload { kind, stream, length: payload as usize };
        Ok(None)
    }
}

fn complete<'a>(kind: u8, stream: u32, payload: Vec<u8>) -> Result<Piece<'a>, Violation> {
    Ok(match kind {
        OPEN => Piece::Open { stream, payload },
        END => Piece::End { stream },
        RESET => Piece::Reset { stream, reason: sentence(&payload) },
        WINDOW => Piece::Window { stream, increment: number(&payload) },
        BYE => Piece::Bye { reason: sentence(&payload) },
        _ => return Err(Violation::Kind(kind)),
    })
}

/// The peer's reason as text that cannot drive a terminal or fake a line of a log.
fn sentence(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn take<'a>(input: &mut &'a [u8], length: usize) -> &'a [u8] {
    let (taken, left) = input.split_at(length);
    *input = left;
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoder() -> Decoder {
        Decoder::new(Limits {
            frame_payload: 1000,
            stream_window: 4000,
            streams: 8,
            open_payload: 600,
        })
    }

    fn encoded(frame: Frame<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        frame.encode(&mut out);
        out
    }

    #[test]
    fn a_greeting_comes_back_and_leaves_room_for_later_versions() {
        let hello = Hello::ours(Limits::default());
        let mut bytes = hello.encode();
        let rest = Hello::rest(bytes[..HELLO_PREFIX].try_into().unwrap()).unwrap();
        assert_eq!(rest, bytes.len() - HELLO_PREFIX);
        assert_eq!(Hello::decode(&bytes[HELLO_PREFIX..]), Ok(hello));
        bytes.extend_from_slice(b"of a later version");
        assert_eq!(Hello::decode(&bytes[HELLO_PREFIX..]), Ok(hello));
    }

    #[test]
    fn a_greeting_of_something_else_is_refused() {
        let mut bytes = Hello::ours(Limits::default()).encode();
        bytes[0] = b'S';
        assert_eq!(
            Hello::rest(bytes[..HELLO_PREFIX].try_into().unwrap()),
            Err(Violation::Greeting)
        );
        let mut long = Hello::ours(Limits::default()).encode();
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(Hello::rest(long[..HELLO_PREFIX].try_into().unwrap()), Err(Violation::Greeting));
        assert_eq!(Hello::decode(&[0; HELLO_REST]), Err(Violation::ZeroLimit));
        assert_eq!(Hello::decode(&[1; HELLO_REST - 1]), Err(Violation::Greeting));
    }

    #[test]
    fn the_lower_newest_version_is_settled_on() {
        let speaks = |version_min, version_max| Hello {
            version_min,
            version_max,
            ..Hello::ours(Limits::default())
        };
        assert_eq!(speaks(1, 3).settle(&speaks(2, 5)), Some(3));
        assert_eq!(speaks(2, 5).settle(&speaks(1, 3)), Some(3));
        assert_eq!(speaks(1, 1).settle(&speaks(2, 3)), None);
        assert_eq!(speaks(2, 3).settle(&speaks(1, 1)), None);
    }

    #[test]
    fn frames_come_back_in_pieces_of_any_size() {
        let mut bytes = encoded(Frame::Open { stream: 1, payload: b"what" });
        encode_data_header(&mut bytes, 1, 3);
        bytes.extend_from_slice(b"abc");
        Frame::Window { stream: 1, increment: 70_000 }.encode(&mut bytes);
        Frame::End { stream: 1 }.encode(&mut bytes);
        Frame::Reset { stream: 1, reason: "why" }.encode(&mut bytes);
        Frame::Bye { reason: "" }.encode(&mut bytes);
        for size in [1, 2, 9, bytes.len()] {
            let mut decoder = decoder();
            let mut seen = Vec::new();
            let mut data = Vec::new();
            for mut chunk in bytes.chunks(size) {
                while let Some(piece) = decoder.next(&mut chunk).unwrap() {
                    match piece {
                        Piece::Data { stream: 1, bytes } => data.extend_from_slice(bytes),
                        other => seen.push(format!("{other:?}")),
                    }
                }
            }
            assert_eq!(data, b"abc");
            assert_eq!(
                seen,
                [
                    "Open { stream: 1, payload: [119, 104, 97, 116] }",
                    "DataStart { stream: 1, length: 3 }",
                    "Window { stream: 1, increment: 70000 }",
                    "End { stream: 1 }",
                    "Reset { stream: 1, reason: \"why\" }",
                    "Bye { reason: \"\" }",
                ]
            );
        }
    }

    #[test]
    fn lengths_are_judged_by_the_header_alone() {
        for (kind, length) in [
            (OPEN, 606),
            (DATA, 1006),
            (DATA, 5),
            (END, 6),
            (RESET, 518),
            (WINDOW, 8),
            (WINDOW, 10),
            (BYE, u32::MAX),
            (END, 4),
            (OPEN, 0),
        ] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.push(kind);
            bytes.extend_from_slice(&1_u32.to_le_bytes());
            let error = decoder().next(&mut bytes.as_slice()).unwrap_err();
            assert_eq!(error, Violation::Length { kind, length });
        }
        let bytes = [5, 0, 0, 0, 77, 0, 0, 0, 0];
        assert_eq!(decoder().next(&mut bytes.as_slice()), Err(Violation::Kind(77)));
    }

    #[test]
    fn a_reason_is_cut_between_characters_and_cannot_drive_a_terminal() {
        assert_eq!(cut(&"é".repeat(300)).len(), 512);
        assert_eq!(cut(&format!("a{}", "é".repeat(300))).len(), 511);
        assert_eq!(sentence(b"a\x1b[2J\nb\xff"), "a [2J b\u{fffd}");
    }

    proptest! {
        #[test]
        fn raw_bytes_never_panic_and_hold_little(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64),
        ) {
            let mut decoder = decoder();
            'all: for chunk in &chunks {
                let mut input = chunk.as_slice();
                loop {
                    match decoder.next(&mut input) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => break 'all,
                    }
                }
                prop_assert!(input.is_empty());
                prop_assert!(decoder.kept.capacity() <= 2 * 600);
            }
        }
    }
}
