//! Where the other programs of Hutch are.

use std::path::{Path, PathBuf};

/// One of the programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// One process a running sandbox.
    Keeper,
    /// Serves a sandbox's workspaces.
    Workspace,
    /// A sandbox's way out, and the broker of its credentials.
    Proxy,
    /// PID 1 of the guest, static.
    Init,
}

impl Program {
    /// The file's name.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Keeper => "hutch-keeper",
            Self::Workspace => "hutch-workspace",
            Self::Proxy => "hutch-proxy",
            Self::Init => "hutch-init",
        }
    }
}

/// Where to look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    directories: Vec<PathBuf>,
    /// Only for init: where cargo puts programs that were built for a named target.
    target_builds: Vec<PathBuf>,
}

/// A program is nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{program} is not installed beside hutch (looked in {looked_in})")]
pub struct ProgramError {
    /// The program's file name.
    pub program: &'static str,
    /// All directories, with commas.
    pub looked_in: String,
}

impl Programs {
    /// Looks in `libexec` (`$HUTCH_LIBEXEC`) alone when given; else beside the running executable, and in
    /// `../libexec/hutch` from there.
    pub fn new(libexec: Option<&Path>, executable: &Path) -> Self {
        if let Some(libexec) = libexec {
            return Self { directories: vec![libexec.to_owned()], target_builds: Vec::new() };
        }
        let beside = executable.parent().unwrap_or_else(|| Path::new("/")).to_owned();
        let above = beside.parent().unwrap_or_else(|| Path::new("/"));
        let target = above.join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
        Self {
            target_builds: vec![target.join("release"), target.join("debug")],
            directories: vec![beside.clone(), above.join("libexec/hutch")],
        }
    }

    /// Finds a program.
    pub fn find(&self, program: Program) -> Result<PathBuf, ProgramError> {
        let name = program.file_name();
        // In a developer's tree the init beside us is linked dynamically and useless in a guest.
        let first: &[PathBuf] = if program == Program::Init { &self.target_builds } else { &[] };
        let all = || first.iter().chain(&self.directories);
        all().map(|directory| directory.join(name)).find(|path| path.is_file()).ok_or_else(|| {
            let looked_in: Vec<_> = all().map(|path| path.display().to_string()).collect();
            ProgramError { program: name, looked_in: looked_in.join(", ") }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &Path) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::File::create(path).unwrap();
        path.to_owned()
    }

    #[test]
    fn a_program_is_found_beside_then_in_libexec() {
        let base = tempfile::tempdir().unwrap();
        let programs = Programs::new(None, &base.path().join("bin/hutch"));
        let error = programs.find(Program::Keeper).unwrap_err();
        assert!(error.to_string().contains("libexec/hutch"), "{error}");
        let far = place(&base.path().join("libexec/hutch/hutch-keeper"));
        assert_eq!(programs.find(Program::Keeper).unwrap(), far);
        let near = place(&base.path().join("bin/hutch-keeper"));
        assert_eq!(programs.find(Program::Keeper).unwrap(), near);
    }

    #[test]
    fn a_named_directory_is_the_only_one() {
        let base = tempfile::tempdir().unwrap();
        place(&base.path().join("bin/hutch-keeper"));
        let named = base.path().join("named");
        let programs = Programs::new(Some(&named), &base.path().join("bin/hutch"));
        assert!(programs.find(Program::Keeper).is_err());
        let path = place(&named.join("hutch-keeper"));
        assert_eq!(programs.find(Program::Keeper).unwrap(), path);
    }

    #[test]
    fn a_developers_tree_has_its_static_init() {
        let base = tempfile::tempdir().unwrap();
        place(&base.path().join("debug/hutch-init"));
        let target = format!("{}-unknown-linux-gnu/release/hutch-init", std::env::consts::ARCH);
        let path = place(&base.path().join(target));
        let programs = Programs::new(None, &base.path().join("debug/hutch"));
        assert_eq!(programs.find(Program::Init).unwrap(), path);
    }
}
