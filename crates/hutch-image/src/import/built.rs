//! Templates as the base images of a Docker build, and what was built on them as a template.
//!
//! A base is not copied to whoever builds. The sandbox that does has the base's layers as disks, and its engine is
//! given an image whose layers are archives of one empty file each, with the name of a disk; the disk is then mounted
//! in the layer's place. Such an archive's digest stands for the disk in the image that comes back, of which only the
//! layers above are read.
//!
//! ```text
//!   template ── layers ──────────────▶ disks of the builder ──▶ in the engine's directory of each layer
//!      └─ Offer::archive (placeholders) ─▶ docker load ──────▶ image, on which is built
//!   store ◀── layers above the base ◀── Offer::take ◀── docker save
//! ```

use std::path::Path;

use hutch_layer::{Entry, EntryPath, Kind, LayerError, Metadata, tar};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::archive::Container;
use super::document::architecture;
use super::{ImportError, Importer, sha256};
use crate::Progress;
use crate::template::{
    LAYERS_MAX, LayerRecord, Manifest, Origin, Reference, Template, TemplateConfig, TemplateError,
    TemplateStore,
};

/// A base image: what the build calls it, and the template that it is.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// As it is written after `FROM`.
    pub name: String,
    /// What that means here.
    pub template: Template,
}

/// Templates as a builder's engine is told of them.
#[derive(Debug)]
pub struct Offer {
    /// What the builder is made from.
    pub builder: Template,
    /// It was made for this builder, and nothing else will be started from it.
    pub is_for_builder_alone: bool,
    /// The base images as `docker load` takes them; empty when there are none.
    pub archive: Vec<u8>,
    /// Which disk belongs where.
    pub mounts: Vec<LayerMount>,
    /// Of each base its layers, with the digests that stand for them.
    chains: Vec<Vec<(String, LayerRecord)>>,
}

/// The place of a layer in the engine's store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerMount {
    /// The chain id of the layer, without `sha256:`, as the engine's store has it (OCI image specification, config.md).
    pub chain: String,
    /// Which of the builder's layers it is, from 0, the lowest.
    pub layer: usize,
}

impl Offer {
    /// Offers templates to a builder that has the engine of another one.
    pub fn new(
        images: &Path,
        engine: &Template,
        bases: &[BaseImage],
        progress: &dyn Progress,
    ) -> Result<Self, TemplateError> {
        let store = TemplateStore::new(images);
        let layers = |template: &Template| {
            TemplateStore::parse_digest(&template.digest)
                .and_then(|digest| store.manifest(digest))
                .map(|manifest| manifest.layers)
                .ok_or_else(|| TemplateError::Gone { digest: template.digest.clone() })
        };
        let below = layers(engine)?;
        let all: Vec<Vec<LayerRecord>> =
            bases.iter().map(|base| layers(&base.template)).collect::<Result<_, _>>()?;
        let has = |stack: &[LayerRecord], one: &LayerRecord| {
            stack.iter().any(|other| other.digest == one.digest)
        };
        // A template that stands on the engine's carries the engine; more disks than it has may not be needed.
        let whole = |stack: &[LayerRecord]| {
            stack
                .iter()
                .map(|layer| &layer.digest)
                .take(below.len())
                .eq(below.iter().map(|layer| &layer.digest))
                && all.iter().flatten().all(|layer| has(stack, layer))
        };
        let fitting = bases.iter().zip(&all).find(|(_, stack)| whole(stack));
        let (builder, disks, is_for_builder_alone) = match fitting {
            _ if whole(&below) => (engine.clone(), below, false),
            Some((base, stack)) => (base.template.clone(), stack.clone(), false),
            None => {
                let mut stack: Vec<LayerRecord> = Vec::new();
                for layer in all.iter().flatten().filter(|layer| !has(&below, layer)) {
                    if !has(&stack, layer) {
                        stack.push(layer.clone());
                    }
                }
                // Uppermost, so that what runs is the engine's and not what somebody else's image calls so.
                stack.extend(below);
                if stack.len() > LAYERS_MAX {
                    let names: Vec<&str> = bases.iter().map(|base| base.name.as_str()).collect();
                    return Err(TemplateError::TooManyLayers { name: names.join("` and `") });
                }
                (publish(&store, engine, &stack, progress)?, stack, true)
            }
        };
        let mut offer = Self {
            builder,
            is_for_builder_alone,
            archive: Vec::new(),
            mounts: Vec::new(),
            chains: Vec::new(),
        };
        offer.tell(bases, &all, &disks).map_err(|error| TemplateError::Import {
            name: bases.first().map(|base| base.name.clone()).unwrap_or_default(),
            source: ImportError::Archive(error),
        })?;
        Ok(offer)
    }

    /// Writes the archive, and notes what is where.
    fn tell(
        &mut self,
        bases: &[BaseImage],
        all: &[Vec<LayerRecord>],
        disks: &[LayerRecord],
    ) -> Result<(), LayerError> {
        if bases.is_empty() {
            return Ok(());
        }
        let mut archive = tar::Writer::new(Vec::new());
        let mut manifest = Vec::new();
        for (base, stack) in bases.iter().zip(all) {
            let mut names = Vec::new();
            let mut chain: Vec<(String, LayerRecord)> = Vec::new();
            let mut id = String::new();
            for layer in stack {
                let placeholder = placeholder(&layer.digest)?;
                let diff_id = sha256(&placeholder);
                id = if chain.is_empty() {
                    diff_id.clone()
                } else {
                    sha256(format!("{id} {diff_id}").as_bytes())
                };
                let name = format!("{}.tar", layer.digest);
                file(&mut archive, &name, &placeholder)?;
                names.push(name);
                let place = disks.iter().position(|disk| disk.digest == layer.digest);
                let mount = LayerMount {
                    chain: id.trim_start_matches("sha256:").to_owned(),
                    layer: place.unwrap_or_default(),
                };
                if !self.mounts.contains(&mount) {
                    self.mounts.push(mount);
                }
                chain.push((diff_id, layer.clone()));
            }
            let config = config(&base.template.config, &chain);
            let name = format!("{}.json", hex::encode(Sha256::digest(&config)));
            file(&mut archive, &name, &config)?;
            manifest.push(json!({ "Config": name, "RepoTags": [base.name], "Layers": names }));
            self.chains.push(chain);
        }
        file(&mut archive, "manifest.json", json!(manifest).to_string().as_bytes())?;
        self.archive = archive.finish()?;
        Ok(())
    }

    /// Makes a template of the image in an archive of `docker save`, which the builder's guest wrote as it liked.
    pub fn take(
        &self,
        images: &Path,
        archive: &Path,
        names: &[Reference],
        progress: &dyn Progress,
    ) -> Result<Template, TemplateError> {
        let shown = names.first().map_or_else(|| "the image".to_owned(), Reference::to_string);
        let failed = |source| TemplateError::Import { name: shown.clone(), source };
        let store = TemplateStore::new(images);
        let locked = store.lock(progress)?;
        if let Err(error) = locked.clean() {
            tracing::info!(%error, "not removed");
        }
        let mut container = Container::open(archive)
            .map_err(failed)?
            .ok_or_else(|| failed(ImportError::NoImage))?;
        let image = container.images().map_err(failed)?.into_iter().next();
        let image = image.ok_or_else(|| failed(ImportError::NoImage))?;
        let base = self.base_of(image.config.diff_ids());
        let importer = Importer { store: &store, progress, origin: Origin::Build };
        importer.import_on(&base, &image, names, &mut container, locked.begin("built")?)
    }

    /// The layers of the longest base that an image begins with.
    fn base_of(&self, diff_ids: &[String]) -> Vec<LayerRecord> {
        let begins = |chain: &&Vec<(String, LayerRecord)>| {
            chain.len() <= diff_ids.len()
                && chain.iter().zip(diff_ids).all(|((own, _), found)| own == found)
        };
        let longest = self.chains.iter().filter(begins).max_by_key(|chain| chain.len());
        longest.into_iter().flatten().map(|(_, layer)| layer.clone()).collect()
    }
}

/// A template of these layers that nobody calls anything, with the sessions of another one.
fn publish(
    store: &TemplateStore,
    engine: &Template,
    layers: &[LayerRecord],
    progress: &dyn Progress,
) -> Result<Template, TemplateError> {
    let locked = store.lock(progress)?;
    let draft = locked.begin("builder")?;
    let manifest = Manifest::new(
        &engine.name,
        Origin::Build,
        &engine.digest,
        layers.to_vec(),
        engine.config.clone(),
    );
    let digest = store.publish(draft, &manifest)?;
    store.load(&digest, &engine.name).ok_or(TemplateError::Gone { digest })
}

/// The archive that stands for a layer.
fn placeholder(digest: &str) -> Result<Vec<u8>, LayerError> {
    let mut archive = tar::Writer::new(Vec::new());
    file(&mut archive, &format!("hutch-layer-{digest}"), &[])?;
    archive.finish()
}

fn file(archive: &mut tar::Writer<Vec<u8>>, name: &str, content: &[u8]) -> Result<(), LayerError> {
    let entry = Entry {
        path: EntryPath::parse(name.as_bytes())?,
        kind: Kind::File { size: content.len() as u64, extents: None },
        metadata: Metadata { mode: 0o644, ..Metadata::default() },
    };
    archive.append(&entry, &mut &content[..])
}

/// A base's configuration as images have it.
fn config(of: &TemplateConfig, chain: &[(String, LayerRecord)]) -> Vec<u8> {
    let machine = architecture();
    let environment: Vec<String> =
        of.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let history: Vec<_> = chain.iter().map(|_| json!({ "created_by": "hutch" })).collect();
    let diff_ids: Vec<&String> = chain.iter().map(|(diff_id, _)| diff_id).collect();
    let config = json!({
        "architecture": of.architecture.as_deref().unwrap_or(machine),
        "os": "linux",
        "config": {
            "User": of.user.as_deref().unwrap_or_default(),
            "Env": environment,
            "WorkingDir": of.working_directory.as_deref().unwrap_or_default(),
            "Entrypoint": of.entrypoint,
            "Cmd": of.command,
            "Labels": of.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    config.to_string().into_bytes()
}
