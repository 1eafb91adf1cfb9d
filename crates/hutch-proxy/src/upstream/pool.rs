//! Connections that wait for the next request to the same place.
//!
//! What is kept was connected to an address that passed; whoever takes it judges that address again, by the policy of
//! then ([`Pool::take`]).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use hutch_policy::host::{Authority, Host};

use super::Sender;

/// Waiting connections to one place.
const EACH: usize = 32;
/// Waiting connections in all.
const ALL: usize = 512;
/// How long one waits: less than servers commonly do.
const KEPT: Duration = Duration::from_secs(55);

/// What a connection can be used for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) place: Authority,
    /// The name that the server is asked by, and proves over TLS.
    pub(crate) name: Host,
    pub(crate) secure: bool,
    /// It must be HTTP/1.1.
    pub(crate) http1: bool,
}

/// A connection and where it leads.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) sender: Sender,
    pub(crate) address: Option<IpAddr>,
    pub(crate) peer: Option<SocketAddr>,
    /// Nothing was sent on it yet.
    pub(crate) fresh: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Pool {
    waiting: Mutex<HashMap<Key, Vec<(Instant, Kept)>>>,
}

impl Pool {
    /// A connection to the place whose address passes; an HTTP/2 connection stays in the pool as well.
    pub(crate) fn take(&self, key: &Key, passes: impl Fn(Option<IpAddr>) -> bool) -> Option<Kept> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let list = waiting.get_mut(key)?;
        list.retain(|(since, kept)| since.elapsed() < KEPT && kept.sender.is_open());
        if let Some((since, kept)) =
            list.iter_mut().find(|(_, kept)| kept.sender.has_room() && passes(kept.address))
        {
            *since = Instant::now();
            if let Some(sender) = kept.sender.share() {
                return Some(Kept { sender, address: kept.address, peer: kept.peer, fresh: false });
            }
        }
        // The newest: it is the least likely to have been closed.
        let index =
            list.iter().rposition(|(_, kept)| !kept.sender.is_shared() && passes(kept.address))?;
        let (_, kept) = list.remove(index);
        if list.is_empty() {
            waiting.remove(key);
        }
        Some(kept)
    }

    /// Keeps a connection for later.
    pub(crate) fn put(&self, key: Key, kept: Kept) {
        if !kept.sender.is_open() {
            return;
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.values().map(Vec::len).sum::<usize>() >= ALL {
            prune(&mut waiting);
            if waiting.values().map(Vec::len).sum::<usize>() >= ALL {
                return;
            }
        }
        let list = waiting.entry(key).or_default();
        if list.len() >= EACH {
            list.remove(0);
        }
        list.push((Instant::now(), kept));
    }

    /// Lets go of those that do not pass.
    pub(crate) fn retain(&self, passes: impl Fn(&Authority, Option<IpAddr>) -> bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, list) in waiting.iter_mut() {
            list.retain(|(_, kept)| passes(&key.place, kept.address));
        }
    }

    /// Lets go of those that waited long or were closed.
    pub(crate) fn prune(&self) {
        prune(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

fn prune(waiting: &mut HashMap<Key, Vec<(Instant, Kept)>>) {
    waiting.retain(|_, list| {
        list.retain(|(since, kept)| since.elapsed() < KEPT && kept.sender.is_open());
        !list.is_empty()
    });
}
