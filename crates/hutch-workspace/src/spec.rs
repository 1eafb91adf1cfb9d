//! What a worker is told to serve: handed over as JSON on a descriptor, because paths are nobody else's business.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The format of [`WorkerSpec`] that this worker understands.
pub const FORMAT_VERSION: u32 = 1;

/// Everything a worker needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSpec {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// What to serve; number `i` is the child named by the decimal `i` of the FUSE root.
    pub workspaces: Vec<WorkspaceSpec>,
    /// User in the guest whom the host user's files belong to.
    pub guest_uid: u32,
    /// Group in the guest whom the host user's files belong to.
    pub guest_gid: u32,
}

/// One directory or file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceSpec {
    /// Absolute path on the host without symbolic links.
    pub path: serde_bytes::ByteBuf,
    /// The guest may change nothing.
    pub read_only: bool,
}

impl WorkspaceSpec {
    /// Describes a workspace.
    pub fn new(path: &Path, read_only: bool) -> Self {
        Self { path: serde_bytes::ByteBuf::from(path.as_os_str().as_bytes()), read_only }
    }

    /// The path.
    pub fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }
}

impl WorkerSpec {
    /// A spec for the sandbox's usual user, number 1000.
    pub fn new(workspaces: Vec<WorkspaceSpec>) -> Self {
        Self { format_version: FORMAT_VERSION, workspaces, guest_uid: 1000, guest_gid: 1000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_any_bytes_survives_json() {
        let path = Path::new(OsStr::from_bytes(b"/a \xff/\n"));
        let spec = WorkerSpec::new(vec![WorkspaceSpec::new(path, true)]);
        let json = serde_json::to_string(&spec).unwrap();
        let back: WorkerSpec = serde_json::from_str(&json).unwrap();
        assert_eq!(back, spec);
        assert_eq!(back.workspaces[0].path(), path);
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let json = r#"{"format_version":1,"workspaces":[],"guest_uid":1,"guest_gid":1,"new":0}"#;
        assert!(serde_json::from_str::<WorkerSpec>(json).is_err());
    }
}
