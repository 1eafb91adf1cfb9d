//! Settings in JSON.

use serde_json::{Map, Value};

use super::Change;

/// What is there with what is missing of the seed.
pub(super) fn merge(now: Option<&str>, seed: &str) -> Change {
    let (Some(now), Some(seed)) = (object(now), object(Some(seed))) else { return Change::None };
    let mut new = now.clone();
    add(&mut new, &seed);
    written(&now, new)
}

/// What is there without what is of the seed and unchanged.
pub(super) fn take_back(now: Option<&str>, seed: &str) -> Change {
    if now.is_none() {
        return Change::None;
    }
    let (Some(now), Some(seed)) = (object(now), object(Some(seed))) else { return Change::None };
    let mut new = now.clone();
    remove(&mut new, &seed);
    if new.is_empty() && !now.is_empty() { Change::Remove } else { written(&now, new) }
}

fn object(text: Option<&str>) -> Option<Map<String, Value>> {
    match text {
        None => Some(Map::new()),
        Some(text) => serde_json::from_str(text).ok(),
    }
}

fn written(now: &Map<String, Value>, new: Map<String, Value>) -> Change {
    if *now == new {
        return Change::None;
    }
    match serde_json::to_string_pretty(&Value::Object(new)) {
        Ok(text) => Change::Write(text + "\n"),
        Err(_) => Change::None,
    }
}

/// Adds what is missing; also to lists.
pub(super) fn add(to: &mut Map<String, Value>, seed: &Map<String, Value>) {
    for (key, value) in seed {
        match (to.get_mut(key), value) {
            (None, value) => drop(to.insert(key.clone(), value.clone())),
            (Some(Value::Object(to)), Value::Object(seed)) => add(to, seed),
            (Some(Value::Array(to)), Value::Array(seed)) => {
                for element in seed {
                    if !to.contains(element) {
                        to.push(element.clone());
                    }
                }
            }
            // A person's own value.
            (Some(_), _) => {}
        }
    }
}

/// Removes what is the same, and what is empty then.
pub(super) fn remove(from: &mut Map<String, Value>, seed: &Map<String, Value>) {
    for (key, value) in seed {
        let Some(now) = from.get_mut(key) else { continue };
        let gone = match (&mut *now, value) {
            (Value::Object(now), Value::Object(seed)) => {
                remove(now, seed);
                now.is_empty()
            }
            (Value::Array(now), Value::Array(seed)) => {
                now.retain(|element| !seed.contains(element));
                now.is_empty()
            }
            (now, value) => now == value,
        };
        if gone {
            from.remove(key);
        }
    }
}
