//! Guest image (kernel and initramfs) and template disks: made once, without root, cached by digest.

use std::path::PathBuf;

/// What long work tells about itself. The command line draws it; a test records it.
pub trait Progress: Send + Sync {
    /// A step begins: one short line, e.g. `fetching the guest kernel`. Ends the step before.
    fn step(&self, what: &str);
    /// How far the step is, where that is known: units done, of how many, and what a unit is (`bytes`, `packages`).
    fn advance(&self, done: u64, total: Option<u64>, unit: &str);
}

/// A kernel and an initramfs that belong together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImage {
    /// Kernel image for the VMM.
    pub kernel: PathBuf,
    /// Initramfs with init and the kernel's modules.
    pub initramfs: PathBuf,
    /// Kernel release, e.g. `6.12.48+deb13-cloud-amd64`.
    pub release: String,
    /// Digest of both files and the recipe: the cache key.
    pub digest: String,
}

/// A template: a read-only root file system image and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The read-only disk image.
    pub image: PathBuf,
    /// `sha256:…` of the recipe (or of the image it came from).
    pub digest: String,
    /// How a person named it: `shell`.
    pub name: String,
}
