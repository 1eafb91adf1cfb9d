//! The built program, run as a person would, in a world of its own. No VM: what needs one is tested in `crates/e2e`.

mod cli {
    mod build;
    mod errors;
    mod help;
    pub(crate) mod keeper;
    mod network;
    mod sandboxes;
    mod system;
    pub(crate) mod world;
}
