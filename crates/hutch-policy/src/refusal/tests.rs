use super::*;
use crate::config::{Edit, ProxyConfig};
use crate::policy::Policy;

fn refusal(edit: &Edit, place: &str) -> Refusal {
    let mut config = ProxyConfig::default();
    config.apply(edit).unwrap();
    let place = Authority::parse(place).unwrap();
    let judged = Policy::new(&config).unwrap().judge_host(&place.host, place.port);
    assert!(judged.is_denied());
    Refusal::new("my-box", &place, judged.verdict())
}

fn deny() -> Edit {
    Edit { policy: Some("deny".to_owned()), ..Edit::default() }
}

#[test]
fn the_text_begins_as_that_of_docker_sandbox() {
    let text = refusal(&deny(), "Example.com:443").text();
    assert!(
        text.starts_with(
            "Blocked by network policy: domain example.com:443\n\
             detail: no matching allow rule - blocked by default deny policy\n\
             rule: <default policy>\n\n"
        ),
        "{text}"
    );
    assert!(
        text.ends_with("\n  hutch network proxy my-box --allow-host example.com:443\n"),
        "{text}"
    );
}

#[test]
fn the_json_says_the_same() {
    let json: serde_json::Value =
        serde_json::from_str(&refusal(&deny(), "example.com:443").json()).unwrap();
    assert_eq!(json["error"], "blocked_by_network_policy");
    assert_eq!(json["host"], "example.com");
    assert_eq!(json["port"], 443);
    assert_eq!(json["rule"], "<default policy>");
    assert_eq!(json["retry"], false);
    assert_eq!(json["command"], "hutch network proxy my-box --allow-host example.com:443");
    assert!(json["advice"].as_str().unwrap().contains("another way"));
}

#[test]
fn the_command_would_allow_it() {
    let block = |pattern: &str| Edit { block_hosts: vec![pattern.to_owned()], ..Edit::default() };
    let table = [
        (deny(), "example.com:443", "example.com:443"),
        (block("example.com"), "example.com:443", "example.com"),
        (block("example.com:443"), "example.com:443", "example.com:443"),
        (block("*.example.com"), "a.example.com:443", "a.example.com:443"),
        (block("*"), "a.example.com:443", "a.example.com:443"),
        (block("93.184.216.34"), "93.184.216.34:80", "93.184.216.34"),
        (block("2606:4700::1"), "[2606:4700::1]:80", "2606:4700::1"),
        (deny(), "host.docker.internal:3000", "localhost:3000"),
        (Edit::default(), "10.0.0.1:80", "10.0.0.1:80"),
        (Edit::default(), "[fd00::1]:80", "'[fd00::1]:80'"),
        (Edit::default(), "100.64.0.1:80", "100.64.0.1:80"),
    ];
    for (edit, place, expected) in table {
        let command = refusal(&edit, place).command.unwrap();
        assert_eq!(command, format!("hutch network proxy my-box --allow-host {expected}"));
        let pattern = expected.trim_matches('\'').to_owned();
        let mut config = ProxyConfig::default();
        config.apply(&edit).unwrap();
        config.apply(&Edit { allow_hosts: vec![pattern], ..Edit::default() }).unwrap();
        let place = Authority::parse(place).unwrap();
        let judged = Policy::new(&config).unwrap().judge_host(&place.host, place.port);
        assert!(!judged.is_denied(), "{expected}: {judged:?}");
    }
}

#[test]
fn what_nothing_allows_has_no_command() {
    let never = refusal(&Edit::default(), "224.0.0.1:80");
    assert_eq!(never.command, None);
    assert!(never.text().contains("domain 224") || never.text().contains("address 224.0.0.1:80"));
    assert!(!never.json().contains("command"));
    let place = Authority::parse("example.com:443").unwrap();
    let verdict = Verdict::refused("<request>", "the request has two Host headers");
    let refusal = Refusal::new("my-box", &place, &verdict);
    assert_eq!(refusal.command, None);
    assert!(refusal.text().contains("detail: the request has two Host headers\n"));
}

#[test]
fn json_is_sent_to_who_asks_for_it() {
    let refusal = refusal(&deny(), "example.com:443");
    let table = [
        (None, TEXT_TYPE),
        (Some("*/*"), TEXT_TYPE),
        (Some("application/json"), JSON_TYPE),
        (Some("Application/JSON; charset=utf-8"), JSON_TYPE),
        (Some("application/vnd.api+json, text/plain"), JSON_TYPE),
        (Some("text/html,application/json;q=0.9"), TEXT_TYPE),
        (Some("application/json, text/plain, */*"), JSON_TYPE),
        (Some("application/vnd.npm.install-v1+json; q=1.0"), JSON_TYPE),
        (Some(""), TEXT_TYPE),
        (Some(";;,,\0"), TEXT_TYPE),
    ];
    for (accept, expected) in table {
        assert_eq!(refusal.body(accept).0, expected, "{accept:?}");
    }
    assert_eq!(refusal.body(None).1, refusal.text());
    assert_eq!(refusal.body(Some("application/json")).1, refusal.json());
}
