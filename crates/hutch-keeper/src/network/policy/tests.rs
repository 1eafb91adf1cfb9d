use std::os::unix::fs::PermissionsExt as _;

use hutch_store::{Draft, HostPath, Layout, SandboxName, TemplateReference, Workspace};
use tempfile::TempDir;

use super::*;

fn sandbox() -> (TempDir, Store, SandboxRecord) {
    let base = tempfile::tempdir().unwrap();
    let at = |text: &str| base.path().join(text);
    let layout = Layout {
        state: at("state"),
        runtime: at("run"),
        config: at("config"),
        images: at("images"),
    };
    let store = Store::open(layout).unwrap();
    let draft = Draft {
        agent: "shell".to_owned(),
        template: TemplateReference { name: "shell".to_owned(), digest: String::new() },
        workspaces: vec![Workspace { path: HostPath::new("/srv").unwrap(), read_only: false }],
        cpus: 1,
        memory_mib: 512,
        disk_bytes: 256 << 20,
        idle_timeout_s: 0,
        docker: hutch_store::DockerStart::default(),
        labels: std::collections::BTreeMap::new(),
        environment: std::collections::BTreeMap::new(),
    };
    let record = store.create(&draft, [SandboxName::parse("a").unwrap()]).unwrap();
    (base, store, record)
}

fn text(store: &Store, record: &SandboxRecord) -> String {
    std::fs::read_to_string(store.paths(&record.name).proxy_config()).unwrap()
}

#[test]
fn a_new_sandbox_gets_the_built_in_policy_or_the_default_file_as_it_is() {
    let (base, store, record) = sandbox();
    let policy = PolicyFile::open(&store, &record, None, Inspect::All).unwrap();
    assert_eq!(policy.state().proxy_config, ProxyConfig::default().to_text());
    assert_eq!(policy.inspect(), Inspect::All);
    let path = store.paths(&record.name).proxy_config();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    std::fs::remove_file(&path).unwrap();
    let default = base.path().join("default.json");
    let strange = "{\"policy\":{\"default\":\"deny\"},\n  \"credentials\": [1]}";
    atomic::write(&default, strange.as_bytes()).unwrap();
    PolicyFile::open(&store, &record, Some(&default), Inspect::All).unwrap();
    assert_eq!(text(&store, &record), strange);
    // From then on the default file is nothing to this sandbox.
    atomic::write(&default, b"{").unwrap();
    PolicyFile::open(&store, &record, Some(&default), Inspect::All).unwrap();
}

#[test]
fn a_policy_that_cannot_be_understood_keeps_the_network_shut() {
    let (base, store, record) = sandbox();
    let path = store.paths(&record.name).proxy_config();
    let long = vec![b' '; 3 << 20];
    let contents: [&[u8]; 5] =
        [b"", b"{", b"\xff\xfe", b"{\"policy\":{\"default\":\"Allow\"}}", &long];
    for content in contents {
        atomic::write(&path, content).unwrap();
        let error = PolicyFile::open(&store, &record, None, Inspect::All).unwrap_err();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), content, "it is not repaired silently");
    }
    std::fs::remove_file(&path).unwrap();
    let default = base.path().join("default.json");
    atomic::write(&default, b"{\"network\":{\"blockedCIDRs\":[\"10.0.0.0/99\"]}}").unwrap();
    let error = PolicyFile::open(&store, &record, Some(&default), Inspect::All).unwrap_err();
    assert!(error.contains(default.to_str().unwrap()) && error.contains("blockedCIDRs"), "{error}");
    assert!(!path.exists());
}

#[test]
fn a_change_keeps_unknown_keys_and_survives() {
    let (_base, store, record) = sandbox();
    let path = store.paths(&record.name).proxy_config();
    atomic::write(&path, br#"{"policy":{"default":"deny"},"credentials":[{"domain":"x"}]}"#)
        .unwrap();
    let before = PolicyFile::open(&store, &record, None, Inspect::Credentials).unwrap();
    let edit = NetworkEdit {
        inspect: Some("all".to_owned()),
        allow_hosts: vec!["api.example.com".to_owned()],
        allow_cidrs: vec!["203.0.113.0/24".to_owned()],
        ..NetworkEdit::default()
    };
    let (changed, notes) = before.changed(&edit).unwrap();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(!text(&store, &record).contains("api.example.com"), "nothing is written yet");
    changed.write(&before).unwrap();
    let now = text(&store, &record);
    assert!(now.contains("\"domain\": \"x\"") && now.contains("api.example.com"), "{now}");
    let record = store.load(&record.name).unwrap();
    assert_eq!(record.inspect, Some(Inspect::All));
    let again = PolicyFile::open(&store, &record, None, Inspect::Credentials).unwrap();
    assert_eq!(again.state(), changed.state());
    before.write(&changed).unwrap();
    assert!(!text(&store, &record).contains("api.example.com"));
    assert_eq!(store.load(&record.name).unwrap().inspect, None);
}

#[test]
fn a_wrong_change_names_its_flag() {
    let (_base, store, record) = sandbox();
    let policy = PolicyFile::open(&store, &record, None, Inspect::Credentials).unwrap();
    let wrong = |edit: NetworkEdit| policy.changed(&edit).unwrap_err();
    let inspect = wrong(NetworkEdit { inspect: Some("some".into()), ..NetworkEdit::default() });
    assert!(inspect.contains("--inspect") && inspect.contains("\"some\""), "{inspect}");
    let host = wrong(NetworkEdit { allow_hosts: vec!["a b".into()], ..NetworkEdit::default() });
    assert!(host.contains("--allow-host"), "{host}");
    // Room for all that there is, and not for one more.
    let rest = "x".repeat(usize::try_from(POLICY_MAX).unwrap() - 1000);
    atomic::write(&policy.path, format!("{{\"rest\": \"{rest}\"}}").as_bytes()).unwrap();
    let full = PolicyFile::open(&store, &record, None, Inspect::Credentials).unwrap();
    let hosts = (0..30).map(|number| format!("host-{number}.example.com")).collect();
    let edit = NetworkEdit { block_hosts: hosts, ..NetworkEdit::default() };
    let long = full.changed(&edit).unwrap_err();
    assert!(long.contains("longer than"), "{long}");
}

#[test]
fn what_cannot_be_written_whole_is_not_written() {
    let (_base, store, record) = sandbox();
    let before = PolicyFile::open(&store, &record, None, Inspect::Credentials).unwrap();
    let edit = NetworkEdit {
        policy: Some("deny".to_owned()),
        inspect: Some("all".to_owned()),
        ..NetworkEdit::default()
    };
    let (changed, _) = before.changed(&edit).unwrap();
    let text_before = text(&store, &record);
    // The record cannot be read, so it cannot be changed.
    atomic::write(&store.paths(&record.name).record(), b"{").unwrap();
    changed.write(&before).unwrap_err();
    assert_eq!(text(&store, &record), text_before);
}
