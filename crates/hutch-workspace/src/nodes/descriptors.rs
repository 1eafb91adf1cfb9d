//! Which nodes hold a descriptor, and whose turn it is to lose it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::Node;
use crate::locked::locked;

/// Nodes looked at per descriptor over the bound: keeps a request from paying for many.
const TRIES: usize = 64;

/// A clock over the nodes with a descriptor: used since the last round means spared.
#[derive(Debug)]
pub(super) struct Descriptors {
    max: usize,
    open: AtomicUsize,
    queue: Mutex<VecDeque<u64>>,
}

impl Descriptors {
    pub(super) fn new(max: usize) -> Self {
        Self { max, open: AtomicUsize::new(0), queue: Mutex::new(VecDeque::new()) }
    }

    /// A node was closed because it is forgotten. Its number stays in the queue until its turn.
    pub(super) fn closed(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    /// A node was opened: closes others when there are too many.
    pub(super) fn opened(&self, node: &Node, find: impl Fn(u64) -> Option<Arc<Node>>) {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let mut queue = locked(&self.queue);
        queue.push_back(node.id);
        let crowded = open > self.max;
        // Numbers of forgotten nodes are swept out when they are most of the queue.
        if !crowded && queue.len() < 2 * open + 1024 {
            return;
        }
        let mut over = open.saturating_sub(self.max);
        for _ in 0..TRIES {
            let Some(id) = queue.pop_front() else { break };
            let Some(candidate) = find(id) else { continue };
            let mut handle = locked(&candidate.handle);
            if handle.is_none() {
                continue;
            }
            // Without a name it could not be opened again.
            let needed = candidate.permanent
                || candidate.id == node.id
                || candidate.used.swap(false, Ordering::Relaxed)
                || !candidate.has_place();
            if needed || over == 0 {
                queue.push_back(id);
                continue;
            }
            handle.take();
            self.open.fetch_sub(1, Ordering::Relaxed);
            over -= 1;
        }
    }
}
