//! Images made elsewhere become templates: from an archive, a layout, a registry, or the host's Docker daemon.
//!
//! ```text
//!   archive::Container ─┐
//!   registry::Pulling ──┼─▶ Image (configuration, layers) ─▶ one disk image for each layer ─▶ template
//!   docker ─(archive)───┘                                     many layers: the upper ones in one
//! ```
//!
//! Whoever made the image may wish us ill. Each document and each layer is bounded and checked against its digest
//! while it is read, and nothing is in the store before everything is right.

mod archive;
mod built;
mod docker;
mod document;
mod registry;

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use hutch_layer::erofs::Writer;
use hutch_layer::{LayerError, Limits, Tree, erofs, tar};
use sha2::{Digest as _, Sha256};

use crate::Progress;
use crate::cache::{CacheError, Draft, Locked};
use crate::digest::Key;
use crate::import::archive::Container;
pub use crate::import::built::{BaseImage, LayerMount, Offer};
pub(crate) use crate::import::docker::fetch_from_docker;
use crate::import::document::ImageConfig;
pub(crate) use crate::import::document::architecture;
pub use crate::import::registry::RegistryOptions;
pub(crate) use crate::import::registry::fetch_from_registry;
use crate::template::{
    Decompressed, LAYERS_MAX, LayerRecord, Manifest, Origin, Reference, Template, TemplateError,
    TemplateStore, begin_layer,
};

/// Layers that an import makes at most, so that agents and saved sandboxes find room on top.
const LAYERS: usize = 6;

/// Why an image does not become a template.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The archive around the images.
    #[error("the archive of the image cannot be read")]
    Archive(#[source] LayerError),
    /// A document is not what it should be.
    #[error("the image's {what} is not one")]
    Document {
        /// Which.
        what: &'static str,
        /// Why not.
        source: serde_json::Error,
    },
    /// There is nothing in it.
    #[error("it holds no image")]
    NoImage,
    /// It is another kind of artifact.
    #[error(
        "it is not the image of a root file system: its configuration and its layers do not fit"
    )]
    NotAnImage,
    /// It is for other machines.
    #[error("the image is for {found} and not for {wanted}")]
    Platform {
        /// What this machine needs.
        wanted: String,
        /// What there is.
        found: String,
    },
    /// Something that it names is not in it.
    #[error("the image has no `{name}`")]
    Missing {
        /// What.
        name: String,
    },
    /// A digest that is none.
    #[error("`{digest}` is not a digest by SHA-256")]
    NotADigest {
        /// What is there instead.
        digest: String,
    },
    /// Something is not what its digest says.
    #[error("{what} has another content than its digest {digest} says")]
    Digest {
        /// What.
        what: String,
        /// What it should have.
        digest: String,
    },
    /// More than an image may have.
    #[error("the image is refused: {what} is too long")]
    TooLarge {
        /// Of what.
        what: &'static str,
    },
    /// No Docker daemon can be asked.
    #[error("no Docker daemon runs on this host")]
    NoDocker,
    /// The daemon does not have it.
    #[error("the host's Docker daemon has no image `{name}`")]
    NotInDocker {
        /// What was asked for.
        name: String,
    },
    /// The daemon answers something else.
    #[error("the host's Docker daemon did not give the image: {answer}")]
    Docker {
        /// What it says, printable.
        answer: String,
    },
    /// A registry does not give it.
    #[error("{registry} does not give the image: {reason}")]
    Registry {
        /// Its host.
        registry: String,
        /// Why, as a phrase.
        reason: String,
    },
    /// The store holds it, but it cannot be made a template.
    #[error(transparent)]
    Template(Box<TemplateError>),
    /// A layer is damaged or refused.
    #[error("layer {number} of {count} of the image")]
    Layer {
        /// Which, from 1.
        number: usize,
        /// Of how many.
        count: usize,
        /// Why.
        source: LayerError,
    },
    /// The store cannot be written.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// An image whose documents were read and checked.
#[derive(Debug)]
pub(crate) struct Image {
    /// What it is called where it comes from.
    pub(crate) names: Vec<String>,
    /// Names the image whatever it is called.
    pub(crate) config_digest: String,
    config: ImageConfig,
    /// Lowest first, one for each of the configuration's.
    layers: Vec<LayerBlob>,
}

/// Where a layer's archive is.
#[derive(Debug, Clone)]
pub(crate) struct LayerBlob {
    /// Its name in the archive, or its digest.
    pub(crate) name: String,
    /// SHA-256 of it as it is stored, where that is known.
    pub(crate) digest: Option<String>,
    /// Bytes as it is stored, where that is known.
    pub(crate) size: u64,
}

/// Where layers are read from.
pub(crate) trait Blobs {
    /// Opens a layer as it is stored, and says how many bytes it has.
    fn open(&mut self, layer: &LayerBlob) -> Result<(Box<dyn Read>, u64), ImportError>;
}

/// Makes templates of images; the store's lock is held.
pub(crate) struct Importer<'a> {
    pub(crate) store: &'a TemplateStore,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) origin: Origin,
}

impl Importer<'_> {
    /// Makes the template of an image, and gives it the names that it shall have.
    pub(crate) fn import(
        &self,
        image: &Image,
        names: &[Reference],
        blobs: &mut dyn Blobs,
        draft: Draft,
    ) -> Result<Template, TemplateError> {
        self.import_on(&[], image, names, blobs, draft)
    }

    /// The same of an image whose lowest layers are these, which are not read.
    pub(crate) fn import_on(
        &self,
        base: &[LayerRecord],
        image: &Image,
        names: &[Reference],
        blobs: &mut dyn Blobs,
        draft: Draft,
    ) -> Result<Template, TemplateError> {
        let shown = names.first().map_or_else(|| image.config_digest.clone(), Reference::to_string);
        let failed = |source| TemplateError::Import { name: shown.clone(), source };
        if base.len() >= LAYERS_MAX && image.layers.len() > base.len() {
            return Err(TemplateError::TooManyLayers { name: shown });
        }
        let groups = groups(base.len(), image.layers.len());
        let mut layers = base.to_vec();
        for group in groups {
            let source = group_key(image, &group);
            let layer = match self.store.layer_of(&source) {
                Some(layer) => layer,
                None => {
                    let path = draft.path().join("layer.img");
                    self.layer(image, &group, &layers, blobs, &path).map_err(failed)?;
                    LayerRecord { digest: self.store.take_layer(&path)?, source: Some(source) }
                }
            };
            layers.push(layer);
        }
        let config = image.config.template_config();
        let manifest = Manifest::new(&shown, self.origin, &image.config_digest, layers, config);
        let digest = self.store.publish(draft, &manifest)?;
        self.store.change_references(|references| {
            for name in names {
                references.insert(name.to_string(), digest.clone());
            }
        })?;
        self.store.load(&digest, &shown).ok_or(TemplateError::Gone { digest })
    }

    /// Makes one disk image of some layers that lie on each other.
    fn layer(
        &self,
        image: &Image,
        group: &std::ops::Range<usize>,
        below: &[LayerRecord],
        blobs: &mut dyn Blobs,
        path: &Path,
    ) -> Result<(), ImportError> {
        let mut writer = begin_layer(path)?;
        let mut tree: Option<Tree> = None;
        for number in group.clone() {
            let upper = self.archive(image, number, blobs, &mut writer)?;
            match &mut tree {
                Some(tree) => tree.lay_over(&upper),
                None => tree = Some(upper),
            }
        }
        let mut tree = tree.unwrap_or_default();
        let failed = |source| ImportError::Layer {
            number: group.start + 1,
            count: image.layers.len(),
            source,
        };
        if group.start == 0 {
            tree.settle();
        } else if tree.has_implied_directories() {
            for layer in below.iter().rev() {
                let path = self.store.layer_path(&layer.digest);
                let file = std::fs::File::open(&path).map_err(CacheError::io("open", &path))?;
                let lower = erofs::Image::open(file, Limits::default())
                    .and_then(|image| Tree::directories_of(&image))
                    .map_err(failed)?;
                tree.take_directories_from(&lower);
            }
        }
        writer.finish(&tree).map(drop).map_err(failed)
    }

    /// Reads the archive of one layer, and checks that it is the one that it should be.
    fn archive(
        &self,
        image: &Image,
        number: usize,
        blobs: &mut dyn Blobs,
        writer: &mut Writer,
    ) -> Result<Tree, ImportError> {
        let count = image.layers.len();
        let layer = &image.layers[number];
        let failed = |source| ImportError::Layer { number: number + 1, count, source };
        self.progress.step(&format!("layer {} of {count}", number + 1));
        let (input, size) = blobs.open(layer)?;
        let mut stored =
            Hashed { hash: Sha256::new(), input, at: 0, size, progress: Some(self.progress) };
        let buffered = BufReader::with_capacity(256 << 10, &mut stored);
        let unpacked =
            Decompressed::new(buffered).map_err(|error| failed(LayerError::Read(error)))?;
        let unpacked =
            Hashed { hash: Sha256::new(), input: unpacked, at: 0, size: 0, progress: None };
        let mut reader = tar::Reader::new(unpacked, Limits::default());
        let tree = Tree::from_tar(&mut reader, writer).map_err(failed)?;
        let mut unpacked = reader.into_inner();
        // What stands behind the end of an archive is of no use but part of its digest.
        let rest = io::copy(&mut (&mut unpacked).take(REST_MAX + 1), &mut io::sink());
        if rest.map_err(|error| failed(LayerError::Read(error)))? > REST_MAX {
            return Err(failed(LayerError::TooMuch {
                what: "bytes behind its end",
                limit: REST_MAX,
            }));
        }
        let diff_id = &image.config.diff_ids()[number];
        let differs = |digest: &str| ImportError::Digest {
            what: format!("layer {} of the image", number + 1),
            digest: digest.to_owned(),
        };
        if unpacked.digest() != *diff_id {
            return Err(differs(diff_id));
        }
        if let Some(digest) = &layer.digest {
            io::copy(&mut (&mut stored).take(REST_MAX), &mut io::sink())
                .map_err(|error| failed(LayerError::Read(error)))?;
            if stored.digest() != *digest {
                return Err(differs(digest));
            }
        }
        Ok(tree)
    }
}

/// Bytes behind the end of an archive that are still read.
const REST_MAX: u64 = 64 << 20;

/// A stream that says what it was.
struct Hashed<'a, R> {
    hash: Sha256,
    input: R,
    at: u64,
    /// Of the stored bytes, for the progress; 0 = not known.
    size: u64,
    progress: Option<&'a dyn Progress>,
}

impl<R> Hashed<'_, R> {
    fn digest(&self) -> String {
        format!("sha256:{}", hex::encode(self.hash.clone().finalize()))
    }
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.at += count as u64;
        if let Some(progress) = self.progress {
            progress.advance(self.at, (self.size > 0).then_some(self.size), "bytes");
        }
        Ok(count)
    }
}

/// Which layers of an image share a disk image: the lowest, which images have in common, stay by themselves. The first
/// `base` are there.
fn groups(base: usize, count: usize) -> Vec<std::ops::Range<usize>> {
    let alone = count.min(base.max(LAYERS - 1));
    let mut groups: Vec<_> = (base..alone).map(|layer| layer..layer + 1).collect();
    if alone < count {
        groups.push(alone..count);
    }
    groups
}

/// Names the disk image of some layers: their archives, and those below, whose directories they take.
fn group_key(image: &Image, group: &std::ops::Range<usize>) -> String {
    let diff_ids = &image.config.diff_ids()[..group.end];
    let key = Key::default().part("layers", LAYER_FORMAT).part("first", group.start.to_string());
    diff_ids.iter().fold(key, |key, digest| key.part("archive", digest)).finish()
}

/// Changes whenever the same archives would give another disk image.
const LAYER_FORMAT: &str = "1";

/// Loads every image of an archive or layout into the store; `names` are given to the first, in place of its own.
pub fn load_images(
    images: &Path,
    path: &Path,
    name: Option<&Reference>,
    progress: &dyn Progress,
) -> Result<Vec<Template>, TemplateError> {
    let shown = path.display().to_string();
    let failed = |source| TemplateError::Import { name: shown.clone(), source };
    let store = TemplateStore::new(images);
    let locked = store.lock(progress)?;
    if let Err(error) = locked.clean() {
        tracing::info!(%error, "not removed");
    }
    progress.step("reading the archive");
    let draft = locked.begin("archive")?;
    let plain = archive::plain(path, draft.path()).map_err(failed)?;
    load(&store, &locked, &plain, name, Origin::Archive, &shown, progress)
}

/// Loads every image of an archive without compression, or of a layout.
fn load(
    store: &TemplateStore,
    locked: &Locked<'_>,
    path: &Path,
    name: Option<&Reference>,
    origin: Origin,
    shown: &str,
    progress: &dyn Progress,
) -> Result<Vec<Template>, TemplateError> {
    let failed = |source| TemplateError::Import { name: shown.to_owned(), source };
    let mut container =
        Container::open(path).map_err(failed)?.ok_or_else(|| failed(ImportError::NoImage))?;
    let importer = Importer { store, progress, origin };
    let mut made = Vec::new();
    for image in container.images().map_err(failed)? {
        let names: Vec<Reference> = match name {
            Some(name) if made.is_empty() => vec![name.clone()],
            Some(_) => Vec::new(),
            None => image.names.iter().filter_map(|name| Reference::parse(name).ok()).collect(),
        };
        let work = locked.begin("import")?;
        made.push(importer.import(&image, &names, &mut container, work)?);
    }
    Ok(made)
}

/// Says whether a file or directory holds images rather than a root file system.
pub(crate) fn holds_images(path: &Path) -> Result<bool, ImportError> {
    if path.is_dir() {
        return Ok(path.join("index.json").is_file() || path.join("manifest.json").is_file());
    }
    archive::looks_like_images(path)
}

/// SHA-256 of bytes, as documents have it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Checks a document against its digest.
pub(crate) fn verify(text: &[u8], digest: &str) -> Result<(), ImportError> {
    if sha256(text) == digest {
        return Ok(());
    }
    Err(ImportError::Digest {
        what: "a document of the image".to_owned(),
        digest: digest.to_owned(),
    })
}
