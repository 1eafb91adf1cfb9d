//! What init and the workspace worker say to each other beside raw FUSE messages, on the same stream.
//!
//! The port [`crate::guest::WORKSPACE_PORT`] carries FUSE messages back to back. Numbers that the kernel never uses mark
//! the few messages of our own: as the `opcode` of a request (guest to host) and, with `unique` 0, as the `error` of a
//! reply (host to guest). Their bodies are postcard.
//!
//! ```text
//!   init                                       worker
//!    │ HELLO {event_thread} ──────────────────▶ │  once, before FUSE_INIT
//!    │ FUSE requests ─────────────────────────▶ │
//!    │ ◀─────────────── replies, notifications  │
//!    │ ◀────────────────────── EVENT {Event}    │  something changed on the host: make watchers in the guest notice
//!    │ ◀────────────────────── AHEAD {Ahead}    │  what the kernel will ask for after the reply that follows
//!    │ SEEN {count} ──────────────────────────▶ │  so many notifications and events are done
//! ```
//!
//! # Large contents
//!
//! A port moves bytes in pieces of 4 KiB, each an interrupt of the guest; a disk moves a megabyte at once. So the content
//! of large reads and writes goes by a disk of its own ([`crate::guest::BULK_DISK`]), whose file the worker has too, and
//! only the headers go by the port. Init owns the disk's places ([`bulk`]). It names one in the field that FUSE leaves
//! free in a READ or WRITE, and has it back with the reply:
//!
//! ```text
//!   READ  {…, place} ──────────▶ │ writes the content to the place
//!    │ ◀── BULK {unique, length} │ or an ordinary reply: an error, or a content that is not worth it
//!   writes the content to the place
//!   WRITE {…, place} ──────────▶ │ reads it there
//!    │ ◀──────── ordinary reply  │
//! ```
//!
//! # Changes on the host
//!
//! The kernel tells watchers only of changes that are made through it. For an [`Event`], init therefore has the thread
//! that it announced make that very change on its own mount; the worker knows the thread by the number in the request's
//! header, answers as if the change were made, and does nothing. A guest that lies about the thread fools itself only.

use serde::{Deserialize, Serialize};

use crate::guest::Bytes;

/// Opcode of [`Hello`].
pub const OPCODE_HELLO: u32 = 0x4855_0001;
/// Opcode of [`Seen`].
pub const OPCODE_SEEN: u32 = 0x4855_0002;
/// `error` of a reply with `unique` 0 that carries an [`Event`].
pub const CODE_EVENT: i32 = 0x4855_0001;
/// `error` of a reply with `unique` 0 that carries an [`Ahead`].
pub const CODE_AHEAD: i32 = 0x4855_0002;
/// `error` of a reply to a READ whose content is in the place that the request named; its body is the length, as `u32`.
pub const CODE_BULK: i32 = 0x4855_0003;
/// Largest body of a message of this module in bytes: two paths and two names.
pub const BODY_MAX: usize = 10 * 1024;
/// Version of these messages.
pub const VERSION: u16 = 1;

/// The disk of large contents.
pub mod bulk {
    /// How many contents have a place at the same time.
    pub const PLACES: u32 = 4;
    /// Bytes of a place: the largest content of a request.
    pub const PLACE_BYTES: u64 = 1 << 20;
    /// Bytes of the disk.
    pub const DISK_BYTES: u64 = PLACES as u64 * PLACE_BYTES;
    /// A shorter content is sooner there by the port.
    pub const WORTH_IT: u32 = 32 << 10;
    /// Offset of the free field in `struct fuse_read_in` and `struct fuse_write_in`: 0 without a place, else its number
    /// and one.
    pub const FIELD: usize = 36;

    /// Where the place is on the disk; none for a number that no place has.
    pub fn offset(place: u32) -> Option<u64> {
        (place < PLACES).then(|| u64::from(place) * PLACE_BYTES)
    }
}

/// Init's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of init.
    pub version: u16,
    /// Thread that acts on events, as the mount's process numbers name it.
    pub event_thread: u32,
}

/// How many notifications and events init has dealt with since the last time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// How many.
    pub count: u32,
}

/// A name in a directory of the mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The directory's FUSE node.
    pub node: u64,
    /// The directory's path below the root of the mount, without a leading slash.
    pub directory: Bytes,
    /// The name in it.
    pub name: Bytes,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A regular file.
    File,
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

/// A change on the host that watchers in the guest shall notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The name is new, or stands for something new.
    Created {
        /// Where.
        entry: Entry,
        /// What.
        kind: EntryKind,
    },
    /// The name is gone.
    Deleted {
        /// Where.
        entry: Entry,
        /// Whether it was a directory.
        directory: bool,
    },
    /// The name moved, over whatever was there.
    Renamed {
        /// Old place.
        from: Entry,
        /// New place.
        to: Entry,
    },
    /// The content changed.
    Modified {
        /// Where.
        entry: Entry,
        /// Whether a writer closed the file.
        closed: bool,
    },
    /// Mode, owner, times, links or extended attributes changed.
    Attributes {
        /// Where.
        entry: Entry,
    },
    /// Nothing changed: programs ask for this directory's names one after another, and a listing brings many at once.
    Listed {
        /// The directory's path below the root of the mount, without a leading slash.
        directory: Bytes,
    },
}

/// What the kernel will ask for next, told before the reply that makes it ask: init answers in the worker's place, which
/// saves the way to the host. All of it is over with the next notification about the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ahead {
    /// What was told of attributes before is old, and there is nothing new.
    Nothing,
    /// The answer to the next `GETATTR` of this node, which the coming reply makes the kernel forget: good for one.
    Attributes {
        /// The node.
        node: u64,
        /// `struct fuse_attr_out`.
        answer: Bytes,
    },
    /// The coming reply makes this directory, and nothing is in it: only names that the guest gives can be, until a
    /// notification about the directory or about a name in it.
    Empty {
        /// The directory.
        node: u64,
    },
}

impl Ahead {
    /// Encodes it.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(self)
    }

    /// Decodes it.
    pub fn decode(body: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(body)
    }
}

impl Event {
    /// Encodes it.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(self)
    }

    /// Decodes it.
    pub fn decode(body: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(body)
    }
}

impl Hello {
    /// Encodes it.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(self)
    }

    /// Decodes it.
    pub fn decode(body: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(body)
    }
}

impl Seen {
    /// Encodes it.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_stdvec(self)
    }

    /// Decodes it.
    pub fn decode(body: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(body)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_event_comes_back_as_it_was() {
        let entry = Entry {
            node: 7,
            directory: Bytes::from(b"0/a\xff".to_vec()),
            name: Bytes::from(b"n".to_vec()),
        };
        let event = Event::Renamed { from: entry.clone(), to: entry };
        assert_eq!(Event::decode(&event.encode().unwrap()).unwrap(), event);
        let answer = Bytes::from(vec![1; 104]);
        for ahead in
            [Ahead::Nothing, Ahead::Attributes { node: 7, answer }, Ahead::Empty { node: 7 }]
        {
            assert_eq!(Ahead::decode(&ahead.encode().unwrap()).unwrap(), ahead);
        }
        let hello = Hello { version: VERSION, event_thread: 42 };
        assert_eq!(Hello::decode(&hello.encode().unwrap()).unwrap(), hello);
        let seen = Seen { count: 3 };
        assert_eq!(Seen::decode(&seen.encode().unwrap()).unwrap(), seen);
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_event_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(event) = Event::decode(&bytes) {
                prop_assert_eq!(Event::decode(&event.encode().unwrap()).unwrap(), event);
            }
        }
    }
}
