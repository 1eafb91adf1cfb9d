use std::os::unix::fs::PermissionsExt as _;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{ServerName, UnixTime};

use super::*;

fn only(names: &[&str]) -> Scope {
    Scope::Only(names.iter().map(|name| Host::parse(name).unwrap()).collect())
}

/// Whether a client that trusts the authority takes its certificate for this host.
fn is_trusted(ca: &Ca, trusted: &str, host: &str) -> bool {
    trusted_at(ca, trusted, host, UnixTime::now())
}

fn trusted_at(ca: &Ca, trusted: &str, host: &str, now: UnixTime) -> bool {
    let leaf = ca.leaf(&Host::parse(host).unwrap()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    verifier.verify_server_cert(&leaf, &[], &name, &[], now).is_ok()
}

#[test]
fn the_key_is_for_its_owner_alone_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let first = Ca::open(directory.path(), &Scope::Any).unwrap();
    let mode =
        |name: &str| directory.path().join(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("ca-key.pem"), 0o600);
    let again = Ca::open(directory.path(), &Scope::Any).unwrap();
    assert_eq!(first.pem(), again.pem());
    // No half-written file is left.
    let names: Vec<_> = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn a_limited_authority_is_trusted_for_its_names_alone() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::open(directory.path(), &only(&["api.test", "127.0.0.7"])).unwrap();
    for (host, trusted) in [
        ("api.test", true),
        ("127.0.0.7", true),
        ("bank.test", false),
        ("127.0.0.8", false),
        ("notapi.test", false),
    ] {
        assert_eq!(is_trusted(&ca, ca.pem(), host), trusted, "{host}");
    }
    let none = tempfile::tempdir().unwrap();
    let ca = Ca::open(none.path(), &only(&[])).unwrap();
    for host in ["api.test", "127.0.0.7", "a.b.c.example"] {
        assert!(!is_trusted(&ca, ca.pem(), host), "{host}");
    }
}

#[test]
fn an_authority_grows_with_the_same_key() {
    let directory = tempfile::tempdir().unwrap();
    let narrow = Ca::open(directory.path(), &only(&["a.test"])).unwrap();
    assert!(narrow.widened(&only(&["a.test"])).unwrap().is_none());
    assert!(narrow.widened(&only(&[])).unwrap().is_none());
    let wide = narrow.widened(&only(&["b.test"])).unwrap().unwrap();
    assert_ne!(narrow.pem(), wide.pem());
    assert!(is_trusted(&wide, wide.pem(), "a.test") && is_trusted(&wide, wide.pem(), "b.test"));
    // Whoever trusts the old certificate still takes the old name, and no other.
    assert!(is_trusted(&wide, narrow.pem(), "a.test"));
    assert!(!is_trusted(&wide, narrow.pem(), "b.test"));
    let all = wide.widened(&Scope::Any).unwrap().unwrap();
    assert!(is_trusted(&all, all.pem(), "c.test"));
    let limited = all.widened(&only(&["a.test"])).unwrap().unwrap();
    assert!(!is_trusted(&limited, limited.pem(), "c.test"));
    assert_eq!(Ca::open(directory.path(), &only(&["a.test"])).unwrap().pem(), limited.pem());
}

#[test]
fn broken_files_are_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let before = Ca::open(directory.path(), &Scope::Any).unwrap().pem().to_owned();
    for name in ["ca.json", "ca.pem", "ca-key.pem"] {
        let file = File::options().write(true).truncate(true).open(directory.path().join(name));
        file.unwrap().write_all(b"{").unwrap();
        let ca = Ca::open(directory.path(), &Scope::Any).unwrap();
        assert!(is_trusted(&ca, ca.pem(), "a.test"), "{name}");
        assert_ne!(ca.pem(), before, "{name}");
    }
}

#[test]
fn certificates_hold_on_clocks_that_are_wrong_by_weeks() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::open(directory.path(), &Scope::Any).unwrap();
    let at = |hours: i64| {
        let now = UnixTime::now().as_secs();
        UnixTime::since_unix_epoch(Duration::from_secs(now.saturating_add_signed(hours * 3600)))
    };
    assert!(trusted_at(&ca, ca.pem(), "a.test", at(-29 * 24)));
    assert!(trusted_at(&ca, ca.pem(), "a.test", at(350 * 24)));
    assert!(!trusted_at(&ca, ca.pem(), "a.test", at(399 * 24)));
}

#[test]
fn as_many_hosts_as_a_client_likes_hold_as_much_as_a_few() {
    let directory = tempfile::tempdir().unwrap();
    let ca = Ca::open(directory.path(), &Scope::Any).unwrap();
    let first = ca.server(&Host::parse("first.test").unwrap()).unwrap();
    for number in 0..LEAVES + 20 {
        ca.server(&Host::parse(&format!("h{number}.test")).unwrap()).unwrap();
        if number == 500 {
            let again = ca.server(&Host::parse("first.test").unwrap()).unwrap();
            assert!(Arc::ptr_eq(&first, &again));
        }
    }
    let leaves = ca.leaves.lock().unwrap();
    assert_eq!(leaves.by_host.len(), LEAVES);
    // What was used last stays.
    assert!(leaves.by_host.contains_key(&Host::parse("first.test").unwrap()));
    assert!(!leaves.by_host.contains_key(&Host::parse("h0.test").unwrap()));
}
