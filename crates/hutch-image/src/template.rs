//! Templates: read-only root file systems as layers on each other, built here from a recipe or taken from elsewhere.
//!
//! ```text
//! recipe ──build (mmdebstrap)──▶ tar ─┐
//!      a root file system's tar ──────┼─layer─▶ disk image ──store──▶ template = layers + configuration
//!      a directory, owners and all ───┘              ▲
//!                                a disk image by path┘
//! ```
//!
//! A template has a digest that names it for ever, and any number of names that people gave it ([`store`]).

mod agent;
mod build;
mod compression;
mod export;
mod layer;
mod manage;
mod namespace;
mod npm;
mod recipe;
mod reference;
mod store;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Progress;
use crate::cache::{CacheError, Draft, Locked};
use crate::digest;
use crate::import::{self, ImportError, RegistryOptions};
pub use crate::template::build::BuildError;
pub(crate) use crate::template::compression::Decompressed;
pub use crate::template::export::{ExportError, export_template};
pub use crate::template::layer::DiskError;
pub(crate) use crate::template::layer::begin as begin_layer;
pub use crate::template::manage::{
    LayerStatus, ManageError, Removed, TemplateStatus, find_template, prune_templates,
    reclaimable_bytes, remove_template, tag_template, templates,
};
use crate::template::namespace::Namespace;
pub use crate::template::namespace::NamespaceError;
pub use crate::template::npm::NpmError;
use crate::template::recipe::Recipe;
pub(crate) use crate::template::reference::is_digest;
pub use crate::template::reference::{Reference, ReferenceError};
use crate::template::store::DIGEST_PREFIX;
pub use crate::template::store::{LAYERS_MAX, Origin};
pub(crate) use crate::template::store::{LayerRecord, Manifest, TemplateStore};
use crate::tool::Toolbox;

const LAYER: &str = "layer.img";

/// A template: the layers of a read-only root file system and what it says of its sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The read-only disk images, lowest first; at least one.
    pub layers: Vec<PathBuf>,
    /// `sha256:…`: names this very template.
    pub digest: String,
    /// How a person named it: `shell`.
    pub name: String,
    /// What it says of its sessions.
    pub config: TemplateConfig,
}

/// What a template says of the sessions in it; empty where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TemplateConfig {
    /// Variables, `PATH` among them.
    pub environment: BTreeMap<String, String>,
    /// Login name or number, perhaps with `:` and a group.
    pub user: Option<String>,
    /// Directory.
    pub working_directory: Option<String>,
    /// Program that an image starts, with its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments of it, or the program.
    pub command: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Architecture as images name it: `amd64`.
    pub architecture: Option<String>,
}

/// When to build a template although there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullTemplate {
    /// Build it again.
    Always,
    /// Build it when it is not there.
    Missing,
    /// Fail when it is not there.
    Never,
}

/// What [`template`] needs to know.
#[derive(Debug, Clone)]
pub struct TemplateOptions {
    /// `Layout.images`.
    pub images: PathBuf,
    /// A flavor (`shell`), Docker's name for it, or the path of a tar or disk image (with a `/` in it).
    pub name: String,
    /// When to build.
    pub pull: PullTemplate,
    /// Another package archive than the one in the configuration of the host's apt.
    pub mirror: Option<String>,
    /// Socket of the host's Docker daemon, whose images come before those of a registry.
    pub docker: Option<PathBuf>,
    /// How registries are reached.
    pub registries: RegistryOptions,
    /// Variables for the tools that fetch, like proxy settings; nothing else of the environment reaches them.
    pub environment: Vec<(OsString, OsString)>,
}

/// Why there is no template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// No recipe has this name.
    #[error("there is no template `{name}`")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// It may not be built, and is not there.
    #[error("the template `{name}` is not on this machine, and it may not be built now")]
    Absent {
        /// What was asked for.
        name: String,
    },
    /// The image that a sandbox stands on is gone.
    #[error("the template image {digest} is gone")]
    Gone {
        /// Its digest.
        digest: String,
    },
    /// A recipe cannot be built.
    #[error("failed to build the template `{name}`")]
    Build {
        /// The recipe.
        name: String,
        /// Why not.
        source: BuildError,
    },
    /// The agent's packages cannot be fetched.
    #[error("failed to fetch the agent of the template `{name}`")]
    Agent {
        /// The template.
        name: String,
        /// Why not.
        source: NpmError,
    },
    /// It has as many layers as a VM has room for.
    #[error("the template `{name}` has {LAYERS_MAX} layers already, and a VM has no room for more")]
    TooManyLayers {
        /// The template.
        name: String,
    },
    /// Files cannot be made into a layer.
    #[error("failed to make a disk of the template `{name}`")]
    Disk {
        /// The template.
        name: String,
        /// Why not.
        source: DiskError,
    },
    /// A file that was given cannot be read.
    #[error("failed to read the template {}", path.display())]
    Input {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// An image made elsewhere is damaged, refused, or not there.
    #[error("failed to load the image `{name}`")]
    Import {
        /// What was asked for.
        name: String,
        /// Why not.
        source: ImportError,
    },
    /// A name that no template can have.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The cache cannot be read or written.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What is to be made, and what tells it from others.
enum Source {
    /// It is there under this name, and nothing has to be made.
    There(Box<Template>),
    Recipe(Box<Recipe>),
    /// An archive or layout of images.
    Images(PathBuf),
    /// An image that has to be fetched.
    Image(Reference),
    File {
        path: PathBuf,
        kind: layer::Kind,
    },
}

/// Returns the template of a name, making it if it is not there yet.
///
/// Blocks, for minutes when a recipe must be built. Of several processes that ask for the same template one makes it
/// and the others wait.
pub fn template(
    options: &TemplateOptions,
    progress: &dyn Progress,
) -> Result<Template, TemplateError> {
    if let Some(recipe) = agent::recipe(&options.name) {
        return agent::template(options, &recipe, progress);
    }
    let (source, key) = resolve(options, progress)?;
    match source {
        Source::There(template) => return Ok(*template),
        Source::Images(path) => return first_image(&options.images, &path, progress),
        Source::Image(name) => return fetch(options, &name, progress),
        Source::Recipe(_) | Source::File { .. } => {}
    }
    let store = TemplateStore::new(&options.images);
    let is_recipe = matches!(source, Source::Recipe(_));
    let asked = store::now();
    if !(is_recipe && options.pull == PullTemplate::Always)
        && let Some(found) = store.newest(&key, &options.name, None)
    {
        return Ok(found);
    }
    if is_recipe && options.pull == PullTemplate::Never {
        return Err(TemplateError::Absent { name: options.name.clone() });
    }
    let locked = store.lock(progress)?;
    // Whoever had the lock may have made it meanwhile; something built after we asked is as new as we want it.
    let not_before = (is_recipe && options.pull == PullTemplate::Always).then_some(asked);
    if let Some(found) = store.newest(&key, &options.name, not_before) {
        return Ok(found);
    }
    let log = options.images.join("logs/template.log");
    let tools = Toolbox::new(&options.environment, &log, locked.file())
        .map_err(CacheError::io("create", &log))?;
    clear_leftovers(&locked, &tools);
    let draft = locked.begin("template")?;
    let image = draft.path().join(LAYER);
    let (origin, config) = match &source {
        Source::File { path, kind } => {
            make_of_file(path, *kind, &image, progress)
                .map_err(|source| TemplateError::Disk { name: options.name.clone(), source })?;
            (Origin::File, TemplateConfig::default())
        }
        Source::There(_) | Source::Images(_) | Source::Image(_) => {
            return Err(TemplateError::Unknown { name: options.name.clone() });
        }
        Source::Recipe(recipe) => {
            make_of_recipe(recipe, options, &tools, &draft, progress)?;
            (Origin::Recipe, recipe.config())
        }
    };
    let layers = vec![LayerRecord { digest: store.take_layer(&image)?, source: None }];
    clear(draft.path())?;
    let manifest = Manifest::new(&options.name, origin, &key, layers, config);
    let made = finish(&store, draft, &manifest, &options.name)?;
    if let Source::Recipe(recipe) = &source {
        name_it(&store, &recipe.reference(), &made)?;
    }
    Ok(made)
}

/// Gives a template a name; the lock is held.
fn name_it(store: &TemplateStore, name: &str, template: &Template) -> Result<(), CacheError> {
    let digest = template.digest.trim_start_matches(DIGEST_PREFIX).to_owned();
    store.change_references(|references| drop(references.insert(name.to_owned(), digest)))
}

/// The first image of an archive or layout; the others are loaded too.
fn first_image(
    images: &Path,
    path: &Path,
    progress: &dyn Progress,
) -> Result<Template, TemplateError> {
    let loaded = import::load_images(images, path, None, progress)?.into_iter().next();
    let name = path.display().to_string();
    let template = loaded.ok_or_else(|| TemplateError::Unknown { name: name.clone() })?;
    // The sandbox is told by the name that was given.
    Ok(Template { name, ..template })
}

/// An image that has no recipe: from the host's Docker daemon, else from its registry.
fn fetch(
    options: &TemplateOptions,
    name: &Reference,
    progress: &dyn Progress,
) -> Result<Template, TemplateError> {
    if options.pull == PullTemplate::Never {
        return Err(TemplateError::Absent { name: options.name.clone() });
    }
    let source = options.pull;
    let from_docker = match (&options.docker, source) {
        (Some(docker), PullTemplate::Missing) => {
            import::fetch_from_docker(&options.images, docker, name, progress)
        }
        _ => Err(ImportError::NoDocker),
    };
    let reason = match from_docker {
        Ok(template) => return Ok(template),
        Err(reason @ (ImportError::NoDocker | ImportError::NotInDocker { .. })) => reason,
        Err(source) => {
            return Err(TemplateError::Import { name: name.to_string(), source });
        }
    };
    tracing::info!(%reason, "not from the host's Docker daemon");
    import::fetch_from_registry(options, name, progress)
        .map_err(|source| TemplateError::Import { name: name.to_string(), source })
}

/// Writes down what was made, and finds it again.
fn finish(
    store: &TemplateStore,
    draft: Draft,
    manifest: &Manifest,
    name: &str,
) -> Result<Template, TemplateError> {
    let digest = store.publish(draft, manifest)?;
    tracing::info!(%digest, name, "template made");
    store.load(&digest, name).ok_or(TemplateError::Gone { digest })
}

/// Returns the very template that a sandbox was made with.
pub fn template_image(
    images: &Path,
    name: &str,
    digest: &str,
    progress: &dyn Progress,
) -> Result<Template, TemplateError> {
    let store = TemplateStore::new(images);
    let gone = || TemplateError::Gone { digest: digest.to_owned() };
    let key = TemplateStore::parse_digest(digest).ok_or_else(gone)?;
    if let Some(found) = store.load(key, name) {
        return Ok(found);
    }
    // What is there in an older form is taken in by whoever has the lock.
    let _locked = store.lock(progress)?;
    store.load(key, name).ok_or_else(gone)
}

/// Where the files of a new layer are.
pub enum LayerFiles<'a> {
    /// A directory of files whose owners are those that they have in the tools' namespace (root's files are the
    /// caller's own, the others' are of the caller's subordinate ids).
    Directory(&'a Path),
    /// The archive of a layer, whiteouts as OCI has them.
    Archive(Box<dyn Read + 'a>),
}

impl std::fmt::Debug for LayerFiles<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Directory(_) => "Directory",
            Self::Archive(_) => "Archive",
        })
    }
}

/// A template to be made from another one.
#[derive(Debug)]
pub struct NewLayer<'a> {
    /// `Layout.images`.
    pub images: &'a Path,
    /// What the layer goes on.
    pub base: &'a Template,
    /// The files that it adds and takes away.
    pub files: LayerFiles<'a>,
    /// What the new template is called.
    pub name: &'a str,
    /// What it says of its sessions.
    pub config: TemplateConfig,
    /// What it is made from, so that [`template_of_source`] finds it again.
    pub source: &'a str,
    /// Where it comes from.
    pub origin: Origin,
    /// Variables for the tools.
    pub environment: &'a [(OsString, OsString)],
}

/// Puts a layer on a template, and gives the result a name, which is taken from whatever had it.
pub fn add_layer(new: NewLayer<'_>, progress: &dyn Progress) -> Result<Template, TemplateError> {
    let name = Reference::parse(new.name)?.to_string();
    let name = name.as_str();
    let store = TemplateStore::new(new.images);
    let locked = store.lock(progress)?;
    let mut base = TemplateStore::parse_digest(&new.base.digest)
        .and_then(|digest| store.manifest(digest))
        .ok_or_else(|| TemplateError::Gone { digest: new.base.digest.clone() })?;
    let mut under = None;
    if base.layers.len() >= LAYERS_MAX {
        // What was saved again and again is one layer from then on; what an agent is stays a layer of its own.
        under = match new.files {
            LayerFiles::Archive(_) => base.layers.pop().map(|top| store.layer_path(&top.digest)),
            LayerFiles::Directory(_) => None,
        };
        if under.is_none() {
            return Err(TemplateError::TooManyLayers { name: new.base.name.clone() });
        }
    }
    let log = new.images.join("logs/template.log");
    let tools = Toolbox::new(new.environment, &log, locked.file())
        .map_err(CacheError::io("create", &log))?;
    clear_leftovers(&locked, &tools);
    let draft = locked.begin("layer")?;
    let image = draft.path().join(LAYER);
    progress.step("making the layer's disk");
    let made = match new.files {
        LayerFiles::Directory(tree) => Namespace::of_caller(&tools)
            .map_err(DiskError::from)
            .and_then(|namespace| layer::of_directory(&tools, namespace, tree, &image)),
        LayerFiles::Archive(input) => layer::of_archive(input, under.as_deref(), &image),
    };
    made.map_err(|source| TemplateError::Disk { name: name.to_owned(), source })?;
    let mut layers = base.layers;
    layers.push(LayerRecord { digest: store.take_layer(&image)?, source: None });
    let manifest = Manifest::new(name, new.origin, new.source, layers, new.config);
    let made = finish(&store, draft, &manifest, name)?;
    name_it(&store, name, &made)?;
    Ok(made)
}

/// The newest template that was made from this source, under a name of the caller's.
pub fn template_of_source(images: &Path, source: &str, name: &str) -> Option<Template> {
    TemplateStore::new(images).newest(source, name, None)
}

fn resolve(
    options: &TemplateOptions,
    progress: &dyn Progress,
) -> Result<(Source, String), TemplateError> {
    let name = options.name.as_str();
    let store = TemplateStore::new(&options.images);
    let named = Reference::parse(name).ok().and_then(|name| manage::named(&store, &name));
    // What somebody gave a flavor's name to comes before the recipe of that name.
    let again = options.pull == PullTemplate::Always;
    if let Some(template) = named.filter(|template| !store.is_of_recipe(template))
        && !(again && store.is_fetched(&template))
    {
        return Ok((Source::There(Box::new(template)), String::new()));
    }
    if let Some(recipe) = Recipe::named(name) {
        let key = recipe.key();
        return Ok((Source::Recipe(Box::new(recipe)), key));
    }
    let path = PathBuf::from(name);
    let is_layout = path.join("oci-layout").is_file();
    // Docker's names have slashes too, so only what is there, or can be nothing else, is taken as a path.
    if !path.is_file() && !is_layout && !path.is_absolute() && !name.starts_with('.') {
        return Ok((Source::Image(Reference::parse(name)?), String::new()));
    }
    let import_failed = |source| TemplateError::Import { name: name.to_owned(), source };
    if is_layout || path.is_file() && import::holds_images(&path).map_err(import_failed)? {
        return Ok((Source::Images(path), String::new()));
    }
    let failed = |source| TemplateError::Input { path: path.clone(), source };
    let kind = layer::kind_of(&path).map_err(failed)?;
    let key = digest::known::of_file(&options.images, &path, || {
        progress.step("reading the template");
    })
    .map_err(failed)?;
    Ok((Source::File { path, kind }, key))
}

/// A disk image is used as it is; anything else is the archive of a root file system.
fn make_of_file(
    path: &Path,
    kind: layer::Kind,
    image: &Path,
    progress: &dyn Progress,
) -> Result<(), DiskError> {
    match kind {
        layer::Kind::Image => {
            progress.step("copying the template");
            fs::copy(path, image).map(drop).map_err(CacheError::io("write", image))?;
            Ok(())
        }
        layer::Kind::Archive => {
            progress.step("making the template's disk");
            layer::of_root_archive(path, image)
        }
    }
}

fn make_of_recipe(
    recipe: &Recipe,
    options: &TemplateOptions,
    tools: &Toolbox,
    draft: &Draft,
    progress: &dyn Progress,
) -> Result<(), TemplateError> {
    let failed = |source| TemplateError::Build { name: options.name.clone(), source };
    let namespace = Namespace::of_caller(tools).map_err(|error| failed(error.into()))?;
    let mirror = options.mirror.as_deref();
    let archive =
        build::build(tools, namespace, recipe, mirror, draft.path(), progress).map_err(failed)?;
    progress.step("making the template's disk");
    layer::of_root_archive(&archive, &draft.path().join(LAYER))
        .map_err(|source| TemplateError::Disk { name: options.name.clone(), source })
}

/// Removes what makers left behind that were killed.
fn clear_leftovers(locked: &Locked<'_>, tools: &Toolbox) {
    for path in locked.leftovers().unwrap_or_default() {
        // A tree may have files of owners that only a namespace can remove.
        let removed = crate::cache::remove(&path).is_ok()
            || Namespace::of_caller(tools)
                .and_then(|namespace| namespace.remove(tools, &path))
                .is_ok();
        if !removed {
            tracing::info!(path = %path.display(), "not removed");
        }
    }
}

/// Removes everything that was only needed on the way.
fn clear(draft: &Path) -> Result<(), CacheError> {
    for entry in fs::read_dir(draft).map_err(CacheError::io("list", draft))? {
        let path = entry.map_err(CacheError::io("list", draft))?.path();
        crate::cache::remove(&path).map_err(CacheError::io("remove", &path))?;
    }
    Ok(())
}
