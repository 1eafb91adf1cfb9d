//! What the fuzz target of the request reader claims, for every seed: the inputs that once covered something new.

use std::path::Path;

#[expect(unreachable_pub, reason = "the fuzz target calls it from another crate")]
#[path = "../../../fuzz/src/request_head.rs"]
mod request_head;

#[test]
fn request_head_holds_for_every_seed() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/request_head");
    let mut seeds = 0;
    for entry in std::fs::read_dir(directory).expect("the seeds are in the repository") {
        let path = entry.expect("readable").path();
        request_head::check(&std::fs::read(&path).expect("readable"));
        seeds += 1;
    }
    assert!(seeds > 0);
}
