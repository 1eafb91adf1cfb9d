//! The inputs of the fuzz targets that cover most, once each. `fuzz/run` looks for new ones.

use std::fs;
use std::path::Path;

#[expect(unreachable_pub, reason = "the fuzz targets call it from another crate")]
#[path = "../../../fuzz/src/layer.rs"]
mod layer;

#[test]
fn layers() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/layer");
    let seeds = fs::read_dir(directory).unwrap();
    let mut count = 0;
    for seed in seeds {
        layer::check(&fs::read(seed.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 5, "{count} seeds");
}
