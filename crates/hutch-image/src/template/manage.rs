//! What people do with the templates that are there: look at them, name them, remove them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::Progress;
use crate::cache::CacheError;
use crate::template::reference::{Reference, ReferenceError};
use crate::template::store::{DIGEST_PREFIX, Manifest, Origin, TemplateStore, bytes_on_disk};
use crate::template::{Template, TemplateConfig};

/// A layer as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerStatus {
    /// `sha256:…` of its disk image.
    pub digest: String,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// A template as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateStatus {
    /// `sha256:…`.
    pub digest: String,
    /// The names it has.
    pub references: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
    /// When it was made.
    pub made: SystemTime,
    /// Lowest first.
    pub layers: Vec<LayerStatus>,
    /// What it says of its sessions.
    pub config: TemplateConfig,
}

/// Why templates cannot be looked at or changed.
#[derive(Debug, thiserror::Error)]
pub enum ManageError {
    /// Nothing has this name or digest.
    #[error("there is no template `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// Several digests begin like this.
    #[error("several templates have a digest that begins with `{name}`")]
    Ambiguous {
        /// What was asked for.
        name: String,
    },
    /// Sandboxes stand on it.
    #[error("the template `{name}` is used by a sandbox")]
    InUse {
        /// What was asked for.
        name: String,
    },
    /// A name that none can have.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The store cannot be read or written.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What was removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Digests of templates.
    pub templates: Vec<String>,
    /// Names that mean nothing any more.
    pub references: Vec<String>,
    /// Bytes of layers that nobody has any more.
    pub bytes: u64,
}

/// Fewer digits of a digest name no template.
const DIGITS_MIN: usize = 6;

/// All templates, the newest first.
pub fn templates(images: &Path) -> Vec<TemplateStatus> {
    let store = TemplateStore::new(images);
    let mut all: Vec<_> = store
        .all()
        .into_iter()
        .map(|(digest, manifest)| status(&store, &digest, manifest))
        .collect();
    all.sort_by_key(|template| std::cmp::Reverse(template.made));
    all
}

fn status(store: &TemplateStore, digest: &str, manifest: Manifest) -> TemplateStatus {
    let references = store.references().into_iter();
    let layers = manifest.layers.iter().map(|layer| LayerStatus {
        digest: format!("{DIGEST_PREFIX}{}", layer.digest),
        bytes: bytes_on_disk(&store.layer_path(&layer.digest)).unwrap_or(0),
    });
    TemplateStatus {
        digest: format!("{DIGEST_PREFIX}{digest}"),
        references: references.filter(|(_, of)| of == digest).map(|(name, _)| name).collect(),
        origin: manifest.origin,
        made: SystemTime::UNIX_EPOCH + Duration::from_nanos(manifest.made),
        layers: layers.collect(),
        config: manifest.config,
    }
}

/// The template that a name or the start of a digest means.
pub fn find_template(images: &Path, name: &str) -> Result<TemplateStatus, ManageError> {
    let store = TemplateStore::new(images);
    let digest = digest_of(&store, name)?;
    let manifest = store.manifest(&digest).ok_or_else(|| unknown(name))?;
    Ok(status(&store, &digest, manifest))
}

fn unknown(name: &str) -> ManageError {
    ManageError::Unknown { name: name.escape_debug().to_string() }
}

fn digest_of(store: &TemplateStore, name: &str) -> Result<String, ManageError> {
    if let Ok(reference) = Reference::parse(name)
        && let Some(digest) = store.references().remove(&reference.to_string())
    {
        return Ok(digest);
    }
    let digits = name.strip_prefix(DIGEST_PREFIX).unwrap_or(name);
    if digits.len() < DIGITS_MIN || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unknown(name));
    }
    let all = store.all().into_iter().map(|(digest, _)| digest);
    let mut found = all.filter(|digest| digest.starts_with(digits));
    match (found.next(), found.next()) {
        (Some(digest), None) => Ok(digest),
        (None, _) => Err(unknown(name)),
        _ => Err(ManageError::Ambiguous { name: name.to_owned() }),
    }
}

/// Gives a template another name, which is taken from whatever had it; the name as it is shown.
pub fn tag_template(
    images: &Path,
    name: &str,
    new: &str,
    progress: &dyn Progress,
) -> Result<String, ManageError> {
    let new = Reference::parse(new)?.to_string();
    let store = TemplateStore::new(images);
    let _locked = store.lock(progress)?;
    let digest = digest_of(&store, name)?;
    store.change_references(|references| drop(references.insert(new.clone(), digest)))?;
    Ok(new)
}

/// Removes a name, and the template when it was its last, and the layers that nobody has any more.
///
/// `in_use` are the digests that sandboxes stand on.
pub fn remove_template(
    images: &Path,
    name: &str,
    in_use: &BTreeSet<String>,
    progress: &dyn Progress,
) -> Result<Removed, ManageError> {
    let store = TemplateStore::new(images);
    let _locked = store.lock(progress)?;
    let digest = digest_of(&store, name)?;
    let given = Reference::parse(name).map(|reference| reference.to_string()).ok();
    let names: Vec<String> = store
        .references()
        .into_iter()
        .filter(|(_, of)| *of == digest)
        .map(|(name, _)| name)
        .collect();
    let mut removed = Removed::default();
    match given.filter(|given| names.contains(given)) {
        Some(given) if names.len() > 1 => {
            store.change_references(|references| drop(references.remove(&given)))?;
            removed.references.push(given);
            return Ok(removed);
        }
        _ => {}
    }
    if in_use.contains(&format!("{DIGEST_PREFIX}{digest}")) {
        return Err(ManageError::InUse { name: name.escape_debug().to_string() });
    }
    remove(&store, &digest, &mut removed)?;
    removed.bytes = remove_unused_layers(&store)?;
    Ok(removed)
}

fn remove(store: &TemplateStore, digest: &str, removed: &mut Removed) -> Result<(), CacheError> {
    store.change_references(|references| {
        references.retain(|name, of| {
            let goes = of == digest;
            if goes {
                removed.references.push(name.clone());
            }
            !goes
        });
    })?;
    store.remove(digest)?;
    removed.templates.push(format!("{DIGEST_PREFIX}{digest}"));
    Ok(())
}

fn remove_unused_layers(store: &TemplateStore) -> Result<u64, CacheError> {
    let mut bytes = 0;
    for (path, size) in store.unused_layers() {
        fs::remove_file(&path).map_err(CacheError::io("remove", &path))?;
        bytes += size;
    }
    Ok(bytes)
}

/// Removes templates without a name, or all, as far as no sandbox stands on them; and layers that nobody has.
pub fn prune_templates(
    images: &Path,
    all: bool,
    in_use: &BTreeSet<String>,
    progress: &dyn Progress,
) -> Result<Removed, ManageError> {
    let store = TemplateStore::new(images);
    let _locked = store.lock(progress)?;
    let named: BTreeSet<String> = store.references().into_values().collect();
    let mut removed = Removed::default();
    for (digest, _) in store.all() {
        let kept =
            !all && named.contains(&digest) || in_use.contains(&format!("{DIGEST_PREFIX}{digest}"));
        if !kept {
            remove(&store, &digest, &mut removed)?;
        }
    }
    // Names of templates that are damaged or gone.
    let there: BTreeSet<String> = store.all().into_iter().map(|(digest, _)| digest).collect();
    store.change_references(|references| references.retain(|_, of| there.contains(of)))?;
    removed.bytes = remove_unused_layers(&store)?;
    Ok(removed)
}

/// Bytes that [`prune_templates`] without `all` would free now.
pub fn reclaimable_bytes(images: &Path, in_use: &BTreeSet<String>) -> u64 {
    let store = TemplateStore::new(images);
    let named: BTreeSet<String> = store.references().into_values().collect();
    let (mut kept, mut going) = (BTreeSet::new(), BTreeSet::new());
    for (digest, manifest) in store.all() {
        let stays = named.contains(&digest) || in_use.contains(&format!("{DIGEST_PREFIX}{digest}"));
        let layers = manifest.layers.into_iter().map(|layer| layer.digest);
        if stays { kept.extend(layers) } else { going.extend(layers) }
    }
    let of_layer = |digest: &String| bytes_on_disk(&store.layer_path(digest)).unwrap_or(0);
    going.difference(&kept).map(of_layer).sum::<u64>()
        + store.unused_layers().into_iter().map(|(_, bytes)| bytes).sum::<u64>()
}

/// The template that has this name, if one has.
pub(crate) fn named(store: &TemplateStore, reference: &Reference) -> Option<Template> {
    let name = reference.to_string();
    let digest = store.references().remove(&name)?;
    store.load(&digest, &name)
}
