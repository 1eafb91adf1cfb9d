use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};

use super::*;

const ONE: &str = include_str!("testdata/one.pem");
const TWO: &str = include_str!("testdata/two.pem");
const SYSTEM: &str =
    "# Some authority\n-----BEGIN CERTIFICATE-----\nYWJj\n-----END CERTIFICATE-----\n";

fn root() -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    put(&directory, BUNDLE, SYSTEM);
    let root = Root::open(directory.path()).unwrap();
    (directory, root)
}

#[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
fn put(directory: &tempfile::TempDir, path: &str, content: &str) {
    let path = inside(directory, path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn inside(directory: &tempfile::TempDir, path: &str) -> PathBuf {
    directory.path().join(path.trim_start_matches('/'))
}

fn content(directory: &tempfile::TempDir, path: &str) -> String {
    fs::read_to_string(inside(directory, path)).unwrap()
}

#[test]
fn the_bundle_has_what_was_there_and_ours_once() {
    let (directory, root) = root();
    for _ in 0..2 {
        install(&root, ONE).unwrap();
        assert_eq!(content(&directory, BUNDLE), format!("{SYSTEM}{ONE}"));
        assert_eq!(content(&directory, PROXY_CA), ONE);
    }
}

#[test]
fn a_new_certificate_takes_the_old_ones_place_in_the_same_file() {
    let (directory, root) = root();
    install(&root, ONE).unwrap();
    // As the system's own tool writes it again, in another order.
    put(&directory, BUNDLE, &format!("{ONE}{SYSTEM}"));
    let before = fs::metadata(inside(&directory, BUNDLE)).unwrap().ino();
    install(&root, TWO).unwrap();
    assert_eq!(content(&directory, BUNDLE), format!("{SYSTEM}{TWO}"));
    assert_eq!(content(&directory, PROXY_CA), TWO);
    assert_eq!(fs::metadata(inside(&directory, BUNDLE)).unwrap().ino(), before);
    // Shorter again.
    install(&root, ONE).unwrap();
    assert_eq!(content(&directory, BUNDLE), format!("{SYSTEM}{ONE}"));
}

#[test]
fn openssl_finds_it_by_its_subject() {
    let (directory, root) = root();
    install(&root, ONE).unwrap();
    install(&root, ONE).unwrap();
    let links: Vec<_> = fs::read_dir(inside(&directory, HASHED))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_symlink())
        .map(|entry| {
            (entry.file_name().into_string().unwrap(), fs::read_link(entry.path()).unwrap())
        })
        .collect();
    assert_eq!(links.len(), 2, "{links:?}");
    assert!(links.iter().any(|(name, _)| name == "proxy-ca.pem"));
    assert!(links.iter().any(|(name, _)| name.len() == 10 && name.ends_with(".0")), "{links:?}");
    assert!(links.iter().all(|(_, target)| target == Path::new(PROXY_CA)));
}

#[test]
fn a_root_without_a_bundle_gets_one() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::open(directory.path()).unwrap();
    install(&root, ONE).unwrap();
    assert_eq!(content(&directory, BUNDLE), ONE);
    assert_eq!(content(&directory, PROXY_CA), ONE);
}

#[test]
fn links_are_followed_and_lead_nowhere_else() {
    let (directory, root) = root();
    let outside = tempfile::tempdir().unwrap();
    put(&outside, "/victim", "untouched");
    put(&directory, "/etc/pki/real.pem", SYSTEM);
    fs::create_dir_all(inside(&directory, "/etc/pki/tls/certs")).unwrap();
    symlink("/etc/pki/real.pem", inside(&directory, OTHER_BUNDLES[0])).unwrap();
    symlink(outside.path().join("victim"), inside(&directory, "/etc/ssl/cert.pem")).unwrap();
    install(&root, ONE).unwrap();
    assert_eq!(content(&directory, "/etc/pki/real.pem"), format!("{SYSTEM}{ONE}"));
    assert_eq!(content(&outside, "/victim"), "untouched");
}

#[test]
fn a_fifo_in_the_bundles_place_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::open(directory.path()).unwrap();
    fs::create_dir_all(inside(&directory, HASHED)).unwrap();
    let fifo = inside(&directory, BUNDLE);
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::from_raw_mode(0o666)).unwrap();
    assert!(install(&root, ONE).is_err());
}

#[test]
fn what_is_no_certificate_is_refused() {
    let (directory, root) = root();
    for text in ["", "nothing", &ONE.repeat(17)] {
        assert!(matches!(install(&root, text), Err(TrustError::Count(_))));
    }
    assert_eq!(content(&directory, BUNDLE), SYSTEM);
}
