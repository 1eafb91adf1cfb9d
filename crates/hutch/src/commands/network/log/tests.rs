use hutch_policy::log::How;

use super::*;

/// 2026-03-22T20:33:18Z
const TIME: u64 = 1_774_211_598_000;

fn record(second: u64, decision: Decision, host: &str, rule: &str) -> Record {
    Record {
        rule: rule.to_owned(),
        reason: "for a reason".to_owned(),
        host: host.to_owned(),
        port: 443,
        ..Record::new(TIME + second * 1000, "claude-x", How::Tunnel, decision)
    }
}

fn records() -> Vec<Record> {
    vec![
        record(0, Decision::Denied, "example.com", "<default policy>"),
        record(1, Decision::Allowed, "api.anthropic.com", "api.anthropic.com:443"),
        record(2, Decision::Allowed, "api.anthropic.com", "api.anthropic.com:443"),
        record(3, Decision::Allowed, "[2001:db8::1]", "*"),
    ]
}

#[test]
fn the_table_has_the_documented_columns() {
    insta::assert_snapshot!(aggregated(&records(), 0, false, &TimeZone::UTC), @r"
    Blocked requests:
    SANDBOX   HOST             RULE              LAST SEEN        COUNT
    claude-x  example.com:443  <default policy>  20:33:18 22-Mar  1

    Allowed requests:
    SANDBOX   HOST                   RULE                   LAST SEEN        COUNT
    claude-x  [2001:db8::1]:443      *                      20:33:21 22-Mar  1
    claude-x  api.anthropic.com:443  api.anthropic.com:443  20:33:20 22-Mar  2
    ");
}

#[test]
fn a_quiet_table_has_no_headings_and_says_the_decision_in_each_row() {
    insta::assert_snapshot!(aggregated(&records(), 0, true, &TimeZone::UTC), @r"
    claude-x  example.com:443        <default policy>       20:33:18 22-Mar  1  denied
    claude-x  [2001:db8::1]:443      *                      20:33:21 22-Mar  1  allowed
    claude-x  api.anthropic.com:443  api.anthropic.com:443  20:33:20 22-Mar  2  allowed
    ");
}

#[test]
fn the_limit_keeps_the_rows_that_were_seen_last() {
    let shown = |limit| aggregated(&records(), limit, true, &TimeZone::UTC).lines().count();
    assert_eq!([shown(0), shown(1), shown(2), shown(3), shown(9)], [3, 1, 2, 3, 3]);
    assert!(aggregated(&records(), 1, true, &TimeZone::UTC).contains("2001:db8::1"));
    let same: Vec<_> = (0..5)
        .map(|number| record(0, Decision::Denied, &format!("h{number}.example"), "*"))
        .collect();
    assert_eq!(aggregated(&same, 2, true, &TimeZone::UTC).lines().count(), 2);
    let mut all = records();
    last(&mut all, 1);
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].host, "[2001:db8::1]");
    last(&mut all, 0);
    assert_eq!(all.len(), 1);
}

#[test]
fn an_entry_is_one_line_and_moves_no_cursor() {
    let mut request = record(0, Decision::Allowed, "api.example.com", "*");
    request.method = Some("GET".to_owned());
    request.url = Some("https://api.example.com/data".to_owned());
    assert_eq!(
        line(&request),
        "2026-03-22T20:33:18Z sandbox=claude-x request GET https://api.example.com/data allowed"
    );
    assert_eq!(
        line(&record(0, Decision::Denied, "example.com", "*")),
        "2026-03-22T20:33:18Z sandbox=claude-x connection example.com:443 denied"
    );
    request.url = Some("https://a/\u{1b}[2J\n".to_owned());
    assert!(line(&request).ends_with("https://a/\\x1b[2J\\n allowed"));
}

#[test]
fn a_time_beyond_all_times_is_no_reason_to_fail() {
    let far = Record { time_ms: u64::MAX, ..record(0, Decision::Denied, "a", "*") };
    assert!(line(&far).starts_with("9999-12-30T"), "{}", line(&far));
    assert!(!aggregated(&[far], 0, false, &TimeZone::UTC).is_empty());
}

#[test]
fn a_note_of_the_log_about_itself_is_no_host() {
    let mut note = Record::new(TIME, "claude-x", How::Other, Decision::Denied);
    note.reason = "7 entries dropped".to_owned();
    assert!(line(&note).ends_with("connection (7 entries dropped) denied"), "{}", line(&note));
    assert_eq!(aggregated(&[note], 0, false, &TimeZone::UTC), "");
}
