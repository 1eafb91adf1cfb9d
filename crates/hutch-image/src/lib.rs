//! Guest image (kernel and initramfs) and template disks: made once, without root, cached by digest.

mod apt;
mod cache;
mod digest;
#[cfg(test)]
#[path = "../tests/image/elf.rs"]
mod elf;
mod guest;
mod import;
mod template;
mod tool;

pub use apt::AptError;
pub use cache::CacheError;
pub use guest::{
    GuestImage, GuestImageError, GuestImageOptions, GuestImageSource, Kept, KeptKind, ModulesError,
    Refresh, VmlinuxError, guest_image, kept, remove_unneeded,
};
pub use import::{BaseImage, ImportError, LayerMount, Offer, RegistryOptions, load_images};
pub use template::{
    BuildError, DiskError, ExportError, LAYERS_MAX, LayerFiles, LayerStatus, ManageError,
    NamespaceError, NewLayer, NpmError, Origin, PullTemplate, Reference, ReferenceError, Removed,
    Template, TemplateConfig, TemplateError, TemplateOptions, TemplateStatus, add_layer,
    export_template, find_template, prune_templates, reclaimable_bytes, remove_template,
    tag_template, template, template_image, template_of_source, templates,
};
pub use tool::ToolError;

/// What long work tells about itself. The command line draws it; a test records it.
pub trait Progress: Send + Sync {
    /// A step begins: one short line, e.g. `fetching the guest kernel`. Ends the step before.
    fn step(&self, what: &str);
    /// How far the step is, where that is known: units done, of how many, and what a unit is (`bytes`, `packages`).
    fn advance(&self, done: u64, total: Option<u64>, unit: &str);
}
