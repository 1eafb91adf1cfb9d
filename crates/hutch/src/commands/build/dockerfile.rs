//! Which images a Dockerfile may stand on, as far as that can be told without building it.
//!
//! Only to know which templates a builder is to be offered: a name too many costs a disk, and one that is not found here
//! is looked for in its registry. Everything else about the file is for BuildKit to say.

use std::collections::BTreeMap;

/// Longest name that is looked at.
const NAME_MAX: usize = 512;

/// The images that the file names after `FROM`, and with `from=` in the options of other instructions.
pub(super) fn images(text: &str, arguments: &[(String, String)]) -> Vec<String> {
    let mut values: BTreeMap<String, String> = BTreeMap::new();
    let mut stages: Vec<String> = Vec::new();
    let mut found: Vec<String> = Vec::new();
    for line in lines(text) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some((instruction, words)) = words.split_first() else { continue };
        let is = |name: &str| instruction.eq_ignore_ascii_case(name);
        let mut names: Vec<&str> = Vec::new();
        let mut stage = None;
        if is("arg") {
            for word in words {
                let (name, default) = word.split_once('=').unwrap_or((word, ""));
                let given = arguments.iter().rev().find(|(given, _)| given == name);
                let value =
                    given.map_or_else(|| expand(default, &values), |(_, value)| value.clone());
                values.insert(name.to_owned(), value);
            }
        } else if is("from") {
            let mut words = words.iter().copied().filter(|word| !word.starts_with("--"));
            names.extend(words.next());
            if words.next().is_some_and(|word| word.eq_ignore_ascii_case("as")) {
                stage = words.next().map(str::to_lowercase);
            }
        } else {
            let options = words.iter().take_while(|word| word.starts_with("--"));
            // `--from=X`, `--mount=type=bind,from=X`
            let values =
                options.flat_map(|option| option.trim_start_matches("--mount=").split(','));
            names.extend(
                values.filter_map(|value| value.trim_start_matches("--").strip_prefix("from=")),
            );
        }
        for name in names {
            let name = expand(name, &values);
            let is_new = !stages.contains(&name.to_lowercase()) && !found.contains(&name);
            if is_new && (1..=NAME_MAX).contains(&name.len()) {
                found.push(name);
            }
        }
        stages.extend(stage);
    }
    found
}

/// The instructions, each in one line.
fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut whole = String::new();
    for line in text.lines().map(str::trim) {
        // Comments and empty lines do not end an instruction.
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        // The other character is Windows's, chosen by a directive.
        match line.strip_suffix(['\\', '`']) {
            Some(begun) => whole.extend([begun, " "]),
            None => lines.push(std::mem::take(&mut whole) + line),
        }
    }
    lines.push(whole);
    lines
}

/// Replaces `$NAME`, `${NAME}` and `${NAME:-other}` by values, and takes quotes away.
fn expand(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = text.trim_matches(['"', '\'']);
    while let Some((before, after)) = rest.split_once('$') {
        result.push_str(before);
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, other, behind) = match after.strip_prefix('{') {
            Some(inner) => {
                let (inner, behind) = inner.split_once('}').unwrap_or((inner, ""));
                let (name, other) = inner.split_once(":-").unwrap_or((inner, ""));
                (name, other, behind)
            }
            None => {
                let end = after.find(|c| !is_word(c)).unwrap_or(after.len());
                (&after[..end], "", &after[end..])
            }
        };
        let value = values.get(name).map(String::as_str).filter(|value| !value.is_empty());
        result.push_str(value.unwrap_or(other));
        rest = behind;
        if result.len() > NAME_MAX {
            break;
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn images_are_found_where_dockerfiles_name_them() {
        let text = "\
# syntax=docker/dockerfile:1
ARG FLAVOR=claude-code
ARG BASE=\"docker/sandbox-templates:${FLAVOR}\"
FROM --platform=linux/amd64 golang:1.24 AS Tools
RUN --mount=type=cache,target=/x --mount=type=bind,from=other:1,source=/a true \\
  # not the end
  && echo FROM nothing
from $BASE as final
COPY --chown=agent --from=tools /a /b
COPY --from=third:${VERSION:-2} /c /d
FROM tools
FROM ${UNKNOWN}
";
        let found = images(text, &[]);
        assert_eq!(
            found,
            ["golang:1.24", "other:1", "docker/sandbox-templates:claude-code", "third:2"]
        );
        let given = [("FLAVOR".to_owned(), "shell".to_owned())];
        assert_eq!(images(text, &given)[2], "docker/sandbox-templates:shell");
    }

    #[test]
    fn a_stage_hides_only_what_comes_after_it() {
        assert_eq!(images("FROM a AS a\nFROM a", &[]), ["a"]);
        assert_eq!(images("FROM \\\n  a:1", &[]), ["a:1"]);
        assert!(images("", &[]).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[FROMfromarg ${}:=\\-\\\\\n\"A-C#]{0,200}") {
            for name in images(&text, &[]) {
                prop_assert!(name.len() <= NAME_MAX);
            }
        }
    }
}
