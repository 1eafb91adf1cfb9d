//! A template as an archive that `docker load`, skopeo and other tools for OCI images read.
//!
//! ```text
//!   oci-layout, index.json     OCI: an image layout in a tar
//!   manifest.json              Docker: the same image once more
//!   blobs/sha256/…             manifest, configuration, and an archive for each layer
//! ```
//!
//! A layer's archive is made of its disk image twice, once for its digest, which is its name, and once to be written: the
//! disk image is in the page cache then, and nothing of that size has to be put anywhere.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use hutch_layer::{Entry, EntryPath, Kind, LayerError, Limits, Metadata, erofs, tar};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::Progress;
use crate::cache::CacheError;
use crate::import::architecture;
use crate::template::reference::Reference;
use crate::template::{Template, TemplateConfig};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Why a template does not become an archive.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A layer cannot be read.
    #[error("layer {number} of the template cannot be put in an archive")]
    Layer {
        /// Which, from 1.
        number: usize,
        /// Why not.
        source: LayerError,
    },
    /// The archive cannot be written.
    #[error("failed to write the archive {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The archive's own structure.
    #[error("failed to write the archive {}", path.display())]
    Archive {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: LayerError,
    },
    /// A layer is gone.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A file's name in the archive, with its size.
struct Blob {
    digest: String,
    size: u64,
}

/// Writes a template to a file, which appears when it is whole. `created` is a date as RFC 3339 has it.
pub fn export_template(
    template: &Template,
    names: &[Reference],
    created: &str,
    path: &Path,
    progress: &dyn Progress,
) -> Result<(), ExportError> {
    // Held open, so that nobody can remove them meanwhile.
    let layers: Vec<File> = template
        .layers
        .iter()
        .map(|layer| File::open(layer).map_err(CacheError::io("open", layer)))
        .collect::<Result<_, _>>()?;
    let mut blobs = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        progress.step(&format!("reading layer {} of {}", number + 1, layers.len()));
        let mut counted = Counted::default();
        archive_of(layer, &mut counted)
            .map_err(|source| ExportError::Layer { number: number + 1, source })?;
        blobs.push(counted.blob());
    }
    let partial = Partial::beside(path)?;
    let failed = |source| ExportError::Archive { path: path.to_owned(), source };
    let mut archive = tar::Writer::new(BufWriter::with_capacity(256 << 10, &partial.file));
    for directory in ["blobs", "blobs/sha256"] {
        archive.append(&entry(directory, Kind::Directory)?, &mut io::empty()).map_err(failed)?;
    }
    for (number, (layer, blob)) in layers.iter().zip(&blobs).enumerate() {
        progress.step(&format!("writing layer {} of {}", number + 1, layers.len()));
        let file = entry(&place(&blob.digest), Kind::File { size: blob.size, extents: None })?;
        archive
            .append_written(&file, |output| archive_of(layer, output))
            .map_err(|source| ExportError::Layer { number: number + 1, source })?;
    }
    for (name, text) in documents(template, names, created, &blobs) {
        let size = text.len() as u64;
        let file = entry(&name, Kind::File { size, extents: None })?;
        archive.append(&file, &mut text.as_slice()).map_err(failed)?;
    }
    archive
        .finish()
        .map_err(failed)?
        .flush()
        .map_err(|source| ExportError::Write { path: path.to_owned(), source })?;
    partial.publish(path)
}

/// Writes the archive of a layer.
fn archive_of(layer: &File, output: &mut dyn Write) -> Result<(), LayerError> {
    let image =
        erofs::Image::open(layer.try_clone().map_err(LayerError::Read)?, Limits::default())?;
    let mut archive = tar::Writer::new(BufWriter::with_capacity(256 << 10, output));
    image.walk(&mut |entry, content| archive.append(&entry, content))?;
    archive.finish()?.flush().map_err(LayerError::Write)
}

fn entry(path: &str, kind: Kind) -> Result<Entry, ExportError> {
    let mode = if kind == Kind::Directory { 0o755 } else { 0o644 };
    let path = EntryPath::parse(path.as_bytes())
        .map_err(|source| ExportError::Archive { path: path.into(), source })?;
    Ok(Entry { path, kind, metadata: Metadata { mode, ..Metadata::default() } })
}

fn place(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"))
}

/// All documents with their names, those that name others last.
fn documents(
    template: &Template,
    names: &[Reference],
    created: &str,
    layers: &[Blob],
) -> Vec<(String, Vec<u8>)> {
    let diff_ids: Vec<&str> = layers.iter().map(|blob| blob.digest.as_str()).collect();
    let config = text(&configuration(&template.config, created, &diff_ids));
    let (config_digest, config_size) = (digest(&config), config.len());
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|blob| json!({ "mediaType": LAYER, "digest": blob.digest, "size": blob.size }))
        .collect();
    let manifest = text(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config_digest, "size": config_size },
        "layers": descriptors,
    }));
    let descriptor = |annotations: Option<Value>| {
        let mut descriptor = json!({
            "mediaType": MANIFEST,
            "digest": digest(&manifest),
            "size": manifest.len(),
            "platform": { "architecture": architecture(), "os": "linux" },
        });
        if let (Some(annotations), Some(object)) = (annotations, descriptor.as_object_mut()) {
            object.insert("annotations".to_owned(), annotations);
        }
        descriptor
    };
    let tagged: Vec<&Reference> = names.iter().filter(|name| name.digest().is_none()).collect();
    let mut manifests: Vec<Value> = tagged
        .iter()
        .map(|name| {
            descriptor(Some(json!({
                "io.containerd.image.name": name.full(),
                "org.opencontainers.image.ref.name": name.tag_or_digest(),
            })))
        })
        .collect();
    if manifests.is_empty() {
        manifests.push(descriptor(None));
    }
    let index = text(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests }));
    let docker = text(&json!([{
        "Config": place(&config_digest),
        "RepoTags": tagged.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "Layers": diff_ids.iter().map(|digest| place(digest)).collect::<Vec<_>>(),
    }]));
    vec![
        (place(&config_digest), config),
        (place(&digest(&manifest)), manifest),
        ("index.json".to_owned(), index),
        ("manifest.json".to_owned(), docker),
        ("oci-layout".to_owned(), text(&json!({ "imageLayoutVersion": "1.0.0" }))),
    ]
}

fn configuration(config: &TemplateConfig, created: &str, diff_ids: &[&str]) -> Value {
    let environment: Vec<String> =
        config.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let history: Vec<Value> =
        diff_ids.iter().map(|_| json!({ "created": created, "created_by": "hutch" })).collect();
    json!({
        "architecture": architecture(),
        "os": "linux",
        "created": created,
        "config": {
            "User": config.user.as_deref().unwrap_or_default(),
            "Env": environment,
            "WorkingDir": config.working_directory.as_deref().unwrap_or_default(),
            "Entrypoint": some(&config.entrypoint),
            "Cmd": some(&config.command),
            "Labels": config.labels,
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    })
}

fn text(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn digest(bytes: &[u8]) -> String {
    crate::import::sha256(bytes)
}

/// Takes bytes for their digest and their number.
#[derive(Default)]
struct Counted {
    hash: Sha256,
    size: u64,
}

impl Counted {
    fn blob(self) -> Blob {
        Blob { digest: format!("sha256:{}", hex::encode(self.hash.finalize())), size: self.size }
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that goes away unless it is whole.
struct Partial {
    file: File,
    path: Option<PathBuf>,
}

impl Partial {
    fn beside(path: &Path) -> Result<Self, ExportError> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".partial-{}", std::process::id()));
        let partial = path.with_file_name(name);
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&partial)
            .map_err(|source| ExportError::Write { path: path.to_owned(), source })?;
        Ok(Self { file, path: Some(partial) })
    }

    fn publish(mut self, path: &Path) -> Result<(), ExportError> {
        let failed = |source| ExportError::Write { path: path.to_owned(), source };
        self.file.sync_all().map_err(failed)?;
        if let Some(partial) = &self.path {
            std::fs::rename(partial, path).map_err(failed)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!(%error, path = %path.display(), "not removed");
        }
    }
}
