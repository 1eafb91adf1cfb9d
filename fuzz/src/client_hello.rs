//! The reader of a TLS client's first message.
//!
//! The first byte of the input says in what pieces the rest comes.

use std::io::Cursor;

use hutch_policy::client_hello::{LONGEST, Reader, parse};

/// Pieces make no difference, what is read is bounded, and no other reader sees another name.
pub fn check(data: &[u8]) {
    let Some((size, bytes)) = data.split_first() else { return };
    let whole = parse(bytes);
    let mut reader = Reader::default();
    let mut pieced = Ok(None);
    let mut pushed = 0;
    for piece in bytes.chunks(usize::from(*size).max(1)) {
        pieced = reader.push(piece);
        if !matches!(pieced, Ok(None)) {
            break;
        }
        pushed += piece.len();
        assert!(pushed <= LONGEST);
    }
    assert_eq!(pieced, whole);
    if let Ok(Some(hello)) = whole
        && let Some(theirs) = other_reader(bytes)
    {
        let ours = hello.server_name.map(|name| name.to_string());
        assert_eq!(ours, theirs.map(|name| name.to_ascii_lowercase()));
    }
}

/// What rustls, as a server, takes for the name.
fn other_reader(bytes: &[u8]) -> Option<Option<String>> {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut input = Cursor::new(bytes);
    loop {
        let read = acceptor.read_tls(&mut input).ok()?;
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Some(accepted.client_hello().server_name().map(str::to_owned));
            }
            Ok(None) if read > 0 => {}
            _ => return None,
        }
    }
}
