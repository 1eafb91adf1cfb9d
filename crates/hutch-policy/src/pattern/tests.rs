use proptest::prelude::*;

use super::*;

fn covers(pattern: &str, host: &str, port: u16) -> bool {
    HostPattern::parse(pattern)
        .unwrap()
        .covers(&Host::parse(host).unwrap(), Port::new(port).unwrap())
}

#[test]
fn each_form_covers_what_the_table_says() {
    let table = [
        ("example.com", "example.com", 80, true),
        ("example.com", "example.com", 443, true),
        ("example.com", "api.example.com", 443, false),
        ("example.com", "example.com.evil", 443, false),
        ("example.com:443", "example.com", 443, true),
        ("example.com:443", "example.com", 80, false),
        ("*.example.com", "api.example.com", 443, true),
        ("*.example.com", "a.b.c.example.com", 443, true),
        ("*.example.com", "example.com", 443, false),
        ("*.example.com", "evilexample.com", 443, false),
        ("*.io", "evilio", 443, false),
        ("*.io", "evil.io", 443, true),
        ("*.example.com:443", "api.example.com", 443, true),
        ("*.example.com:443", "api.example.com", 80, false),
        ("*.example.com:443", "example.com", 443, false),
        ("*:443", "anything.example", 443, true),
        ("*:443", "10.0.0.1", 443, true),
        ("*:443", "anything.example", 80, false),
        ("*", "anything.example", 1, true),
        ("*", "::1", 1, true),
        ("10.0.0.1", "10.0.0.1", 80, true),
        ("10.0.0.1", "10.0.0.2", 80, false),
        ("10.0.0.1", "::ffff:10.0.0.1", 80, true),
        ("10.0.0.1:80", "10.0.0.1", 80, true),
        ("10.0.0.1:80", "10.0.0.1", 81, false),
        ("::1", "[::1]", 80, true),
        ("[::1]:80", "::1", 80, true),
        ("[::1]:80", "::1", 81, false),
        ("EXAMPLE.com.", "example.COM", 80, true),
        ("bücher.example", "xn--bcher-kva.example", 80, true),
        ("*.bücher.example", "a.xn--bcher-kva.example", 80, true),
        ("localhost:80", "host.docker.internal", 80, true),
        ("host.docker.internal:80", "localhost", 80, true),
        ("gateway.docker.internal:80", "host.docker.internal", 80, true),
        ("localhost:80", "localhost", 81, false),
        ("localhost", "127.0.0.1", 80, false),
        ("*.docker.internal", "host.docker.internal", 80, false),
    ];
    for (pattern, host, port, expected) in table {
        assert_eq!(covers(pattern, host, port), expected, "{pattern} for {host}:{port}");
    }
}

#[test]
fn patterns_are_in_order_of_precedence() {
    let order = [
        "api.example.com:443",
        "api.example.com",
        "*.api.example.com:443",
        "*.api.example.com",
        "*.example.com:443",
        "*.example.com",
        "*.com:443",
        "*.com",
        "*:443",
        "*",
    ];
    for pair in order.windows(2) {
        let [first, second] = [pair[0], pair[1]].map(|text| HostPattern::parse(text).unwrap());
        assert_eq!(first.specificity(&second), Ordering::Greater, "{first} before {second}");
    }
}

#[test]
fn patterns_are_written_in_one_form() {
    let table = [
        ("Example.COM.:443", "example.com:443"),
        ("*.Bücher.example", "*.xn--bcher-kva.example"),
        ("*:80", "*:80"),
        ("*", "*"),
        ("127.1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::1]:80", "[::1]:80"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("host.docker.internal:3000", "localhost:3000"),
    ];
    for (text, expected) in table {
        assert_eq!(HostPattern::parse(text).unwrap().to_string(), expected);
    }
}

#[test]
fn what_is_no_pattern_is_refused() {
    for text in [
        "",
        "*.",
        "*.*",
        "**.example.com",
        "*example.com",
        "a.*.example.com",
        "example.*",
        "*.1.2.3.4",
        "*.[::1]",
        "*:",
        "*:0",
        "*:x",
        "example.com:*",
        "example.com:443:443",
        "https://example.com",
        "example.com/path",
        "10.0.0.0/8",
        "a b",
        "user@example.com",
        "a,b",
        "*. example.com",
    ] {
        assert!(HostPattern::parse(text).is_err(), "{text:?}");
    }
    let error = HostPattern::parse("https://example.com/").unwrap_err();
    assert!(error.to_string().contains("is a URL"), "{error}");
    let error = HostPattern::parse("10.0.0.0/8").unwrap_err();
    assert!(error.to_string().contains("CIDR"), "{error}");
}

#[test]
fn ranges_cover_addresses_in_either_form() {
    let table = [
        ("10.0.0.0/8", "10.255.255.255", true),
        ("10.0.0.0/8", "11.0.0.0", false),
        ("10.0.0.0/8", "::ffff:10.1.2.3", true),
        ("10.0.0.0/8", "::10.1.2.3", false),
        ("10.1.2.3/8", "10.9.9.9", true),
        ("::ffff:10.0.0.0/104", "10.1.2.3", true),
        ("::ffff:10.0.0.0/104", "11.1.2.3", false),
        ("0.0.0.0/0", "255.255.255.255", true),
        ("0.0.0.0/0", "::1", false),
        ("::/0", "2606:4700::1", true),
        ("::/0", "10.0.0.1", false),
        ("::/0", "::ffff:10.0.0.1", false),
        ("127.0.0.1", "127.0.0.1", true),
        ("127.0.0.1", "127.0.0.2", false),
        ("fe80::/10", "febf:ffff::1", true),
        ("fe80::/10", "fec0::", false),
        ("10.0.0.1/32", "10.0.0.1", true),
    ];
    for (range, address, expected) in table {
        let range = Cidr::parse(range).unwrap();
        assert_eq!(range.covers(address.parse().unwrap()), expected, "{range} for {address}");
    }
}

#[test]
fn what_is_no_range_is_refused() {
    for text in [
        "",
        "10.0.0.0/33",
        "10.0.0/8",
        "10.0.0.0/",
        "10.0.0.0/+8",
        "10.0.0.0/-1",
        "::/129",
        "a/8",
        "010.0.0.0/8",
        "10.0.0.0/8/8",
        "fe80::1%eth0/64",
        " 10.0.0.0/8",
        "localhost",
    ] {
        assert!(Cidr::parse(text).is_err(), "{text:?}");
    }
}

proptest! {
    #[test]
    fn any_text_is_a_pattern_in_its_one_form_or_an_error(text in any::<String>(), host in "[*.]{0,2}[a-z0-9.:\\[\\]*-]{0,20}") {
        for text in [text, host] {
            if let Ok(pattern) = HostPattern::parse(&text) {
                prop_assert_eq!(HostPattern::parse(&pattern.to_string()).unwrap(), pattern);
            }
            if let Ok(range) = Cidr::parse(&text) {
                prop_assert_eq!(Cidr::parse(&range.to_string()).unwrap(), range);
            }
        }
    }

    /// A range covers what arithmetic says that it does.
    #[test]
    fn ranges_are_arithmetic(network in any::<u32>(), prefix in 0..=32_u32, address in any::<u32>(), near in any::<u32>()) {
        let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
        let range = Cidr::parse(&format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(network))).unwrap();
        for address in [address, (network & mask) | (near & !mask)] {
            let expected = address & mask == network & mask;
            let plain = std::net::Ipv4Addr::from_bits(address);
            prop_assert_eq!(range.covers(plain.into()), expected);
            prop_assert_eq!(range.covers(plain.to_ipv6_mapped().into()), expected);
        }
    }
}
