//! Hosts, patterns, ranges and the decision made of them.
//!
//! The input is text, a line for each: `+pattern` allows, `-pattern` blocks, `/range` blocks, `~pattern` bypasses,
//! `!` turns to `deny`, `{…}` is a policy file, and everything else is a host with a port that is judged.

use hutch_policy::address;
use hutch_policy::config::{DefaultPolicy, ProxyConfig};
use hutch_policy::host::{Authority, Host, HostName, Port};
use hutch_policy::pattern::{Cidr, HostPattern};
use hutch_policy::policy::{DEFAULT_RULE, HostVerdict, Policy, SPECIAL_RULE};

/// One form for everything, and the most specific pattern decides.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut config = ProxyConfig::default();
    let mut asked = Vec::new();
    for line in text.lines() {
        if let Ok(name) = HostName::parse(line) {
            assert_eq!(HostName::parse(name.as_str()), Ok(name));
        }
        match line.split_at_checked(1) {
            Some(("+", pattern)) => keep(&mut config.network.allowed_domains, pattern),
            Some(("-", pattern)) => keep(&mut config.network.blocked_domains, pattern),
            Some(("~", pattern)) => keep(&mut config.network.bypass_domains, pattern),
            Some(("/", range)) => {
                if let Ok(parsed) = Cidr::parse(range) {
                    assert_eq!(Cidr::parse(&parsed.to_string()), Ok(parsed));
                    config.network.blocked_cidrs.push(range.to_owned());
                }
            }
            Some(("!", _)) => config.policy.default = DefaultPolicy::Deny,
            Some(("{", _)) => {
                if let Ok(config) = ProxyConfig::parse(line) {
                    assert_eq!(
                        ProxyConfig::parse(&config.to_text()).expect("a file of ours"),
                        config
                    );
                    Policy::new(&config).expect("validated");
                }
            }
            _ => {
                if let Ok(host) = Host::parse(line) {
                    assert_eq!(Host::parse(&host.to_string()), Ok(host));
                }
                if let Ok(authority) = Authority::parse_or(line, Port::HTTPS) {
                    assert_eq!(Authority::parse(&authority.to_string()), Ok(authority.clone()));
                    asked.push(authority);
                }
            }
        }
    }
    let policy = Policy::new(&config).expect("validated");
    for authority in &asked {
        judge(&policy, &config, authority);
    }
}

fn keep(list: &mut Vec<String>, pattern: &str) {
    if let Ok(parsed) = HostPattern::parse(pattern) {
        let text = parsed.to_string();
        assert_eq!(HostPattern::parse(&text), Ok(parsed));
        assert!(text.is_ascii() && !text.contains(char::is_whitespace));
        list.push(pattern.to_owned());
    }
}

fn judge(policy: &Policy, config: &ProxyConfig, authority: &Authority) {
    let Authority { host, port } = authority;
    let judged = policy.judge_host(host, *port);
    // A naive reader: every pattern is tried, the most specific one wins, block before allow.
    let covering = |list: &[String]| {
        list.iter()
            .map(|text| HostPattern::parse(text).expect("kept"))
            .filter(|pattern| pattern.covers(host, *port))
            .max_by(HostPattern::specificity)
    };
    let allowed = covering(&config.network.allowed_domains);
    let blocked = covering(&config.network.blocked_domains);
    let blocks = match (&allowed, &blocked) {
        (Some(allowed), Some(blocked)) => blocked.specificity(allowed).is_ge(),
        (_, blocked) => blocked.is_some(),
    };
    let naive = match (blocks, &allowed) {
        (true, _) => false,
        (false, Some(_)) => true,
        (false, None) => config.policy.default == DefaultPolicy::Allow,
    };
    let rule = if blocks { blocked } else { allowed };
    let rule = rule.map_or_else(|| DEFAULT_RULE.to_owned(), |pattern| pattern.to_string());
    match host {
        Host::Name(_) => {
            assert_eq!(judged.verdict().is_allowed(), naive, "{authority}");
            assert_eq!(judged.verdict().rule, rule, "{authority}");
        }
        // An address may be refused for what it is, never allowed for it.
        Host::Address(ip) => {
            assert!(naive || judged.is_denied(), "{authority}");
            for face in address::faces(*ip) {
                let itself = policy.judge_host(&Host::from(face), *port);
                let loses = itself.is_denied()
                    && (itself.verdict().rule == SPECIAL_RULE
                        || config.network.blocked_cidrs.contains(&itself.verdict().rule));
                let literal = address::special(face).is_some_and(|range| {
                    range.treatment == address::Treatment::LiteralUnlessAllowed
                });
                let by_default = matches!(judged, HostVerdict::ByDefault(_));
                assert!(!(loses && by_default && !literal), "{authority} is {face}");
            }
        }
    }
    for address in ["10.0.0.1", "0.0.0.0", "::ffff:127.0.0.1", "2002:7f00:1::", "93.184.216.34"] {
        let verdict = policy.judge_address(&judged, address.parse().expect("an address"), *port);
        assert!(judged.verdict().is_allowed() || !verdict.is_allowed());
        if address == "0.0.0.0" {
            assert!(!verdict.is_allowed());
        }
    }
    let bypass = policy.bypass(host, *port, None);
    if matches!(host, Host::Name(_)) {
        let expected = covering(&config.network.bypass_domains).map(|pattern| pattern.to_string());
        assert_eq!(bypass, expected);
    }
}
