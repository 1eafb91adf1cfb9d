//! Whom the store trusts, and that it loses nothing.

use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn key(text: &str) -> Option<Secret> {
    Some(Secret::parse(text).unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn what_was_kept_is_found_again_and_private() {
    let base = tempfile::tempdir().unwrap();
    let store = Store::new(base.path().join("a/config"));
    assert!(store.read().unwrap().is_empty());
    let before = store.stamp();
    assert!(!store.change(&name("openai"), |entry| entry.api_key = key("sk-one")).unwrap());
    let tokens = Tokens {
        access: Secret::parse("access").unwrap(),
        refresh: key("refresh"),
        id: None,
        expires_at: Some(1_800_000_000),
        scopes: vec!["user:inference".to_owned()],
    };
    assert!(store.change(&name("openai"), |entry| entry.oauth = Some(tokens.clone())).unwrap());
    store.change(&name("my-own"), |entry| entry.api_key = key("two")).unwrap();

    let read = store.read().unwrap();
    assert_eq!(read["openai"], Entry { api_key: key("sk-one"), oauth: Some(tokens) });
    assert_eq!(read["my-own"].api_key, key("two"));
    assert_ne!(store.stamp(), before);
    assert_eq!(mode(&base.path().join("a/config")), 0o700);
    assert_eq!(mode(&base.path().join("a/config/secrets.json")), 0o600);

    assert!(store.remove(&name("openai")).unwrap());
    assert!(!store.remove(&name("openai")).unwrap());
    assert_eq!(store.read().unwrap().len(), 1);
    // The file and its lock: no temporary file stays.
    assert_eq!(fs::read_dir(base.path().join("a/config")).unwrap().count(), 2);
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let store = Store::new(base.path());
    store.change(&name("openai"), |entry| entry.api_key = key("sk-one")).unwrap();
    for bad in [0o640, 0o604, 0o660] {
        let path = base.path().join(FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(bad)).unwrap();
        assert!(matches!(store.read(), Err(StoreError::Unsafe { .. })), "{bad:o}");
        let changed = store.change(&name("x"), |entry| entry.api_key = key("y"));
        assert!(matches!(changed, Err(StoreError::Unsafe { .. })), "{bad:o}");
    }
}

#[test]
fn links_and_other_things_in_the_files_place_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let other = Store::new(base.path().join("other"));
    other.change(&name("openai"), |entry| entry.api_key = key("sk-one")).unwrap();
    let store = Store::new(base.path());
    let path = base.path().join(FILE);
    symlink(base.path().join("other").join(FILE), &path).unwrap();
    assert!(matches!(store.read(), Err(StoreError::Unsafe { .. })));
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(store.read(), Err(StoreError::Unsafe { .. })));
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    assert!(matches!(store.read(), Err(StoreError::Unsafe { .. })));
}

#[test]
fn a_directory_that_others_can_change_is_refused() {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let changed = Store::new(base.path()).change(&name("x"), |entry| entry.api_key = key("y"));
    assert!(matches!(changed, Err(StoreError::Unsafe { .. })));
}

#[test]
fn a_broken_file_is_told_without_its_values() {
    let base = tempfile::tempdir().unwrap();
    let store = Store::new(base.path());
    for text in [
        r#"{"format_version":1,"services":{"openai":{"api_key":["sk-leak"]}}}"#,
        r#"{"format_version":1,"services":{"openai":{"api_key":"sk-leak\nX: y"}}}"#,
        r#"{"format_version":2,"services":{"openai":{"api_key":"sk-leak"}}}"#,
        r#"{"format_version":1,"services":{"openai":{"sk-leak":"z"}}}"#,
        "sk-leak",
    ] {
        store.replace(&base.path().join(FILE), text.as_bytes()).unwrap();
        let error = store.read().unwrap_err();
        assert!(matches!(error, StoreError::Format { .. }), "{error}");
        assert!(!format!("{error:?} {error}").contains("leak"), "{error:?}");
        // It is not overwritten either.
        assert!(store.change(&name("x"), |entry| entry.api_key = key("y")).is_err());
    }
}

#[test]
fn two_writers_lose_nothing() {
    let base = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let store = Store::new(base.path());
            scope.spawn(move || {
                for number in 0..5 {
                    let service = name(&format!("s{writer}-{number}"));
                    store.change(&service, |entry| entry.api_key = key("value")).unwrap();
                }
            });
        }
    });
    assert_eq!(Store::new(base.path()).read().unwrap().len(), 20);
}

#[test]
fn names_are_plain() {
    for bad in ["", "OpenAI", "a b", "a/b", "../x", "a\n", &"x".repeat(65)] {
        assert!(bad.parse::<ServiceName>().is_err(), "{bad:?}");
    }
    assert_eq!(name("my-9").to_string(), "my-9");
}
