//! From a recipe to a root file system's tar, by mmdebstrap, with the host's mirror and without Docker.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::Progress;
use crate::apt::{self, AptError, Mirrors, SUITE};
use crate::cache::{CacheError, write_file};
use crate::digest::Key;
use crate::template::namespace::{Namespace, NamespaceError};
use crate::template::recipe::Recipe;
use crate::tool::{ToolError, Toolbox};

/// Why a recipe's root file system cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A tool failed or is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// The package archive is not known.
    #[error(transparent)]
    Apt(#[from] AptError),
    /// No namespace to work in.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// A file of ours cannot be written.
    #[error(transparent)]
    File(#[from] CacheError),
    /// The directory for the tree cannot be trusted.
    #[error("{} exists and belongs to somebody else", path.display())]
    ForeignScratch {
        /// Its path.
        path: PathBuf,
    },
}

/// Where the uploaded files are inside the new root file system.
const GUEST_SETUP: &str = "/var/tmp/setup.sh";
const GUEST_WHEELS: &str = "/var/tmp/wheels";

/// Builds `recipe` into a tar below `draft`, and returns it.
pub(crate) fn build(
    tools: &Toolbox,
    namespace: Namespace,
    recipe: &Recipe,
    mirror: Option<&str>,
    draft: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, BuildError> {
    tools.require("mmdebstrap", "--version", "mmdebstrap")?;
    let mirrors = apt::mirrors(tools, mirror)?;
    let proxies = apt::proxies(tools)?;
    progress.step("fetching Python packages");
    let wheels = fetch_wheels(tools, recipe, draft)?;
    let setup = draft.join("setup.sh");
    write_file(&setup, recipe.setup().as_bytes())?;
    let scratch = Scratch::new(tools, namespace, draft)?;
    let archive = draft.join("root.tar");
    let mode = if namespace == Namespace::Root { "root" } else { "unshare" };
    let mut tool = tools
        .tool("setpriv", "util-linux")
        // When we are killed it cleans up and ends, and with it the lock that it holds: the next run need not wait.
        .args(["--pdeathsig", "TERM", "--", "mmdebstrap"])
        .on_behalf_of("mmdebstrap")
        .env("TMPDIR", &scratch.path)
        .args([&format!("--mode={mode}"), "--variant=apt", "--format=tar", "--verbose"])
        .args([
            "--aptopt=Acquire::Languages \"none\"",
            "--aptopt=APT::Install-Recommends \"false\"",
        ])
        // Nobody needs the tree after a power failure, so nothing has to wait for the disk.
        .arg("--dpkgopt=force-unsafe-io")
        .args(recipe.path_excludes.iter().map(|path| format!("--dpkgopt=path-exclude={path}")))
        .args(recipe.path_includes.iter().map(|path| format!("--dpkgopt=path-include={path}")))
        .arg(format!("--include={}", recipe.packages.join(",")))
        .args(hooks(recipe, &setup, &wheels));
    for (name, value) in &proxies {
        tool = tool.env(name, value);
    }
    progress.step("fetching the list of packages");
    let mut packages = PackageProgress::default();
    let built = tool
        .arg(SUITE)
        .arg(&archive)
        .args(lines(&mirrors))
        .run(&mut |line| packages.see(line, progress));
    let removed = scratch.remove();
    built?;
    removed?;
    Ok(archive)
}

/// The archive's lines as they are also written into the image. The keys are mmdebstrap's to find.
fn lines(mirrors: &Mirrors) -> Vec<String> {
    let mut lines = vec![
        format!("deb {} {SUITE} main", mirrors.main),
        format!("deb {} {SUITE}-updates main", mirrors.main),
    ];
    if let Some(security) = &mirrors.security {
        lines.push(format!("deb {security} {SUITE}-security main"));
    }
    lines
}

fn hooks(recipe: &Recipe, setup: &Path, wheels: &[PathBuf]) -> Vec<String> {
    let upload = |file: &Path, target: &str| {
        format!("--customize-hook=upload {} {}", quote(&file.to_string_lossy()), quote(target))
    };
    let mut hooks = vec![upload(setup, GUEST_SETUP)];
    if !wheels.is_empty() {
        hooks.push(format!("--customize-hook=mkdir -p \"$1\"{GUEST_WHEELS}"));
    }
    for wheel in wheels {
        let name = wheel.file_name().unwrap_or_default().to_string_lossy();
        hooks.push(upload(wheel, &format!("{GUEST_WHEELS}/{name}")));
    }
    let path = recipe.environment.get("PATH").map_or("", String::as_str);
    let python: String =
        recipe.python_packages.iter().map(|package| format!(" {}", quote(package))).collect();
    hooks.push(format!(
        "--customize-hook=chroot \"$1\" sh {GUEST_SETUP} {} {GUEST_WHEELS}{python}",
        quote(path)
    ));
    hooks.push(format!("--customize-hook=rm \"$1\"{GUEST_SETUP}"));
    hooks
}

/// Quotes for a shell, and for mmdebstrap's own splitting, which follows the same rules.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Fetches the recipe's Python packages with the host's pip, which knows the index and the certificates to use here.
///
/// Without one the packages are installed over the network by the image's own pip, so an empty list is no error.
fn fetch_wheels(
    tools: &Toolbox,
    recipe: &Recipe,
    draft: &Path,
) -> Result<Vec<PathBuf>, BuildError> {
    if recipe.python_packages.is_empty() {
        return Ok(Vec::new());
    }
    let directory = draft.join("wheels");
    let fetched = tools
        .tool("python3", "python3")
        .args(["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"])
        .args(["--only-binary", ":all:", "--python-version", "3.13"])
        .args(["--platform", concat_platform()])
        .arg("--dest")
        .arg(&directory)
        .args(&recipe.python_packages)
        .output();
    if let Err(error) = fetched {
        tracing::info!(%error, "no Python packages by the host's pip");
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(&directory).map_err(CacheError::io("list", &directory))?;
    Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
}

/// The image's architecture as Python's packages name it.
const fn concat_platform() -> &'static str {
    if cfg!(target_arch = "aarch64") { "manylinux2014_aarch64" } else { "manylinux2014_x86_64" }
}

/// Where mmdebstrap keeps the tree while it builds: a place that its user namespace can enter, which a home is not.
///
/// Not `/tmp`, which is memory on many machines. One for each images directory, so that its lock protects it.
#[derive(Debug)]
struct Scratch<'a> {
    tools: &'a Toolbox,
    namespace: Namespace,
    path: PathBuf,
}

impl<'a> Scratch<'a> {
    fn new(tools: &'a Toolbox, namespace: Namespace, draft: &Path) -> Result<Self, BuildError> {
        let uid = rustix::process::geteuid().as_raw();
        let images = draft.parent().unwrap_or(draft).as_os_str().as_encoded_bytes();
        let key = Key::default().part("images", images).finish();
        let path = Path::new("/var/tmp").join(format!("hutch-{uid}-{}", &key[..12]));
        let scratch = Self { tools, namespace, path };
        if let Ok(metadata) = fs::symlink_metadata(&scratch.path) {
            if !metadata.is_dir() || metadata.uid() != uid {
                return Err(BuildError::ForeignScratch { path: scratch.path });
            }
            scratch.remove()?;
        }
        // Fails when somebody made it meanwhile, so it is ours and its mode is as written here.
        fs::DirBuilder::new()
            .mode(0o755)
            .create(&scratch.path)
            .map_err(CacheError::io("create", &scratch.path))?;
        Ok(scratch)
    }

    fn remove(&self) -> Result<(), NamespaceError> {
        self.namespace.remove(self.tools, &self.path)
    }
}

/// Makes a progress of mmdebstrap's output, which is that of apt and dpkg: two rounds of fetching and installing.
#[derive(Debug, Default)]
struct PackageProgress {
    phase: Phase,
    total: u64,
    done: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Other,
    Fetching,
    Installing,
}

impl PackageProgress {
    fn see(&mut self, line: &str, progress: &dyn Progress) {
        if let Some(total) = newly_installed(line) {
            self.enter(Phase::Fetching, "fetching packages", progress);
            self.total = total;
        } else if line.starts_with("Get:") && self.phase == Phase::Fetching {
            self.one_more(progress);
        } else if line.starts_with("Setting up ") {
            if self.phase != Phase::Installing {
                self.enter(Phase::Installing, "installing packages", progress);
            }
            self.one_more(progress);
        } else if line.starts_with("I: running --customize-hook") && self.phase != Phase::Other {
            self.enter(Phase::Other, "setting up the template", progress);
        } else if line.starts_with("I: creating tarball") {
            self.enter(Phase::Other, "packing the template", progress);
        }
    }

    fn enter(&mut self, phase: Phase, what: &str, progress: &dyn Progress) {
        self.phase = phase;
        self.done = 0;
        progress.step(what);
    }

    fn one_more(&mut self, progress: &dyn Progress) {
        self.done += 1;
        progress.advance(self.done, Some(self.total.max(self.done)), "packages");
    }
}

/// The number in apt's `0 upgraded, 581 newly installed, 0 to remove and 0 not upgraded.`
fn newly_installed(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(" newly installed")?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorded(Mutex<Vec<String>>);

    impl Progress for Recorded {
        fn step(&self, what: &str) {
            self.0.lock().unwrap().push(what.to_owned());
        }

        fn advance(&self, done: u64, total: Option<u64>, unit: &str) {
            self.0.lock().unwrap().push(format!("{done}/{} {unit}", total.unwrap_or(0)));
        }
    }

    #[test]
    fn progress_follows_both_rounds() {
        let output = "\
I: running apt-get update...
Get:1 http://mirror.test trixie InRelease [140 kB]
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://mirror.test trixie/main amd64 a [1 kB]
Get:2 http://mirror.test trixie/main amd64 b [1 kB]
Setting up a (1) ...
Setting up b (1) ...
0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.
Get:1 http://mirror.test trixie/main amd64 c [1 kB]
Setting up c (1) ...
Processing triggers for c (1) ...
I: running --customize-hook in shell: x
I: running --customize-hook in shell: y
I: creating tarball...
";
        let recorded = Recorded::default();
        let mut packages = PackageProgress::default();
        for line in output.lines() {
            packages.see(line, &recorded);
        }
        assert_eq!(
            *recorded.0.lock().unwrap(),
            [
                "fetching packages",
                "1/2 packages",
                "2/2 packages",
                "installing packages",
                "1/2 packages",
                "2/2 packages",
                "fetching packages",
                "1/1 packages",
                "installing packages",
                "1/1 packages",
                "setting up the template",
                "packing the template",
            ]
        );
    }

    #[test]
    fn quoting_survives_a_shell() {
        let name = "it's a \"path\" $HOME `x` \\";
        let output = hutch_sys::spawn::command("sh")
            .args(["-c", &format!("printf %s {}", quote(name))])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), name);
    }

    #[test]
    fn the_image_uses_the_mirror_of_this_machine() {
        let mut mirrors = Mirrors {
            main: "http://mirror.test/debian".to_owned(),
            security: None,
            keyring: PathBuf::from("/k"),
        };
        assert_eq!(
            lines(&mirrors),
            [
                "deb http://mirror.test/debian trixie main",
                "deb http://mirror.test/debian trixie-updates main"
            ]
        );
        mirrors.security = Some("http://mirror.test/security".to_owned());
        assert_eq!(lines(&mirrors)[2], "deb http://mirror.test/security trixie-security main");
    }
}
