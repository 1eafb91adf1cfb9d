//! Templates: a root file system in one read-only disk image, built here from a recipe or given as a file.
//!
//! ```text
//! images/templates/<digest>/   template.img  manifest.json
//!
//! recipe ──build (mmdebstrap)──▶ tar ──disk (mkfs.erofs)──▶ image
//!                 a tar by path ──┘        an image by path ──┘
//! ```
//!
//! A digest names one image for ever: building a recipe again gives another digest, so that what a stopped sandbox
//! stands on does not change under it. The newest image of a recipe is the one that its name means.

mod build;
mod disk;
mod namespace;
mod recipe;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Progress;
use crate::cache::{Cache, CacheError, Draft, Locked};
use crate::digest::{self, Key};
pub use crate::template::build::BuildError;
pub use crate::template::disk::DiskError;
use crate::template::namespace::Namespace;
pub use crate::template::namespace::NamespaceError;
use crate::template::recipe::Recipe;
use crate::tool::Toolbox;

const FORMAT_VERSION: u32 = 1;
const IMAGE: &str = "template.img";
const DIGEST_PREFIX: &str = "sha256:";

/// A template: a read-only root file system image and what it says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The read-only disk image.
    pub image: PathBuf,
    /// `sha256:…`: names this very image.
    pub digest: String,
    /// How a person named it: `shell`.
    pub name: String,
    /// Variables that its sessions start with, `PATH` among them; empty where it says nothing.
    pub environment: BTreeMap<String, String>,
    /// Login name of its sessions, if it says one.
    pub user: Option<String>,
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
    /// A root file system cannot be made into a disk.
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
    /// The cache cannot be read or written.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// `manifest.json` of a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    format_version: u32,
    name: String,
    /// Key of the recipe, or digest of the file that it was made from.
    source: String,
    /// Nanoseconds since the epoch: of several images of one source, the newest is used.
    made: u64,
    environment: BTreeMap<String, String>,
    user: Option<String>,
}

impl Manifest {
    /// Of a template made now that says nothing of its sessions.
    fn new(name: &str, source: &str) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            name: name.to_owned(),
            source: source.to_owned(),
            made: now(),
            environment: BTreeMap::new(),
            user: None,
        }
    }
}

/// What is to be made, and what tells it from others.
enum Source {
    Recipe(Box<Recipe>),
    File { path: PathBuf, kind: disk::Kind },
}

/// Returns the template of a name, making it if it is not there yet.
///
/// Blocks, for minutes when a recipe must be built. Of several processes that ask for the same template one makes it
/// and the others wait.
pub fn template(
    options: &TemplateOptions,
    progress: &dyn Progress,
) -> Result<Template, TemplateError> {
    let (source, key) = resolve(options, progress)?;
    let cache = Cache::new(options.images.join("templates"));
    let is_recipe = matches!(source, Source::Recipe(_));
    let asked = now();
    if !(is_recipe && options.pull == PullTemplate::Always)
        && let Some(found) = newest(&cache, &key, &options.name, None)
    {
        return Ok(found);
    }
    if is_recipe && options.pull == PullTemplate::Never {
        return Err(TemplateError::Absent { name: options.name.clone() });
    }
    let locked = cache.lock(progress)?;
    let log = options.images.join("logs/template.log");
    // Whoever had the lock may have made it meanwhile; something built after we asked is as new as we want it.
    let not_before = (is_recipe && options.pull == PullTemplate::Always).then_some(asked);
    if let Some(found) = newest(&cache, &key, &options.name, not_before) {
        return Ok(found);
    }
    let tools = Toolbox::new(&options.environment, &log, locked.file())
        .map_err(CacheError::io("create", &log))?;
    let (draft, manifest) = if let Source::File { path, kind: disk::Kind::Image } = &source {
        copy_image(&locked, path, Manifest::new(&options.name, &key), progress)?
    } else {
        let builder = Builder::new(&tools, &locked, options, progress)?;
        builder.build(&source, Manifest::new(&options.name, &key))?
    };
    let digest =
        Key::default().part("source", &key).part("made", manifest.made.to_le_bytes()).finish();
    draft.publish_as(&digest, &manifest)?;
    tracing::info!(%digest, name = options.name, "template made");
    load(&cache, &digest, &options.name).ok_or(TemplateError::Gone { digest })
}

/// Returns the very image that a sandbox was made with.
pub fn template_image(images: &Path, name: &str, digest: &str) -> Result<Template, TemplateError> {
    let cache = Cache::new(images.join("templates"));
    let gone = || TemplateError::Gone { digest: digest.to_owned() };
    let key = digest.strip_prefix(DIGEST_PREFIX).ok_or_else(gone)?;
    // It becomes a part of a path.
    let is_digest = key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| load(&cache, key, name)).flatten().ok_or_else(gone)
}

fn resolve(
    options: &TemplateOptions,
    progress: &dyn Progress,
) -> Result<(Source, String), TemplateError> {
    let name = options.name.as_str();
    if let Some(recipe) = Recipe::named(name) {
        let key = recipe.key();
        return Ok((Source::Recipe(Box::new(recipe)), key));
    }
    let path = PathBuf::from(name);
    // Docker's names have slashes too, so only what is there, or can be nothing else, is taken as a path.
    if !path.is_file() && !path.is_absolute() && !name.starts_with('.') {
        return Err(TemplateError::Unknown { name: name.to_owned() });
    }
    let failed = |source| TemplateError::Input { path: path.clone(), source };
    let kind = disk::kind_of(&path).map_err(failed)?;
    let key = digest::known::of_file(&options.images, &path, || {
        progress.step("reading the template");
    })
    .map_err(failed)?;
    Ok((Source::File { path, kind }, key))
}

/// A disk image is used as it is, for which nothing needs to be installed.
fn copy_image(
    locked: &Locked<'_>,
    path: &Path,
    manifest: Manifest,
    progress: &dyn Progress,
) -> Result<(Draft, Manifest), TemplateError> {
    progress.step("copying the template");
    for left in locked.leftovers()? {
        // What somebody's build left behind may need a namespace to be removed; then the next build does that.
        if let Err(error) = crate::cache::remove(&left) {
            tracing::info!(%error, path = %left.display(), "not removed");
        }
    }
    let draft = locked.begin("image")?;
    let image = draft.path().join(IMAGE);
    fs::copy(path, &image).map_err(CacheError::io("write", &image))?;
    Ok((draft, manifest))
}

/// Makes a disk image of a root file system.
struct Builder<'a> {
    tools: &'a Toolbox,
    namespace: Namespace,
    draft: Draft,
    options: &'a TemplateOptions,
    progress: &'a dyn Progress,
}

impl<'a> Builder<'a> {
    /// Checks that everything is there that the work needs, and clears the place.
    fn new(
        tools: &'a Toolbox,
        locked: &Locked<'_>,
        options: &'a TemplateOptions,
        progress: &'a dyn Progress,
    ) -> Result<Self, TemplateError> {
        let failed = |source| TemplateError::Disk { name: options.name.clone(), source };
        tools
            .require("mkfs.erofs", "-V", disk::MKFS_PACKAGE)
            .map_err(|error| failed(error.into()))?;
        let namespace = Namespace::of_caller(tools).map_err(|error| failed(error.into()))?;
        for path in locked.leftovers()? {
            namespace.remove(tools, &path).map_err(|error| failed(error.into()))?;
        }
        let draft = locked.begin("template")?;
        Ok(Self { tools, namespace, draft, options, progress })
    }

    /// Puts the image into the draft, alone.
    fn build(
        self,
        source: &Source,
        mut manifest: Manifest,
    ) -> Result<(Draft, Manifest), TemplateError> {
        let name = &self.options.name;
        let directory = self.draft.path();
        let archive = match source {
            Source::Recipe(recipe) => {
                manifest.environment.clone_from(&recipe.environment);
                manifest.user = Some(recipe.user.clone());
                let mirror = self.options.mirror.as_deref();
                let (tools, namespace) = (self.tools, self.namespace);
                build::build(tools, namespace, recipe, mirror, directory, self.progress)
                    .map_err(|source| TemplateError::Build { name: name.clone(), source })?
            }
            Source::File { path, .. } => path.clone(),
        };
        self.progress.step("making the template's disk");
        let (tree, image) = (directory.join("tree"), directory.join(IMAGE));
        disk::make(self.tools, self.namespace, &archive, &tree, &image)
            .map_err(|source| TemplateError::Disk { name: name.clone(), source })?;
        clear(directory)?;
        Ok((self.draft, manifest))
    }
}

/// Removes everything that was only needed on the way.
fn clear(draft: &Path) -> Result<(), CacheError> {
    for entry in fs::read_dir(draft).map_err(CacheError::io("list", draft))? {
        let entry = entry.map_err(CacheError::io("list", draft))?;
        if entry.file_name() != IMAGE {
            let path = entry.path();
            crate::cache::remove(&path).map_err(CacheError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// The newest image of a source, made at `not_before` or later.
fn newest(cache: &Cache, source: &str, name: &str, not_before: Option<u64>) -> Option<Template> {
    let (path, _) = cache
        .all::<Manifest>()
        .into_iter()
        .filter(|(path, manifest)| {
            manifest.source == source
                && manifest.format_version == FORMAT_VERSION
                && path.join(IMAGE).is_file()
                && not_before.is_none_or(|time| manifest.made >= time)
        })
        .max_by_key(|(_, manifest)| manifest.made)?;
    load(cache, path.file_name()?.to_str()?, name)
}

/// Nanoseconds since the epoch, enough for five centuries.
fn now() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn load(cache: &Cache, digest: &str, name: &str) -> Option<Template> {
    let manifest: Manifest = cache.manifest(digest)?;
    let image = cache.path(digest).join(IMAGE);
    let usable = manifest.format_version == FORMAT_VERSION && image.is_file();
    usable.then(|| Template {
        image,
        digest: format!("{DIGEST_PREFIX}{digest}"),
        name: name.to_owned(),
        environment: manifest.environment,
        user: manifest.user,
    })
}
