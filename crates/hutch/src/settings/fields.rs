//! Reading tables of the configuration file: each wrong value is one sentence that names its key.

use std::path::PathBuf;
use std::str::FromStr;

use hutch_agents::nearest;
use toml::{Table, Value};

/// What is wrong with the file, and advice where there is some.
pub(crate) type Wrong = (String, Option<String>);

/// A table whose keys are all known.
#[derive(Debug)]
pub(super) struct Fields<'t> {
    /// The table's own key with a dot: `network.`; empty for the whole file.
    prefix: String,
    table: &'t Table,
}

impl<'t> Fields<'t> {
    /// The whole file.
    pub(super) fn of_file(table: &'t Table, keys: &[&str]) -> Result<Self, Wrong> {
        Self::known(String::new(), table, keys)
    }

    /// The table that is the value of a key, which is written as `at`.
    pub(super) fn of(at: &str, value: &'t Value, keys: &[&str]) -> Result<Self, Wrong> {
        let table = value.as_table().ok_or_else(|| (format!("`{at}` must be a table"), None))?;
        Self::known(format!("{at}."), table, keys)
    }

    fn known(prefix: String, table: &'t Table, keys: &[&str]) -> Result<Self, Wrong> {
        if let Some(key) = table.keys().find(|key| !keys.contains(&key.as_str())) {
            let hint = nearest(key, keys.iter().copied()).map_or_else(
                || format!("the keys are {}", keys.join(", ")),
                |near| format!("did you mean `{prefix}{near}`?"),
            );
            return Err((format!("there is no setting `{prefix}{key}`"), Some(hint)));
        }
        Ok(Self { prefix, table })
    }

    /// A key as a person finds it: with those of its tables.
    pub(super) fn at(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// A sentence about the value of a key.
    pub(super) fn wrong(&self, key: &str, what: impl std::fmt::Display) -> Wrong {
        (format!("`{}`: {what}", self.at(key)), None)
    }

    /// The value itself.
    pub(super) fn value(&self, key: &str) -> Option<&'t Value> {
        self.table.get(key)
    }

    /// A string.
    pub(super) fn text(&self, key: &str) -> Result<Option<&'t str>, Wrong> {
        let read = |value: &'t Value| {
            value
                .as_str()
                .ok_or_else(|| (format!("`{}` must be a string in quotes", self.at(key)), None))
        };
        self.value(key).map(read).transpose()
    }

    /// Strings in brackets.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'t str>>, Wrong> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let texts = value
            .as_array()
            .and_then(|array| array.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.map(Some).ok_or_else(|| {
            let at = self.at(key);
            (format!("`{at}` must be a list of strings, like `[\"one\", \"two\"]`"), None)
        })
    }

    /// `true` or `false`.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Wrong> {
        let read = |value: &Value| {
            value
                .as_bool()
                .ok_or_else(|| (format!("`{}` must be true or false", self.at(key)), None))
        };
        self.value(key).map(read).transpose()
    }

    /// An absolute path.
    pub(super) fn path(&self, key: &str) -> Result<Option<PathBuf>, Wrong> {
        self.text(key)?.map(|text| self.absolute(key, text)).transpose()
    }

    /// Absolute paths in brackets.
    pub(super) fn paths(&self, key: &str) -> Result<Vec<PathBuf>, Wrong> {
        let texts = self.texts(key)?.unwrap_or_default();
        texts.into_iter().map(|text| self.absolute(key, text)).collect()
    }

    fn absolute(&self, key: &str, text: &str) -> Result<PathBuf, Wrong> {
        let path = PathBuf::from(text);
        if path.is_absolute() {
            return Ok(path);
        }
        Err((format!("`{}` must be an absolute path, not `{text}`", self.at(key)), None))
    }

    /// A number or a string, whichever a person finds natural.
    pub(super) fn parsed<T: FromStr<Err: std::error::Error>>(
        &self,
        key: &str,
    ) -> Result<Option<T>, Wrong> {
        let text = match self.value(key) {
            None => return Ok(None),
            Some(Value::Integer(number)) => number.to_string(),
            Some(Value::String(text)) => text.clone(),
            Some(_) => {
                return Err((format!("`{}` must be a number or a string", self.at(key)), None));
            }
        };
        text.parse().map(Some).map_err(|error: T::Err| self.wrong(key, error))
    }
}
