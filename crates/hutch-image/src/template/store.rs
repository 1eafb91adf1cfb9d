//! What is kept of templates: layers once each, templates as lists of them, and the names that people gave.
//!
//! ```text
//! images/layers/<digest>.img               a disk image by the SHA-256 of its content
//! images/templates/<digest>/manifest.json  its layers, lowest first, and what it says of its sessions
//! images/references.json                   name → digest
//! ```
//!
//! A digest names one template for ever, so that what a stopped sandbox stands on does not change under it. Everything
//! is written by the holder of `images/templates/lock`. Invariant: the layers of a template are there before it is, and
//! are removed only after every template that has them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Progress;
use crate::cache::{Cache, CacheError, Draft, Locked, MANIFEST};
use crate::digest::{self, Key};
use crate::template::{Template, TemplateConfig};

/// A template has at most so many layers: each is a disk of the VM.
pub const LAYERS_MAX: usize = 8;
const FORMAT_VERSION: u32 = 2;
/// The format of a template that is one image in its own directory.
const ONE_IMAGE_VERSION: u64 = 1;
const ONE_IMAGE: &str = "template.img";
const REFERENCES: &str = "references.json";
const REFERENCES_VERSION: u32 = 1;
/// Nobody has names for so many templates.
const REFERENCES_SIZE_MAX: u64 = 8 << 20;
pub(crate) const DIGEST_PREFIX: &str = "sha256:";

/// Where a template comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Built here from a recipe.
    Recipe,
    /// A root file system or a disk image that was given.
    File,
    /// An archive or layout of an image.
    Archive,
    /// A registry.
    Registry,
    /// The host's Docker daemon.
    Docker,
    /// A sandbox that was saved.
    Sandbox,
    /// Built from a Dockerfile.
    Build,
}

/// A layer of a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// SHA-256 of its image.
    pub(crate) digest: String,
    /// What it was made from, so that it need not be made again: the digests of the archives, for instance.
    #[serde(default)]
    pub(crate) source: Option<String>,
}

/// `manifest.json` of a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Manifest {
    format_version: u32,
    /// Lowest first.
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) config: TemplateConfig,
    pub(crate) name: String,
    pub(crate) origin: Origin,
    /// Key of the recipe, or digest of what it was made from.
    pub(crate) source: String,
    /// Nanoseconds since the epoch: of several templates of one source, the newest is used.
    pub(crate) made: u64,
}

impl Manifest {
    /// Of a template made now.
    pub(crate) fn new(
        name: &str,
        origin: Origin,
        source: &str,
        layers: Vec<LayerRecord>,
        config: TemplateConfig,
    ) -> Self {
        let (name, source) = (name.to_owned(), source.to_owned());
        let format_version = FORMAT_VERSION;
        Self { format_version, layers, config, name, origin, source, made: now() }
    }

    /// Names these layers with this configuration, whatever they were made from.
    fn digest(&self) -> String {
        let config = serde_json::to_vec(&self.config).unwrap_or_default();
        let layers = self.layers.iter();
        layers
            .fold(Key::default(), |key, layer| key.part("layer", &layer.digest))
            .part("config", config)
            .finish()
    }
}

/// `manifest.json` of a template that is one image.
#[derive(Deserialize)]
struct OneImageManifest {
    name: String,
    source: String,
    made: u64,
    environment: BTreeMap<String, String>,
    user: Option<String>,
}

/// `references.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct References {
    format_version: u32,
    references: BTreeMap<String, String>,
}

/// All templates of an images directory.
#[derive(Debug)]
pub(crate) struct TemplateStore {
    images: PathBuf,
    cache: Cache,
}

impl TemplateStore {
    pub(crate) fn new(images: &Path) -> Self {
        Self { images: images.to_owned(), cache: Cache::new(images.join("templates")) }
    }

    /// Takes the lock that everybody holds who changes something.
    pub(crate) fn lock(&self, progress: &dyn Progress) -> Result<Locked<'_>, CacheError> {
        let locked = self.cache.lock(progress)?;
        self.take_in_single_images(progress)?;
        Ok(locked)
    }

    fn layers(&self) -> PathBuf {
        self.images.join("layers")
    }

    pub(crate) fn layer_path(&self, digest: &str) -> PathBuf {
        self.layers().join(format!("{digest}.img"))
    }

    /// Gives a finished image its place; its digest.
    pub(crate) fn take_layer(&self, image: &Path) -> Result<String, CacheError> {
        let digest = digest::of_file(image).map_err(CacheError::io("read", image))?;
        let place = self.layer_path(&digest);
        if place.is_file() {
            fs::remove_file(image).map_err(CacheError::io("remove", image))?;
            return Ok(digest);
        }
        let layers = self.layers();
        fs::create_dir_all(&layers).map_err(CacheError::io("create", &layers))?;
        let synced = |path: &Path| {
            File::open(path).and_then(|file| file.sync_all()).map_err(CacheError::io("sync", path))
        };
        synced(image)?;
        fs::rename(image, &place).map_err(CacheError::io("rename", image))?;
        synced(&layers)?;
        Ok(digest)
    }

    /// A layer that was made from the same before.
    pub(crate) fn layer_of(&self, source: &str) -> Option<LayerRecord> {
        let all = self.all();
        let mut layers = all.into_iter().flat_map(|(_, manifest)| manifest.layers);
        layers.find(|layer| layer.source.as_deref() == Some(source))
    }

    /// Writes a template down, whose layers are in their places.
    pub(crate) fn publish(&self, draft: Draft, manifest: &Manifest) -> Result<String, CacheError> {
        let digest = manifest.digest();
        if self.manifest(&digest).is_some() {
            // The very same is there; the draft goes.
            return Ok(digest);
        }
        draft.publish_as(&digest, manifest)?;
        Ok(digest)
    }

    /// The manifest of a template all of whose layers are there.
    pub(crate) fn manifest(&self, digest: &str) -> Option<Manifest> {
        let manifest: serde_json::Value = self.cache.manifest(digest)?;
        self.checked(manifest)
    }

    fn checked(&self, manifest: serde_json::Value) -> Option<Manifest> {
        if manifest.get("format_version")? != FORMAT_VERSION {
            return None;
        }
        let manifest: Manifest = serde_json::from_value(manifest).ok()?;
        let count = manifest.layers.len();
        let there = |layer: &LayerRecord| {
            is_digest(&layer.digest) && self.layer_path(&layer.digest).is_file()
        };
        ((1..=LAYERS_MAX).contains(&count) && manifest.layers.iter().all(there)).then_some(manifest)
    }

    /// All templates that can be used, by digest, in no order.
    pub(crate) fn all(&self) -> Vec<(String, Manifest)> {
        self.cache
            .all::<serde_json::Value>()
            .into_iter()
            .filter_map(|(path, manifest)| {
                let digest = path.file_name()?.to_str()?.to_owned();
                Some((digest, self.checked(manifest)?))
            })
            .collect()
    }

    /// A template under a name that somebody used for it.
    pub(crate) fn load(&self, digest: &str, name: &str) -> Option<Template> {
        let manifest = self.manifest(digest)?;
        Some(Template {
            layers: manifest.layers.iter().map(|layer| self.layer_path(&layer.digest)).collect(),
            digest: format!("{DIGEST_PREFIX}{digest}"),
            name: name.to_owned(),
            config: manifest.config,
        })
    }

    /// Its digest without the prefix, if it is one of ours.
    pub(crate) fn parse_digest(digest: &str) -> Option<&str> {
        // It becomes a part of a path.
        digest.strip_prefix(DIGEST_PREFIX).filter(|digest| is_digest(digest))
    }

    /// The newest template of a source, made at `not_before` or later.
    pub(crate) fn newest(
        &self,
        source: &str,
        name: &str,
        not_before: Option<u64>,
    ) -> Option<Template> {
        let (digest, _) = self
            .all()
            .into_iter()
            .filter(|(_, manifest)| {
                manifest.source == source && not_before.is_none_or(|time| manifest.made >= time)
            })
            .max_by_key(|(_, manifest)| manifest.made)?;
        self.load(&digest, name)
    }

    /// Says whether a template was built here from a recipe.
    pub(crate) fn is_of_recipe(&self, template: &Template) -> bool {
        self.origin(template) == Some(Origin::Recipe)
    }

    /// Says whether a template can be fetched again from where it came.
    pub(crate) fn is_fetched(&self, template: &Template) -> bool {
        matches!(self.origin(template), Some(Origin::Registry | Origin::Docker))
    }

    fn origin(&self, template: &Template) -> Option<Origin> {
        let digest = Self::parse_digest(&template.digest)?;
        self.manifest(digest).map(|manifest| manifest.origin)
    }

    /// All names with what they mean.
    pub(crate) fn references(&self) -> BTreeMap<String, String> {
        let path = self.images.join(REFERENCES);
        let small = fs::metadata(&path).is_ok_and(|of| of.len() <= REFERENCES_SIZE_MAX);
        let text = if small { fs::read(&path).ok() } else { None };
        text.and_then(|text| serde_json::from_slice::<References>(&text).ok())
            .filter(|all| all.format_version == REFERENCES_VERSION)
            .map(|all| all.references)
            .unwrap_or_default()
    }

    /// Changes the names; the caller holds the lock.
    pub(crate) fn change_references(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> Result<(), CacheError> {
        let before = self.references();
        let mut references = before.clone();
        change(&mut references);
        if references == before {
            return Ok(());
        }
        let path = self.images.join(REFERENCES);
        let references = References { format_version: REFERENCES_VERSION, references };
        let mut text = serde_json::to_vec_pretty(&references)
            .map_err(|source| CacheError::Encode { path: path.clone(), source })?;
        text.push(b'\n');
        crate::cache::replace_file(&path, &text)
    }

    /// Layers that no template has, and what takes how much.
    pub(crate) fn unused_layers(&self) -> Vec<(PathBuf, u64)> {
        let used: BTreeSet<String> = self
            .all()
            .into_iter()
            .flat_map(|(_, manifest)| manifest.layers)
            .map(|layer| layer.digest)
            .collect();
        let Ok(entries) = fs::read_dir(self.layers()) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let digest = name.to_str().and_then(|name| name.strip_suffix(".img"));
                digest.is_none_or(|digest| !used.contains(digest))
            })
            .filter_map(|entry| Some((entry.path(), bytes_on_disk(&entry.path())?)))
            .collect()
    }

    /// Removes a template, not its layers; the caller holds the lock.
    pub(crate) fn remove(&self, digest: &str) -> Result<(), CacheError> {
        let path = self.cache.path(digest);
        // Without its manifest it is none any more, whatever happens on the way.
        let manifest = path.join(MANIFEST);
        fs::remove_file(&manifest).map_err(CacheError::io("remove", &manifest))?;
        fs::remove_dir_all(&path).map_err(CacheError::io("remove", &path))
    }

    /// Turns templates that are one image in their directory into ones with layers; the lock is held.
    fn take_in_single_images(&self, progress: &dyn Progress) -> Result<(), CacheError> {
        for (path, manifest) in self.cache.all::<serde_json::Value>() {
            let version = manifest.get("format_version").and_then(serde_json::Value::as_u64);
            if version != Some(ONE_IMAGE_VERSION) {
                continue;
            }
            let Ok(old) = serde_json::from_value::<OneImageManifest>(manifest) else { continue };
            progress.step("moving a template to its new place");
            let image = path.join(ONE_IMAGE);
            let digest = if image.is_file() {
                self.take_layer_as_link(&image)?
            } else {
                continue;
            };
            let config = TemplateConfig {
                environment: old.environment,
                user: old.user,
                ..TemplateConfig::default()
            };
            let origin =
                if Path::new(&old.name).is_absolute() { Origin::File } else { Origin::Recipe };
            let layers = vec![LayerRecord { digest, source: None }];
            let manifest = Manifest {
                made: old.made,
                ..Manifest::new(&old.name, origin, &old.source, layers, config)
            };
            let mut text = serde_json::to_vec_pretty(&manifest)
                .map_err(|source| CacheError::Encode { path: path.join(MANIFEST), source })?;
            text.push(b'\n');
            crate::cache::replace_file(&path.join(MANIFEST), &text)?;
            fs::remove_file(&image).map_err(CacheError::io("remove", &image))?;
        }
        Ok(())
    }

    /// A layer from an image that stays where it is until its template says otherwise.
    fn take_layer_as_link(&self, image: &Path) -> Result<String, CacheError> {
        let copy = image.with_extension("new");
        if copy.exists() {
            fs::remove_file(&copy).map_err(CacheError::io("remove", &copy))?;
        }
        fs::hard_link(image, &copy).map_err(CacheError::io("link", &copy))?;
        self.take_layer(&copy)
    }
}

/// 64 lower-case hexadecimal digits.
fn is_digest(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == 64 && text.bytes().all(digit)
}

/// Bytes that a file takes.
pub(crate) fn bytes_on_disk(path: &Path) -> Option<u64> {
    // Blocks of 512 bytes, whatever the file system's are (stat(2)).
    Some(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).ok()?) * 512)
}

/// Nanoseconds since the epoch, enough for five centuries.
pub(crate) fn now() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
