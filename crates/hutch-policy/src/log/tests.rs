use proptest::prelude::*;

use super::*;

fn record() -> Record {
    Record {
        rule: "*.example.com".to_owned(),
        reason: "allowed by local rule for *.example.com".to_owned(),
        host: "api.example.com".to_owned(),
        port: 443,
        method: Some("GET".to_owned()),
        url: Some("https://api.example.com/data".to_owned()),
        protocol: Some("h2".to_owned()),
        status: Some(200),
        address: Some("93.184.216.34".to_owned()),
        credential: Some("anthropic".to_owned()),
        sent: 12,
        received: 3456,
        duration_ms: 78,
        ..Record::new(1_769_681_723_000, "my-sandbox", How::Terminated, Decision::Allowed)
    }
}

#[test]
fn a_record_is_one_line_and_is_read_back() {
    let line = record().to_line();
    assert_eq!(
        line,
        concat!(
            r#"{"time_ms":1769681723000,"sandbox":"my-sandbox","how":"terminated","decision":"allowed","#,
            r#""rule":"*.example.com","reason":"allowed by local rule for *.example.com","#,
            r#""host":"api.example.com","port":443,"method":"GET","url":"https://api.example.com/data","#,
            r#""protocol":"h2","status":200,"address":"93.184.216.34","credential":"anthropic","#,
            r#""sent":12,"received":3456,"duration_ms":78}"#,
            "\n"
        )
    );
    assert_eq!(Record::from_line(&line), Some(record()));
}

#[test]
fn lines_of_newer_and_older_programs_are_read() {
    let short = r#"{"time_ms":1,"sandbox":"s","how":"teleported","decision":"denied","rule":"r","reason":"","host":"h","port":1,"new":[1]}"#;
    let read = Record::from_line(short).unwrap();
    assert_eq!((read.how, read.sent, read.url), (How::Other, 0, None));
}

#[test]
fn torn_and_foreign_lines_are_skipped() {
    let line = record().to_line();
    for end in 0..line.len() - 2 {
        assert_eq!(Record::from_line(&line[..end]), None);
    }
    let long = format!("{}{}", " ".repeat(LONGEST_LINE), line);
    for text in ["", "\n", "null", "[]", "\0\0\0", "{}", &long] {
        assert_eq!(Record::from_line(text), None);
    }
}

#[test]
fn nobody_writes_to_the_terminal_through_the_log() {
    let nasty = "a\u{1b}[2J\r\n\u{7}\u{9b}31m\u{202e}b\u{200b}\0";
    let all = Some(nasty.to_owned());
    let record = Record {
        sandbox: nasty.to_owned(),
        rule: nasty.to_owned(),
        reason: nasty.to_owned(),
        host: nasty.to_owned(),
        method: all.clone(),
        url: all.clone(),
        protocol: all.clone(),
        address: all.clone(),
        credential: all.clone(),
        error: all,
        ..record()
    };
    let line = record.to_line();
    assert_eq!(line.matches('\n').count(), 1);
    // Also when a line was written by somebody else.
    for read in
        [Record::from_line(&line), Record::from_line(&serde_json::to_string(&record).unwrap())]
    {
        let read = read.unwrap();
        for text in [
            Some(read.sandbox),
            Some(read.rule),
            Some(read.reason),
            Some(read.host),
            read.method,
            read.url,
            read.protocol,
            read.address,
            read.credential,
            read.error,
        ] {
            let text = text.unwrap();
            assert_eq!(clean(&text, 1000), text);
            assert!(text.contains("a\\u{1b}[2J\\u{d}\\u{a}"), "{text}");
        }
    }
}

#[test]
fn lines_are_bounded() {
    for c in ["\u{10ffff}", "\u{1b}", "\"", "\\", "a"] {
        let long = Some(c.repeat(1_000_000));
        let text = long.clone().unwrap();
        let record = Record {
            sandbox: text.clone(),
            rule: text.clone(),
            reason: text.clone(),
            host: text,
            method: long.clone(),
            url: long.clone(),
            protocol: long.clone(),
            address: long.clone(),
            credential: long.clone(),
            error: long,
            ..record()
        };
        let line = record.to_line();
        assert!(line.len() <= LONGEST_LINE, "{c:?}: {}", line.len());
        assert!(Record::from_line(&line).is_some());
    }
}

#[test]
fn urls_lose_their_credentials_and_nothing_else() {
    let table = [
        ("https://api.example.com/v1/messages", "https://api.example.com/v1/messages"),
        ("https://example.com/a?page=2&sort=asc", "https://example.com/a?page=2&sort=asc"),
        ("https://user:pass@example.com/", "https://example.com/"),
        ("https://user@x@example.com:8443/a@b", "https://example.com:8443/a@b"),
        ("https://token@example.com", "https://example.com"),
        ("/path?key=abc", "/path?key=REDACTED"),
        ("/path?KEY=abc&x=1", "/path?KEY=REDACTED&x=1"),
        ("/p?api_key=1;token=2&x=3", "/p?api_key=REDACTED;token=REDACTED&x=3"),
        ("/p?%6bey=abc", "/p?%6bey=REDACTED"),
        ("/p?%256bey=abc", "/p?%256bey=REDACTED"),
        (
            "/p?X-Amz-Signature=ab&X-Amz-Date=20260101",
            "/p?X-Amz-Signature=REDACTED&X-Amz-Date=20260101",
        ),
        ("/p?access_token=&x", "/p?access_token=&x"),
        ("/p#access_token=abc", "/p"),
        ("/p?next=https%3A%2F%2Fa.example%2F%3Ftoken%3Dabc", "/p?next=REDACTED"),
        ("/p?next=https://u:p@a.example/", "/p?next=REDACTED"),
        ("/p?h=Authorization:%20Bearer%20x", "/p?h=REDACTED"),
        ("/p?j={\"token\":\"x\"}", "/p?j=REDACTED"),
        ("/p?q=hello+world", "/p?q=hello+world"),
        ("/p?v=0123456789abcdef0123456789abcdef", "/p?v=REDACTED"),
        ("/p?0123456789abcdef0123456789abcdef", "/p?REDACTED"),
        ("/p?0123456789abcdef0123456789abcdef=1", "/p?REDACTED=1"),
        (
            "/v2/library/alpine/blobs/sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            "/v2/library/alpine/blobs/sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        ),
        ("/bot123456:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw/getMe", "/REDACTED/getMe"),
        ("/a/sk-ant-REDACTED/b", "/a/REDACTED/b"),
        ("/a/ghp_0123456789/b", "/a/REDACTED/b"),
        ("/a;token=abc/b", "/a;token=REDACTED/b"),
        ("/a-page-with-a-rather-long-title-of-words", "/a-page-with-a-rather-long-title-of-words"),
        (
            "/packages/requests-2.32.3-py3-none-any.whl",
            "/packages/requests-2.32.3-py3-none-any.whl",
        ),
        ("/lodash/-/lodash-4.17.21.tgz", "/lodash/-/lodash-4.17.21.tgz"),
        (
            "/Python-3.12.0-Linux-x86_64-debug-Build.tgz",
            "/Python-3.12.0-Linux-x86_64-debug-Build.tgz",
        ),
        ("/services/T0/B0/Xq3mW8kL2pR7vN4tY9cB1dF6", "/services/T0/B0/REDACTED"),
        ("//evil.example/a", "//evil.example/a"),
        ("example.com:443", "example.com:443"),
        ("*", "*"),
        ("", ""),
    ];
    for (url, expected) in table {
        assert_eq!(redact_url(url), expected, "{url}");
    }
}

#[test]
fn a_url_that_was_cut_shows_that() {
    let url = format!("https://example.com/{}", "a/".repeat(100_000));
    let redacted = redact_url(&url);
    assert!(redacted.len() <= LONGEST_URL && redacted.ends_with('…'));
    assert_eq!(redact_url(&redacted), redacted);
}

#[test]
fn the_table_has_a_row_for_each_place_and_rule() {
    let mut table = Table::default();
    let denied =
        Record { decision: Decision::Denied, rule: "<default policy>".to_owned(), ..record() };
    let records = [
        Record { time_ms: 20, reason: "later".to_owned(), ..record() },
        Record { time_ms: 10, ..record() },
        Record { time_ms: 15, url: None, ..record() },
        Record { port: 80, ..record() },
        Record { sandbox: "another".to_owned(), ..record() },
        Record { rule: "api.example.com".to_owned(), ..record() },
        denied,
    ];
    table.extend(&records);
    let rows: Vec<_> = table
        .rows(Decision::Allowed)
        .map(|row| (row.sandbox.as_str(), row.host.as_str(), row.rule.as_str(), row.count))
        .collect();
    assert_eq!(
        rows,
        [
            ("another", "api.example.com:443", "*.example.com", 1),
            ("my-sandbox", "api.example.com:443", "*.example.com", 3),
            ("my-sandbox", "api.example.com:443", "api.example.com", 1),
            ("my-sandbox", "api.example.com:80", "*.example.com", 1),
        ]
    );
    let row = table.rows(Decision::Allowed).nth(1).unwrap();
    assert_eq!((row.since_ms, row.last_seen_ms, row.reason.as_str()), (10, 20, "later"));
    assert_eq!(table.rows(Decision::Denied).count(), 1);
}

/// A text percent-encoded where `mask` says so.
fn encoded(text: &str, mask: u32) -> String {
    text.bytes()
        .enumerate()
        .map(|(index, byte)| {
            if mask >> (index % 32) & 1 == 1 {
                format!("%{byte:02X}")
            } else {
                char::from(byte).to_string()
            }
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Wherever a credential stands in a URL, it is not in what is logged.
    #[test]
    fn no_planted_secret_is_left(
        secret in "Z[a-zA-Z0-9]{7,40}",
        place in 0..7_usize,
        key in proptest::sample::select(&["key", "token", "client_secret", "X-Amz-Signature", "sig", "password", "auth", "code", "accessKey", "API-KEY"][..]),
        mask in any::<u32>(),
        host in "[a-z]{1,8}\\.example",
        path in "(/[a-z]{1,6}){0,3}",
        tail in "(&[a-z]{1,3}=[a-z]{1,5}){0,2}",
    ) {
        let key = encoded(key, mask);
        let url = match place {
            0 => format!("https://{secret}@{host}{path}"),
            1 => format!("https://user:{secret}@{host}{path}?a=b"),
            2 => format!("https://{host}{path}?{key}={secret}{tail}"),
            3 => format!("{path}?a=b&{key}={secret}{tail}"),
            4 => format!("https://{host}{path}#{secret}"),
            5 => format!("https://{host}{path}?next={}{tail}", encoded(&format!("https://a.example/?{key}={secret}"), u32::MAX)),
            _ => format!("https://{host}{path}/x;{key}={secret}?a=b"),
        };
        let redacted = redact_url(&url);
        prop_assert!(!redacted.contains(&secret), "{url} -> {redacted}");
        let decoded = redact_url(&url.replace("%25", "%"));
        prop_assert!(!decoded.contains(&secret));
        let line = Record { url: Some(url.clone()), ..record() }.to_line();
        prop_assert!(!line.contains(&secret), "{line}");
    }

    /// What services give out is recognised without a key, in paths and in queries.
    #[test]
    fn what_looks_like_a_key_is_left_nowhere(
        secret in "(sk-ant-api03-|ghp_|sk-proj-|AIza|xoxb-|eyJ)[a-zA-Z0-9_-]{24,60}",
        in_path in any::<bool>(),
    ) {
        let url = if in_path { format!("https://a.example/x/{secret}/y") } else { format!("/x?q={secret}") };
        prop_assert!(!redact_url(&url).contains(&secret[..20]), "{}", redact_url(&url));
    }

    /// Keys of chance have no form but their chance.
    #[test]
    fn random_values_are_left_nowhere(bytes in proptest::collection::vec(any::<u8>(), 24..64)) {
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let url = format!("/x?v={hex}");
        let distinct: std::collections::BTreeSet<u8> = bytes.iter().copied().collect();
        prop_assume!(distinct.len() > 15);
        prop_assert!(!redact_url(&url).contains(&hex[..16]));
    }

    #[test]
    fn any_text_is_made_fit_once_and_stays(url in any::<String>(), more in "[a-z/?&=;#@:%\\\\.0-9]{0,60}") {
        for url in [url, more] {
            let redacted = redact_url(&url);
            prop_assert!(redacted.len() <= LONGEST_URL);
            prop_assert!(!redacted.contains(char::is_control));
            prop_assert_eq!(clean(&redacted, LONGEST_URL), redacted);
        }
    }

    #[test]
    fn any_record_is_one_line_that_is_read_back(
        texts in proptest::collection::vec(any::<String>(), 10), numbers in any::<(u64, u16, u64, u64, u64)>(), denied in any::<bool>()
    ) {
        let [sandbox, rule, reason, host, method, url, protocol, address, credential, error] = <[String; 10]>::try_from(texts).unwrap();
        let record = Record {
            time_ms: numbers.0, port: numbers.1, sent: numbers.2, received: numbers.3, duration_ms: numbers.4,
            decision: if denied { Decision::Denied } else { Decision::Allowed },
            sandbox, rule, reason, host, method: Some(method), url: Some(url.clone()), protocol: Some(protocol),
            address: Some(address), credential: Some(credential), error: Some(error), ..record()
        };
        let line = record.to_line();
        prop_assert!(line.len() <= LONGEST_LINE && line.ends_with('\n') && line.matches('\n').count() == 1);
        let read = Record::from_line(&line).unwrap();
        prop_assert_eq!(read.url, Some(redact_url(&url)));
        prop_assert_eq!(read.error, Some(clean(&record.error.unwrap(), 512)));
    }

    #[test]
    fn any_line_is_a_record_or_nothing(line in any::<String>()) {
        if let Some(record) = Record::from_line(&line) {
            prop_assert!(Record::from_line(&record.to_line()).is_some());
        }
    }
}
