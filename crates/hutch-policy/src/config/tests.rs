use proptest::prelude::*;

use super::*;

/// The file of `docker sandbox` that the reference holds, as it was found.
const OLD_FILE: &str = r#"{
  "policy":  { "default": "allow", "logBlocked": false, "logAllowed": false },
  "network": {
    "allowedDomains": [],
    "blockedDomains": ["metadata.azure.internal", "metadata.google.internal",
                       "kube-dns.kube-system.svc.cluster.local"],
    "blockedCIDRs":   ["10.0.0.0/8","127.0.0.0/8","169.254.0.0/16","172.16.0.0/12",
                       "192.168.0.0/16","::1/128","fc00::/7","fe80::/10"],
    "bypassDomains":  [],
    "bypassCIDRs":    []
  }
}"#;

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[test]
fn the_default_is_the_file_of_the_reference() {
    assert_eq!(ProxyConfig::parse(OLD_FILE).unwrap(), ProxyConfig::default());
}

#[test]
fn the_file_is_written_in_the_schema_and_read_back() {
    let text = ProxyConfig::default().to_text();
    let (written, expected): (Value, Value) =
        (serde_json::from_str(&text).unwrap(), serde_json::from_str(OLD_FILE).unwrap());
    assert_eq!(written, expected);
    assert!(text.starts_with("{\n  \"policy\": {\n    \"default\": \"allow\",\n"), "{text}");
    assert!(text.ends_with("]\n  }\n}\n"), "{text}");
}

#[test]
fn unknown_keys_are_kept() {
    let text = r#"{"policy":{"default":"deny","ask":1},"network":{"allowedDomains":["a.example"],"dns":["1.1.1.1"]},
        "credentials":[{"domain":"x","envVar":"Y"}]}"#;
    let mut config = ProxyConfig::parse(text).unwrap();
    config.apply(&Edit { allow_hosts: strings(&["b.example"]), ..Edit::default() }).unwrap();
    let written: Value = serde_json::from_str(&config.to_text()).unwrap();
    assert_eq!(written["policy"]["ask"], 1);
    assert_eq!(written["network"]["dns"][0], "1.1.1.1");
    assert_eq!(written["credentials"][0]["envVar"], "Y");
    assert_eq!(written["network"]["allowedDomains"], serde_json::json!(["a.example", "b.example"]));
}

#[test]
fn absent_keys_are_the_defaults_and_null_is_an_empty_list() {
    assert_eq!(ProxyConfig::parse("{}").unwrap(), ProxyConfig::default());
    let config = ProxyConfig::parse(
        r#"{"network":{"blockedCIDRs":null,"allowedDomains":null},"policy":{}}"#,
    )
    .unwrap();
    assert!(config.network.blocked_cidrs.is_empty());
    assert_eq!(config.network.blocked_domains, strings(&DEFAULT_BLOCKED_DOMAINS));
    assert!(ProxyConfig::parse("\u{feff}{}").is_ok());
}

#[test]
fn errors_name_key_and_value_in_one_sentence() {
    let table = [
        (r#"{"policy":{"default":"ask"}}"#, "policy.default", "\"ask\""),
        (r#"{"policy":{"default":"Deny"}}"#, "policy.default", "\"Deny\""),
        (
            r#"{"network":{"allowedDomains":["a","https://b"]}}"#,
            "network.allowedDomains[1]",
            "https://b",
        ),
        (r#"{"network":{"blockedDomains":["a b"]}}"#, "network.blockedDomains[0]", "a b"),
        (r#"{"network":{"bypassDomains":["*x"]}}"#, "network.bypassDomains[0]", "*x"),
        (r#"{"network":{"blockedCIDRs":["10.0.0.0/8","x/9"]}}"#, "network.blockedCIDRs[1]", "x/9"),
        (r#"{"network":{"bypassCIDRs":["1.2.3.4/99"]}}"#, "network.bypassCIDRs[0]", "1.2.3.4/99"),
        (r#"{"network":{"allowedDomains":"a"}}"#, "cannot be read", "\"a\""),
        (r#"{"network":{"allowedDomains":[1]}}"#, "cannot be read", "1"),
        (
            r#"{"network":{"allowedDomains":[],"allowedDomains":[]}}"#,
            "cannot be read",
            "allowedDomains",
        ),
        ("", "cannot be read", "EOF"),
        ("[]", "cannot be read", "column"),
    ];
    for (text, key, value) in table {
        let error = ProxyConfig::parse(text).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(value), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn edits_are_cumulative() {
    let mut config = ProxyConfig::default();
    let edits = [
        Edit {
            policy: Some("deny".to_owned()),
            allow_hosts: strings(&["api.anthropic.com", "*.npmjs.org"]),
            ..Edit::default()
        },
        Edit {
            allow_hosts: strings(&["API.anthropic.com."]),
            block_hosts: strings(&["evil.example"]),
            ..Edit::default()
        },
        Edit {
            block_cidrs: strings(&["10.0.0.0/8", "8.8.8.8/24"]),
            bypass_hosts: strings(&["localhost"]),
            bypass_cidrs: strings(&["127.0.0.0/8"]),
            ..Edit::default()
        },
    ];
    for edit in &edits {
        assert_eq!(config.apply(edit).unwrap(), [""; 0]);
    }
    assert_eq!(config.policy.default, DefaultPolicy::Deny);
    assert_eq!(config.network.allowed_domains, strings(&["api.anthropic.com", "*.npmjs.org"]));
    assert_eq!(config.network.blocked_domains.last().unwrap(), "evil.example");
    assert_eq!(config.network.blocked_cidrs.len(), 9);
    assert_eq!(config.network.blocked_cidrs.last().unwrap(), "8.8.8.0/24");
    assert_eq!(config.network.bypass_domains, strings(&["localhost"]));
    assert_eq!(config.network.bypass_cidrs, strings(&["127.0.0.0/8"]));
    assert_eq!(ProxyConfig::parse(&config.to_text()).unwrap(), config);
}

#[test]
fn allowing_a_range_takes_it_from_both_lists() {
    let mut config = ProxyConfig::default();
    config.network.bypass_cidrs = strings(&["127.0.0.0/8", "10.0.0.0/8"]);
    let edit = Edit { allow_cidrs: strings(&["::ffff:127.9.9.9/104"]), ..Edit::default() };
    assert_eq!(config.apply(&edit).unwrap(), [""; 0]);
    assert!(!config.network.blocked_cidrs.contains(&"127.0.0.0/8".to_owned()));
    assert_eq!(config.network.bypass_cidrs, strings(&["10.0.0.0/8"]));
    assert_eq!(config.apply(&edit).unwrap(), ["`127.0.0.0/8` is neither blocked nor bypassed"]);
    let narrow = Edit { allow_cidrs: strings(&["10.1.0.0/16"]), ..Edit::default() };
    let before = config.clone();
    assert_eq!(
        config.apply(&narrow).unwrap(),
        ["`10.1.0.0/16` is not listed; it stays blocked by `10.0.0.0/8`, which is"]
    );
    assert_eq!(config, before);
}

#[test]
fn the_last_command_wins_over_the_same_pattern() {
    let mut config = ProxyConfig::default();
    config
        .apply(&Edit { block_hosts: strings(&["a.example", "*.a.example"]), ..Edit::default() })
        .unwrap();
    config.apply(&Edit { allow_hosts: strings(&["A.example"]), ..Edit::default() }).unwrap();
    assert_eq!(config.network.allowed_domains, strings(&["a.example"]));
    assert!(!config.network.blocked_domains.contains(&"a.example".to_owned()));
    assert!(config.network.blocked_domains.contains(&"*.a.example".to_owned()));
    config.apply(&Edit { block_hosts: strings(&["a.example"]), ..Edit::default() }).unwrap();
    assert!(config.network.allowed_domains.is_empty());
    assert!(config.network.blocked_domains.contains(&"a.example".to_owned()));
}

#[test]
fn a_wrong_edit_changes_nothing_and_names_the_flag() {
    let one = |text: &str| strings(&[text]);
    let table = [
        (Edit { policy: Some("ask".to_owned()), ..Edit::default() }, "--policy", "\"ask\""),
        (Edit { allow_hosts: one("a/b"), ..Edit::default() }, "--allow-host", "a/b"),
        (Edit { block_hosts: one(""), ..Edit::default() }, "--block-host", "empty"),
        (Edit { bypass_hosts: one("*x"), ..Edit::default() }, "--bypass-host", "*x"),
        (Edit { allow_cidrs: one("x"), ..Edit::default() }, "--allow-cidr", "\"x\""),
        (Edit { block_cidrs: one("1/2"), ..Edit::default() }, "--block-cidr", "1/2"),
        (Edit { bypass_cidrs: one("a"), ..Edit::default() }, "--bypass-cidr", "\"a\""),
        (
            Edit { allow_hosts: one("A.b"), block_hosts: one("a.b"), ..Edit::default() },
            "--allow-host",
            "a.b",
        ),
        (
            Edit {
                allow_cidrs: one("10.0.0.0/8"),
                block_cidrs: one("10.9.0.0/8"),
                ..Edit::default()
            },
            "--block-cidr",
            "10.0.0.0/8",
        ),
        (
            Edit {
                allow_cidrs: one("10.0.0.0/8"),
                bypass_cidrs: one("10.9.0.0/8"),
                ..Edit::default()
            },
            "--bypass-cidr",
            "10.0.0.0/8",
        ),
    ];
    for (edit, flag, value) in table {
        let edit =
            Edit { block_hosts: [edit.block_hosts, strings(&["good.example"])].concat(), ..edit };
        let mut config = ProxyConfig::default();
        let error = config.apply(&edit).unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains(value), "{error}");
        assert_eq!(config, ProxyConfig::default());
    }
}

#[test]
fn the_number_of_rules_is_bounded() {
    let mut config = ProxyConfig::default();
    config.network.allowed_domains = vec!["a.example".to_owned(); ProxyConfig::MOST_RULES];
    assert!(config.validate().is_ok());
    let edit = Edit { allow_hosts: strings(&["b.example"]), ..Edit::default() };
    assert!(matches!(config.apply(&edit), Err(ConfigError::TooMany { .. })));
    assert_eq!(config.network.allowed_domains.len(), ProxyConfig::MOST_RULES);
}

#[test]
fn many_rules_are_changed_as_fast_as_few() {
    let names = |what: &str| (0..50_000).map(|n| format!("{what}{n}.example")).collect::<Vec<_>>();
    let mut config = ProxyConfig::default();
    config.network.blocked_domains = names("blocked");
    let edit = Edit { allow_hosts: names("blocked"), block_hosts: names("new"), ..Edit::default() };
    // With every entry compared with every other this takes minutes, in the nextest limit it would not end.
    config.apply(&edit).unwrap();
    assert_eq!(config.network.allowed_domains, names("blocked"));
    assert_eq!(config.network.blocked_domains, names("new"));
}

fn host() -> impl Strategy<Value = String> {
    "[*]?\\.?[ab]\\.[ab](:443)?".prop_filter("a pattern", |text| HostPattern::parse(text).is_ok())
}

proptest! {
    #[test]
    fn any_text_is_a_file_that_stays_what_it_is_or_an_error(text in any::<String>()) {
        if let Ok(config) = ProxyConfig::parse(&text) {
            prop_assert_eq!(ProxyConfig::parse(&config.to_text()).unwrap(), config);
        }
    }

    /// Whatever came before, after an edit its patterns are on the list that it names and not on the other one.
    #[test]
    fn an_edit_holds_afterwards(
        edits in proptest::collection::vec((proptest::collection::vec(host(), 0..3), proptest::collection::vec(host(), 0..3)), 1..6)
    ) {
        let mut config = ProxyConfig::default();
        for (allow_hosts, block_hosts) in edits {
            let edit = Edit { allow_hosts, block_hosts, ..Edit::default() };
            let conflict = edit.allow_hosts.iter().any(|host| edit.block_hosts.contains(host));
            let applied = config.apply(&edit);
            prop_assert_eq!(applied.is_err(), conflict);
            if conflict {
                continue;
            }
            for host in &edit.allow_hosts {
                prop_assert_eq!(config.network.allowed_domains.iter().filter(|entry| *entry == host).count(), 1);
                prop_assert!(!config.network.blocked_domains.contains(host));
            }
            for host in &edit.block_hosts {
                prop_assert_eq!(config.network.blocked_domains.iter().filter(|entry| *entry == host).count(), 1);
                prop_assert!(!config.network.allowed_domains.contains(host));
            }
        }
    }
}
