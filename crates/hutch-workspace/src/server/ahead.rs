//! What the guest's kernel will ask for next is told with the reply that makes it ask ([`Ahead`]); init answers from that.
//!
//! After each change of a directory the kernel asks for the attributes of that directory, and before it makes a name it
//! asks whether there is one. Both are known here when the change is made, under the lock of the directory's names. What
//! comes between the look and the sending – a notification, another change of the guest – takes the turn away
//! ([`crate::port::Sender`]), and nothing is told.

use std::sync::Arc;

use hutch_wire::guest::Bytes;
use hutch_wire::workspace::{Ahead, CODE_AHEAD};
use rustix::fs::RawDir;
use rustix::io::Errno;

use super::Server;
use crate::abi::Reply;
use crate::host::{Handle, READ_DIRECTORY, status};
use crate::nodes::{Node, Watch};

impl Server {
    /// Tells the attributes of a directory that the guest has just changed; its names are locked.
    pub(super) fn tell_attributes(
        &self,
        turn: u64,
        directory: &Arc<Node>,
        handle: &Handle,
        reply: &mut Reply,
    ) {
        let Ok(found) = status(&**handle) else { return };
        let valid = self.validity_in_place(directory, &found);
        if valid == 0 {
            return;
        }
        let Ok(attributes) = self.attributes(directory, handle, &found) else { return };
        let mut answer = Reply::new();
        answer.put_attr_out(valid, &attributes);
        let answer = Bytes::from(answer.body().to_vec());
        put(turn, &Ahead::Attributes { node: directory.id, answer }, reply);
    }

    /// Tells that a directory which the guest has just made is empty, if it is: it is watched already.
    pub(super) fn tell_empty(&self, turn: u64, node: &Node, reply: &mut Reply) {
        let watched = matches!(*crate::locked::locked(&node.watch), Watch::Placed(_));
        if node.is_directory() && watched && self.is_empty(node).unwrap_or(false) {
            put(turn, &Ahead::Empty { node: node.id }, reply);
        }
    }

    fn is_empty(&self, node: &Node) -> Result<bool, Errno> {
        let node = self.nodes.find(node.id)?;
        let file = self.proc.reopen(&*self.nodes.handle(&node)?, READ_DIRECTORY)?;
        let mut buffer = [const { std::mem::MaybeUninit::uninit() }; 512];
        let mut names = RawDir::new(file, &mut buffer);
        while let Some(name) = names.next() {
            if !matches!(name?.file_name().to_bytes(), b"." | b"..") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn put(turn: u64, ahead: &Ahead, reply: &mut Reply) {
    if let Ok(body) = ahead.encode() {
        reply.put_ahead(turn, CODE_AHEAD, &body);
    }
}
