use proptest::prelude::*;

use super::*;

/// A body's bytes, its trailer, and what is left.
type Whole = (Vec<u8>, HeaderMap, Vec<u8>);

/// Reads a body that comes in pieces.
fn read(bytes: &[u8], piece: usize) -> Result<Option<Whole>, Fault> {
    let mut chunked = Chunked::default();
    let mut arrived = BytesMut::new();
    let mut data = Vec::new();
    let mut rest = bytes;
    loop {
        match chunked.next(&mut arrived)? {
            Some(Part::Data(more)) => data.extend_from_slice(&more),
            Some(Part::End(fields)) => {
                assert!(chunked.is_done());
                arrived.extend_from_slice(rest);
                return Ok(Some((data, fields, arrived.to_vec())));
            }
            None if rest.is_empty() => return Ok(None),
            None => {
                let (first, after) = rest.split_at(piece.min(rest.len()));
                arrived.extend_from_slice(first);
                rest = after;
            }
        }
    }
}

#[test]
fn chunks_become_bytes_and_what_follows_stays() {
    let body =
        b"5\r\nhello\r\n00a;x=\"y\"\r\n0123456789\r\n0\r\nX-Sum: 1\r\nHost: evil\r\n\r\nGET /";
    for piece in [1, 2, 7, 1000] {
        let (data, fields, left) = read(body, piece).unwrap().unwrap();
        assert_eq!(data, b"hello0123456789");
        assert_eq!(fields.len(), 1, "{fields:?}");
        assert_eq!(fields["x-sum"], "1");
        assert_eq!(left, b"GET /");
    }
}

#[test]
fn what_is_no_chunk_is_refused() {
    for body in [
        "5\nhello\r\n",
        "5\r\nhello\n",
        "5\r\nhelloo",
        "\r\n",
        "g\r\n",
        "+5\r\n",
        " 5\r\n",
        "5 \r\n",
        "0x5\r\n",
        "1111111111111111\r\n",
        "5;a\nb\r\n",
        "5;\0\r\n",
        "0\r\nX: y\n\r\n\r\n",
        "0\r\n folded\r\n\r\n",
        "0\r\nX : y\r\n\r\n",
    ] {
        assert!(read(body.as_bytes(), 3).is_err(), "{body:?}");
    }
}

#[test]
fn lines_and_trailers_are_bounded() {
    let long = format!("5;{}", "x".repeat(LONGEST_LINE));
    assert!(read(long.as_bytes(), 100).is_err());
    let long = format!("0\r\n{}", "X: y\r\n".repeat(LONGEST_TRAILER));
    assert!(read(long.as_bytes(), 1000).is_err());
}

proptest! {
    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), piece in 1_usize..50) {
        read(&bytes, piece).ok();
    }

    #[test]
    fn any_body_in_any_chunks_is_read(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..10),
        piece in 1_usize..100,
    ) {
        let mut body = Vec::new();
        for chunk in &chunks {
            body.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            body.extend_from_slice(chunk);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"0\r\n\r\n");
        let (data, fields, left) = read(&body, piece).unwrap().unwrap();
        prop_assert_eq!(data, chunks.concat());
        prop_assert!(fields.is_empty() && left.is_empty());
    }
}
