//! The forms of one entry: a line for people, an object for programs.

use hutch_policy::log::{How, Record};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::printer::escaped_line;

/// Version of the JSON form.
const FORMAT_VERSION: u32 = 1;

/// All entries in JSON.
#[derive(Debug, Serialize)]
pub(super) struct EntryList<'r> {
    format_version: u32,
    entries: Vec<Entry<'r>>,
}

impl<'r> EntryList<'r> {
    pub(super) fn new(records: &'r [Record]) -> Self {
        let entries = records.iter().map(Entry::new).collect();
        Self { format_version: FORMAT_VERSION, entries }
    }
}

/// One entry: the fields of `docker sandbox network log --json`, then ours.
#[derive(Debug, Serialize)]
pub(super) struct Entry<'r> {
    timestamp: String,
    sandbox: &'r str,
    /// `request`, or `connection` where no request was seen.
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'r str>,
    /// `allowed` or `denied`.
    action: &'static str,
    host: &'r str,
    port: u16,
    rule: &'r str,
    reason: &'r str,
    how: How,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<&'r str>,
    bytes_sent: u64,
    bytes_received: u64,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'r str>,
}

impl<'r> Entry<'r> {
    pub(super) fn new(record: &'r Record) -> Self {
        Self {
            timestamp: utc(record.time_ms),
            sandbox: &record.sandbox,
            r#type: kind(record),
            method: record.method.as_deref(),
            url: record.url.as_deref(),
            action: record.decision.as_str(),
            host: &record.host,
            port: record.port,
            rule: &record.rule,
            reason: &record.reason,
            how: record.how,
            protocol: record.protocol.as_deref(),
            status: record.status,
            address: record.address.as_deref(),
            credential: record.credential.as_deref(),
            bytes_sent: record.sent,
            bytes_received: record.received,
            duration_ms: record.duration_ms,
            error: record.error.as_deref(),
        }
    }
}

/// One entry as `docker sandbox network log` documents it.
pub(super) fn line(record: &Record) -> String {
    let what = match (&record.method, &record.url) {
        (Some(method), Some(url)) => format!("{method} {url}"),
        (Some(method), None) => format!("{method} {}", record.place()),
        // A note of the log about itself.
        (None, _) if record.host.is_empty() => format!("({})", record.reason),
        (None, _) => record.place(),
    };
    let line = format!(
        "{} sandbox={} {} {what} {}",
        utc(record.time_ms),
        record.sandbox,
        kind(record),
        record.decision.as_str()
    );
    escaped_line(&line)
}

fn kind(record: &Record) -> &'static str {
    if record.method.is_some() { "request" } else { "connection" }
}

fn timestamp(time_ms: u64) -> Timestamp {
    let time = i64::try_from(time_ms).ok().and_then(|time| Timestamp::from_millisecond(time).ok());
    time.unwrap_or(Timestamp::MAX)
}

/// `2026-01-29T10:15:23Z`
fn utc(time_ms: u64) -> String {
    timestamp(time_ms).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `20:33:18 22-Mar`
pub(super) fn local_time(time_ms: u64, zone: &TimeZone) -> String {
    timestamp(time_ms).to_zoned(zone.clone()).strftime("%H:%M:%S %d-%b").to_string()
}
