use proptest::prelude::*;

use super::*;

fn name(text: &str) -> Host {
    Host::Name(HostName(Arc::from(text)))
}

fn address(text: &str) -> Host {
    Host::Address(text.parse().unwrap())
}

#[test]
fn one_host_has_one_form() {
    let table = [
        ("example.com", name("example.com")),
        ("EXAMPLE.Com.", name("example.com")),
        ("localhost.", name("localhost")),
        ("bücher.example", name("xn--bcher-kva.example")),
        ("BÜCHER.example", name("xn--bcher-kva.example")),
        ("xn--bcher-kva.example", name("xn--bcher-kva.example")),
        ("XN--BCHER-KVA.example", name("xn--bcher-kva.example")),
        ("example。com", name("example.com")),
        ("ＥＸＡＭＰＬＥ.com", name("example.com")),
        ("_dmarc.a-b.example", name("_dmarc.a-b.example")),
        ("r3---sn-4g5e.example", name("r3---sn-4g5e.example")),
        ("0x7g.example", name("0x7g.example")),
        ("1.2.3.4.example", name("1.2.3.4.example")),
        ("127.0.0.1", address("127.0.0.1")),
        ("127.0.0.1.", address("127.0.0.1")),
        ("127.1", address("127.0.0.1")),
        ("2130706433", address("127.0.0.1")),
        ("0x7F000001", address("127.0.0.1")),
        ("0177.0.0.1", address("127.0.0.1")),
        ("①②⑦.0.0.1", address("127.0.0.1")),
        ("１２７．０．０．１", address("127.0.0.1")),
        ("::1", address("::1")),
        ("[::1]", address("::1")),
        ("[::ffff:127.0.0.1]", address("127.0.0.1")),
        ("::FFFF:7f00:1", address("127.0.0.1")),
        ("[fe80::1%eth0]", address("fe80::1")),
        ("fe80::1%25eth0", address("fe80::1")),
    ];
    for (text, expected) in table {
        assert_eq!(Host::parse(text).as_ref(), Ok(&expected), "{text}");
    }
}

#[test]
fn what_is_no_host_is_refused() {
    let long_label = format!("{}.example", "a".repeat(64));
    let long_name = format!("{}com", "a.".repeat(126));
    let table = [
        "",
        ".",
        "..",
        "a..b",
        ".a",
        "a..",
        "allowed.com\0.evil.example",
        "a b",
        " a",
        "a\t",
        "a\r\nHost: b",
        "a\n",
        "a%2eb",
        "a%00",
        "user@host",
        "a\\b",
        "a/b",
        "a?b",
        "a#b",
        "a:b",
        "a:80",
        "a*b",
        "*.a",
        "a,b",
        "a;b",
        "a|b",
        "a<b",
        "a\u{7f}b",
        "a\u{85}b",
        "a\u{200b}b",
        "a\u{a0}b",
        "a\u{ad}b",
        "exam\u{2100}ple.com",
        "xn--a",
        "xn--",
        "[::1",
        "::1]",
        "[::1]x",
        "[1.2.3.4]",
        "[]",
        "[fe80::1%]",
        "[fe80::1%et h]",
        ":::1",
        "1.2.3.4.5",
        "256.1.1.1",
        "1.2.3.08",
        "example.123",
        "foo.0x1",
        "4294967296",
        &long_label,
        &long_name,
    ];
    for text in table {
        assert!(Host::parse(text).is_err(), "{text:?}: {:?}", Host::parse(text));
    }
    assert!(Host::parse(&"a.".repeat(600)).is_err());
    let longest = format!("{}a.com", "a.".repeat(124));
    assert_eq!(longest.len(), 253);
    assert!(Host::parse(&longest).is_ok());
}

#[test]
fn a_name_is_not_an_address() {
    assert_eq!(HostName::parse("0x7f.1"), Err(HostError::NotName { host: "0x7f.1".to_owned() }));
    assert_eq!(HostName::parse("A.example").unwrap().as_str(), "a.example");
}

#[test]
fn authorities_are_read_and_written() {
    let table = [
        ("example.com:443", "example.com:443"),
        ("EXAMPLE.com.:1", "example.com:1"),
        ("127.1:65535", "127.0.0.1:65535"),
        ("[::1]:80", "[::1]:80"),
        ("[::ffff:1.2.3.4]:80", "1.2.3.4:80"),
    ];
    for (text, expected) in table {
        assert_eq!(Authority::parse(text).unwrap().to_string(), expected);
    }
    for text in [
        "example.com",
        "example.com:",
        "example.com:0",
        "example.com:65536",
        "example.com:+1",
        "example.com:080",
        "example.com: 80",
        "example.com:8o",
        "example.com:80:80",
        "::1:80",
        "[::1]80",
        "[::1]:",
        "user@example.com:80",
        ":80",
        "",
    ] {
        assert!(Authority::parse(text).is_err(), "{text:?}: {:?}", Authority::parse(text));
    }
    assert_eq!(Authority::parse_or("a.example", Port::HTTPS).unwrap().to_string(), "a.example:443");
    assert_eq!(Authority::parse_or("a.example:80", Port::HTTPS).unwrap().port, Port::HTTP);
    assert_eq!(Authority::parse_or("::1", Port::HTTPS).unwrap().to_string(), "[::1]:443");
}

#[test]
fn the_machine_has_three_names_and_one_form() {
    for text in ["localhost", "host.docker.internal", "GATEWAY.docker.internal."] {
        let host = Host::parse(text).unwrap();
        assert!(host.is_machine(), "{text}");
        assert_eq!(host.rewritten(), name("localhost"));
    }
    for text in ["a.localhost", "docker.internal", "127.0.0.1", "xhost.docker.internal"] {
        let host = Host::parse(text).unwrap();
        assert!(!host.is_machine(), "{text}");
        assert_eq!(host.clone().rewritten(), host);
    }
}

#[test]
fn errors_are_one_line_and_short() {
    for text in ["a\nb\u{1b}[31m", "ü\u{202e}x\0", &"-".repeat(1_000_000), "a:\u{1b}"] {
        let error = Authority::parse(text).unwrap_err().to_string();
        assert!(error.len() < 600 && !error.contains(char::is_control), "{error}");
    }
}

#[test]
fn parents_are_the_domains_above() {
    let host = HostName::parse("a.b.c.example").unwrap();
    assert_eq!(host.parents().collect::<Vec<_>>(), ["b.c.example", "c.example", "example"]);
    assert_eq!(HostName::localhost().parents().count(), 0);
}

fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("."),
        Just(":"),
        Just("["),
        Just("]"),
        Just("%"),
        Just("@"),
        Just("*"),
        Just("xn--"),
        Just("0x"),
        Just("::"),
        Just("ffff"),
        Just("127"),
        Just("a"),
        Just("ü"),
        Just("。"),
        Just("\u{202e}"),
        Just("\0"),
        Just("-"),
        Just("1"),
        Just("/"),
        Just("①"),
        Just("ß"),
    ];
    prop_oneof![
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat()),
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn any_text_is_a_host_in_its_one_form_or_an_error(text in hostile()) {
        if let Ok(host) = Host::parse(&text) {
            let shown = host.to_string();
            prop_assert_eq!(Host::parse(&shown).unwrap(), host.clone());
            prop_assert!(shown.is_ascii() && !shown.contains(char::is_whitespace));
            if let Host::Name(name) = host {
                prop_assert!(name.as_str().len() <= 253);
                prop_assert!(name.as_str().split('.').all(|label| (1..=63).contains(&label.len())));
                prop_assert!(name.as_str().parse::<IpAddr>().is_err());
                prop_assert_eq!(name.as_str(), name.as_str().to_ascii_lowercase());
            }
        }
    }

    #[test]
    fn any_text_is_an_authority_in_its_one_form_or_an_error(text in hostile(), port in any::<u16>()) {
        for text in [text.clone(), format!("{text}:{port}")] {
            if let Ok(authority) = Authority::parse(&text) {
                prop_assert_eq!(Authority::parse(&authority.to_string()).unwrap(), authority);
            }
        }
    }

    /// However an address is disguised, it is that address.
    #[test]
    fn disguised_addresses_are_addresses(bits in any::<u32>(), form in 0..9_usize, dot in any::<bool>()) {
        let [a, b, c, d] = bits.to_be_bytes();
        let text = match form {
            0 => format!("{a}.{b}.{c}.{d}"),
            1 => format!("{bits}"),
            2 => format!("{bits:#X}"),
            3 => format!("0{bits:o}"),
            4 => format!("{a:#x}.0{b:o}.{c}.0{d:o}"),
            5 => format!("{a}.{}", bits & 0x00ff_ffff),
            6 => format!("0{a:o}.{b}.{}", bits & 0xffff),
            7 => format!("0x0000{a:x}.{b:#X}.{c}.{d}"),
            _ => format!("{a}.{b}.{c}.{d}").chars().map(fullwidth).collect(),
        };
        let text = if dot { format!("{text}.") } else { text };
        prop_assert_eq!(Host::parse(&text), Ok(Host::Address(std::net::Ipv4Addr::from_bits(bits).into())));
    }

    #[test]
    fn names_of_plain_letters_stay(labels in proptest::collection::vec("[a-z][a-z0-9]{0,10}", 1..5)) {
        let text = labels.join(".");
        prop_assume!(!text.split('.').any(|label| label.starts_with("xn")));
        let upper = text.to_ascii_uppercase();
        prop_assert_eq!(Host::parse(&upper).unwrap().to_string(), text);
    }
}

fn fullwidth(c: char) -> char {
    if c == '.' { '．' } else { char::from_u32(u32::from(c) - 0x30 + 0xff10).unwrap() }
}
