//! Settings in TOML. Lines are added to what is there, so that comments stay; only where a value belongs into a table that is
//! there, or is taken back, the file is written anew.

use serde_json::{Map, Value};
use toml::Table;

use super::{Change, json};

/// What is there with what is missing of the seed.
pub(super) fn merge(now: Option<&str>, seed: &str) -> Change {
    let text = now.unwrap_or("");
    let (Ok(now), Ok(seed)) = (text.parse::<Table>(), seed.parse::<Table>()) else {
        return Change::None;
    };
    let (Some(before), Some(seed_values)) = (values(&now), values(&seed)) else {
        return Change::None;
    };
    let mut new = before.clone();
    json::add(&mut new, &seed_values);
    if new == before {
        return Change::None;
    }
    let missing: Table =
        seed.into_iter().filter(|(key, _)| !now.contains_key(key.as_str())).collect();
    let mut added = before;
    added.extend(values(&missing).unwrap_or_default());
    if added == new { lines(text, missing) } else { anew(&new) }
}

/// What is there without what is of the seed and unchanged.
pub(super) fn take_back(now: Option<&str>, seed: &str) -> Change {
    let (Some(Ok(now)), Ok(seed)) = (now.map(str::parse::<Table>), seed.parse::<Table>()) else {
        return Change::None;
    };
    let (Some(before), Some(seed)) = (values(&now), values(&seed)) else { return Change::None };
    let mut new = before.clone();
    json::remove(&mut new, &seed);
    match () {
        () if new == before => Change::None,
        () if new.is_empty() => Change::Remove,
        () => anew(&new),
    }
}

/// As JSON, in which the rules are written once. A file with a date, which JSON does not have, comes back as text.
fn values(table: &Table) -> Option<Map<String, Value>> {
    let has_date = table.iter().any(|(_, value)| has_date(value));
    match serde_json::to_value(table) {
        Ok(Value::Object(map)) if !has_date => Some(map),
        _ => None,
    }
}

fn has_date(value: &toml::Value) -> bool {
    match value {
        toml::Value::Datetime(_) => true,
        toml::Value::Array(list) => list.iter().any(has_date),
        toml::Value::Table(table) => table.iter().any(|(_, value)| has_date(value)),
        _ => false,
    }
}

/// Single values come before the first table, tables after the last line.
fn lines(text: &str, missing: Table) -> Change {
    let (tables, single): (Table, Table) = missing.into_iter().partition(|(_, value)| {
        let of_tables = |list: &Vec<toml::Value>| list.iter().any(toml::Value::is_table);
        value.is_table() || value.as_array().is_some_and(of_tables)
    });
    let (Ok(first), Ok(last)) = (toml::to_string(&single), toml::to_string(&tables)) else {
        return Change::None;
    };
    let mut new = first;
    new.push_str(text);
    if !new.is_empty() && !new.ends_with('\n') {
        new.push('\n');
    }
    if !last.is_empty() && !new.is_empty() {
        new.push('\n');
    }
    new.push_str(&last);
    Change::Write(new)
}

fn anew(values: &Map<String, Value>) -> Change {
    toml::to_string(values).map_or(Change::None, Change::Write)
}
