//! What the worker told ahead ([`hutch_wire::workspace::Ahead`]), and the answers that come of it without the host.
//!
//! The pump sees every message in the order of the stream. What was told holds until a notification about the node passes:
//! the kernel is told after that, and asks again. Names of an empty directory are collected when the kernel asks for
//! them to be made, before anybody knows whether they will be: a name too many only costs a request.

use std::collections::{HashMap, HashSet};

use hutch_wire::workspace::Ahead;
use rustix::io::Errno;

use super::port::{REPLY_HEADER_LEN, REQUEST_HEADER_LEN};

/// Operation codes of `linux/fuse.h`.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const CREATE: u32 = 35;
    pub(super) const RENAME2: u32 = 45;
}
/// Codes of notifications.
const INVAL_INODE: i32 = 2;
const INVAL_ENTRY: i32 = 3;
/// Size of `struct fuse_attr_out`.
const ATTRIBUTES_LEN: usize = 104;
/// Directories whose names are all known; with more, one is forgotten.
const DIRECTORIES_MAX: usize = 1024;
/// Names of such a directory; one with more is asked for like any other.
const NAMES_MAX: usize = 4096;

/// What was told and still holds.
#[derive(Debug)]
pub(super) struct Told {
    /// The thread that acts on events: it must hear what the host says.
    event_thread: u32,
    attributes: Option<(u64, Vec<u8>)>,
    /// All names that these directories can have.
    names: HashMap<u64, HashSet<Box<[u8]>>>,
}

impl Told {
    pub(super) fn new(event_thread: u32) -> Self {
        Self { event_thread, attributes: None, names: HashMap::new() }
    }

    /// The worker tells something.
    pub(super) fn tell(&mut self, ahead: Ahead) {
        match ahead {
            Ahead::Nothing => self.attributes = None,
            Ahead::Attributes { node, answer } => {
                let answer = answer.to_vec();
                self.attributes = (answer.len() == ATTRIBUTES_LEN).then_some((node, answer));
            }
            Ahead::Empty { node } => {
                if self.names.len() >= DIRECTORIES_MAX
                    && let Some(one) = self.names.keys().next().copied()
                {
                    self.names.remove(&one);
                }
                self.names.insert(node, HashSet::new());
            }
        }
    }

    /// A notification passes.
    pub(super) fn notice(&mut self, code: i32, message: &[u8]) {
        self.attributes = None;
        match (code, u64_at(message, REPLY_HEADER_LEN)) {
            (INVAL_INODE, Some(node)) => drop(self.names.remove(&node)),
            (INVAL_ENTRY, Some(parent)) => {
                // `struct fuse_notify_inval_entry_out`, then the name.
                let name = message.get(REPLY_HEADER_LEN + 16..).and_then(name);
                self.add(parent, name);
            }
            _ => self.names.clear(),
        }
    }

    /// A request passes: its answer, if the host need not be asked.
    pub(super) fn answer(&mut self, request: &[u8]) -> Option<Vec<u8>> {
        let opcode = u32_at(request, 4)?;
        let (unique, node) = (request.get(8..16)?, u64_at(request, 16)?);
        let body = request.get(REQUEST_HEADER_LEN..)?;
        match opcode {
            opcode::GETATTR => {
                let (_, answer) = self.attributes.take_if(|(of, _)| *of == node)?;
                Some(reply(unique, 0, &answer))
            }
            opcode::LOOKUP if u32_at(request, 32)? != self.event_thread => {
                let names = self.names.get(&node)?;
                let absent = !names.contains(name(body)?);
                absent.then(|| reply(unique, -Errno::NOENT.raw_os_error(), &[]))
            }
            opcode::SYMLINK => self.add(node, name(body)),
            opcode::MKNOD | opcode::CREATE => self.add(node, body.get(16..).and_then(name)),
            opcode::MKDIR | opcode::LINK => self.add(node, body.get(8..).and_then(name)),
            opcode::RENAME => self.add_moved(body, 8),
            opcode::RENAME2 => self.add_moved(body, 16),
            _ => None,
        }
    }

    /// The new name of a rename, whose directory is named first.
    fn add_moved(&mut self, body: &[u8], names: usize) -> Option<Vec<u8>> {
        let old = body.get(names..).and_then(name)?;
        self.add(u64_at(body, 0)?, body.get(names + old.len() + 1..).and_then(name))
    }

    /// A name may be in a directory from now on.
    fn add(&mut self, directory: u64, name: Option<&[u8]>) -> Option<Vec<u8>> {
        let names = self.names.get_mut(&directory)?;
        match name {
            Some(name) if names.len() < NAMES_MAX => drop(names.insert(name.into())),
            _ => drop(self.names.remove(&directory)),
        }
        None
    }
}

fn reply(unique: &[u8], error: i32, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(REPLY_HEADER_LEN + body.len()).unwrap_or(0);
    [&len.to_le_bytes()[..], &error.to_le_bytes(), unique, body].concat()
}

/// The bytes before the first zero.
fn name(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..bytes.iter().position(|&byte| byte == 0)?)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENTS: u32 = 77;

    fn request(opcode: u32, node: u64, pid: u32, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(REQUEST_HEADER_LEN + body.len()).unwrap();
        let mut bytes = [&len.to_le_bytes()[..], &opcode.to_le_bytes()].concat();
        bytes.extend_from_slice(&9_u64.to_le_bytes());
        bytes.extend_from_slice(&node.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&pid.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(body);
        bytes
    }

    fn notification(body: &[&[u8]]) -> Vec<u8> {
        [&[0; REPLY_HEADER_LEN], &body.concat()[..]].concat()
    }

    fn absent(told: &mut Told, name: &[u8]) -> bool {
        let answer = told.answer(&request(opcode::LOOKUP, 5, 1, name));
        answer.inspect(|answer| assert_eq!(answer[4..8], (-2_i32).to_le_bytes())).is_some()
    }

    #[test]
    fn attributes_are_answered_once_and_only_of_the_node() {
        let mut told = Told::new(EVENTS);
        let ask = request(opcode::GETATTR, 5, 1, &[0; 16]);
        let ahead = || Ahead::Attributes { node: 5, answer: vec![7; ATTRIBUTES_LEN].into() };
        assert_eq!(told.answer(&ask), None);
        told.tell(ahead());
        assert_eq!(told.answer(&request(opcode::GETATTR, 6, 1, &[0; 16])), None);
        let answer = told.answer(&ask).unwrap();
        assert_eq!(answer[8..16], 9_u64.to_le_bytes());
        assert!(answer.len() == 120 && answer[16..].iter().all(|&byte| byte == 7));
        assert_eq!(told.answer(&ask), None);
        told.tell(ahead());
        told.tell(Ahead::Nothing);
        assert_eq!(told.answer(&ask), None);
        told.tell(ahead());
        told.notice(INVAL_INODE, &notification(&[&99_u64.to_le_bytes()]));
        assert_eq!(told.answer(&ask), None);
        told.tell(Ahead::Attributes { node: 5, answer: vec![7; 3].into() });
        assert_eq!(told.answer(&ask), None);
    }

    #[test]
    fn only_names_that_nobody_gave_are_denied() {
        let mut told = Told::new(EVENTS);
        assert!(!absent(&mut told, b"a\0"));
        told.tell(Ahead::Empty { node: 5 });
        assert!(absent(&mut told, b"a\0"));
        assert_eq!(told.answer(&request(opcode::LOOKUP, 5, EVENTS, b"a\0")), None);
        assert_eq!(told.answer(&request(opcode::LOOKUP, 6, 1, b"a\0")), None);
        let made = [
            (opcode::CREATE, 5, [&[0; 16][..], b"create\0"].concat()),
            (opcode::MKNOD, 5, [&[0; 16][..], b"mknod\0"].concat()),
            (opcode::MKDIR, 5, [&[0; 8][..], b"mkdir\0"].concat()),
            (opcode::LINK, 5, [&[0; 8][..], b"link\0"].concat()),
            (opcode::SYMLINK, 5, b"symlink\0target\0".to_vec()),
            (opcode::RENAME, 6, [&5_u64.to_le_bytes()[..], b"old\0rename\0"].concat()),
            (opcode::RENAME2, 6, [&5_u64.to_le_bytes()[..], &[0; 8], b"o\0rename2\0"].concat()),
        ];
        for (opcode, node, body) in &made {
            assert_eq!(told.answer(&request(*opcode, *node, 1, body)), None);
        }
        for name in ["create", "mknod", "mkdir", "link", "symlink", "rename", "rename2"] {
            assert!(!absent(&mut told, format!("{name}\0").as_bytes()), "{name}");
        }
        for name in ["target", "old", "o", "creat"] {
            assert!(absent(&mut told, format!("{name}\0").as_bytes()), "{name}");
        }
    }

    #[test]
    fn the_hosts_changes_end_it() {
        let mut told = Told::new(EVENTS);
        told.tell(Ahead::Empty { node: 5 });
        let entry = [&5_u64.to_le_bytes()[..], &4_u32.to_le_bytes(), &[0; 4], b"host\0"];
        told.notice(INVAL_ENTRY, &notification(&entry));
        assert!(!absent(&mut told, b"host\0") && absent(&mut told, b"a\0"));
        told.notice(INVAL_INODE, &notification(&[&6_u64.to_le_bytes()]));
        assert!(absent(&mut told, b"a\0"));
        told.notice(INVAL_INODE, &notification(&[&5_u64.to_le_bytes()]));
        assert!(!absent(&mut told, b"a\0"));
    }

    #[test]
    fn memory_is_bounded() {
        let mut told = Told::new(EVENTS);
        for node in 0..2 * u64::try_from(DIRECTORIES_MAX).unwrap() {
            told.tell(Ahead::Empty { node });
        }
        assert_eq!(told.names.len(), DIRECTORIES_MAX);
        told.tell(Ahead::Empty { node: 5 });
        for number in 0..=NAMES_MAX {
            told.answer(&request(opcode::SYMLINK, 5, 1, format!("{number}\0t\0").as_bytes()));
        }
        assert!(!absent(&mut told, b"a\0"));
    }
}
