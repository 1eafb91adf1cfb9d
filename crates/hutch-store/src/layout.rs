//! Where everything is.
//!
//! [`Layout::resolve`] is pure: the caller reads the environment. [`Layout::prepare`] makes the directories and refuses
//! ones that somebody else could change under us.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::atomic::FileError;
use crate::name::{SandboxId, SandboxName};

/// The part of the environment that decides where files are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayoutInputs {
    /// `$HUTCH_HOME`.
    pub hutch_home: Option<PathBuf>,
    /// `$HUTCH_IMAGES`.
    pub hutch_images: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub xdg_state_home: Option<PathBuf>,
    /// `$XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<PathBuf>,
    /// `$HOME`.
    pub home: Option<PathBuf>,
    /// Effective user.
    pub uid: u32,
}

/// Where everything is, resolved once from the environment by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `$HUTCH_HOME`, else `$XDG_STATE_HOME/hutch`: sandboxes, templates, guest images.
    pub state: PathBuf,
    /// `$XDG_RUNTIME_DIR/hutch`, else a private directory of the user: sockets.
    pub runtime: PathBuf,
    /// `$XDG_CONFIG_HOME/hutch`.
    pub config: PathBuf,
    /// `$HUTCH_IMAGES`, else `images` in the state directory: guest images and templates.
    pub images: PathBuf,
}

/// Why there is no layout, or why a directory of it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Nothing says where the state goes.
    #[error("neither HUTCH_HOME nor HOME says where to keep files")]
    NoHome,
    /// A variable of ours holds a relative path.
    #[error("{variable} must be an absolute path, not `{}`", path.display())]
    Relative {
        /// The variable.
        variable: &'static str,
        /// What it holds.
        path: PathBuf,
    },
    /// Somebody else owns it.
    #[error("{} belongs to user {owner}, not to user {uid}", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        uid: u32,
    },
    /// Others may change it.
    #[error("{} can be changed by other users (mode {mode:04o})", path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is something else.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made or examined.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A Unix socket's path has room for so many bytes with the final zero (`sun_path`, unix(7)).
const SOCKET_PATH_MAX: usize = 108;
/// `/` and twelve digits and `.sock` and the final zero.
const SOCKET_NAME: usize = 1 + 12 + 5 + 1;

impl Layout {
    /// Decides where everything is.
    ///
    /// A relative path in an `XDG_…` variable is ignored, as the Base Directory specification says; one in a variable of
    /// ours is an error, because a keeper that outlives its caller has no use for it.
    pub fn resolve(inputs: &LayoutInputs) -> Result<Self, LayoutError> {
        let own = |variable, path: &Option<PathBuf>| match path {
            Some(path) if path.as_os_str().is_empty() => Ok(None),
            Some(path) if path.is_absolute() => Ok(Some(path.clone())),
            Some(path) => Err(LayoutError::Relative { variable, path: path.clone() }),
            None => Ok(None),
        };
        let absolute =
            |path: &Option<PathBuf>| path.as_ref().filter(|path| path.is_absolute()).cloned();
        let home = absolute(&inputs.home);
        let below_home = |folder: &str| home.as_ref().map(|home| home.join(folder));

        let state = own("HUTCH_HOME", &inputs.hutch_home)?
            .or_else(|| absolute(&inputs.xdg_state_home).map(|base| base.join("hutch")))
            .or_else(|| below_home(".local/state/hutch"))
            .ok_or(LayoutError::NoHome)?;
        let config = absolute(&inputs.xdg_config_home)
            .or_else(|| below_home(".config"))
            .map_or_else(|| state.join("config"), |base| base.join("hutch"));
        let runtime = absolute(&inputs.xdg_runtime_dir)
            .map(|base| base.join("hutch"))
            .filter(|runtime| runtime.as_os_str().len() + SOCKET_NAME <= SOCKET_PATH_MAX)
            .unwrap_or_else(|| PathBuf::from(format!("/tmp/hutch-{}", inputs.uid)));
        let images =
            own("HUTCH_IMAGES", &inputs.hutch_images)?.unwrap_or_else(|| state.join("images"));
        Ok(Self { state, runtime, config, images })
    }

    /// Makes the state, runtime and image directories where they are missing, and refuses them where another user
    /// owns or may change them.
    pub fn prepare(&self) -> Result<(), LayoutError> {
        for directory in [&self.state, &self.sandboxes(), &self.images] {
            make_private(directory)?;
            check_owner(directory, 0o022)?;
        }
        // Whoever may write here could put a socket of theirs in the place of a keeper's.
        make_private(&self.runtime)?;
        check_owner(&self.runtime, 0o077)
    }

    /// The directory that holds one directory a sandbox.
    pub fn sandboxes(&self) -> PathBuf {
        self.state.join("sandboxes")
    }

    /// The verdict on this machine's accelerator.
    pub fn accelerator(&self) -> PathBuf {
        self.state.join("accelerator.json")
    }

    /// The version of this machine's VMM.
    pub fn qemu(&self) -> PathBuf {
        self.state.join("qemu.json")
    }

    /// The files of one sandbox.
    pub fn sandbox(&self, name: &SandboxName) -> SandboxPaths {
        SandboxPaths { directory: self.sandboxes().join(name.as_str()) }
    }

    /// The keeper's socket.
    pub fn socket(&self, id: &SandboxId) -> PathBuf {
        self.runtime.join(format!("{id}.sock"))
    }

    /// The policy that new sandboxes begin with, unless the user has one in the place where `docker sandbox` keeps it.
    pub fn default_proxy_config(&self) -> PathBuf {
        self.config.join("proxy-config.json")
    }

    /// The directory of one VM's nameable things, in the runtime directory; exists while the keeper runs.
    pub fn scratch(&self, id: &SandboxId) -> PathBuf {
        self.runtime.join(format!("{id}.vm"))
    }
}

/// The files of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPaths {
    /// The sandbox's own directory.
    pub directory: PathBuf,
}

impl SandboxPaths {
    /// The record.
    pub fn record(&self) -> PathBuf {
        self.directory.join("sandbox.json")
    }
    /// Held by whoever runs or removes the sandbox.
    pub fn lock(&self) -> PathBuf {
        self.directory.join("lock")
    }
    /// Which keeper runs it, while the lock is held.
    pub fn keeper(&self) -> PathBuf {
        self.directory.join("keeper.json")
    }
    /// How it ended last.
    pub fn status(&self) -> PathBuf {
        self.directory.join("status.json")
    }
    /// The data disk.
    pub fn data(&self) -> PathBuf {
        self.directory.join("data.img")
    }
    /// All logs.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }
    /// What the sandbox may reach; written by its keeper alone.
    pub fn proxy_config(&self) -> PathBuf {
        self.directory.join("proxy-config.json")
    }
    /// The proxy worker's own directory: its log of connections, its CA.
    pub fn network(&self) -> PathBuf {
        self.directory.join("network")
    }
    /// One log: `serial`, `init`, `keeper`, `workspace`, `proxy` or `vmm`.
    pub fn log(&self, of: &str) -> PathBuf {
        self.logs().join(format!("{of}.log"))
    }
}

/// Makes a directory and its missing parents, for us alone.
pub(crate) fn make_private(directory: &Path) -> Result<(), LayoutError> {
    match fs::DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(LayoutError::NotADirectory { path: directory.to_owned() })
        }
        Err(error) => Err(FileError::new("make the directory", directory, error).into()),
    }
}

/// Refuses a directory that is not ours, or where the mode gives others one of the `forbidden` bits.
fn check_owner(directory: &Path, forbidden: u32) -> Result<(), LayoutError> {
    // In `/tmp` anybody can make a link of the expected name.
    let link = fs::symlink_metadata(directory)
        .map_err(|error| FileError::new("examine", directory, error))?;
    let uid = rustix::process::geteuid().as_raw();
    if link.is_symlink() && link.uid() != uid {
        return Err(LayoutError::Owner { path: directory.to_owned(), owner: link.uid(), uid });
    }
    let metadata =
        fs::metadata(directory).map_err(|error| FileError::new("examine", directory, error))?;
    if !metadata.is_dir() {
        return Err(LayoutError::NotADirectory { path: directory.to_owned() });
    }
    if metadata.uid() != uid {
        return Err(LayoutError::Owner { path: directory.to_owned(), owner: metadata.uid(), uid });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & forbidden != 0 {
        return Err(LayoutError::Exposed { path: directory.to_owned(), mode });
    }
    Ok(())
}

/// Says whether a path fits a socket address.
pub fn fits_socket(path: &Path) -> bool {
    path.as_os_str().as_bytes().len() < SOCKET_PATH_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs() -> LayoutInputs {
        LayoutInputs { home: Some("/home/u".into()), uid: 1000, ..LayoutInputs::default() }
    }

    #[test]
    fn home_alone_is_enough() {
        assert_eq!(
            Layout::resolve(&inputs()).unwrap(),
            Layout {
                state: "/home/u/.local/state/hutch".into(),
                runtime: "/tmp/hutch-1000".into(),
                config: "/home/u/.config/hutch".into(),
                images: "/home/u/.local/state/hutch/images".into(),
            }
        );
    }

    #[test]
    fn each_variable_moves_its_directory() {
        let inputs = LayoutInputs {
            xdg_state_home: Some("/s".into()),
            xdg_runtime_dir: Some("/run/user/1000".into()),
            xdg_config_home: Some("/c".into()),
            hutch_images: Some("/i".into()),
            ..inputs()
        };
        let layout = Layout::resolve(&inputs).unwrap();
        assert_eq!(
            layout,
            Layout {
                state: "/s/hutch".into(),
                runtime: "/run/user/1000/hutch".into(),
                config: "/c/hutch".into(),
                images: "/i".into(),
            }
        );
        let own = LayoutInputs { hutch_home: Some("/h".into()), ..inputs };
        assert_eq!(Layout::resolve(&own).unwrap().state, Path::new("/h"));
    }

    #[test]
    fn relative_paths_are_ignored_or_refused() {
        let relative = Some(PathBuf::from("x"));
        let ignored = LayoutInputs {
            xdg_state_home: relative.clone(),
            xdg_runtime_dir: relative.clone(),
            xdg_config_home: relative.clone(),
            ..inputs()
        };
        assert_eq!(Layout::resolve(&ignored).unwrap(), Layout::resolve(&inputs()).unwrap());
        for refused in [
            LayoutInputs { hutch_home: relative.clone(), ..inputs() },
            LayoutInputs { hutch_images: relative.clone(), ..inputs() },
        ] {
            assert!(matches!(Layout::resolve(&refused), Err(LayoutError::Relative { .. })));
        }
        let empty = LayoutInputs { hutch_home: Some(PathBuf::new()), ..inputs() };
        assert_eq!(Layout::resolve(&empty).unwrap(), Layout::resolve(&inputs()).unwrap());
    }

    #[test]
    fn without_any_home_there_is_no_layout() {
        let none = LayoutInputs { home: None, ..inputs() };
        assert!(matches!(Layout::resolve(&none), Err(LayoutError::NoHome)));
        let own = LayoutInputs { hutch_home: Some("/h".into()), ..none };
        assert_eq!(Layout::resolve(&own).unwrap().config, Path::new("/h/config"));
    }

    #[test]
    fn sockets_fit_however_long_the_runtime_directory_is() {
        let id = SandboxId::parse("0123456789ab").unwrap();
        for length in 1..200 {
            let long = format!("/{}", "r".repeat(length));
            let inputs = LayoutInputs { xdg_runtime_dir: Some(long.into()), ..inputs() };
            let socket = Layout::resolve(&inputs).unwrap().socket(&id);
            assert!(fits_socket(&socket), "{}", socket.display());
            std::os::unix::net::SocketAddr::from_pathname(&socket).unwrap();
        }
    }

    #[test]
    fn a_link_of_somebody_else_is_no_directory_of_ours() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (ours, link) = (base.path().join("ours"), base.path().join("link"));
        make_private(&ours).unwrap();
        std::os::unix::fs::symlink(&ours, &link).unwrap();
        check_owner(&link, 0o077).unwrap();
        std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
        assert!(matches!(check_owner(&link, 0o077), Err(LayoutError::Owner { .. })));
    }
}
