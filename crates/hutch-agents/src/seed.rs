//! Files that an agent finds in its home: settings that it would otherwise ask for, and placeholders of credentials.
//!
//! A seed is merged into what is there, never written over it: a value of the user's stays. One whose situation has passed
//! (there is no key any more) is taken back, as far as nobody changed it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeedFormat {
    /// Merged key by key; missing elements are added to lists.
    Json,
    /// The same.
    Toml,
    /// Written where there is no file.
    Text,
}

/// When a seed is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Situation {
    /// Always.
    #[default]
    Always,
    /// There is a key.
    Key,
    /// There is no key, and a sign-in that the host holds.
    SignedIn,
    /// There is a key or a sign-in.
    Credential,
}

/// What is done with a seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeedAction {
    /// What is missing is added.
    Merge,
    /// What was added and is unchanged goes again.
    TakeBack,
}

/// A seed for one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seed {
    /// Below the home directory.
    pub path: String,
    /// How the file is written.
    pub format: SeedFormat,
    /// What is done.
    pub action: SeedAction,
    /// Its content, in its format.
    pub content: String,
}

/// Stands for a workspace in keys and strings. Where it is an element of a list or a key, there is one for each
/// workspace.
pub(crate) const WORKSPACE: &str = "${WORKSPACE}";

/// The content with the workspaces in their places; `None` when it is not what its format says.
pub(crate) fn fill(format: SeedFormat, content: &str, workspaces: &[&str]) -> Option<String> {
    match format {
        SeedFormat::Text => Some(match workspaces.first() {
            Some(first) => content.replace(WORKSPACE, first),
            None => content.to_owned(),
        }),
        SeedFormat::Json => {
            let value = filled(&serde_json::from_str(content).ok()?, workspaces);
            serde_json::to_string(&value).ok()
        }
        SeedFormat::Toml => {
            // By way of JSON, so that there is one way to fill; what JSON cannot say, dates, no agent's settings have.
            let table: toml::Table = content.parse().ok()?;
            let value = filled(&serde_json::to_value(table).ok()?, workspaces);
            toml::to_string(&value).ok()
        }
    }
}

fn filled(value: &Value, workspaces: &[&str]) -> Value {
    match value {
        Value::String(text) => {
            Value::String(text.replace(WORKSPACE, workspaces.first().copied().unwrap_or("/")))
        }
        Value::Array(list) => {
            let each = |element: &Value| match element.as_str() {
                Some(text) if text.contains(WORKSPACE) => {
                    let one = |path: &&str| Value::String(text.replace(WORKSPACE, path));
                    workspaces.iter().map(one).collect()
                }
                _ => vec![filled(element, workspaces)],
            };
            list.iter().flat_map(each).collect()
        }
        Value::Object(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                let value = filled(value, workspaces);
                if key.contains(WORKSPACE) {
                    for path in workspaces {
                        out.insert(key.replace(WORKSPACE, path), value.clone());
                    }
                } else {
                    out.insert(key.clone(), value);
                }
            }
            Value::Object(out)
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workspaces_stand_where_the_word_was() {
        let json = r#"{"list":["a","${WORKSPACE}"],"by":{"${WORKSPACE}":{"ok":true}},"first":"${WORKSPACE}/x"}"#;
        let text = fill(SeedFormat::Json, json, &["/a \"b\"", "/c"]).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["list"], serde_json::json!(["a", "/a \"b\"", "/c"]));
        assert_eq!(value["by"], serde_json::json!({"/a \"b\"": {"ok": true}, "/c": {"ok": true}}));
        assert_eq!(value["first"], "/a \"b\"/x");
        let none = fill(SeedFormat::Json, json, &[]).unwrap();
        assert_eq!(none, r#"{"by":{},"first":"//x","list":["a"]}"#);
    }

    #[test]
    fn toml_and_text_are_filled_too() {
        let text = "a = 1\n[projects.\"${WORKSPACE}\"]\ntrust_level = \"trusted\"\n";
        let filled = fill(SeedFormat::Toml, text, &["/w"]).unwrap();
        let table: toml::Table = filled.parse().unwrap();
        assert_eq!(table["projects"]["/w"]["trust_level"].as_str(), Some("trusted"));
        assert_eq!(fill(SeedFormat::Text, "in ${WORKSPACE}", &["/w"]).unwrap(), "in /w");
        assert_eq!(fill(SeedFormat::Json, "{", &[]), None);
        assert_eq!(fill(SeedFormat::Toml, "=", &[]), None);
    }
}
