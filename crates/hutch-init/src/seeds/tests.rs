use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::*;

fn seed(path: &str, format: SeedFormat, action: SeedAction, content: &str) -> SeedFile {
    SeedFile { path: path.to_owned(), format, action, content: content.to_owned() }
}

fn changed(now: Option<&str>, format: SeedFormat, action: SeedAction, content: &str) -> Change {
    change(now, &seed("x", format, action, content))
}

fn merged(now: Option<&str>, content: &str) -> serde_json::Value {
    match changed(now, SeedFormat::Json, SeedAction::Merge, content) {
        Change::Write(text) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_value_of_the_users_stays_and_what_is_missing_is_added() {
    let content = r#"{"a":1,"b":{"c":true,"d":[1,2]}}"#;
    assert_eq!(merged(None, content), serde_json::json!({"a": 1, "b": {"c": true, "d": [1, 2]}}));
    let now = r#"{"a":"mine","b":{"c":false,"d":[2,3]},"z":null}"#;
    assert_eq!(
        merged(Some(now), content),
        serde_json::json!({"a": "mine", "b": {"c": false, "d": [2, 3, 1]}, "z": null})
    );
    let complete = r#"{"b":{"d":[2,1],"c":0},"a":[]}"#;
    assert_eq!(changed(Some(complete), SeedFormat::Json, SeedAction::Merge, content), Change::None);
}

#[test]
fn what_makes_no_sense_is_left_alone() {
    for now in ["{", "[]", "// comment\n{}", "\"x\""] {
        for action in [SeedAction::Merge, SeedAction::TakeBack] {
            assert_eq!(changed(Some(now), SeedFormat::Json, action, r#"{"a":1}"#), Change::None);
        }
    }
    for action in [SeedAction::Merge, SeedAction::TakeBack] {
        assert_eq!(changed(Some("a = "), SeedFormat::Toml, action, "b = 1"), Change::None);
        assert_eq!(changed(None, SeedFormat::Toml, action, "b = "), Change::None);
    }
}

#[test]
fn what_was_added_is_taken_back_unless_somebody_changed_it() {
    let back = |now| changed(now, SeedFormat::Json, SeedAction::TakeBack, r#"{"a":1,"b":{"c":2}}"#);
    assert_eq!(back(None), Change::None);
    assert_eq!(back(Some(r#"{"a":1,"b":{"c":2}}"#)), Change::Remove);
    assert_eq!(back(Some(r#"{"a":2,"b":{"c":3}}"#)), Change::None);
    assert_eq!(
        back(Some(r#"{"a":1,"b":{"c":2,"d":4}}"#)),
        Change::Write("{\n  \"b\": {\n    \"d\": 4\n  }\n}\n".to_owned())
    );
    let text = |now| changed(now, SeedFormat::Text, SeedAction::TakeBack, "hint\n");
    assert_eq!(text(Some("hint\n")), Change::Remove);
    assert_eq!(text(Some("my own\n")), Change::None);
}

#[test]
fn text_is_written_where_there_is_none() {
    let text = |now| changed(now, SeedFormat::Text, SeedAction::Merge, "hint");
    assert_eq!(text(None), Change::Write("hint".to_owned()));
    assert_eq!(text(Some(" \n")), Change::Write("hint".to_owned()));
    assert_eq!(text(Some("my own")), Change::None);
}

#[test]
fn comments_of_toml_stay() {
    let content = "mode = \"never\"\n[projects.\"/w\"]\ntrust = \"yes\"\n";
    let merge = |now| changed(now, SeedFormat::Toml, SeedAction::Merge, content);
    let Change::Write(text) = merge(Some("# mine\nmodel = \"m\" # why\n[other]\nx = 1")) else {
        panic!("nothing is written")
    };
    assert_eq!(
        text,
        "mode = \"never\"\n# mine\nmodel = \"m\" # why\n[other]\nx = 1\n\n[projects.\"/w\"]\ntrust = \"yes\"\n"
    );
    assert_eq!(merge(Some(&text)), Change::None);
    assert_eq!(
        merge(None),
        Change::Write("mode = \"never\"\n\n[projects.\"/w\"]\ntrust = \"yes\"\n".to_owned())
    );
}

#[test]
fn a_table_of_toml_that_is_there_is_added_to() {
    let content = "mode = \"never\"\n[projects.\"/w\"]\ntrust = \"yes\"\n";
    let now = "mode = \"ask\"\n[projects.\"/other\"]\ntrust = \"no\"\n";
    let Change::Write(text) = changed(Some(now), SeedFormat::Toml, SeedAction::Merge, content)
    else {
        panic!("nothing is written")
    };
    let table: ::toml::Table = text.parse().unwrap();
    assert_eq!(table["mode"].as_str(), Some("ask"));
    assert_eq!(table["projects"]["/w"]["trust"].as_str(), Some("yes"));
    assert_eq!(table["projects"]["/other"]["trust"].as_str(), Some("no"));
    let Change::Write(text) = changed(Some(&text), SeedFormat::Toml, SeedAction::TakeBack, content)
    else {
        panic!("nothing is taken back")
    };
    assert_eq!(text.parse::<::toml::Table>().unwrap(), now.parse::<::toml::Table>().unwrap());
    // A date is nothing that comes back as it was.
    let dated = "when = 2026-01-01\n[projects.\"/other\"]\n";
    assert_eq!(changed(Some(dated), SeedFormat::Toml, SeedAction::Merge, content), Change::None);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
fn files_and_directories_belong_to_the_user() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root, as the guest's init has");
    let directory = tempfile::tempdir().unwrap();
    for name in ["etc", "home/agent"] {
        fs::create_dir_all(directory.path().join(name)).unwrap();
    }
    fs::write(directory.path().join("etc/passwd"), "agent:x:1000:1001::/home/agent:/bin/sh\n")
        .unwrap();
    fs::write(directory.path().join("home/agent/.own.json"), "{\"mine\":1}").unwrap();
    let root = Root::open(directory.path()).unwrap();
    let json = |path, action| seed(path, SeedFormat::Json, action, r#"{"a":1}"#);
    apply(
        &root,
        "agent",
        &[
            json(".config/tool/settings.json", SeedAction::Merge),
            json(".own.json", SeedAction::Merge),
            json("../../outside.json", SeedAction::Merge),
            json(".gone.json", SeedAction::Merge),
            json(".gone.json", SeedAction::TakeBack),
        ],
    );
    let facts = |path: &str| {
        let found = fs::symlink_metadata(directory.path().join(path)).unwrap();
        (found.uid(), found.gid())
    };
    for path in [".config", ".config/tool", ".config/tool/settings.json"] {
        assert_eq!(facts(&format!("home/agent/{path}")), (1000, 1001), "{path}");
    }
    let own = fs::read_to_string(directory.path().join("home/agent/.own.json")).unwrap();
    assert_eq!(own, "{\n  \"a\": 1,\n  \"mine\": 1\n}\n");
    assert_eq!(facts("home/agent/.own.json"), (0, 0));
    assert!(!directory.path().join("outside.json").exists());
    assert!(!directory.path().join("home/agent/.gone.json").exists());
    // Nobody has this name, and nothing happens.
    apply(&root, "nobody", &[json(".x", SeedAction::Merge)]);
}
