//! The proxy's reader of HTTP/1 requests: head, then a chunked body.
//!
//! The first byte of the input says in what pieces the rest comes.

use bytes::{Bytes, BytesMut};
use hutch_proxy::chunked::{Chunked, Part};
use hutch_proxy::head::{Finder, Framing, Target, parse};

/// Pieces make no difference; what passes has one reading, and another strict reader has the same.
pub fn check(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    let size = usize::from(*size).max(1);
    let whole = Finder::default().find(bytes);
    let mut finder = Finder::default();
    let mut pieced = Ok(None);
    let mut end = 0;
    while end < bytes.len() && matches!(pieced, Ok(None)) {
        end = (end + size).min(bytes.len());
        pieced = finder.find(&bytes[..end]);
    }
    assert_eq!(pieced, whole);
    if let Ok(Some(end)) = whole {
        let (head, body) = bytes.split_at(end);
        if let Some(Framing::Chunked) = read_head(head) {
            read_chunks(body, size);
        }
    } else {
        read_chunks(bytes, size);
    }
}

fn read_head(bytes: &[u8]) -> Option<Framing> {
    let head = parse(bytes).ok()?;
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut theirs = httparse::Request::new(&mut fields);
    let read = theirs.parse(bytes).expect("httparse takes what we take");
    assert_eq!(read, httparse::Status::Complete(bytes.len()));
    assert_eq!(theirs.method, Some(head.method.as_str()));
    assert_eq!(theirs.headers.len(), head.fields.len());
    for field in theirs.headers.iter() {
        let mut ours = head.fields.get_all(field.name).iter();
        assert!(ours.any(|value| value.as_bytes() == field.value), "{}", field.name);
    }
    let target = theirs.path.unwrap_or_default();
    match &head.target {
        Target::Origin(path) => assert_eq!(path.as_str(), target),
        Target::Asterisk => assert_eq!(target, "*"),
        Target::Authority(authority) => assert_eq!(
            Some(&authority.host),
            head.host.as_ref().map(|host| &host.host).or(Some(&authority.host))
        ),
        Target::Absolute { authority, .. } => {
            assert!(head.host.as_ref().is_none_or(|host| host == authority));
        }
    }
    // Read with nothing but lines and colons: what smuggling is made of is not there.
    assert!(!bytes.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'));
    let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
    let lines = |name: &str| {
        let all =
            text.split("\r\n").skip(1).filter(|line| line.starts_with(name)).collect::<Vec<_>>();
        assert!(all.len() <= 1, "{all:?}");
        all.first().map(|line| line[name.len()..].trim_matches([' ', '\t']).to_owned())
    };
    lines("host:");
    let (length, coding) = (lines("content-length:"), lines("transfer-encoding:"));
    match head.framing {
        Framing::Chunked => assert_eq!((length, coding.as_deref()), (None, Some("chunked"))),
        Framing::Length(bytes) => {
            assert_eq!(coding, None);
            assert_eq!(length.map_or(0, |digits| digits.parse::<u64>().expect("digits")), bytes);
        }
    }
    Some(head.framing)
}

/// The data and the end do not depend on how the bytes come.
fn read_chunks(bytes: &[u8], size: usize) {
    let whole = chunks(std::iter::once(bytes));
    let pieced = chunks(bytes.chunks(size));
    // An error may come earlier when more is there to be seen; data before it may not differ.
    match (&whole, &pieced) {
        ((one, Ok(done)), (other, Ok(same))) => assert_eq!((one, done), (other, same)),
        ((one, _), (other, _)) => {
            let length = one.len().min(other.len());
            assert_eq!(one[..length], other[..length]);
            assert!(!matches!((&whole.1, &pieced.1), (Ok(Some(_)), _) | (_, Ok(Some(_)))));
        }
    }
}

/// The data, and how many bytes were left after the end if there was one.
fn chunks<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<u8>, Result<Option<()>, ()>) {
    let mut reader = Chunked::default();
    let mut arrived = BytesMut::new();
    let mut data = Vec::new();
    for piece in pieces {
        arrived.extend_from_slice(piece);
        loop {
            match reader.next(&mut arrived) {
                Ok(Some(Part::Data(part))) => {
                    assert_ne!(part, Bytes::new());
                    data.extend_from_slice(&part);
                }
                Ok(Some(Part::End(_))) => {
                    assert!(reader.is_done());
                    return (data, Ok(Some(())));
                }
                Ok(None) => break,
                Err(_) => return (data, Err(())),
            }
        }
    }
    (data, Ok(None))
}
