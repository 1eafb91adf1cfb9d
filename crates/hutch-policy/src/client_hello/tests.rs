use std::io::Cursor;
use std::sync::Arc;

use proptest::prelude::*;
use rustls::pki_types::ServerName;

use super::*;

/// What a real client sends.
fn rustls_hello(name: &str, protocols: &[&str], tls12_only: bool) -> Vec<u8> {
    let versions: &[&rustls::SupportedProtocolVersion] = if tls12_only {
        &[&rustls::version::TLS12]
    } else {
        &[&rustls::version::TLS13, &rustls::version::TLS12]
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

fn extension(number: u16, data: &[u8]) -> Vec<u8> {
    [&number.to_be_bytes()[..], &long(data)].concat()
}

fn name_extension(name: &[u8]) -> Vec<u8> {
    extension(0, &long(&[&[0], &long(name)[..]].concat()))
}

/// A handshake message with these extensions, without records.
fn handshake(extensions: &[u8]) -> Vec<u8> {
    let body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0], &long(extensions)].concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], &body].concat()
}

/// A handshake in records of at most `size` bytes.
fn records(handshake: &[u8], size: usize) -> Vec<u8> {
    handshake.chunks(size).flat_map(|piece| [&[22, 3, 1][..], &long(piece)].concat()).collect()
}

fn hello(extensions: &[u8]) -> Vec<u8> {
    records(&handshake(extensions), 1 << 14)
}

fn name(bytes: &[u8]) -> Result<Option<String>, ClientHelloError> {
    let hello = parse(bytes)?.expect("whole");
    Ok(hello.server_name.map(|name| name.to_string()))
}

#[test]
fn a_real_client_is_understood() {
    let bytes = rustls_hello("api.example.com", &["h2", "http/1.1"], false);
    let expected = ClientHello {
        server_name: Some(Host::parse("api.example.com").unwrap()),
        protocols: vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        encrypted: false,
        tls13: true,
    };
    assert_eq!(parse(&bytes), Ok(Some(expected)));
    let old = parse(&rustls_hello("api.example.com", &[], true)).unwrap().unwrap();
    assert_eq!((old.tls13, old.protocols.len()), (false, 0));
    let nameless = parse(&rustls_hello("192.0.2.1", &[], false)).unwrap().unwrap();
    assert_eq!(nameless.server_name, None);
}

#[test]
fn it_may_come_in_any_pieces() {
    let whole = rustls_hello("api.example.com", &["h2"], false);
    let expected = parse(&whole).unwrap();
    assert!(expected.is_some());
    let message: Vec<u8> = whole[RECORD_HEADER..].to_vec();
    for size in [1, 2, 3, 5, 100, message.len()] {
        let bytes = records(&message, size);
        assert_eq!(parse(&bytes), Ok(expected.clone()), "records of {size}");
        let mut reader = Reader::default();
        for (index, byte) in bytes.iter().enumerate() {
            let read = reader.push(std::slice::from_ref(byte)).unwrap();
            assert_eq!(read.is_some(), index + 1 == bytes.len());
        }
        for end in 0..bytes.len() {
            assert_eq!(parse(&bytes[..end]), Ok(None));
        }
    }
}

#[test]
fn what_follows_in_other_records_is_not_looked_at() {
    let mut bytes = rustls_hello("api.example.com", &[], false);
    bytes.extend_from_slice(b"\x17\x03\x03 anything");
    assert!(parse(&bytes).unwrap().is_some());
}

#[test]
fn what_is_not_tls_is_told_by_its_first_byte() {
    for bytes in
        [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-", b"\x80\x2e\x01", b"\x00", b"\x17\x03\x03"]
    {
        assert_eq!(parse(bytes), Err(ClientHelloError::NotTls));
    }
    for bytes in
        [&b"\x16\x02"[..], b"\x16\x03\x05", b"\x16\x03\x01\x00\x00", b"\x16\x03\x01\x40\x01"]
    {
        assert_eq!(parse(bytes), Err(ClientHelloError::Record));
    }
    assert_eq!(parse(b"\x16\x03\x01\x00\x04\x02"), Err(ClientHelloError::NotClientHello));
    // An alert or data between the records of one message.
    let mut bytes = records(&handshake(&[]), 10);
    bytes[15] = 21;
    assert_eq!(parse(&bytes), Err(ClientHelloError::Record));
}

#[test]
fn names_are_in_their_one_form() {
    let table = [
        ("API.Example.COM", "api.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("example.com.", "example.com"),
        ("127.0.0.1", "127.0.0.1"),
        ("0x7f.1", "127.0.0.1"),
    ];
    for (sent, expected) in table {
        assert_eq!(name(&hello(&name_extension(sent.as_bytes()))), Ok(Some(expected.to_owned())));
    }
    for sent in ["", "a b", "a\0b", "a\u{fc}.example", "a..b", "*", "[::1]:1", &"a".repeat(64)] {
        assert!(parse(&hello(&name_extension(sent.as_bytes()))).is_err(), "{sent:?}");
    }
    assert_eq!(name(&hello(&name_extension(b"\xff"))), Err(ClientHelloError::ServerNames));
    assert_eq!(name(&hello(&[])), Ok(None));
}

#[test]
fn two_names_are_none() {
    let twice = [name_extension(b"a.example"), name_extension(b"b.example")].concat();
    assert_eq!(parse(&hello(&twice)), Err(ClientHelloError::Duplicate { extension: 0 }));
    let entry = |name: &[u8]| [&[0], &long(name)[..]].concat();
    let list = long(&[entry(b"a.example"), entry(b"b.example")].concat());
    assert_eq!(parse(&hello(&extension(0, &list))), Err(ClientHelloError::ServerNames));
    let other_kind = long(&[&[1], &long(b"a.example")[..]].concat());
    assert_eq!(parse(&hello(&extension(0, &other_kind))), Err(ClientHelloError::ServerNames));
    let unknown_twice =
        [extension(0x1234, &[]), extension(0x4321, &[]), extension(0x1234, &[1])].concat();
    assert_eq!(
        parse(&hello(&unknown_twice)),
        Err(ClientHelloError::Duplicate { extension: 0x1234 })
    );
}

#[test]
fn a_hidden_name_is_told() {
    for number in [0xfe0d, 0xffce] {
        let both = [name_extension(b"front.example"), extension(number, &[0, 1, 2])].concat();
        assert!(parse(&hello(&both)).unwrap().unwrap().encrypted);
    }
}

#[test]
fn lengths_must_fit() {
    let name = name_extension(b"a.example");
    let good = handshake(&name);
    // Every byte that is part of a length, one more and one less.
    for at in [1, 2, 3, 38, 39, 40, 43, 45, 46, 49, 50, 51, 52, 54, 55] {
        for change in [1_u8, 255] {
            let mut bad = good.clone();
            bad[at] = bad[at].wrapping_add(change);
            let read = parse(&records(&bad, 1 << 14));
            assert!(!matches!(read, Ok(Some(_))), "byte {at} + {change}: {read:?}");
        }
    }
    for data in [&[][..], &[0], &[0, 0], &[0, 1, 0], &[0, 4, 0, 0, 9, b'a']] {
        assert!(parse(&hello(&extension(0, data))).is_err(), "{data:?}");
    }
    for data in [&[][..], &[0, 1, 0], &[0, 3, 2, b'h'], &[0, 2, 1, b'h', 0]] {
        assert!(parse(&hello(&extension(16, data))).is_err(), "{data:?}");
    }
    for data in [&[][..], &[1, 3], &[2, 3, 4, 0]] {
        assert!(parse(&hello(&extension(43, data))).is_err(), "{data:?}");
    }
    let mut two = good.clone();
    two.extend_from_slice(&good);
    assert!(parse(&records(&two, 1 << 14)).is_err());
}

#[test]
fn a_client_hello_is_bounded() {
    let long_one = handshake(
        &vec![0_u8; 60_000][..0]
            .iter()
            .copied()
            .chain(extension(0x1234, &vec![0; 60_000]))
            .collect::<Vec<u8>>(),
    );
    assert_eq!(parse(&records(&long_one, 1 << 14)), Err(ClientHelloError::TooLong));
    // One that says that it is short, in records of one byte.
    let tiny = records(&handshake(&extension(0x1234, &vec![0; 20_000])), 1);
    assert_eq!(parse(&tiny), Err(ClientHelloError::TooLong));
    let fits = handshake(&extension(0x1234, &vec![0; 20_000]));
    assert!(parse(&records(&fits, 1 << 14)).unwrap().is_some());
}

/// What rustls, as a server, understands of the same bytes.
fn rustls_reads(bytes: &[u8]) -> Option<Option<String>> {
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_bytes_are_read_or_refused_and_pieces_make_no_difference(
        bytes in proptest::collection::vec(any::<u8>(), 0..300), size in 1..50_usize, prefix in any::<bool>()
    ) {
        let bytes = if prefix { records(&[&[1, 0, 1, 0][..], &bytes].concat(), 40) } else { bytes };
        let whole = parse(&bytes);
        let mut reader = Reader::default();
        let mut pieced = Ok(None);
        for piece in bytes.chunks(size) {
            pieced = reader.push(piece);
            if !matches!(pieced, Ok(None)) {
                break;
            }
        }
        prop_assert_eq!(pieced, whole);
    }

    /// Whatever is changed in a ClientHello: if rustls takes it, we refuse it or see the same name.
    #[test]
    fn no_other_reader_sees_another_name(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cut in proptest::option::of((any::<prop::sample::Index>(), any::<prop::sample::Index>())),
        size in 1..400_usize,
    ) {
        let mut message = rustls_hello("api.example.com", &["h2", "http/1.1"], false)[RECORD_HEADER..].to_vec();
        for (at, value) in &changes {
            let at = at.index(message.len());
            message[at] = *value;
        }
        if let Some((from, to)) = cut {
            let (from, to) = (from.index(message.len()), to.index(message.len()));
            message.drain(from.min(to)..from.max(to));
        }
        let bytes = records(&message, size);
        if changes.is_empty() && cut.is_none() {
            prop_assert_eq!(rustls_reads(&bytes), Some(Some("api.example.com".to_owned())));
        }
        if let (Some(theirs), Ok(Some(ours))) = (rustls_reads(&bytes), parse(&bytes)) {
            let ours = ours.server_name.map(|name| name.to_string());
            prop_assert_eq!(ours, theirs.map(|name| name.to_ascii_lowercase()));
        }
    }
}
