use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Every IPv6 form that carries an IPv4 address, by name.
pub(crate) fn disguises(address: Ipv4Addr) -> Vec<(&'static str, Ipv6Addr)> {
    let [a, b, c, d] = address.octets().map(u16::from);
    let (high, low) = (a << 8 | b, c << 8 | d);
    vec![
        ("mapped", Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low)),
        ("compatible", Ipv6Addr::new(0, 0, 0, 0, 0, 0, high, low)),
        ("translated", Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, high, low)),
        ("6to4", Ipv6Addr::new(0x2002, high, low, 1, 2, 3, 4, 5)),
        ("nat64", Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)),
        ("local nat64 /48", Ipv6Addr::new(0x64, 0xff9b, 1, high, c, d << 8, 0, 0)),
        ("local nat64 /56", Ipv6Addr::new(0x64, 0xff9b, 1, 0x1200 | a, b, low, 0, 0)),
        ("local nat64 /64", Ipv6Addr::new(0x64, 0xff9b, 1, 0x1234, a, b << 8 | c, d << 8, 0)),
        ("local nat64 /96", Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, high, low)),
        ("teredo client", Ipv6Addr::new(0x2001, 0, 0x808, 0x808, 0, 0, !high, !low)),
        ("teredo server", Ipv6Addr::new(0x2001, 0, high, low, 0, 0, 0xf7f7, 0xf7f7)),
        ("isatap", Ipv6Addr::new(0x2a00, 1, 2, 3, 0, 0x5efe, high, low)),
        ("isatap, global", Ipv6Addr::new(0x2a00, 1, 2, 3, 0x200, 0x5efe, high, low)),
    ]
}

#[test]
fn loopback_and_plain_addresses_carry_nothing() {
    for plain in ["::1", "2606:4700::1111", "fe80::1", "fd00::1"] {
        assert_eq!(faces(ip(plain)), [ip(plain)]);
    }
    assert_eq!(faces(ip("1.2.3.4")), [ip("1.2.3.4")]);
    assert_eq!(faces(ip("::")), [ip("::")]);
}

#[test]
fn special_ranges_are_known_at_their_edges() {
    let table = [
        ("0.0.0.0", Some(Treatment::Never)),
        ("0.255.255.255", Some(Treatment::Never)),
        ("1.0.0.0", None),
        ("100.63.255.255", None),
        ("100.64.0.0", Some(Treatment::UnlessAllowed)),
        ("100.127.255.255", Some(Treatment::UnlessAllowed)),
        ("100.128.0.0", None),
        ("100.100.100.200", Some(Treatment::UnlessAllowed)),
        ("168.63.129.16", Some(Treatment::UnlessAllowed)),
        ("168.63.129.17", None),
        ("192.0.0.192", Some(Treatment::UnlessAllowed)),
        ("192.0.1.0", None),
        ("192.0.2.1", None),
        ("198.17.255.255", None),
        ("198.18.0.0", Some(Treatment::LiteralUnlessAllowed)),
        ("198.19.255.255", Some(Treatment::LiteralUnlessAllowed)),
        ("198.20.0.0", None),
        ("203.0.113.1", None),
        ("223.255.255.255", None),
        ("224.0.0.1", Some(Treatment::Never)),
        ("239.255.255.255", Some(Treatment::Never)),
        ("240.0.0.0", Some(Treatment::UnlessAllowed)),
        ("255.255.255.254", Some(Treatment::UnlessAllowed)),
        ("255.255.255.255", Some(Treatment::Never)),
        ("::", Some(Treatment::Never)),
        ("::1", None),
        ("::ffff:0.0.0.0", Some(Treatment::Never)),
        ("ff02::1", Some(Treatment::Never)),
        ("fec0::1", Some(Treatment::UnlessAllowed)),
        ("febf::1", None),
        ("2002:e000:1::", Some(Treatment::Never)),
        ("64:ff9b::6440:1", Some(Treatment::UnlessAllowed)),
        ("64:ff9b:1::", Some(Treatment::Never)),
    ];
    for (address, expected) in table {
        assert_eq!(special(ip(address)).map(|range| range.treatment), expected, "{address}");
    }
}

#[test]
fn forms_of_inet_aton_are_read() {
    let table = [
        ("127.0.0.1", Some([127, 0, 0, 1])),
        ("127.1", Some([127, 0, 0, 1])),
        ("127.0.1", Some([127, 0, 0, 1])),
        ("2130706433", Some([127, 0, 0, 1])),
        ("0x7f000001", Some([127, 0, 0, 1])),
        ("0X7F.1", Some([127, 0, 0, 1])),
        ("017700000001", Some([127, 0, 0, 1])),
        ("0177.0.0.01", Some([127, 0, 0, 1])),
        ("0x7f.0x0.0x0.0x1", Some([127, 0, 0, 1])),
        ("10.65535", Some([10, 0, 255, 255])),
        ("0", Some([0, 0, 0, 0])),
        ("0x", Some([0, 0, 0, 0])),
        ("4294967295", Some([255, 255, 255, 255])),
        ("4294967296", None),
        ("256.0.0.1", None),
        ("1.2.3.256", None),
        ("1.2.3.4.5", None),
        ("1..2", None),
        ("1.2.3.", None),
        ("09.0.0.1", None),
        ("+1.2.3.4", None),
        ("99999999999999999999999999", None),
        ("", None),
    ];
    for (text, expected) in table {
        assert_eq!(parse_ipv4(text), expected.map(Ipv4Addr::from), "{text}");
    }
}

proptest! {
    #[test]
    fn every_disguise_shows_its_address(bits in any::<u32>()) {
        let address = Ipv4Addr::from_bits(bits);
        for (kind, disguise) in disguises(address) {
            let wrong_guess = address.octets()[0] == 0 && kind.starts_with("local");
            let loopback = disguise == Ipv6Addr::LOCALHOST || disguise == Ipv6Addr::UNSPECIFIED;
            let faces = faces(disguise.into());
            prop_assert!(
                faces.contains(&address.into()) || wrong_guess || loopback,
                "{kind}: {disguise} has {faces:?}"
            );
        }
    }

    #[test]
    fn faces_are_in_one_form_and_the_first_is_the_address(bits in any::<u128>()) {
        let address = IpAddr::from(Ipv6Addr::from_bits(bits));
        let faces = faces(address);
        prop_assert_eq!(faces[0], canonical(address));
        prop_assert!(faces.iter().all(|face| canonical(*face) == *face));
        prop_assert!(faces.iter().skip(1).all(IpAddr::is_ipv4));
    }

    /// The standard library and ours agree on what both read.
    #[test]
    fn dotted_quads_are_read_as_everyone_does(bits in any::<u32>()) {
        let address = Ipv4Addr::from_bits(bits);
        prop_assert_eq!(parse_ipv4(&address.to_string()), Some(address));
        prop_assert_eq!(parse_ipv4(&bits.to_string()), Some(address));
        prop_assert_eq!(parse_ipv4(&format!("{bits:#x}")), Some(address));
        prop_assert_eq!(parse_ipv4(&format!("0{bits:o}")), Some(address));
    }
}
