//! Variables for a session: `-e NAME=VALUE`, `-e NAME`, and files of such lines by Docker's rules.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use crate::failure::Failure;
use crate::settings::Environment;

/// A file of variables is not longer than this.
const FILE_MAX: u64 = 16 * 1024 * 1024;
/// Some editors put it at the start of a file.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Variables in the order in which they are set; of one name the last counts.
pub(crate) type Variables = Vec<(OsString, OsString)>;

/// What `--env-file` and `-e` say together: files first, as with Docker.
pub(crate) fn variables(
    files: &[impl AsRef<Path>],
    flags: &[OsString],
    environment: &Environment,
) -> Result<Variables, Failure> {
    let mut all = Variables::new();
    for file in files {
        let path = file.as_ref();
        let failed =
            |why: String| Failure::user(format!("the file of variables {}: {why}", path.display()));
        let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if size > FILE_MAX {
            return Err(failed(format!("it has {size} bytes, more than {FILE_MAX}")));
        }
        let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        all.extend(parse(&text, environment).map_err(failed)?);
    }
    for flag in flags {
        if let Some(variable) = variable(flag, environment)
            .map_err(|why| Failure::user(format!("`-e {}`: {why}", flag.to_string_lossy())))?
        {
            all.push(variable);
        }
    }
    Ok(all)
}

/// Reads a file of variables: one `NAME=VALUE` or `NAME` a line, `#` at a line's start is a comment, leading white space
/// does not count, and everything after `=` is the value as it is, quotes included.
pub(crate) fn parse(text: &[u8], environment: &Environment) -> Result<Variables, String> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let mut all = Variables::new();
    for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii_start();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let place = |why| format!("line {}: {why}", number + 1);
        if let Some(variable) = variable(OsStr::from_bytes(line), environment).map_err(place)? {
            all.push(variable);
        }
    }
    Ok(all)
}

/// One variable; `None` for a name alone that is not set here.
fn variable(
    text: &OsStr,
    environment: &Environment,
) -> Result<Option<(OsString, OsString)>, &'static str> {
    let bytes = text.as_bytes();
    if bytes.contains(&0) {
        return Err("there is a zero byte in it");
    }
    let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (&bytes[..at], Some(OsString::from_vec(bytes[at + 1..].to_vec()))),
        None => (bytes, None),
    };
    if name.is_empty() {
        return Err("the name of the variable is missing");
    }
    if name.iter().any(u8::is_ascii_whitespace) {
        return Err("the name of the variable has white space in it");
    }
    let name = OsStr::from_bytes(name).to_owned();
    let value = value.or_else(|| environment.value(&name).map(OsStr::to_owned));
    Ok(value.map(|value| (name, value)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
        let environment = Environment::from([("HERE", "value"), ("EMPTY", "")]);
        let text_of = |text: OsString| text.into_string().unwrap();
        Ok(parse(text.as_bytes(), &environment)?
            .into_iter()
            .map(|(name, value)| (text_of(name), text_of(value)))
            .collect())
    }

    #[test]
    fn a_file_is_read_by_dockers_rules() {
        let text = "\u{feff}# comment\n\n  A=1\nB=two words # kept\nC=\"quoted\"\nD=\nHERE\nEMPTY\nNOT_SET\r\nE=a=b\r\n  # more";
        let expected = [
            ("A", "1"),
            ("B", "two words # kept"),
            ("C", "\"quoted\""),
            ("D", ""),
            ("HERE", "value"),
            ("EMPTY", ""),
            ("E", "a=b"),
        ];
        let read = pairs(text).unwrap();
        assert_eq!(read, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn wrong_lines_are_told_with_their_number() {
        assert_eq!(pairs("A=1\n=x").unwrap_err(), "line 2: the name of the variable is missing");
        assert_eq!(
            pairs("A B=1").unwrap_err(),
            "line 1: the name of the variable has white space in it"
        );
        assert_eq!(pairs("A=\0").unwrap_err(), "line 1: there is a zero byte in it");
    }

    #[test]
    fn flags_come_after_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("variables");
        std::fs::File::create(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"A=file\nB=file\n"))
            .unwrap();
        let all =
            variables(&[&path], &["A=flag".into(), "NOT_SET".into()], &Environment::default())
                .unwrap();
        let expected = [("A", "file"), ("B", "file"), ("A", "flag")];
        assert_eq!(all, expected.map(|(name, value)| (name.into(), value.into())));
        let missing =
            variables(&[directory.path().join("none")], &[], &Environment::default()).unwrap_err();
        assert!(missing.to_string().contains("none: No such file"), "{missing}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(all) = parse(&bytes, &Environment::default()) {
                for (name, value) in all {
                    prop_assert!(!name.is_empty() && !name.as_bytes().contains(&b'='));
                    prop_assert!(!value.as_bytes().contains(&0) && !value.as_bytes().contains(&b'\n'));
                }
            }
        }

        #[test]
        fn what_is_written_is_read(
            pairs in proptest::collection::vec(("[A-Za-z_][A-Za-z0-9_]{0,8}", "[^\\r\\n\\x00]{0,20}"), 0..8)
        ) {
            let text: String = pairs.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
            let read = parse(text.as_bytes(), &Environment::default()).unwrap();
            let expected: Variables = pairs.into_iter().map(|(n, v)| (n.into(), v.into())).collect();
            prop_assert_eq!(read, expected);
        }
    }
}
