//! The network from the keeper's side: its start, its policy, its end.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hutch_api::{NetworkEdit, NetworkPolicy, NetworkRequest, Phase, Request, Response};
use hutch_keeper::NetworkSpec;
use hutch_policy::settings::{Inspect, NetworkSettings, Service};
use hutch_proxy::control::{Checked, Reply, Request as Asked};
use hutch_store::atomic;
use hutch_wire::guest::AttachSpec;
use tokio::sync::mpsc;

use crate::fake::{FakeWorkspace, Told, crashing};
use crate::fake_proxy::{CA, FakeNetwork, Heard};
use crate::setup::{Client, Guest, Keeper, Sandbox};

const LONG: Duration = Duration::from_secs(30);

fn service() -> Service {
    Service {
        name: "example".to_owned(),
        hosts: vec!["api.example.com".to_owned()],
        header: "x-api-key".to_owned(),
        format: "%s".to_owned(),
        variables: vec!["EXAMPLE_API_KEY".to_owned()],
        placeholder_variables: vec!["EXAMPLE_API_KEY".to_owned()],
        placeholder: "proxy-managed".to_owned(),
        replaces: Vec::new(),
        git_basic: false,
        oauth: None,
    }
}

/// A sandbox with a network.
fn networked() -> Sandbox {
    let mut sandbox = Sandbox::new();
    let settings = NetworkSettings { services: vec![service()], ..NetworkSettings::default() };
    sandbox.settings.network = Some(NetworkSpec { settings, default_policy: None });
    sandbox
}

struct World {
    sandbox: Sandbox,
    guest: Guest,
    network: FakeNetwork,
    heard: mpsc::UnboundedReceiver<Heard>,
    keeper: Keeper,
    client: Client,
}

/// One that is ready.
async fn world() -> World {
    let sandbox = networked();
    let guest = Guest::new();
    let (network, heard) = FakeNetwork::new();
    let keeper = sandbox.keep_networked(guest.vmm(), FakeWorkspace::new(), network.clone()).await;
    let client = keeper.ready().await;
    World { sandbox, guest, network, heard, keeper, client }
}

impl World {
    fn file(&self) -> String {
        let path = self.sandbox.store.paths(&self.sandbox.record.name).proxy_config();
        std::fs::read_to_string(path).unwrap()
    }

    async fn edit(&self, edit: NetworkEdit) -> Response {
        self.client.request(Request::Network(NetworkRequest::Edit(edit))).await
    }

    async fn policy(&self) -> NetworkPolicy {
        match self.client.request(Request::Network(NetworkRequest::Policy)).await {
            Response::NetworkPolicy(policy) => policy,
            other => panic!("{other:?}"),
        }
    }
}

fn deny() -> NetworkEdit {
    NetworkEdit {
        policy: Some("deny".to_owned()),
        allow_hosts: vec!["api.example.com:443".to_owned()],
        ..NetworkEdit::default()
    }
}

async fn attached(guest: &mut Guest) -> AttachSpec {
    match guest.wait_for(|told| matches!(told, Told::Attached(..))).await {
        Told::Attached(spec, _) => *spec,
        other => panic!("{other:?}"),
    }
}

fn variable(spec: &AttachSpec, name: &str) -> Option<String> {
    // The last one wins.
    let found = spec.environment.iter().rev().find(|(other, _)| other == name.as_bytes());
    found.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap())
}

/// Polls all of them until all are done.
async fn join_all<F: Future>(futures: Vec<F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in futures.iter_mut().filter(|(_, output)| output.is_none()) {
            if let Poll::Ready(ready) = future.as_mut().poll(context) {
                *output = Some(ready);
            }
        }
        if futures.iter().all(|(_, output)| output.is_some()) {
            return Poll::Ready(());
        }
        Poll::Pending
    })
    .await;
    futures.into_iter().map(|(_, output)| output.unwrap()).collect()
}

#[tokio::test]
async fn the_guest_is_told_of_its_network() {
    let mut world = world().await;
    let spec = attached(&mut world.guest).await;
    assert_eq!(spec.ca_pem, CA);
    let proxy = Some("http://host.docker.internal:3128".to_owned());
    assert_eq!(variable(&spec, "https_proxy"), proxy);
    assert_eq!(variable(&spec, "EXAMPLE_API_KEY").as_deref(), Some("proxy-managed"));
    assert_eq!(variable(&spec, "MINE").as_deref(), Some("yes"));

    let Some(Heard::Started(start, directory)) = world.heard.recv().await else { panic!() };
    let paths = world.sandbox.store.paths(&world.sandbox.record.name);
    assert_eq!(directory, paths.network());
    assert_eq!(start.sandbox, "My_Box.1");
    assert_eq!(start.settings.services, [service()]);
    assert_eq!(start.policy.proxy_config, world.file());
    assert_eq!(start.policy.inspect, Inspect::Credentials);
    assert_eq!(world.client.status().await.proxy_pid, Some(4444));

    world.client.stop(LONG).await;
    assert!(world.keeper.end().await.clean);
    assert_eq!(world.network.end.borrow().as_deref(), Some("the port ended"));
}

#[tokio::test]
async fn without_settings_there_is_no_network() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let spec = attached(&mut guest).await;
    assert_eq!((spec.ca_pem.as_str(), variable(&spec, "https_proxy")), ("", None));
    assert_eq!(client.status().await.proxy_pid, None);
    let answer = client.request(Request::Network(NetworkRequest::Policy)).await;
    assert_eq!(answer, Response::Failed { reason: "the sandbox has no network".to_owned() });
    assert!(!sandbox.store.paths(&sandbox.record.name).proxy_config().exists());
    client.stop(LONG).await;
    assert!(keeper.end().await.clean);
}

#[tokio::test]
async fn a_change_is_written_then_in_force_then_told() {
    let mut world = world().await;
    drop(world.heard.recv().await);
    let path = world.sandbox.store.paths(&world.sandbox.record.name).proxy_config();
    world.network.answers(move |_| {
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.contains("api.example.com:443"), "it must be on disk first: {written}");
        Some(Reply::Configured { ca_pem: CA.to_owned(), cut: 3 })
    });
    let edit = NetworkEdit { allow_cidrs: vec!["203.0.113.0/24".to_owned()], ..deny() };
    let Response::NetworkPolicy(policy) = world.edit(edit).await else { panic!() };
    assert_eq!((policy.cut, policy.notes.len(), policy.inspect.as_str()), (3, 1, "credentials"));
    assert_eq!(policy.proxy_config, world.file());
    let Some(Heard::Asked(Asked::Configure(state))) = world.heard.recv().await else { panic!() };
    assert_eq!(state.proxy_config, world.file());
    let now = world.policy().await;
    assert_eq!((now.proxy_config, now.cut), (policy.proxy_config, 0));
}

#[tokio::test]
async fn a_policy_outlives_its_keeper() {
    let world = world().await;
    let edit = NetworkEdit { inspect: Some("all".to_owned()), ..deny() };
    assert!(matches!(world.edit(edit).await, Response::NetworkPolicy(_)));
    let text = world.file();
    world.client.stop(LONG).await;
    drop(world.keeper.end().await);
    let (network, mut heard) = FakeNetwork::new();
    let guest = Guest::new();
    // What the command line says is for those of which nothing was said.
    let keeper = world.sandbox.keep_networked(guest.vmm(), FakeWorkspace::new(), network).await;
    drop(keeper.ready().await);
    let Some(Heard::Started(start, _)) = heard.recv().await else { panic!() };
    assert_eq!((start.policy.inspect, start.policy.proxy_config), (Inspect::All, text));
}

#[tokio::test]
async fn what_the_worker_refuses_is_taken_back() {
    let mut world = world().await;
    let before = world.file();
    world.network.answers(|_| Some(Reply::Failed { reason: "too much".to_owned() }));
    let edit = NetworkEdit { inspect: Some("all".to_owned()), ..deny() };
    let refused = Response::Failed { reason: "too much".to_owned() };
    assert_eq!(world.edit(edit).await, refused);
    assert_eq!(world.file(), before);
    assert_eq!(world.sandbox.store.load(&world.sandbox.record.name).unwrap().inspect, None);
    assert_eq!(world.policy().await.proxy_config, before);
    // A wrong flag does not even get there.
    while world.heard.try_recv().is_ok() {}
    let wrong = NetworkEdit { block_hosts: vec!["a b".to_owned()], ..NetworkEdit::default() };
    assert!(matches!(world.edit(wrong).await, Response::Failed { .. }));
    assert!(world.heard.try_recv().is_err());
    assert_eq!(world.client.status().await.phase, Phase::Ready);
}

#[tokio::test]
async fn changes_at_once_are_all_there() {
    let world = world().await;
    let edits = (0..20).map(|number| {
        let edit = NetworkEdit {
            allow_hosts: vec![format!("host-{number}.example.com")],
            ..NetworkEdit::default()
        };
        world.edit(edit)
    });
    // Each on a stream of its own, all on their way before the first one is answered.
    for answer in join_all(edits.collect()).await {
        assert!(matches!(answer, Response::NetworkPolicy(_)), "{answer:?}");
    }
    let policy = world.policy().await.proxy_config;
    for number in 0..20 {
        assert!(policy.contains(&format!("\"host-{number}.example.com\"")), "{policy}");
    }
}

#[tokio::test]
async fn a_new_certificate_is_trusted_before_the_change_is_told() {
    let mut world = world().await;
    let other = || Some(Reply::Configured { ca_pem: "another\n".to_owned(), cut: 0 });
    world.network.answers(move |_| other());
    let edit = NetworkEdit { inspect: Some("all".to_owned()), ..NetworkEdit::default() };
    let Response::NetworkPolicy(policy) = world.edit(edit).await else { panic!() };
    assert!(policy.notes.is_empty(), "{policy:?}");
    // Told before the answer, so it must be there already.
    let mut trusted = Vec::new();
    while let Ok(told) = world.guest.told.try_recv() {
        if let Told::Trusted(ca_pem, variables) = told {
            trusted.push((ca_pem, variables));
        }
    }
    // Base64 of the same.
    let variable = ("PROXY_CA_CERT_B64".to_owned(), "YW5vdGhlcgo=".to_owned());
    assert_eq!(trusted, [("another\n".to_owned(), vec![variable])]);
    // The same one again is no news.
    assert!(matches!(world.edit(deny()).await, Response::NetworkPolicy(_)));
    while let Ok(told) = world.guest.told.try_recv() {
        assert!(!matches!(told, Told::Trusted(..)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_cannot_refuse_a_policy() {
    let sandbox = networked();
    let mut guest = Guest::new();
    guest.init.answer_trust = false;
    let (network, _heard) = FakeNetwork::new();
    let keeper = sandbox.keep_networked(guest.vmm(), FakeWorkspace::new(), network.clone()).await;
    let client = keeper.ready().await;
    network.answers(|_| Some(Reply::Configured { ca_pem: "another\n".to_owned(), cut: 1 }));
    let answer = client.request(Request::Network(NetworkRequest::Edit(deny()))).await;
    let Response::NetworkPolicy(policy) = answer else { panic!("{answer:?}") };
    assert!(policy.proxy_config.contains("\"deny\""));
    let [note] = policy.notes.as_slice() else { panic!("{policy:?}") };
    assert!(note.contains("does not trust") && note.contains("does not answer"), "{note}");
    let path = sandbox.store.paths(&sandbox.record.name).proxy_config();
    assert_eq!(std::fs::read_to_string(path).unwrap(), policy.proxy_config);
}

#[tokio::test]
async fn questions_and_credentials_are_passed_on() {
    let mut world = world().await;
    drop(world.heard.recv().await);
    let found = vec![("example".to_owned(), Some("secret store".to_owned()))];
    let services = found.clone();
    world.network.answers(move |request| match request {
        Asked::Check { host, port } => Some(Reply::Checked(Checked {
            allowed: true,
            rule: format!("{host}:{port}"),
            reason: "a reason".to_owned(),
            inspected: true,
            credential: None,
            addresses: Vec::new(),
        })),
        Asked::Services => Some(Reply::Services(services.clone())),
        Asked::Configure(_) => None,
    });
    let network = |request| world.client.request(Request::Network(request));
    let check = NetworkRequest::Check { host: "x.example.com".to_owned(), port: 8443 };
    let Response::NetworkChecked(checked) = network(check).await else { panic!() };
    assert_eq!(checked.rule, "x.example.com:8443");
    let Response::NetworkServices(told) = network(NetworkRequest::Services).await else { panic!() };
    assert_eq!(told[0].found, found[0].1);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let variables = vec![pair("EXAMPLE_API_KEY", "sk-real"), pair("HOME", "/home/u")];
    let done = network(NetworkRequest::Credentials { variables }).await;
    assert_eq!(done, Response::Done);
    let credentials = loop {
        if let Heard::Credentials(credentials) = world.heard.recv().await.unwrap() {
            break credentials;
        }
    };
    // Only what a service of the sandbox names.
    assert_eq!(credentials.variables, [pair("EXAMPLE_API_KEY", "sk-real")].into());
    world.client.stop(LONG).await;
    drop(world.keeper.end().await);
    let paths = world.sandbox.store.paths(&world.sandbox.record.name);
    for entry in std::fs::read_dir(paths.logs()).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        assert!(!content.windows(7).any(|part| part == b"sk-real"));
    }
}

#[tokio::test]
async fn a_proxy_that_dies_ends_the_sandbox_with_the_reason() {
    let mut world = world().await;
    world.network.end.send_replace(Some("signal 9".to_owned()));
    let end = world.keeper.end().await;
    assert_eq!((end.clean, end.reason.as_str()), (true, "the proxy ended: signal 9"));
    world.guest.wait_for(|told| *told == Told::PowerOff).await;
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_cannot_be_asked_any_more_ends_the_sandbox() {
    let world = world().await;
    let before = world.file();
    world.network.answers(|_| None);
    let Response::Failed { reason } = world.edit(deny()).await else { panic!() };
    assert_eq!(reason, "the proxy cannot be asked: the stream ended");
    assert_eq!(world.file(), before);
    let sandbox = world.sandbox;
    let end = world.keeper.end().await;
    assert_eq!((end.clean, &end.reason), (true, &reason));
    assert_eq!(sandbox.store.last_end(&sandbox.record.name).unwrap(), Some(end));
}

#[tokio::test]
async fn a_network_that_cannot_start_is_told_before_the_guest_is_up() {
    let sandbox = networked();
    let (network, _heard) = FakeNetwork::new();
    let reason = "the file ca.pem is damaged".to_owned();
    *network.ready.lock().unwrap() = Some(Reply::Failed { reason });
    let silent = crate::fake::FakeVmm::new(|side| async move {
        std::future::pending::<()>().await;
        drop(side);
    });
    network.end.send_replace(None);
    let keeper = sandbox.keep_networked(silent, FakeWorkspace::new(), network).await;
    let end = keeper.end().await;
    assert_eq!(end.reason, "the network cannot be started: the file ca.pem is damaged");

    let refused =
        sandbox.keep_networked(Guest::new().vmm(), FakeWorkspace::new(), FakeNetwork::none()).await;
    let end = refused.end().await;
    assert_eq!(end.reason, "the network cannot be started: no proxies today");
}

#[tokio::test]
async fn a_policy_that_is_damaged_keeps_the_sandbox_from_starting() {
    let sandbox = networked();
    let path = sandbox.store.paths(&sandbox.record.name).proxy_config();
    atomic::write(&path, b"{\"policy\": {\"default\": \"open\"}}").unwrap();
    let vmm = crashing("must not start", hutch_vmm::VmEnd::GuestCrashed);
    let keeper =
        sandbox.keep_networked(Arc::clone(&vmm), FakeWorkspace::new(), FakeNetwork::none());
    let end = keeper.await.end().await;
    assert!(end.reason.contains(path.to_str().unwrap()), "{}", end.reason);
    assert!(end.reason.contains("\"open\""), "{}", end.reason);
    assert!(vmm.power.lock().unwrap().is_none());
}
