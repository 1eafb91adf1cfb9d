use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::address::tests::disguises;
use crate::config::Edit;

fn policy(edit: &Edit) -> Policy {
    let mut config = ProxyConfig::default();
    config.apply(edit).unwrap();
    Policy::new(&config).unwrap()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

fn port(port: u16) -> Port {
    Port::new(port).unwrap()
}

fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// The whole procedure: a host with the address that it resolves to.
fn judge(policy: &Policy, name: &str, at: u16, address: &str) -> Verdict {
    let judged = policy.judge_host(&host(name), port(at));
    policy.judge_address(&judged, ip(address), port(at))
}

#[test]
fn n1_default_allows_all_but_private_networks_and_this_machine() {
    let policy = policy(&Edit::default());
    let table = [
        ("93.184.216.34", None),
        ("2606:2800:220:1::1", None),
        ("10.0.0.1", Some("10.0.0.0/8")),
        ("127.0.0.1", Some("127.0.0.0/8")),
        ("127.255.255.255", Some("127.0.0.0/8")),
        ("169.254.169.254", Some("169.254.0.0/16")),
        ("172.16.0.1", Some("172.16.0.0/12")),
        ("172.31.255.255", Some("172.16.0.0/12")),
        ("172.32.0.0", None),
        ("192.168.1.1", Some("192.168.0.0/16")),
        ("::1", Some("::1/128")),
        ("fd00::1", Some("fc00::/7")),
        ("fe80::1", Some("fe80::/10")),
        ("::ffff:10.0.0.1", Some("10.0.0.0/8")),
        ("2002:a00:1::", Some("10.0.0.0/8")),
        ("64:ff9b::a9fe:a9fe", Some("169.254.0.0/16")),
        ("0.0.0.0", Some(SPECIAL_RULE)),
        ("::", Some(SPECIAL_RULE)),
        ("224.0.0.1", Some(SPECIAL_RULE)),
        ("100.100.100.200", Some(SPECIAL_RULE)),
    ];
    for (address, rule) in table {
        // The address itself, and a name that resolves to it.
        for name in [address, "name.example"] {
            let verdict = judge(&policy, name, 443, address);
            assert_eq!(verdict.is_allowed(), rule.is_none(), "{name} at {address}: {verdict:?}");
            assert_eq!(verdict.rule, rule.unwrap_or(DEFAULT_RULE), "{name} at {address}");
        }
    }
    for name in ["metadata.google.internal", "METADATA.azure.internal."] {
        assert!(policy.judge_host(&host(name), port(80)).is_denied());
    }
    let localhost = judge(&policy, "host.docker.internal", 8080, "127.0.0.1");
    assert_eq!((localhost.is_allowed(), localhost.rule.as_str()), (false, "127.0.0.0/8"));
}

#[test]
fn n2_a_blocked_range_is_added_to_the_default_ones() {
    let policy = policy(&Edit {
        policy: Some("allow".to_owned()),
        block_cidrs: strings(&["10.0.0.0/8", "203.0.113.0/24"]),
        ..Edit::default()
    });
    assert!(judge(&policy, "a.example", 443, "93.184.216.34").is_allowed());
    assert_eq!(judge(&policy, "a.example", 443, "203.0.113.9").rule, "203.0.113.0/24");
    assert_eq!(judge(&policy, "a.example", 443, "192.168.0.1").rule, "192.168.0.0/16");
    assert_eq!(judge(&policy, "a.example", 443, "10.0.0.1").rule, "10.0.0.0/8");
}

#[test]
fn n3_deny_allows_what_the_user_allowed_and_nothing_else() {
    let policy = policy(&Edit {
        policy: Some("deny".to_owned()),
        allow_hosts: strings(&["api.anthropic.com", "*.npmjs.org"]),
        ..Edit::default()
    });
    let table = [
        ("api.anthropic.com", true),
        ("anthropic.com", false),
        ("platform.claude.com", false),
        ("x.api.anthropic.com", false),
        ("any.npmjs.org", true),
        ("a.b.any.npmjs.org", true),
        ("npmjs.org", false),
        ("evilnpmjs.org", false),
        ("npmjs.org.evil.example", false),
        ("github.com", false),
        ("1.1.1.1", false),
        ("localhost", false),
    ];
    for (name, allowed) in table {
        let verdict = policy.judge_host(&host(name), port(443)).into_verdict();
        assert_eq!(verdict.is_allowed(), allowed, "{name}: {verdict:?}");
    }
    let denied = policy.judge_host(&host("github.com"), port(443)).into_verdict();
    assert_eq!(denied.rule, DEFAULT_RULE);
    assert_eq!(denied.reason, "no matching allow rule - blocked by default deny policy");
}

#[test]
fn n6_the_most_specific_pattern_decides() {
    let policy = policy(&Edit {
        block_hosts: strings(&[
            "example.com",
            "*.example.com",
            "*:25",
            "both.example",
            "*.deep.test:443",
        ]),
        allow_hosts: strings(&[
            "api.example.com:443",
            "*.test",
            "*.a.deep.test",
            "mail.test:25",
            "*.mail.test",
        ]),
        ..Edit::default()
    });
    let table = [
        ("api.example.com", 443, "api.example.com:443", true),
        ("api.example.com", 80, "*.example.com", false),
        ("other.example.com", 443, "*.example.com", false),
        ("example.com", 443, "example.com", false),
        ("x.test", 443, "*.test", true),
        ("x.deep.test", 443, "*.deep.test:443", false),
        ("x.deep.test", 80, "*.test", true),
        ("x.a.deep.test", 443, "*.a.deep.test", true),
        ("elsewhere.net", 25, "*:25", false),
        ("x.test", 25, "*.test", true),
        ("mail.test", 25, "mail.test:25", true),
        ("elsewhere.net", 26, DEFAULT_RULE, true),
    ];
    for (name, at, rule, allowed) in table {
        let verdict = policy.judge_host(&host(name), port(at)).into_verdict();
        assert_eq!((verdict.rule.as_str(), verdict.is_allowed()), (rule, allowed), "{name}:{at}");
    }
}

#[test]
fn the_same_pattern_on_both_lists_is_blocked() {
    for text in ["a.example", "a.example:443", "*.example", "*:443", "*", "1.2.3.4"] {
        let mut config = ProxyConfig::default();
        config.network.allowed_domains = strings(&[text]);
        config.network.blocked_domains = strings(&[text]);
        let policy = Policy::new(&config).unwrap();
        let name = if text == "1.2.3.4" { text } else { "a.example" };
        assert!(policy.judge_host(&host(name), port(443)).is_denied(), "{text}");
    }
}

#[test]
fn n8_localhost_with_a_port_opens_that_port_of_the_machine() {
    for pattern in ["localhost:1234", "host.docker.internal:1234", "gateway.docker.internal:1234"] {
        let policy = policy(&Edit { allow_hosts: strings(&[pattern]), ..Edit::default() });
        for name in ["localhost", "host.docker.internal", "gateway.docker.internal"] {
            assert!(judge(&policy, name, 1234, "127.0.0.1").is_allowed());
            assert!(judge(&policy, name, 1234, "::1").is_allowed());
            assert!(!judge(&policy, name, 1235, "127.0.0.1").is_allowed());
        }
        assert!(!judge(&policy, "127.0.0.1", 1234, "127.0.0.1").is_allowed());
        assert!(!judge(&policy, "rebound.example", 1234, "127.0.0.1").is_allowed());
    }
}

#[test]
fn an_allowed_host_is_not_tested_for_ranges_but_for_what_is_never_a_destination() {
    let policy =
        policy(&Edit { allow_hosts: strings(&["intra.example", "*.lan"]), ..Edit::default() });
    for address in ["10.0.0.1", "169.254.169.254", "::1", "100.64.0.1", "198.18.0.1"] {
        assert!(judge(&policy, "intra.example", 443, address).is_allowed(), "{address}");
        assert!(judge(&policy, "a.b.lan", 443, address).is_allowed(), "{address}");
    }
    for address in [
        "0.0.0.0",
        "::",
        "::ffff:0.0.0.0",
        "255.255.255.255",
        "224.0.0.251",
        "ff02::fb",
        "2002:e000:fb::",
    ] {
        let verdict = judge(&policy, "intra.example", 443, address);
        assert_eq!((verdict.is_allowed(), verdict.cause), (false, Cause::Never), "{address}");
    }
}

#[test]
fn not_even_a_rule_for_it_opens_an_address_that_is_never_a_destination() {
    let policy = policy(&Edit {
        allow_hosts: strings(&["*", "0.0.0.0", "224.0.0.1:80"]),
        ..Edit::default()
    });
    for name in ["0.0.0.0", "0", "[::]", "224.0.0.1", "[::ffff:0:0]", "[ff02::1]"] {
        assert!(policy.judge_host(&host(name), port(80)).is_denied(), "{name}");
    }
}

#[test]
fn a_blocked_address_is_blocked_under_every_name_and_in_every_disguise() {
    let policy = policy(&Edit {
        block_hosts: strings(&["203.0.113.5", "203.0.113.6:25"]),
        allow_hosts: strings(&["*", "named.example", "203.0.113.5:443"]),
        ..Edit::default()
    });
    assert_eq!(judge(&policy, "named.example", 80, "203.0.113.5").rule, "203.0.113.5");
    assert!(!judge(&policy, "other.example", 80, "203.0.113.5").is_allowed());
    // The more specific rule of the address itself.
    assert!(judge(&policy, "203.0.113.5", 443, "203.0.113.5").is_allowed());
    assert!(!judge(&policy, "named.example", 25, "203.0.113.6").is_allowed());
    assert!(judge(&policy, "named.example", 80, "203.0.113.6").is_allowed());
    for (kind, disguise) in disguises(Ipv4Addr::new(203, 0, 113, 5)) {
        let verdict = judge(&policy, "named.example", 80, &disguise.to_string());
        assert_eq!(verdict.rule, "203.0.113.5", "{kind}");
        assert!(policy.judge_host(&Host::from(disguise), port(80)).is_denied(), "{kind}");
    }
}

#[test]
fn addresses_that_stand_for_names_are_refused_as_addresses_only() {
    let policy = policy(&Edit::default());
    assert_eq!(policy.judge_host(&host("198.18.3.4"), port(443)).verdict().rule, SPECIAL_RULE);
    assert!(judge(&policy, "behind-a-vpn.example", 443, "198.18.3.4").is_allowed());
}

#[test]
fn refusals_say_what_an_address_carries() {
    let policy = policy(&Edit::default());
    let plain = judge(&policy, "a.example", 443, "10.0.0.5");
    assert_eq!(plain.reason, "10.0.0.5 is in the blocked range 10.0.0.0/8");
    let disguised = judge(&policy, "a.example", 443, "64:ff9b::a00:5");
    assert_eq!(
        disguised.reason,
        "64:ff9b::a00:5 carries 10.0.0.5, which is in the blocked range 10.0.0.0/8"
    );
}

#[test]
fn a_bypass_is_a_pattern_or_a_range_and_says_nothing_else() {
    let policy = policy(&Edit {
        policy: Some("deny".to_owned()),
        bypass_hosts: strings(&["pinned.example", "*.bank.example:443", "localhost"]),
        bypass_cidrs: strings(&["203.0.113.0/24"]),
        ..Edit::default()
    });
    let table = [
        ("pinned.example", 443, None, Some("pinned.example")),
        ("PINNED.example", 80, None, Some("pinned.example")),
        ("x.bank.example", 443, None, Some("*.bank.example:443")),
        ("x.bank.example", 80, None, None),
        ("bank.example", 443, None, None),
        ("host.docker.internal", 1, None, Some("localhost")),
        ("other.example", 443, Some("203.0.113.7"), Some("203.0.113.0/24")),
        ("other.example", 443, Some("::ffff:203.0.113.7"), Some("203.0.113.0/24")),
        ("other.example", 443, Some("64:ff9b::cb00:7107"), None),
        ("other.example", 443, Some("203.0.114.7"), None),
        ("other.example", 443, None, None),
        ("203.0.113.8", 443, None, Some("203.0.113.0/24")),
    ];
    for (name, at, address, expected) in table {
        let found = policy.bypass(&host(name), port(at), address.map(ip));
        assert_eq!(found.as_deref(), expected, "{name}:{at} {address:?}");
        assert!(policy.judge_host(&host(name), port(at)).is_denied());
    }
}

#[test]
fn without_a_policy_nothing_passes() {
    let policy = Policy::closed();
    for name in ["example.com", "1.1.1.1", "localhost", "::1"] {
        assert!(policy.judge_host(&host(name), port(443)).is_denied());
    }
}

#[test]
fn an_invalid_file_is_no_policy() {
    let mut config = ProxyConfig::default();
    config.network.blocked_cidrs.push("10.0.0.0/x".to_owned());
    assert!(Policy::new(&config).is_err());
}

const LABELS: [&str; 3] = ["a", "b", "c"];
const PORTS: [u16; 3] = [80, 443, 8080];

fn names() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(&LABELS[..]), 1..5)
        .prop_map(|labels| labels.join("."))
}

fn pattern_texts() -> impl Strategy<Value = String> {
    let host = prop_oneof![
        3 => names(),
        3 => names().prop_map(|name| format!("*.{name}")),
        1 => Just("*".to_owned()),
    ];
    (host, proptest::option::of(proptest::sample::select(&PORTS[..]))).prop_map(|(host, port)| {
        match port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    })
}

/// The order of the reference, written down with strings alone.
fn naive(
    name: &str,
    at: u16,
    allowed: &[String],
    blocked: &[String],
    deny: bool,
) -> (String, bool) {
    let mut order = vec![format!("{name}:{at}"), name.to_owned()];
    let mut rest = name;
    while let Some((_, domain)) = rest.split_once('.') {
        order.push(format!("*.{domain}:{at}"));
        order.push(format!("*.{domain}"));
        rest = domain;
    }
    order.push(format!("*:{at}"));
    order.push("*".to_owned());
    for pattern in order {
        if blocked.contains(&pattern) {
            return (pattern, false);
        }
        if allowed.contains(&pattern) {
            return (pattern, true);
        }
    }
    (DEFAULT_RULE.to_owned(), !deny)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_decision_is_that_of_a_naive_reader(
        name in names(),
        at in proptest::sample::select(&PORTS[..]),
        allowed in proptest::collection::vec(pattern_texts(), 0..8),
        blocked in proptest::collection::vec(pattern_texts(), 0..8),
        deny in any::<bool>(),
    ) {
        let mut config = ProxyConfig::default();
        config.policy.default = if deny { DefaultPolicy::Deny } else { DefaultPolicy::Allow };
        config.network.allowed_domains = allowed.clone();
        config.network.blocked_domains = blocked.clone();
        let judged = Policy::new(&config).unwrap().judge_host(&host(&name), port(at));
        let (rule, is_allowed) = naive(&name, at, &allowed, &blocked, deny);
        prop_assert_eq!(judged.verdict().is_allowed(), is_allowed);
        prop_assert_eq!(&judged.verdict().rule, &rule);
        prop_assert_eq!(matches!(judged, HostVerdict::Explicit(_)), is_allowed && rule != DEFAULT_RULE);

        // And that of the patterns themselves, compared with each other.
        let (host, port) = (host(&name), port(at));
        let most = allowed.iter().chain(&blocked)
            .map(|text| HostPattern::parse(text).unwrap())
            .filter(|pattern| pattern.covers(&host, port))
            .max_by(HostPattern::specificity);
        prop_assert_eq!(most.map_or_else(|| DEFAULT_RULE.to_owned(), |pattern| pattern.to_string()), rule);
    }
}

proptest! {
    /// Where an address is refused, each of its disguises is, as a host and as what a name resolves to.
    #[test]
    fn a_disguise_opens_nothing(
        bits in prop_oneof![
            any::<u32>(),
            (0..8_usize, any::<u32>()).prop_map(|(range, low)| {
                [0x0a00_0000, 0x7f00_0000, 0xa9fe_0000, 0xac10_0000, 0xc0a8_0000, 0, 0xe000_0000, 0x6440_0000][range] | (low & 0xffff)
            }),
        ],
        explicit in any::<bool>(),
    ) {
        let allow_hosts = if explicit { strings(&["name.example"]) } else { Vec::new() };
        let policy = policy(&Edit { allow_hosts, block_cidrs: strings(&["93.0.0.0/8"]), ..Edit::default() });
        let plain = Ipv4Addr::from_bits(bits);
        for name in ["name.example".to_owned(), plain.to_string()] {
            let verdict = judge(&policy, &name, 443, &plain.to_string());
            for (kind, disguise) in disguises(plain) {
                if disguise.is_loopback() || (plain.octets()[0] == 0 && kind.starts_with("local")) {
                    continue;
                }
                let disguised = judge(&policy, &name, 443, &disguise.to_string());
                prop_assert!(verdict.is_allowed() || !disguised.is_allowed(), "{kind}: {disguise} for {plain}");
                let itself = policy.judge_host(&Host::from(disguise), port(443));
                prop_assert!(judge(&policy, &plain.to_string(), 443, &plain.to_string()).is_allowed() || itself.is_denied(), "{kind}: {disguise}");
            }
        }
    }

    /// What is denied as a host is denied with every address.
    #[test]
    fn no_address_saves_a_denied_host(bits in any::<u128>(), name in names()) {
        let policy = policy(&Edit { policy: Some("deny".to_owned()), allow_hosts: strings(&["a.b"]), ..Edit::default() });
        let judged = policy.judge_host(&host(&name), port(443));
        let verdict = policy.judge_address(&judged, std::net::Ipv6Addr::from_bits(bits).into(), port(443));
        prop_assert!(!judged.is_denied() || !verdict.is_allowed());
    }
}
