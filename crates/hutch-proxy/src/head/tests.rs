use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Head, Fault> {
    let mut finder = Finder::default();
    match finder.find(text.as_bytes())? {
        Some(end) => parse(&text.as_bytes()[..end]),
        None => panic!("not a whole head"),
    }
}

fn fault(text: &str) -> Fault {
    read(text).unwrap_err()
}

#[test]
fn a_head_is_read_whole() {
    let head = read(
        "POST http://Example.COM:80/a?b HTTP/1.1\r\nhost: example.com\r\nX-A: \t one \r\nx-a: two\r\n\
         Content-Length: 12\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n",
    )
    .unwrap();
    assert_eq!(head.method, Method::POST);
    let Target::Absolute { secure: false, authority, path } = &head.target else { panic!() };
    assert_eq!((authority.to_string().as_str(), path.as_str()), ("example.com:80", "/a?b"));
    assert_eq!(head.host.unwrap().to_string(), "example.com:80");
    assert!(!head.host_has_port && !head.keep_alive);
    assert_eq!(head.framing, Framing::Length(12));
    assert_eq!(head.upgrade.as_deref(), Some("websocket"));
    let values: Vec<_> = head.fields.get_all("x-a").iter().collect();
    assert_eq!(values, ["one", "two"]);
}

#[test]
fn targets_belong_to_methods() {
    let with = |line: &str| read(&format!("{line} HTTP/1.1\r\nHost: a.test\r\n\r\n"));
    assert!(matches!(with("GET /").unwrap().target, Target::Origin(_)));
    assert!(matches!(with("OPTIONS *").unwrap().target, Target::Asterisk));
    assert!(matches!(with("CONNECT a.test:443").unwrap().target, Target::Authority(_)));
    for line in [
        "GET *",
        "GET a.test:443",
        "CONNECT /",
        "CONNECT a.test",
        "CONNECT a.test:0",
        "GET ftp://a.test/",
        "GET http:///",
        "GET http://a.test:99999/",
        "GET //a.test\\/",
        "GET http://a.test@b.test/",
        "GET x",
        "CONNECT http://a.test:443",
        "CONNECT a.test:443/x",
        "GET http://a.test /",
    ] {
        assert!(with(line).is_err(), "{line}");
    }
}

#[test]
fn old_requests_need_no_host_and_have_no_chunks() {
    let head = read("GET / HTTP/1.0\r\n\r\n").unwrap();
    assert!(head.host.is_none() && !head.keep_alive);
    let head = read("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
    assert!(head.keep_alive);
    assert_eq!(fault("GET / HTTP/1.1\r\n\r\n"), Fault::HostCount);
    assert_eq!(fault("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Fault::Coding);
}

#[test]
fn each_fault_is_named() {
    let with = |field: &str| fault(&format!("GET / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n"));
    assert_eq!(with("X: a\r\n b: c"), Fault::Folded);
    assert_eq!(with("X : a"), Fault::Field);
    assert_eq!(with("X"), Fault::Field);
    assert_eq!(with("Host: a"), Fault::HostCount);
    assert_eq!(with("Content-Length: 1\r\nContent-Length: 1"), Fault::Length);
    assert_eq!(with("Content-Length: 1 1"), Fault::Length);
    assert_eq!(with("Content-Length: 9999999999999999999"), Fault::Length);
    assert_eq!(with("Content-Length: 1\r\nTransfer-Encoding: chunked"), Fault::TwoFramings);
    assert_eq!(with("Transfer-Encoding: gzip, chunked"), Fault::Coding);
    assert_eq!(with("Expect: 200-maybe"), Fault::Expectation);
    assert_eq!(fault("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Fault::LeadingLine);
    assert_eq!(fault("GET / HTTP/1.1\nHost: a\r\n\r\n"), Fault::LineEnd);
    assert_eq!(fault("GET / HTTP/1.1\r\nHost: a b\r\n\r\n"), Fault::Host);
    assert_eq!(fault("GET / HTTP/1.1\r\nHost: \r\n\r\n"), Fault::Host);
    let many = "A: b\r\n".repeat(MOST_FIELDS + 1);
    assert_eq!(with(many.trim_end()), Fault::TooManyFields);
}

#[test]
fn an_upgrade_to_another_version_of_http_is_passed_over() {
    let upgrade = |protocols: &str| {
        let text = format!(
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: {protocols}\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
        );
        let mut head = parse(text.as_bytes()).unwrap();
        strip_hop(&mut head.fields);
        assert_eq!(head.fields.len(), 1, "{:?}", head.fields);
        head.upgrade
    };
    assert_eq!(upgrade("H2C"), None);
    assert_eq!(upgrade("h2c, HTTP/2.0, h2"), None);
    assert_eq!(upgrade("h2c, websocket").as_deref(), Some("websocket"));
}

#[test]
fn a_head_that_grows_without_end_is_given_up() {
    let mut finder = Finder::default();
    let mut bytes = b"GET / HTTP/1.1\r\n".to_vec();
    let mut outcome = Ok(None);
    while outcome == Ok(None) {
        bytes.extend_from_slice(b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n");
        outcome = finder.find(&bytes);
    }
    assert_eq!(outcome, Err(Fault::TooLarge));
    assert!(bytes.len() <= LONGEST + 64);
}

#[test]
fn what_belongs_to_a_hop_goes() {
    let head = read(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: x-one, keep-alive, TE\r\nX-One: 1\r\nKeep-Alive: 5\r\n\
         TE: trailers;q=0.5, gzip\r\nProxy-Authorization: x\r\nX-Two: 2\r\n\r\n",
    )
    .unwrap();
    let mut fields = head.fields;
    strip_hop(&mut fields);
    let left: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
    assert_eq!(left, [r#"host: "a""#, r#"x-two: "2""#, r#"te: "trailers""#]);
}

/// A head with something odd in it, most of the time.
fn heads() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("GET ".to_owned()),
        Just("POST / HTTP/1.1\r\n".to_owned()),
        Just("GET http://a.test/ HTTP/1.1\r\n".to_owned()),
        Just("Host: a.test\r\n".to_owned()),
        Just("Host: b\r\n".to_owned()),
        Just("Content-Length: 5\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        Just("X: y\r\n".to_owned()),
        Just(" folded\r\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("\n".to_owned()),
        Just(":".to_owned()),
        "[ -~]{0,12}",
        "[A-Za-z-]{1,8}: [ -~]{0,8}\r\n",
    ];
    let pieces = prop::collection::vec(piece, 0..10);
    (pieces, any::<bool>()).prop_map(|(pieces, usual)| {
        let start = if usual { "GET / HTTP/1.1\r\nHost: a.test\r\n" } else { "" };
        format!("{start}{}\r\n\r\n", pieces.concat()).into_bytes()
    })
}

proptest! {
    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut finder = Finder::default();
        if let Ok(Some(end)) = finder.find(&bytes) {
            parse(&bytes[..end]).ok();
        }
    }

    /// What we take, another parser reads in the same way; what we refuse may be read by others in any way.
    #[test]
    fn what_passes_is_read_alike_by_another_parser(bytes in heads()) {
        let mut finder = Finder::default();
        if let Ok(Some(end)) = finder.find(&bytes)
            && let Ok(head) = parse(&bytes[..end])
        {
            let mut headers = [httparse::EMPTY_HEADER; MOST_FIELDS];
            let mut other = httparse::Request::new(&mut headers);
            let status = other.parse(&bytes).unwrap();
            prop_assert_eq!(status, httparse::Status::Complete(end));
            prop_assert_eq!(other.method, Some(head.method.as_str()));
            let minor = if head.version == Version::HTTP_11 { 1 } else { 0 };
            prop_assert_eq!(other.version, Some(minor));
            prop_assert_eq!(other.headers.len(), head.fields.len());
            for field in other.headers {
                let name = HeaderName::from_bytes(field.name.as_bytes()).unwrap();
                let values: Vec<&[u8]> =
                    head.fields.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
                prop_assert!(values.contains(&field.value.trim_ascii()));
            }
        }
    }

    /// Where the cuts between the pieces are does not matter.
    #[test]
    fn the_end_is_found_in_pieces(bytes in heads(), cuts in prop::collection::vec(1_usize..40, 0..40)) {
        let whole = Finder::default().find(&bytes);
        let mut finder = Finder::default();
        let mut length = 0;
        let mut found = Ok(None);
        for cut in cuts.into_iter().chain([bytes.len()]) {
            length = (length + cut).min(bytes.len());
            found = finder.find(&bytes[..length]);
            if found != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(whole, found);
    }
}
