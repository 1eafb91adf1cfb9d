//! Images in one file or directory: what `docker save` writes, and OCI layouts.
//!
//! ```text
//!   manifest.json                Docker: configuration and layers by their paths in the archive
//!   oci-layout, index.json       OCI: everything by its digest below blobs/sha256/
//! ```
//!
//! Newer archives of Docker are both. Nothing is unpacked: an archive is read once for the places of its files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use hutch_layer::{EntryPath, Kind, Limits, tar};

use crate::cache::CacheError;
use crate::import::document::{
    DOCUMENT_MAX, Descriptor, DockerManifest, ImageConfig, Manifest, check_digest, parse,
};
use crate::import::{Blobs, Image, ImportError, LayerBlob};
use crate::template::Decompressed;

/// What an archive of images may hold: blobs, not files.
const LIMITS: Limits = Limits { entries: 100_000, bytes: 256 << 30, names: 16 << 20 };
/// Links that lead to each other.
const LINKS_MAX: usize = 8;
/// Indexes in indexes.
const DEPTH_MAX: usize = 4;
/// Images in one archive.
const IMAGES_MAX: usize = 256;

/// An archive or directory of images.
#[derive(Debug)]
pub(crate) enum Container {
    Archive { path: PathBuf, files: BTreeMap<EntryPath, Place> },
    Directory(PathBuf),
}

/// Where a file of the archive is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Content {
        start: u64,
        size: u64,
    },
    /// Old archives have the layers that images share once.
    Link(EntryPath),
}

impl Container {
    /// Opens a file or directory, if it holds images rather than a root file system.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, ImportError> {
        let failed = |source| ImportError::Read { path: path.to_owned(), source };
        let container = if std::fs::metadata(path).map_err(failed)?.is_dir() {
            Self::Directory(path.to_owned())
        } else {
            Self::Archive { path: path.to_owned(), files: index(path)? }
        };
        let is_one = container.has("manifest.json") || container.has("index.json");
        Ok(is_one.then_some(container))
    }

    fn has(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    /// Opens a file by its name; how large it is.
    fn file(&self, name: &str) -> Result<(Box<dyn Read>, u64), ImportError> {
        let missing = || ImportError::Missing { name: name.escape_debug().to_string() };
        let name = EntryPath::parse(name.as_bytes()).map_err(|_| missing())?;
        match self {
            Self::Directory(directory) => {
                use std::os::unix::ffi::OsStrExt as _;
                let path = directory.join(std::ffi::OsStr::from_bytes(name.as_bytes()));
                let file = File::open(&path).map_err(|_| missing())?;
                let metadata = file.metadata().map_err(|_| missing())?;
                if !metadata.is_file() {
                    return Err(missing());
                }
                Ok((Box::new(file), metadata.len()))
            }
            Self::Archive { path, files } => {
                let mut at = &name;
                for _ in 0..LINKS_MAX {
                    match files.get(at).ok_or_else(missing)? {
                        Place::Link(target) => at = target,
                        Place::Content { start, size } => {
                            let failed = |source| ImportError::Read { path: path.clone(), source };
                            let mut file = File::open(path).map_err(failed)?;
                            file.seek(SeekFrom::Start(*start)).map_err(failed)?;
                            return Ok((Box::new(file.take(*size)), *size));
                        }
                    }
                }
                Err(missing())
            }
        }
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let (mut file, size) = self.file(name)?;
        if size > DOCUMENT_MAX {
            return Err(ImportError::TooLarge { what: "a document of it" });
        }
        let mut text = Vec::new();
        (&mut file)
            .take(DOCUMENT_MAX)
            .read_to_end(&mut text)
            .map_err(|source| ImportError::Read { path: name.into(), source })?;
        Ok(text)
    }

    /// All images for this machine, each with its names.
    pub(crate) fn images(&self) -> Result<Vec<Image>, ImportError> {
        // What carries a digest for everything comes first.
        let images =
            if self.has("index.json") { self.oci_images()? } else { self.docker_images()? };
        match images.len() {
            0 => Err(ImportError::NoImage),
            1..=IMAGES_MAX => Ok(images),
            _ => Err(ImportError::TooLarge { what: "the list of its images" }),
        }
    }

    fn docker_images(&self) -> Result<Vec<Image>, ImportError> {
        let manifests: Vec<DockerManifest> = parse(&self.document("manifest.json")?, "manifest")?;
        manifests
            .into_iter()
            .map(|manifest| {
                let config = self.document(&manifest.config)?;
                let layers = manifest.layers.into_iter();
                Image::new(
                    manifest.repo_tags.unwrap_or_default(),
                    &config,
                    layers.map(|name| LayerBlob { name, digest: None, size: 0 }).collect(),
                )
            })
            .collect()
    }

    fn oci_images(&self) -> Result<Vec<Image>, ImportError> {
        let index = Manifest::read(&self.document("index.json")?)?;
        let tags = self.docker_tags();
        let mut images = Vec::new();
        let of_this_machine = |descriptor: &&Descriptor| {
            let own = super::document::architecture();
            let platform = descriptor.platform.as_ref();
            platform.is_none_or(|of| of.os == "linux" && of.architecture == own)
        };
        let mut fitting: Vec<&Descriptor> =
            index.manifests.iter().filter(of_this_machine).collect();
        if fitting.is_empty() && !index.manifests.is_empty() {
            fitting.push(index.for_this_machine()?);
        }
        for descriptor in fitting.into_iter().take(IMAGES_MAX + 1) {
            let mut image = self.image(descriptor, 0)?;
            image.names = names(descriptor);
            if image.names.is_empty() {
                image.names = tags.get(&image.config_digest).cloned().unwrap_or_default();
            }
            images.push(image);
        }
        Ok(images)
    }

    /// What `manifest.json` calls images by their configuration, where it is there too.
    fn docker_tags(&self) -> BTreeMap<String, Vec<String>> {
        let text = self.document("manifest.json").unwrap_or_default();
        let manifests: Vec<DockerManifest> = parse(&text, "manifest").unwrap_or_default();
        manifests
            .into_iter()
            .filter_map(|manifest| {
                let digest = manifest.config.rsplit('/').next()?.trim_end_matches(".json");
                Some((format!("sha256:{digest}"), manifest.repo_tags.unwrap_or_default()))
            })
            .collect()
    }

    fn image(&self, descriptor: &Descriptor, depth: usize) -> Result<Image, ImportError> {
        if depth > DEPTH_MAX {
            return Err(ImportError::TooLarge { what: "the depth of its indexes" });
        }
        let manifest = Manifest::read(&self.verified(descriptor)?)?;
        let Some(config) = &manifest.config else {
            return self.image(manifest.for_this_machine()?, depth + 1);
        };
        let layers = manifest.layers.iter().map(|layer| LayerBlob {
            name: blob_name(&layer.digest),
            digest: Some(layer.digest.clone()),
            size: layer.size,
        });
        Image::new(Vec::new(), &self.verified(config)?, layers.collect())
    }

    /// A document that is what its descriptor says.
    fn verified(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImportError> {
        check_digest(&descriptor.digest)?;
        let text = self.document(&blob_name(&descriptor.digest))?;
        super::verify(&text, &descriptor.digest)?;
        Ok(text)
    }
}

impl Blobs for Container {
    fn open(&mut self, layer: &LayerBlob) -> Result<(Box<dyn Read>, u64), ImportError> {
        self.file(&layer.name)
    }
}

fn blob_name(digest: &str) -> String {
    digest.replacen("sha256:", "blobs/sha256/", 1)
}

/// Names that an index gives an image.
fn names(descriptor: &Descriptor) -> Vec<String> {
    // containerd's is a whole name, OCI's often only a tag.
    let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let name = keys.iter().find_map(|key| descriptor.annotations.get(*key));
    name.into_iter().filter(|name| name.contains([':', '/'])).cloned().collect()
}

/// Names in an archive of images; those of a root file system are others.
fn is_name_of_image(path: &EntryPath) -> bool {
    let first = path.components().next().unwrap_or_default();
    let digits = first.strip_suffix(b".json").unwrap_or(first);
    let documents =
        [b"manifest.json".as_slice(), b"index.json", b"oci-layout", b"blobs", b"repositories"];
    documents.contains(&first) || digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit)
}

/// Says by its first entry whether an archive, compressed or not, is one of images.
pub(crate) fn looks_like_images(path: &Path) -> Result<bool, ImportError> {
    let failed = |source| ImportError::Read { path: path.to_owned(), source };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let Ok(input) = Decompressed::new(file) else { return Ok(false) };
    let mut reader = tar::Reader::new(input, LIMITS);
    // An archive made by hand may begin with its own directory.
    for _ in 0..2 {
        match reader.next() {
            Ok(Some(entry)) if entry.path.as_bytes().is_empty() => {}
            Ok(Some(entry)) => return Ok(is_name_of_image(&entry.path)),
            _ => return Ok(false),
        }
    }
    Ok(false)
}

/// The archive without its compression: itself, or a file in `draft`.
pub(crate) fn plain(path: &Path, draft: &Path) -> Result<PathBuf, ImportError> {
    let failed = |source| ImportError::Read { path: path.to_owned(), source };
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    let file = BufReader::with_capacity(256 << 10, File::open(path).map_err(failed)?);
    let input = Decompressed::new(file).map_err(failed)?;
    if input.is_plain() {
        return Ok(path.to_owned());
    }
    let plain = draft.join("archive.tar");
    let mut output = File::create(&plain).map_err(CacheError::io("create", &plain))?;
    let copied = io::copy(&mut input.take(UNPACKED_MAX + 1), &mut output).map_err(failed)?;
    if copied > UNPACKED_MAX {
        return Err(ImportError::TooLarge {
            what: "what is left when its compression is taken away",
        });
    }
    Ok(plain)
}

/// Largest compressed archive, unpacked: larger ones are given without compression.
const UNPACKED_MAX: u64 = 32 << 30;

/// The places of all files of an archive.
fn index(path: &Path) -> Result<BTreeMap<EntryPath, Place>, ImportError> {
    let failed = |source| ImportError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut reader = tar::Reader::new(Counted { input: BufReader::new(file), at: 0 }, LIMITS);
    let mut files = BTreeMap::new();
    loop {
        let entry = match reader.next() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => return Err(ImportError::Archive(error)),
        };
        let start = reader.input().at;
        match entry.kind {
            Kind::File { size, extents: None } => {
                files.insert(entry.path, Place::Content { start, size });
            }
            Kind::Symlink(target) => {
                let directory =
                    entry.path.split().map_or(Vec::new(), |(of, _)| of.as_bytes().to_vec());
                if let Some(target) = resolve(&directory, &target) {
                    files.insert(entry.path, Place::Link(target));
                }
            }
            Kind::HardLink(target) => {
                files.insert(entry.path, Place::Link(target));
            }
            _ => {}
        }
    }
    Ok(files)
}

/// A link's target from the root of the archive; none when it leaves it.
fn resolve(directory: &[u8], target: &[u8]) -> Option<EntryPath> {
    let mut parts: Vec<&[u8]> = Vec::new();
    let whole = [directory, b"/", target].concat();
    for part in whole.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    EntryPath::parse(&parts.join(&b'/')).ok()
}

/// Counts what was read.
#[derive(Debug)]
struct Counted {
    input: BufReader<File>,
    at: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// The configuration of an image of an archive, checked when it is read.
impl Image {
    pub(crate) fn new(
        names: Vec<String>,
        config: &[u8],
        layers: Vec<LayerBlob>,
    ) -> Result<Self, ImportError> {
        let parsed = ImageConfig::read(config)?;
        if parsed.diff_ids().len() != layers.len() || layers.is_empty() {
            return Err(ImportError::NotAnImage);
        }
        Ok(Self { names, config_digest: super::sha256(config), config: parsed, layers })
    }
}
