//! What a sandbox has changed of its template, as the archive of a layer.
//!
//! That is the overlay's upper directory in another form: its whiteouts and opaque directories become those of an archive,
//! and a directory that was renamed, of which the upper directory has only the new name, is told as a whole. Left out is
//! what belongs to this one sandbox: its workspaces, what runs in it, its identity, the proxy's certificates and settings,
//! and log files.
//!
//! All of it is the work of programs that run on meanwhile, so files are found one name at a time below a held directory,
//! never through a link, and a file that shrinks is filled up to the size that was told.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use hutch_layer::{Entry, EntryPath, Kind, LayerError, Metadata, tar};
use hutch_wire::Stream;
use hutch_wire::guest::WorkspaceMount;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat, fgetxattr, flistxattr,
    fstat, major, minor, openat2, readlinkat, statat,
};
use rustix::io::Errno;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use crate::root::{Root, RootError};
use crate::{identity, log, tools, trust};

/// Bytes that are sent at once.
const PIECE: usize = 128 << 10;
/// Pieces that wait to be sent.
const PIECES: usize = 4;
/// The kernel's limits for one file (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`, limits.h).
const XATTRS_MAX: usize = 64 << 10;
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const REDIRECT: &[u8] = b"trusted.overlay.redirect";
/// Attributes that mean something in another sandbox.
const KEPT_XATTRS: [&[u8]; 3] = [b"user.", b"security.capability", b"system.posix_acl_"];
/// Directories whose content is of the sandbox that runs.
const VOLATILE: [&str; 8] =
    ["dev", "proc", "run", "sys", "tmp", "var/lib/containerd", "var/lib/docker", "var/run"];
/// Directories whose files are logs: the directories stay, because programs need them.
const LOGS: &str = "var/log";

/// Why the changes cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangesError {
    /// A file cannot be read.
    #[error("`/{path}` cannot be read: {source}")]
    Read {
        /// Which, printable.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The root cannot be read.
    #[error(transparent)]
    Root(#[from] RootError),
    /// An entry cannot be written.
    #[error("the archive of the changes cannot be written: {0}")]
    Write(#[from] LayerError),
}

/// The changes of a running sandbox.
#[derive(Debug)]
pub(crate) struct Changes {
    /// The overlay's upper directory.
    upper: Root,
    /// The whole root.
    root: Arc<Root>,
    workspaces: Vec<EntryPath>,
}

impl Changes {
    pub(crate) fn new(
        upper: &Path,
        root: Arc<Root>,
        workspaces: &[WorkspaceMount],
    ) -> io::Result<Self> {
        let workspaces = workspaces.iter().map(|mount| EntryPath::parse(&mount.path));
        let workspaces = workspaces.collect::<Result<_, _>>().map_err(io::Error::other)?;
        Ok(Self { upper: Root::open(upper)?, root, workspaces })
    }

    /// Sends the archive; a reset with the reason where that does not work.
    pub(crate) async fn send(self: Arc<Self>, mut stream: Stream) {
        let (pieces, mut arriving) = mpsc::channel(PIECES);
        let written = tokio::task::spawn_blocking(move || {
            let output = Pieces { pieces, piece: Vec::with_capacity(PIECE) };
            self.write(output)?.flush().map_err(LayerError::Write)?;
            Ok::<_, ChangesError>(())
        });
        while let Some(piece) = arriving.recv().await {
            let piece: Vec<u8> = piece;
            if stream.write_all(&piece).await.is_err() {
                // The host has gone; the writer notices that nobody takes its pieces.
                drop(arriving);
                break;
            }
        }
        match written.await {
            Ok(Ok(())) => drop(stream.shutdown().await),
            Ok(Err(error)) => {
                log::info(format!("changes not sent: {error}"));
                stream.reset(&error.to_string());
            }
            Err(_) => stream.reset("telling the changes ended early"),
        }
    }

    /// Writes the archive.
    fn write<W: Write>(&self, output: W) -> Result<W, ChangesError> {
        let mut walk = Walk {
            changes: self,
            archive: tar::Writer::new(output),
            linked: HashMap::new(),
            waiting: Vec::new(),
        };
        let top = self.upper.directory(Path::new("/"))?;
        walk.content(&EntryPath::default(), &top)?;
        Ok(walk.archive.finish()?)
    }
}

/// Pieces of the archive on their way to whoever sends them.
struct Pieces {
    pieces: mpsc::Sender<Vec<u8>>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = PIECE - self.piece.len();
        let taken = &bytes[..bytes.len().min(room)];
        self.piece.extend_from_slice(taken);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        self.pieces.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What is done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// It is in the layer.
    Kept,
    /// It is a directory on the way to something that is left out: there only where something else is in it.
    OnTheWay,
    /// The directory is in the layer, and nothing that is in it.
    Empty,
    /// It is left out.
    Left,
}

struct Walk<'a, W> {
    changes: &'a Changes,
    archive: tar::Writer<W>,
    /// Files with several names, by what the kernel calls them.
    linked: HashMap<(u64, u64), EntryPath>,
    /// Directories on the way that are written when something in them is.
    waiting: Vec<Entry>,
}

impl<W: Write> Walk<'_, W> {
    fn part(&self, path: &EntryPath, kind: FileType) -> Part {
        let bytes = path.as_bytes();
        let own = [identity::FILES.as_slice(), &tools::FILES, &[trust::PROXY_CA]].concat();
        if own.iter().any(|own| &own.as_bytes()[1..] == bytes) {
            return Part::Left;
        }
        if VOLATILE.iter().any(|place| place.as_bytes() == bytes) {
            return if kind == FileType::Directory { Part::Empty } else { Part::Left };
        }
        if kind == FileType::RegularFile && is_below(bytes, LOGS.as_bytes()) {
            return Part::Left;
        }
        for workspace in &self.changes.workspaces {
            if workspace == path {
                return Part::Left;
            }
            if is_below(workspace.as_bytes(), bytes) && kind == FileType::Directory {
                return Part::OnTheWay;
            }
        }
        Part::Kept
    }

    /// Everything in a directory.
    fn content(&mut self, path: &EntryPath, directory: &OwnedFd) -> Result<(), ChangesError> {
        let failed = |path: &EntryPath| {
            let path = path.clone();
            move |error: Errno| ChangesError::Read { path: shown(&path), source: error.into() }
        };
        let mut names: Vec<CString> = Vec::new();
        let readable =
            open(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed(path))?;
        for entry in Dir::read_from(&readable).map_err(failed(path))? {
            let name = entry.map_err(failed(path))?.file_name().to_owned();
            if name.as_bytes() != b"." && name.as_bytes() != b".." {
                names.push(name);
            }
        }
        // So that the same changes are the same archive.
        names.sort_unstable();
        for name in names {
            let path = path.join(name.as_bytes());
            match statat(directory, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => self.file(&path, directory, &name, &stat)?,
                // Removed meanwhile.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(failed(&path)(error)),
            }
        }
        Ok(())
    }

    fn file(
        &mut self,
        path: &EntryPath,
        directory: &OwnedFd,
        name: &CString,
        stat: &Stat,
    ) -> Result<(), ChangesError> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let part = self.part(path, kind);
        if part == Part::Left {
            return Ok(());
        }
        let failed = |error: Errno| ChangesError::Read { path: shown(path), source: error.into() };
        let device = (major(stat.st_rdev), minor(stat.st_rdev));
        let kind = match kind {
            FileType::Directory => {
                return match open(directory, name, OFlags::RDONLY | OFlags::DIRECTORY) {
                    Ok(file) => self.directory(path, &file, part),
                    // Replaced meanwhile, or something is mounted there.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(()),
                    Err(error) => Err(failed(error)),
                };
            }
            FileType::RegularFile => {
                return match open(directory, name, OFlags::RDONLY | OFlags::NONBLOCK) {
                    Ok(file) => self.regular(path, file),
                    Err(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NXIO) => Ok(()),
                    Err(error) => Err(failed(error)),
                };
            }
            FileType::Symlink => {
                let target = match readlinkat(directory, name.as_c_str(), Vec::new()) {
                    Ok(target) => target.into_bytes(),
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                    Err(error) => return Err(failed(error)),
                };
                if target == trust::PROXY_CA.as_bytes() {
                    return Ok(());
                }
                Kind::Symlink(target)
            }
            FileType::CharacterDevice if device == (0, 0) => Kind::Whiteout,
            FileType::CharacterDevice => Kind::CharacterDevice { major: device.0, minor: device.1 },
            FileType::BlockDevice => Kind::BlockDevice { major: device.0, minor: device.1 },
            FileType::Fifo => Kind::Fifo,
            // Of no use without whoever listens.
            _ => return Ok(()),
        };
        self.append(&Entry { path: path.clone(), kind, metadata: metadata(stat) }, &mut io::empty())
    }

    fn directory(
        &mut self,
        path: &EntryPath,
        directory: &OwnedFd,
        part: Part,
    ) -> Result<(), ChangesError> {
        let read = |source: io::Error| ChangesError::Read { path: shown(path), source };
        let stat = fstat(directory).map_err(|error| read(error.into()))?;
        let xattrs = attributes(directory).map_err(|error| read(error.into()))?;
        let renamed = xattrs.contains_key(REDIRECT);
        let opaque = renamed || xattrs.get(OPAQUE).is_some_and(|value| value == b"y");
        let entry = Entry {
            path: path.clone(),
            kind: Kind::Directory,
            metadata: Metadata { xattrs: kept(xattrs), ..metadata(&stat) },
        };
        let before = self.waiting.len();
        if part == Part::OnTheWay && !opaque {
            self.waiting.push(entry);
        } else {
            self.append(&entry, &mut io::empty())?;
        }
        if opaque {
            let metadata = Metadata::default();
            let mark = Entry { path: path.clone(), kind: Kind::Opaque, metadata };
            self.append(&mark, &mut io::empty())?;
        }
        if renamed {
            // What it had under its old name is in the template, and the kernel puts the two together.
            let whole = Path::new("/").join(std::ffi::OsStr::from_bytes(path.as_bytes()));
            let whole = self.changes.root.directory(&whole)?;
            self.content(path, &whole)?;
        } else if part != Part::Empty {
            self.content(path, directory)?;
        }
        self.waiting.truncate(before.min(self.waiting.len()));
        Ok(())
    }

    fn regular(&mut self, path: &EntryPath, file: OwnedFd) -> Result<(), ChangesError> {
        let read = |source: io::Error| ChangesError::Read { path: shown(path), source };
        let stat = fstat(&file).map_err(|error| read(error.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let metadata = Metadata {
            xattrs: kept(attributes(&file).map_err(|error| read(error.into()))?),
            ..metadata(&stat)
        };
        let entry = |kind| Entry { path: path.clone(), kind, metadata: metadata.clone() };
        if stat.st_nlink > 1 {
            let number = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&number) {
                let first = first.clone();
                return self.append(&entry(Kind::HardLink(first)), &mut io::empty());
            }
            self.linked.insert(number, path.clone());
        }
        let mut file = File::from(file);
        let place = format!("/{}", String::from_utf8_lossy(path.as_bytes()));
        if trust::is_bundle(&place) {
            let without =
                trust::without_proxy(&self.changes.root, &place, &mut file).map_err(read)?;
            let size = without.len() as u64;
            return self
                .append(&entry(Kind::File { size, extents: None }), &mut without.as_slice());
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.append(&entry(Kind::File { size, extents: None }), &mut file.chain(io::repeat(0)))
    }

    fn append(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), ChangesError> {
        for directory in std::mem::take(&mut self.waiting) {
            self.archive.append(&directory, &mut io::empty())?;
        }
        Ok(self.archive.append(entry, content)?)
    }
}

/// A path as a sentence has it.
fn shown(path: &EntryPath) -> String {
    path.as_bytes().escape_ascii().to_string()
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.starts_with(b"/"))
}

/// Opens a name in a directory: no link, and nothing that is mounted there.
fn open(directory: impl AsFd, name: &std::ffi::CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(directory, name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        mode: permissions(stat.st_mode),
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtime,
        mtime_nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        xattrs: BTreeMap::new(),
    }
}

fn permissions(mode: RawMode) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

/// The extended attributes of an open file.
fn attributes(file: &OwnedFd) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let mut names = vec![0; XATTRS_MAX];
    let length = match flistxattr(file, names.as_mut_slice()) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error),
    };
    let mut all = BTreeMap::new();
    let mut value = vec![0; XATTRS_MAX];
    for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        match fgetxattr(file, name, value.as_mut_slice()) {
            Ok(length) => drop(all.insert(name.to_owned(), value[..length].to_owned())),
            // Taken away meanwhile.
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

fn kept(mut xattrs: BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<Vec<u8>, Vec<u8>> {
    xattrs.retain(|name, _| KEPT_XATTRS.iter().any(|kept| name.starts_with(kept)));
    xattrs
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use hutch_layer::Limits;
    use hutch_wire::guest::Bytes;

    use super::*;

    fn put(upper: &Path, path: &str, content: &str) {
        let path = upper.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        File::create(&path).unwrap().write_all(content.as_bytes()).unwrap();
    }

    /// The archive of what is in a directory, as paths with what is there.
    fn told(upper: &Path, workspaces: &[&str]) -> BTreeMap<String, (Kind, String)> {
        let mount = |path: &&str| WorkspaceMount {
            path: Bytes::from(path.as_bytes().to_vec()),
            read_only: false,
            directory: true,
        };
        let workspaces: Vec<_> = workspaces.iter().map(mount).collect();
        let root = Arc::new(Root::open(upper).unwrap());
        let archive = Changes::new(upper, root, &workspaces).unwrap().write(Vec::new()).unwrap();
        let mut reader = tar::Reader::new(archive.as_slice(), Limits::default());
        let mut all = BTreeMap::new();
        while let Some(entry) = reader.next().unwrap() {
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            let path = String::from_utf8(entry.path.as_bytes().to_vec()).unwrap();
            all.insert(path, (entry.kind, content));
        }
        all
    }

    #[test]
    fn files_links_and_permissions_are_told() {
        let upper = tempfile::tempdir().unwrap();
        put(upper.path(), "opt/file", "content");
        fs::set_permissions(upper.path().join("opt/file"), fs::Permissions::from_mode(0o4711))
            .unwrap();
        fs::hard_link(upper.path().join("opt/file"), upper.path().join("opt/other")).unwrap();
        symlink("/etc/shadow", upper.path().join("opt/link")).unwrap();
        let all = told(upper.path(), &[]);
        assert_eq!(all["opt/file"].1, "content");
        assert_eq!(all["opt/other"].0, Kind::HardLink(EntryPath::parse(b"opt/file").unwrap()));
        assert_eq!(all["opt/link"].0, Kind::Symlink(b"/etc/shadow".to_vec()));
    }

    #[test]
    fn what_is_of_one_sandbox_is_left_out() {
        let upper = tempfile::tempdir().unwrap();
        for path in [
            "etc/hostname",
            "etc/kept",
            "run/lock",
            "tmp/x",
            "var/log/app/app.log",
            "var/lib/docker/data",
            "usr/local/share/ca-certificates/proxy-ca.crt",
            "home/user/project/file",
            "home/agent/notes",
        ] {
            put(upper.path(), path, "x");
        }
        let certificates = upper.path().join("etc/ssl/certs");
        fs::create_dir_all(&certificates).unwrap();
        symlink(trust::PROXY_CA, certificates.join("0a0b0c0d.0")).unwrap();
        let all = told(upper.path(), &["/home/user/project"]);
        let files: Vec<&str> = all
            .iter()
            .filter(|(_, (kind, _))| *kind != Kind::Directory)
            .map(|(path, _)| path.as_str())
            .collect();
        assert_eq!(files, ["etc/kept", "home/agent/notes"]);
        // Programs need the directories of their logs; nobody needs that somebody's workspace was there.
        assert!(all.contains_key("var/log/app") && all.contains_key("home"));
        assert!(!all.contains_key("home/user"), "{all:?}");
    }
}
