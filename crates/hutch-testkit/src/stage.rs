//! What `cargo xtask prepare-tests` made for all tests.
//!
//! `target/e2e` is a directory, or a link to one that every user can reach when the repository is not (a clone in
//! root's home).

use std::path::{Path, PathBuf};

use crate::account::Account;

/// Name of the user that programs run as when the tests run as root.
pub const TEST_USER: &str = "hutch-test";

/// The prepared files.
#[derive(Debug, Clone)]
pub struct Stage {
    root: PathBuf,
}

impl Stage {
    /// Finds them; panics with what to do when they are not there.
    #[must_use]
    pub fn find() -> Self {
        let link = repository().join("target/e2e");
        let root = link.canonicalize().unwrap_or_else(|error| {
            panic!("{}: {error}: run `cargo xtask prepare-tests` first", link.display())
        });
        Self { root }
    }

    /// Directory of the programs under test.
    #[must_use]
    pub fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    /// Guest images and templates, shared by all tests of a user, which only read them.
    #[must_use]
    pub fn images(&self, account: Account) -> PathBuf {
        self.root.join(if account.uid == 0 { "images-of-root" } else { "images" })
    }

    /// A program of the tests' own that runs in a guest: statically linked.
    #[must_use]
    pub fn guest_program(&self, name: &str) -> PathBuf {
        self.root.join("guest").join(name)
    }

    /// The `/usr` of Debian 13 as far as its QEMU 10 needs it, unpacked from packages.
    #[must_use]
    pub fn qemu_10(&self) -> PathBuf {
        self.root.join("qemu-10/usr")
    }

    /// The distribution's registry server.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.root.join("registry/usr/bin/docker-registry")
    }
}

/// The root of this repository.
#[must_use]
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(2).unwrap_or(own).to_owned()
}
