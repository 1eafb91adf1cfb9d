//! The tree of an agent's layer: packages of npm at locked versions, and links to their programs.
//!
//! The host's npm fetches them, because it knows the registry, the proxy and the certificates to use here. It runs none of
//! the packages' scripts: what a script would do is a link of ours. Every file is checked against the lock's digest by npm.
//!
//! ```text
//!   usr/local/bin/claude ──▶ usr/local/lib/hutch/claude-code/node_modules/…/claude
//! ```

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use hutch_agents::NpmRecipe;

use crate::Progress;
use crate::cache::{CacheError, write_file};
use crate::tool::{ToolError, Toolbox};

/// Where the packages are, in the sandbox.
const LIBRARY: &str = "usr/local/lib/hutch";
/// Where the programs are looked for.
const PROGRAMS: &str = "usr/local/bin";

/// Why an agent's packages are not there.
#[derive(Debug, thiserror::Error)]
pub enum NpmError {
    /// A tool failed or is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file of ours cannot be written.
    #[error(transparent)]
    File(#[from] CacheError),
    /// The packages are there, but not what is started.
    #[error("the packages have no {path} for the program `{program}`")]
    Program {
        /// The program.
        program: String,
        /// Where it should be.
        path: String,
    },
}

/// Changes whenever the same recipe would give another tree.
pub(crate) const TREE_VERSION: &str = "1";

/// Makes the tree below `draft`, and returns it.
pub(crate) fn tree(
    tools: &Toolbox,
    recipe: &NpmRecipe,
    draft: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, NpmError> {
    tools.require("npm", "--version", "npm")?;
    let tree = draft.join("agent");
    let project = tree.join(LIBRARY).join(&recipe.template);
    let programs = tree.join(PROGRAMS);
    for directory in [&project, &programs] {
        fs::create_dir_all(directory).map_err(CacheError::io("create", directory))?;
    }
    write_file(&project.join("package.json"), recipe.manifest.as_bytes())?;
    write_file(&project.join("package-lock.json"), recipe.lock.as_bytes())?;
    let what = recipe.version().unwrap_or_else(|| recipe.template.clone());
    progress.step(&format!("fetching {what}"));
    install(tools, &project, &draft.join("npm"))?;
    let modules = project.join("node_modules");
    for path in recipe.remove.iter().map(String::as_str).chain([".bin", ".package-lock.json"]) {
        let path = modules.join(path);
        match crate::cache::remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CacheError::io("remove", &path)(error).into());
            }
            _ => {}
        }
    }
    for (program, path) in &recipe.programs {
        let file = modules.join(path);
        if !file.is_file() {
            return Err(NpmError::Program { program: program.clone(), path: path.clone() });
        }
        let target = format!("../lib/hutch/{}/node_modules/{path}", recipe.template);
        let link = programs.join(program);
        symlink(target, &link).map_err(CacheError::io("create", &link))?;
        tools.tool("chmod", "coreutils").arg("a+x").arg(&file).output()?;
    }
    // Whatever the caller's file mode mask is, the sandbox's users can read them.
    tools.tool("chmod", "coreutils").args(["-R", "u+w,a+rX,go-w"]).arg(&tree).output()?;
    Ok(tree)
}

fn install(tools: &Toolbox, project: &Path, cache: &Path) -> Result<(), NpmError> {
    let cpu = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    tools
        .tool("npm", "npm")
        .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=http"])
        .args(["--no-update-notifier", "--os=linux", "--libc=glibc"])
        .arg(format!("--cpu={cpu}"))
        .arg("--cache")
        .arg(cache)
        .current_dir(project)
        .output()?;
    Ok(())
}
