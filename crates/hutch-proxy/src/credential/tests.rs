//! Which requests are given what, against a real broker on a socket; and that nothing of it comes back.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Response};
use http_body_util::BodyExt as _;
use hutch_policy::host::Authority;
use hutch_policy::services::{self, PLACEHOLDER};
use hutch_secrets::store::Store;
use tokio::net::UnixStream;

use super::*;
use crate::broker::{self, Sources};
use crate::control::CallerEnvironment;
use crate::exchange::{Note, empty, full};
use crate::spawn::BrokerSpec;

/// An injector for some services, and the host behind it.
pub(crate) struct World {
    base: tempfile::TempDir,
    sources: Arc<Sources>,
    pub(crate) injector: Injector,
}

impl World {
    pub(crate) fn new(services: Vec<Service>) -> Self {
        let base = tempfile::tempdir().unwrap();
        let spec = BrokerSpec {
            store: base.path().join("config"),
            home: base.path().to_owned(),
            shell: None,
            user: "someone".to_owned(),
            services: services
                .iter()
                .map(|service| (service.name.clone(), service.variables.clone()))
                .collect(),
        };
        let sources = Arc::new(Sources::new(&spec));
        let (worker, broker) = UnixStream::pair().unwrap();
        tokio::spawn(broker::serve(Arc::clone(&sources), broker));
        let injector = Injector::new(ServiceTable::new(services).unwrap(), worker);
        Self { base, sources, injector }
    }

    pub(crate) fn builtin(names: &[&str]) -> Self {
        Self::new(names.iter().map(|name| services::service(name).unwrap()).collect())
    }

    pub(crate) fn directory(&self) -> PathBuf {
        self.base.path().join("config")
    }

    pub(crate) fn store(&self) -> Store {
        Store::new(self.directory())
    }

    pub(crate) fn caller(&self, variables: &[(&str, &str)]) {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let variables: BTreeMap<_, _> = variables.iter().map(owned).collect();
        self.sources.caller(CallerEnvironment { variables });
    }

    pub(crate) fn sign_in(&self, service: &str, access: &str, refresh: &str) {
        let secret = |text: &str| Secret::parse(text).unwrap();
        let tokens = Tokens {
            access: secret(access),
            refresh: Some(secret(refresh)),
            id: None,
            expires_at: None,
            scopes: Vec::new(),
        };
        let service = service.parse().unwrap();
        self.store().change(&service, |entry| entry.oauth = Some(tokens)).unwrap();
    }

    pub(crate) async fn prepare(
        &self,
        place: &str,
        secure: bool,
        request: Request<Body>,
    ) -> Result<Prepared, Withheld> {
        let destination = Destination { authority: Authority::parse(place).unwrap(), secure };
        self.injector.prepare(&destination, request).await
    }

    async fn get(&self, place: &str, headers: &[(&str, &str)]) -> Prepared {
        self.prepare(place, true, get(headers)).await.unwrap()
    }
}

pub(crate) fn get(headers: &[(&str, &str)]) -> Request<Body> {
    let mut builder = Request::builder().uri("/v1/path?a=b");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(empty()).unwrap()
}

fn header<'a>(prepared: &'a Prepared, name: &str) -> Option<&'a str> {
    prepared.request.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test]
async fn each_service_is_given_its_own_key_and_no_other() {
    let world = World::builtin(&["anthropic", "openai", "google", "groq"]);
    world.caller(&[
        ("ANTHROPIC_API_KEY", "sk-anthropic"),
        ("OPENAI_API_KEY", "sk-openai"),
        ("GOOGLE_API_KEY", "sk-google"),
        ("GROQ_API_KEY", "sk-groq"),
    ]);
    for (place, name, value) in [
        ("api.anthropic.com:443", "x-api-key", "sk-anthropic"),
        ("api.openai.com:443", "authorization", "Bearer sk-openai"),
        ("generativelanguage.googleapis.com:443", "x-goog-api-key", "sk-google"),
        ("api.groq.com:443", "authorization", "Bearer sk-groq"),
    ] {
        let prepared =
            world.get(place, &[("authorization", "Bearer wrong"), (name, "wrong")]).await;
        assert_eq!(header(&prepared, name), Some(value), "{place}");
        assert!(prepared.credential.is_some() && prepared.answer.is_some());
        let text = format!("{:?}", prepared.request.headers());
        assert!(!text.contains("wrong") && !text.contains("sk-"), "{text}");
        assert_eq!(header(&prepared, "accept-encoding"), Some("identity"));
    }
}

#[tokio::test]
async fn nothing_is_given_to_other_hosts_ports_or_in_the_clear() {
    let world = World::builtin(&["openai"]);
    world.caller(&[("OPENAI_API_KEY", "sk-openai")]);
    for (place, secure) in [
        ("api.openai.com:8443", true),
        ("api.openai.com:443", false),
        ("api.openai.com:80", false),
        ("evil.api.openai.com:443", true),
        ("api.openai.com.evil.org:443", true),
        ("openai.org:443", true),
        ("chatgpt.com:443", true),
        ("auth.openai.com:443", true),
        ("127.0.0.1:443", true),
    ] {
        let sent = get(&[("authorization", "Bearer proxy-managed"), ("accept-encoding", "br")]);
        let prepared = world.prepare(place, secure, sent).await.unwrap();
        assert_eq!(header(&prepared, "authorization"), Some("Bearer proxy-managed"), "{place}");
        assert_eq!(header(&prepared, "accept-encoding"), Some("br"));
        assert_eq!(prepared.credential, None);
    }
}

fn custom() -> Service {
    Service {
        name: "mine".to_owned(),
        hosts: vec!["api.mine.test".to_owned(), "localhost:8080".to_owned()],
        header: "x-mine".to_owned(),
        format: "Key %s;v=1".to_owned(),
        variables: vec!["MINE_KEY".to_owned()],
        placeholder_variables: vec!["MINE_KEY".to_owned()],
        placeholder: PLACEHOLDER.to_owned(),
        replaces: vec!["authorization".to_owned(), "cookie".to_owned()],
        git_basic: false,
        oauth: None,
    }
}

#[tokio::test]
async fn a_service_of_the_users_own_works_like_any_other() {
    let world = World::new(vec![custom()]);
    world.caller(&[("MINE_KEY", "mine-key")]);
    let sent = [("x-mine", "a"), ("authorization", "b"), ("cookie", "c=d"), ("x-other", "e")];
    let prepared = world.get("api.mine.test:443", &sent).await;
    assert_eq!(header(&prepared, "x-mine"), Some("Key mine-key;v=1"));
    assert_eq!(header(&prepared, "authorization").or_else(|| header(&prepared, "cookie")), None);
    assert_eq!(header(&prepared, "x-other"), Some("e"));
    // A port that was written down is served however the client speaks.
    let plain = world.prepare("localhost:8080", false, get(&[])).await.unwrap();
    assert_eq!(header(&plain, "x-mine"), Some("Key mine-key;v=1"));
}

#[tokio::test]
async fn a_host_of_two_services_is_given_the_first_credential() {
    let mut other = custom();
    other.name = "second".to_owned();
    other.variables = vec!["SECOND_KEY".to_owned()];
    other.header = "x-second".to_owned();
    let world = World::new(vec![custom(), other]);
    world.caller(&[("SECOND_KEY", "second-key")]);
    let prepared = world.get("api.mine.test:443", &[]).await;
    assert_eq!(prepared.credential.as_deref(), Some("second"));
    assert_eq!(header(&prepared, "x-mine"), None);
    world.caller(&[("MINE_KEY", "mine-key")]);
    let prepared = world.get("api.mine.test:443", &[]).await;
    assert_eq!(prepared.credential.as_deref(), Some("mine"));
    assert_eq!(header(&prepared, "x-second"), None);
}

#[tokio::test]
async fn a_changed_key_is_used_by_the_next_request() {
    let world = World::builtin(&["openai"]);
    for key in ["sk-one", "sk-two"] {
        let secret = Secret::parse(key).unwrap();
        let service = "openai".parse().unwrap();
        world.store().change(&service, |entry| entry.api_key = Some(secret)).unwrap();
        let mut prepared = world.get("api.openai.com:443", &[]).await;
        assert_eq!(header(&prepared, "authorization"), Some(format!("Bearer {key}").as_str()));
        // Its needles are the new key's.
        let echo = Response::builder().header("x-echo", key).body(full(key)).unwrap();
        let response = prepared.answer.take().unwrap().receive(echo).await.unwrap();
        assert!(!response.headers()["x-echo"].to_str().unwrap().contains(key));
    }
}

#[tokio::test]
async fn without_a_credential_the_request_goes_as_it_is_and_401_is_explained() {
    let world = World::builtin(&["openai"]);
    let sent = [("authorization", "Bearer my-own"), ("accept-encoding", "gzip")];
    for (status, noted) in [(401, true), (200, false), (403, false)] {
        let prepared = world.get("api.openai.com:443", &sent).await;
        assert_eq!(header(&prepared, "authorization"), Some("Bearer my-own"));
        assert_eq!(header(&prepared, "accept-encoding"), Some("gzip"));
        assert_eq!(prepared.credential, None);
        let response = Response::builder().status(status).body(empty()).unwrap();
        let response = prepared.answer.unwrap().receive(response).await.unwrap();
        let note = response.extensions().get::<Note>();
        assert_eq!(note.is_some(), noted, "{status}");
        if let Some(Note(text)) = note {
            assert!(text.starts_with("no credential for openai on the host; looked in"), "{text}");
        }
    }
}

#[tokio::test]
async fn a_sentinel_becomes_the_access_token_on_api_and_resource_hosts_alone() {
    let world = World::builtin(&["openai"]);
    world.caller(&[("OPENAI_API_KEY", "sk-openai")]);
    world.sign_in("openai", "access-token-1", "refresh-token-1");
    let sentinel = [("authorization", "Bearer oai-oat01-proxy-managed")];
    for place in ["api.openai.com:443", "chatgpt.com:443"] {
        let prepared = world.get(place, &sentinel).await;
        assert_eq!(header(&prepared, "authorization"), Some("Bearer access-token-1"), "{place}");
    }
    let elsewhere = world.get("example.com:443", &sentinel).await;
    assert_eq!(header(&elsewhere, "authorization"), Some(sentinel[0].1));
    // Without the sentinel: the key on the API's hosts, nothing on the others.
    let other = [("authorization", "Bearer proxy-managed")];
    let api = world.get("api.openai.com:443", &other).await;
    assert_eq!(header(&api, "authorization"), Some("Bearer sk-openai"));
    let resource = world.get("chatgpt.com:443", &other).await;
    assert_eq!(header(&resource, "authorization"), Some(other[0].1));
}

#[tokio::test]
async fn an_api_key_of_anthropic_does_not_travel_with_its_token() {
    let world = World::builtin(&["anthropic"]);
    world.sign_in("anthropic", "access-token-1", "refresh-token-1");
    let sent =
        [("authorization", "Bearer sk-ant-oat01-proxy-managed"), ("x-api-key", "proxy-managed")];
    let prepared = world.get("api.anthropic.com:443", &sent).await;
    assert_eq!(header(&prepared, "authorization"), Some("Bearer access-token-1"));
    assert_eq!(header(&prepared, "x-api-key"), None);
    // A key takes the place of a bearer.
    world.caller(&[("ANTHROPIC_API_KEY", "sk-anthropic")]);
    let prepared = world.get("api.anthropic.com:443", &[("authorization", "Bearer x")]).await;
    assert_eq!(header(&prepared, "authorization"), None);
    assert_eq!(header(&prepared, "x-api-key"), Some("sk-anthropic"));
}

const KEY: &str = "sk-proj-0123456789abcdef/+";

async fn reflected(method: Method, response: Response<Body>) -> Result<(String, String), Withheld> {
    let world = World::builtin(&["openai"]);
    world.caller(&[("OPENAI_API_KEY", KEY)]);
    let mut request = get(&[]);
    *request.method_mut() = method;
    let prepared = world.prepare("api.openai.com:443", true, request).await.unwrap();
    let (parts, body) = prepared.answer.unwrap().receive(response).await?.into_parts();
    let collected = body.collect().await.map_err(|error| Withheld(error.to_string()))?;
    let trailers = format!("{:?}", collected.trailers());
    let text = String::from_utf8_lossy(&collected.to_bytes()).into_owned();
    Ok((format!("{parts:?}{trailers}"), text))
}

#[tokio::test]
async fn a_server_that_reflects_gives_nothing_away() {
    let body = format!(
        "{KEY} Bearer {KEY} {} {}",
        STANDARD.encode(KEY),
        STANDARD.encode(format!("x-access-token:{KEY}"))
    );
    let response = Response::builder()
        .status(500)
        .header("x-authorization", format!("Bearer {KEY}"))
        .header("set-cookie", format!("key={KEY}; path=/"))
        .header("location", "https://elsewhere/?key=sk-proj-0123456789abcdef%2F%2B")
        .header("content-length", body.len())
        .extension(hyper::ext::ReasonPhrase::try_from(KEY.as_bytes()).unwrap())
        .body(full(body.clone()))
        .unwrap();
    let (head, text) = reflected(Method::GET, response).await.unwrap();
    assert_eq!(text.len(), body.len());
    for part in ["0123456789abcdef", &STANDARD.encode(KEY)[..16]] {
        assert!(!head.contains(part) && !text.contains(part), "{head}\n{text}");
    }
    assert!(head.contains("path=/") && head.contains("https://elsewhere/?key="), "{head}");
}

#[tokio::test]
async fn a_compressed_reflection_is_looked_through_or_withheld() {
    use std::io::Write as _;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(format!("before {KEY} after").as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let answer = |coding: &str| {
        let builder = Response::builder().header("content-encoding", coding);
        builder.header("content-length", gzip.len()).body(full(gzip.clone())).unwrap()
    };
    let (head, text) = reflected(Method::GET, answer("gzip")).await.unwrap();
    assert_eq!(text, format!("before {} after", "*".repeat(KEY.len())));
    assert!(!head.contains("content-length") && !head.contains("content-encoding"), "{head}");
    reflected(Method::GET, answer("br")).await.unwrap_err();
    // An answer without a body keeps what it says of one.
    let (head, _) = reflected(Method::HEAD, answer("br")).await.unwrap();
    assert!(head.contains("content-length") && head.contains("content-encoding"), "{head}");
}

#[tokio::test]
async fn what_follows_an_upgrade_is_scrubbed_too() {
    let world = World::builtin(&["openai"]);
    world.caller(&[("OPENAI_API_KEY", KEY)]);
    let extensions = [("sec-websocket-extensions", "permessage-deflate")];
    let prepared = world.get("api.openai.com:443", &extensions).await;
    assert_eq!(header(&prepared, "sec-websocket-extensions"), None);
    let mut scrub = prepared.answer.unwrap().upgraded().unwrap();
    let mut out = Vec::new();
    let (first, last) = KEY.split_at(9);
    scrub.scrub(b"\x81\x20", false, &mut out);
    scrub.scrub(first.as_bytes(), false, &mut out);
    assert_eq!(out, b"\x81\x20");
    scrub.scrub(last.as_bytes(), false, &mut out);
    scrub.scrub(b"tail s", true, &mut out);
    assert_eq!(out, [b"\x81\x20".as_slice(), &[b'*'; KEY.len()], b"tail s"].concat());
}

#[tokio::test]
async fn sources_say_where_and_not_what() {
    let world = World::builtin(&["openai", "groq"]);
    world.caller(&[("OPENAI_API_KEY", KEY)]);
    let sources = world.injector.sources().await;
    let expected = [
        ("groq".to_owned(), None),
        ("openai".to_owned(), Some("environment OPENAI_API_KEY".to_owned())),
    ];
    assert_eq!(sources, expected);
}

#[tokio::test]
async fn a_lost_broker_gives_nothing_and_says_so() {
    let (worker, broker) = UnixStream::pair().unwrap();
    drop(broker);
    let table = ServiceTable::new(vec![custom()]).unwrap();
    let injector = Injector::new(table, worker);
    assert_eq!(injector.sources().await, [("mine".to_owned(), None)]);
    let authority = Authority::parse("api.mine.test:443").unwrap();
    let destination = Destination { authority, secure: true };
    let prepared = injector.prepare(&destination, get(&[("x-mine", "own")])).await.unwrap();
    assert_eq!(header(&prepared, "x-mine"), Some("own"));
    let response = Response::builder().status(401).body(empty()).unwrap();
    let response = prepared.answer.unwrap().receive(response).await.unwrap();
    assert!(response.extensions().get::<Note>().unwrap().0.contains("has ended"));
}
