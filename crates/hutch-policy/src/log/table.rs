//! The aggregated view of the log: a row for each sandbox, place and rule.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Record;
use crate::policy::Decision;

/// Requests of one sandbox to one place, decided by one rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What was decided.
    pub decision: Decision,
    /// Name of the sandbox.
    pub sandbox: String,
    /// `host:port`.
    pub host: String,
    /// The pattern or range that decided, or `<default policy>`.
    pub rule: String,
    /// Why, as a phrase; of the last one.
    pub reason: String,
    /// How the last one went.
    pub how: super::How,
    /// When the first one began, in milliseconds since 1970, UTC.
    pub since_ms: u64,
    /// When the last one began.
    pub last_seen_ms: u64,
    /// How many there were.
    pub count: u64,
}

type Key = (Decision, String, String, String);

/// Rows, made of records in any order.
#[derive(Debug, Clone, Default)]
pub struct Table {
    rows: BTreeMap<Key, Row>,
}

impl Table {
    /// Counts one more record.
    pub fn add(&mut self, record: &Record) {
        let key = (record.decision, record.sandbox.clone(), record.place(), record.rule.clone());
        let row = self.rows.entry(key).or_insert_with(|| Row {
            decision: record.decision,
            sandbox: record.sandbox.clone(),
            host: record.place(),
            rule: record.rule.clone(),
            reason: record.reason.clone(),
            how: record.how,
            since_ms: record.time_ms,
            last_seen_ms: record.time_ms,
            count: 0,
        });
        row.count += 1;
        row.since_ms = row.since_ms.min(record.time_ms);
        if record.time_ms >= row.last_seen_ms {
            row.last_seen_ms = record.time_ms;
            row.reason.clone_from(&record.reason);
            row.how = record.how;
        }
    }

    /// The rows of one decision, by sandbox, then host, then rule.
    pub fn rows(&self, decision: Decision) -> impl Iterator<Item = &Row> {
        self.rows.values().filter(move |row| row.decision == decision)
    }
}

impl<'a> Extend<&'a Record> for Table {
    fn extend<I: IntoIterator<Item = &'a Record>>(&mut self, records: I) {
        for record in records {
            self.add(record);
        }
    }
}
