//! Puts the built programs where users run them.
//!
//! ```text
//!   PREFIX/bin/hutch
//!   PREFIX/libexec/hutch/{hutch-keeper,hutch-workspace,hutch-init}
//!   HOME/.docker/cli-plugins/docker-sandbox → PREFIX/bin/hutch
//! ```

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::build::{self, HOST_PROGRAMS, INIT, built};
use crate::process::environment;

/// Builds and installs.
pub(crate) fn install(prefix: &Path) -> anyhow::Result<()> {
    build::build()?;
    let libexec = prefix.join("libexec/hutch");
    put(&built("hutch"), &prefix.join("bin/hutch"))?;
    for program in HOST_PROGRAMS.into_iter().filter(|program| *program != "hutch").chain([INIT]) {
        put(&built(program), &libexec.join(program))?;
    }
    eprintln!("Installed {} and {}", prefix.join("bin/hutch").display(), libexec.display());
    if let Some(home) = environment("HOME") {
        let plugin = Path::new(&home).join(".docker/cli-plugins/docker-sandbox");
        link(&prefix.join("bin/hutch"), &plugin)?;
        eprintln!("Installed the Docker CLI plugin {}", plugin.display());
    }
    Ok(())
}

/// Copies a program under a temporary name and renames it, so that running ones go on with the old file.
fn put(from: &Path, to: &Path) -> anyhow::Result<()> {
    let temporary = beside(to)?;
    fs::copy(from, &temporary)
        .with_context(|| format!("cannot copy {} to {}", from.display(), temporary.display()))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::rename(&temporary, to).with_context(|| format!("cannot install {}", to.display()))
}

fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    let temporary = beside(to)?;
    symlink(from, &temporary).with_context(|| format!("cannot link {}", temporary.display()))?;
    fs::rename(&temporary, to).with_context(|| format!("cannot install {}", to.display()))
}

/// A free name in the directory of `to`, which is made.
fn beside(to: &Path) -> anyhow::Result<PathBuf> {
    let directory = to.parent().context("a program needs a directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let mut name = to.file_name().context("a program needs a name")?.to_owned();
    name.push(".new");
    let temporary = directory.join(name);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", temporary.display()))
        }
        _ => Ok(temporary),
    }
}
