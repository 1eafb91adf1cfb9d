//! What the fuzz targets claim, for every seed: the inputs that once covered something new.

use std::path::Path;

#[expect(unreachable_pub, reason = "the fuzz targets call it from another crate")]
#[path = "../../../fuzz/src/client_hello.rs"]
mod client_hello;
#[expect(unreachable_pub, reason = "the fuzz targets call it from another crate")]
#[path = "../../../fuzz/src/log_writer.rs"]
mod log_writer;
#[expect(unreachable_pub, reason = "the fuzz targets call it from another crate")]
#[path = "../../../fuzz/src/policy_patterns.rs"]
mod policy_patterns;

/// Runs a check over the seeds of a target; returns how many there were.
fn replay(target: &str, check: fn(&[u8])) -> usize {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let mut seeds = 0;
    for entry in std::fs::read_dir(directory).expect("the seeds are in the repository") {
        let path = entry.expect("readable").path();
        check(&std::fs::read(&path).expect("readable"));
        seeds += 1;
    }
    seeds
}

#[test]
fn policy_patterns_hold_for_every_seed() {
    assert!(replay("policy_patterns", policy_patterns::check) > 0);
}

#[test]
fn client_hello_holds_for_every_seed() {
    assert!(replay("client_hello", client_hello::check) > 0);
}

#[test]
fn log_writer_holds_for_every_seed() {
    assert!(replay("log_writer", log_writer::check) > 0);
}
