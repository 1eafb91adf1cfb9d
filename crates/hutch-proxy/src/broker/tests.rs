//! Which source wins, that changes are seen, and that nobody gets what is not theirs.

use std::fs;
use std::path::Path;

use hutch_secrets::store::{ServiceName, Store};

use super::*;
use crate::credential::Broker;

struct Host {
    base: tempfile::TempDir,
    sources: Arc<Sources>,
}

impl Host {
    fn new(shell: Option<&str>) -> Self {
        let base = tempfile::tempdir().unwrap();
        let home = base.path().join("home");
        fs::create_dir(&home).unwrap();
        let variables = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let spec = BrokerSpec {
            store: base.path().join("config"),
            home,
            shell: shell.map(Into::into),
            user: "someone".to_owned(),
            services: vec![
                ("openai".to_owned(), variables(&["OPENAI_API_KEY"])),
                ("github".to_owned(), variables(&["GH_TOKEN", "GITHUB_TOKEN"])),
                ("keyless".to_owned(), Vec::new()),
            ],
        };
        let sources = Arc::new(Sources::new(&spec));
        Self { base, sources }
    }

    #[expect(clippy::disallowed_methods, reason = "a start file of a test, not one of ours")]
    fn bashrc(&self, text: &str) {
        fs::write(self.base.path().join("home/.bashrc"), text).unwrap();
    }

    fn store(&self) -> Store {
        Store::new(self.base.path().join("config"))
    }

    fn set(&self, service: &str, key: &str) {
        let service: ServiceName = service.parse().unwrap();
        let key = Secret::parse(key).unwrap();
        self.store().change(&service, |entry| entry.api_key = Some(key)).unwrap();
    }

    fn caller(&self, variables: &[(&str, &str)]) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let variables: BTreeMap<_, _> = variables.iter().map(owned).collect();
        self.sources.caller(CallerEnvironment { variables });
    }

    async fn key(&self, service: &str) -> Option<String> {
        let key = self.sources.find(service).await.unwrap().key?;
        Some(key.open().unwrap().expose().to_owned())
    }

    async fn place(&self, service: &str) -> Option<String> {
        let places = self.sources.places().await;
        places.into_iter().find(|(name, _)| name == service).unwrap().1
    }

    fn link(&self) -> Broker {
        let (worker, broker) = UnixStream::pair().unwrap();
        tokio::spawn(serve(Arc::clone(&self.sources), broker));
        Broker::new(worker)
    }
}

#[tokio::test]
async fn the_store_comes_before_the_caller_and_the_caller_before_the_shell() {
    let host = Host::new(Some("/bin/bash"));
    host.bashrc("export OPENAI_API_KEY=of-the-shell\n");
    assert_eq!(host.key("openai").await.unwrap(), "of-the-shell");
    assert_eq!(host.place("openai").await.unwrap(), "login shell OPENAI_API_KEY");
    host.caller(&[("OPENAI_API_KEY", "of-the-caller"), ("PATH", "/bin")]);
    assert_eq!(host.key("openai").await.unwrap(), "of-the-caller");
    assert_eq!(host.place("openai").await.unwrap(), "environment OPENAI_API_KEY");
    host.set("openai", "of-the-store");
    assert_eq!(host.key("openai").await.unwrap(), "of-the-store");
    assert_eq!(host.place("openai").await.unwrap(), "secret store");
}

#[tokio::test]
async fn what_changes_on_the_host_is_used_next() {
    let host = Host::new(Some("/bin/bash"));
    host.bashrc("export GITHUB_TOKEN=one\n");
    assert_eq!(host.key("github").await.unwrap(), "one");
    host.bashrc("export GITHUB_TOKEN=two-and-longer\n");
    assert_eq!(host.key("github").await.unwrap(), "two-and-longer");
    host.set("github", "three");
    assert_eq!(host.key("github").await.unwrap(), "three");
    host.set("github", "four");
    assert_eq!(host.key("github").await.unwrap(), "four");
    host.store().remove(&"github".parse().unwrap()).unwrap();
    host.bashrc("");
    assert_eq!(host.key("github").await, None);
}

#[tokio::test]
async fn a_caller_keeps_what_it_does_not_mention_and_empties_what_it_has_empty() {
    let host = Host::new(None);
    host.caller(&[("GITHUB_TOKEN", "second"), ("OPENAI_API_KEY", "o")]);
    assert_eq!(host.key("github").await.unwrap(), "second");
    host.caller(&[("GH_TOKEN", "first")]);
    assert_eq!(host.key("github").await.unwrap(), "first");
    host.caller(&[("GH_TOKEN", ""), ("OPENAI_API_KEY", "a\nb")]);
    assert_eq!(host.key("github").await.unwrap(), "second");
    assert_eq!(host.key("openai").await, None);
}

#[tokio::test]
async fn what_is_missing_says_where_it_was_looked_for() {
    let host = Host::new(Some("/bin/bash"));
    host.bashrc("exec true\n");
    let found = host.sources.find("github").await.unwrap();
    assert_eq!(found.key, None);
    for part in [
        "secret store",
        "caller's environment",
        "login shell",
        "GH_TOKEN or GITHUB_TOKEN",
        "ended without",
    ] {
        assert!(found.looked.contains(part), "{}", found.looked);
    }
    assert_eq!(host.sources.find("keyless").await.unwrap().looked, "the secret store");
    assert_eq!(host.place("github").await, None);
}

#[tokio::test]
async fn an_unsafe_store_is_none() {
    use std::os::unix::fs::PermissionsExt as _;
    let host = Host::new(None);
    host.set("openai", "of-the-store");
    let file = host.base.path().join("config/secrets.json");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(host.key("openai").await, None);
}

#[tokio::test]
async fn only_the_services_it_was_started_with_are_answered() {
    let host = Host::new(None);
    host.set("groq", "of-another");
    let broker = host.link();
    let error = broker.find("groq").await.unwrap_err();
    assert!(error.0.contains("not a service"), "{}", error.0);
    let secret = SentSecret::from(&Secret::parse("x").unwrap());
    broker.keep_key("groq", secret).await.unwrap_err();
    let places = broker.places().await.unwrap();
    assert!(places.iter().all(|(service, _)| service != "groq"));
    assert_eq!(
        host.store().read().unwrap()["groq"].api_key.as_ref().unwrap().expose(),
        "of-another"
    );
}

fn tokens(access: &str, refresh: Option<&str>) -> SentTokens {
    let sent = |text: &str| SentSecret::from(&Secret::parse(text).unwrap());
    SentTokens {
        access: sent(access),
        refresh: refresh.map(sent),
        id: None,
        expires_at: Some(1),
        scopes: Vec::new(),
    }
}

#[tokio::test]
async fn tokens_are_kept_on_the_host() {
    let host = Host::new(None);
    let broker = host.link();
    broker.keep_tokens("openai", tokens("access-1", Some("refresh-1"))).await.unwrap();
    assert_eq!(host.place("openai").await.unwrap(), "secret store (signed in)");
    // A renewal without a new refresh token keeps the old one.
    broker.keep_tokens("openai", tokens("access-2", None)).await.unwrap();
    let kept = broker.find("openai").await.unwrap().tokens.unwrap().open().unwrap();
    assert_eq!(kept.access.expose(), "access-2");
    assert_eq!(kept.refresh.unwrap().expose(), "refresh-1");
    let sent = |text: &str| SentSecret::from(&Secret::parse(text).unwrap());
    broker.keep_key("openai", sent("made")).await.unwrap();
    broker.keep_key("openai", sent("made-later")).await.unwrap();
    assert_eq!(host.key("openai").await.unwrap(), "made");
}

#[tokio::test]
async fn calls_are_answered_though_another_waits_for_the_shell() {
    let host = Host::new(Some("/bin/bash"));
    let gate = host.base.path().join("gate");
    rustix::fs::mknodat(rustix::fs::CWD, &gate, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    // The shell goes on when the other end of the pipe is opened.
    host.bashrc(&format!("read key < {}\nexport GH_TOKEN=$key\n", gate.display()));
    host.set("openai", "of-the-store");
    let broker = host.link();
    let slow = tokio::spawn({
        let broker = broker.clone();
        async move { broker.find("github").await }
    });
    for _ in 0..100 {
        assert!(broker.find("openai").await.unwrap().key.is_some());
    }
    assert!(!slow.is_finished());
    open_gate(&gate).await;
    let key = slow.await.unwrap().unwrap().key.unwrap();
    assert_eq!(key.open().unwrap().expose(), "late");
}

#[expect(clippy::disallowed_methods, reason = "a pipe, not a file of ours")]
async fn open_gate(gate: &Path) {
    let gate = gate.to_owned();
    tokio::task::spawn_blocking(move || fs::write(gate, "late\n").unwrap()).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_goes_is_told_and_nobody_hangs() {
    let (worker, broker) = UnixStream::pair().unwrap();
    let client = Broker::new(worker);
    drop(broker);
    assert!(client.find("openai").await.unwrap_err().0.contains("ended"));
    assert!(client.places().await.is_err());
}

#[tokio::test]
async fn garbage_on_the_link_ends_the_broker() {
    use tokio::io::AsyncWriteExt as _;
    let host = Host::new(None);
    for garbage in [&[0xff; 8][..], &[3, 0, 0, 0, 1, 9, 9], &[4, 0, 0, 0]] {
        let (mut worker, broker) = UnixStream::pair().unwrap();
        let served = tokio::spawn(serve(Arc::clone(&host.sources), broker));
        worker.write_all(garbage).await.unwrap();
        drop(worker);
        assert!(matches!(served.await.unwrap(), Err(BrokerError::Call(_))));
    }
}

#[test]
fn nothing_prints() {
    let found = Found {
        key: Some((&Secret::parse("sk-very-secret").unwrap()).into()),
        tokens: Some(tokens("access-secret", Some("refresh-secret"))),
        looked: String::new(),
    };
    assert!(!format!("{:?}", Reply::Found(found)).contains("-secret"));
}
