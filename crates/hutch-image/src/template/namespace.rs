//! Working on a root file system's tree as its root, without being root.
//!
//! A user namespace maps its root to the calling user and the ids above to the user's subordinate ids, so files can
//! have all owners that an image needs, and can be removed again. Root needs none of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::tool::{Tool, ToolError, Toolbox};

const SUBORDINATE_FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];

/// Fewer ids than an ordinary system uses are not enough: `nobody` is 65534.
const IDS_NEEDED: u64 = 65_536;

/// Why an ordinary user cannot make images here.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The user has no subordinate ids.
    #[error(
        "the user {user} has no range of {IDS_NEEDED} ids in {file}: as root, run \
         `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`"
    )]
    NoSubordinateIds {
        /// Name of the user.
        user: String,
        /// The file that should name the user.
        file: &'static str,
    },
    /// A tool failed or is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A tree cannot be removed.
    #[error("failed to remove {}", path.display())]
    Remove {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// How the tools that need to be root are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    /// We are root.
    Root,
    /// In a user namespace.
    User,
}

impl Namespace {
    /// What the calling user needs; checked, so that what is missing is named before any work is done.
    pub(crate) fn of_caller(tools: &Toolbox) -> Result<Self, NamespaceError> {
        let uid = rustix::process::geteuid();
        if uid.is_root() {
            return Ok(Self::Root);
        }
        let user = tools.tool("id", "coreutils").arg("-un").output()?.trim().to_owned();
        for file in SUBORDINATE_FILES {
            let text = fs::read_to_string(file).unwrap_or_default();
            if !has_range(&text, &user, uid.as_raw()) {
                return Err(NamespaceError::NoSubordinateIds { user, file });
            }
        }
        for program in ["newuidmap", "newgidmap"] {
            tools.require(program, "--help", "uidmap")?;
        }
        tools.tool("unshare", "util-linux").args(Self::UNSHARE).args(["--", "true"]).output()?;
        Ok(Self::User)
    }

    const UNSHARE: [&str; 3] = ["--user", "--map-root-user", "--map-auto"];

    /// A tool that runs as root of the tree.
    pub(crate) fn tool<'a>(
        self,
        tools: &'a Toolbox,
        program: &str,
        package: &'static str,
    ) -> Tool<'a> {
        match self {
            Self::Root => tools.tool(program, package),
            Self::User => {
                let unshare = tools.tool("unshare", "util-linux").on_behalf_of(program);
                unshare.args(Self::UNSHARE).args(["--", program])
            }
        }
    }

    /// Removes a tree with files of any of the mapped owners.
    pub(crate) fn remove(self, tools: &Toolbox, path: &Path) -> Result<(), NamespaceError> {
        let failed = |source| NamespaceError::Remove { path: path.to_owned(), source };
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed(source)),
            Ok(_) => {}
        }
        self.tool(tools, "rm", "coreutils").args(["-rf", "--"]).arg(path).output()?;
        Ok(())
    }
}

/// Whether a file of the format of subuid(5) gives the user enough ids.
fn has_range(text: &str, user: &str, uid: u32) -> bool {
    text.lines().any(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [owner, _first, count] = fields[..] else { return false };
        let ours = owner == user || owner.parse() == Ok(uid);
        ours && count.trim().parse::<u64>().is_ok_and(|count| count >= IDS_NEEDED)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_belongs_to_a_name_or_a_number() {
        let text = "alice:100000:65536\n1001:165536:65536\nbob:0:10\nbroken\n";
        assert!(has_range(text, "alice", 1000));
        assert!(has_range(text, "carol", 1001));
        assert!(!has_range(text, "bob", 1002));
        assert!(!has_range(text, "broken", 1003));
        assert!(!has_range("", "alice", 1000));
    }

    #[test]
    fn the_error_says_what_to_run() {
        let error =
            NamespaceError::NoSubordinateIds { user: "alice".to_owned(), file: "/etc/subuid" };
        assert!(error.to_string().contains("usermod --add-subuids"), "{error}");
    }
}
