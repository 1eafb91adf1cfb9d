//! Which address stands for which name.
//!
//! The resolver gives each name an address of 198.18.0.0/15 (RFC 2544), which leads nowhere, and a connection to that
//! address tells the host the name. A name keeps its address while it is in the table. The table is bounded; the name
//! that was used longest ago leaves first, never one with a live connection, and its address is not given to another
//! name before all others have had their turn: a program that still holds it reaches nobody, not somebody else.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ADDRESS;

/// First address that is given out.
const FIRST: u32 = Ipv4Addr::new(198, 18, 0, 1).to_bits();
/// One after the last: the addresses above are ours.
const END: u32 = Ipv4Addr::new(198, 19, 255, 0).to_bits();
/// The whole range, ours included.
const RANGE: std::ops::RangeInclusive<u32> =
    Ipv4Addr::new(198, 18, 0, 0).to_bits()..=Ipv4Addr::new(198, 19, 255, 255).to_bits();
/// Names that are remembered.
const NAMES_MAX: usize = 16 * 1024;

const _: () = assert!(RANGE.start().to_be() != 0 && END <= ADDRESS.to_bits());

/// The table; shared by the resolver and the capture.
#[derive(Debug)]
pub(super) struct Names {
    table: Arc<Mutex<Table>>,
}

/// What an address means.
#[derive(Debug)]
pub(super) enum Meaning {
    /// It stands for a name, and goes on to do so while this is held.
    Name(InUse),
    /// Itself.
    Address,
    /// It could stand for a name, but for none that is known.
    Nothing,
}

/// A name with a live connection.
#[derive(Debug)]
pub(super) struct InUse {
    name: String,
    address: u32,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug)]
struct Table {
    by_name: HashMap<String, u32>,
    by_address: HashMap<u32, Entry>,
    /// Entries without a live connection, the one that was used longest ago first.
    idle: BTreeMap<u64, u32>,
    clock: u64,
    next: u32,
    most: usize,
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// Its place in `idle`, or when it was there last.
    used: u64,
    connections: usize,
}

impl Default for Names {
    fn default() -> Self {
        Self::with_room_for(NAMES_MAX)
    }
}

impl Names {
    fn with_room_for(most: usize) -> Self {
        let table = Table {
            by_name: HashMap::new(),
            by_address: HashMap::new(),
            idle: BTreeMap::new(),
            clock: 0,
            next: FIRST,
            most,
        };
        Self { table: Arc::new(Mutex::new(table)) }
    }

    /// The address of a name in lower case. `None` when every name in the table has a live connection.
    pub(super) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.lock().address(name).map(Ipv4Addr::from_bits)
    }

    /// The name of an address, for those who ask in that direction.
    pub(super) fn name(&self, address: Ipv4Addr) -> Option<String> {
        self.lock().by_address.get(&address.to_bits()).map(|entry| entry.name.clone())
    }

    /// What a connection to this address is meant for.
    pub(super) fn meaning(&self, address: IpAddr) -> Meaning {
        let IpAddr::V4(address) = address else { return Meaning::Address };
        let address = address.to_bits();
        if !RANGE.contains(&address) {
            return Meaning::Address;
        }
        match self.lock().connect(address) {
            Some(name) => Meaning::Name(InUse { name, address, table: Arc::clone(&self.table) }),
            None => Meaning::Nothing,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InUse {
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).disconnect(self.address);
    }
}

impl Table {
    fn address(&mut self, name: &str) -> Option<u32> {
        if let Some(address) = self.by_name.get(name).copied() {
            self.touch(address);
            return Some(address);
        }
        if self.by_address.len() >= self.most {
            let (_, oldest) = self.idle.pop_first()?;
            if let Some(entry) = self.by_address.remove(&oldest) {
                self.by_name.remove(&entry.name);
            }
        }
        let address = self.free_address()?;
        let used = self.tick();
        self.idle.insert(used, address);
        self.by_name.insert(name.to_owned(), address);
        self.by_address.insert(address, Entry { name: name.to_owned(), used, connections: 0 });
        Some(address)
    }

    /// The next address that nobody has. There is one: the table holds far fewer names than there are addresses.
    fn free_address(&mut self) -> Option<u32> {
        for _ in FIRST..END {
            let address = self.next;
            self.next = if address + 1 < END { address + 1 } else { FIRST };
            // Programs take addresses that end in 0 or 255 for those of networks.
            if !matches!(address & 0xff, 0 | 0xff) && !self.by_address.contains_key(&address) {
                return Some(address);
            }
        }
        None
    }

    fn touch(&mut self, address: u32) {
        let used = self.tick();
        let Some(entry) = self.by_address.get_mut(&address) else { return };
        if self.idle.remove(&entry.used).is_some() {
            self.idle.insert(used, address);
        }
        entry.used = used;
    }

    fn connect(&mut self, address: u32) -> Option<String> {
        let entry = self.by_address.get_mut(&address)?;
        entry.connections += 1;
        self.idle.remove(&entry.used);
        Some(entry.name.clone())
    }

    fn disconnect(&mut self, address: u32) {
        let used = self.tick();
        let Some(entry) = self.by_address.get_mut(&address) else { return };
        entry.connections = entry.connections.saturating_sub(1);
        if entry.connections == 0 {
            entry.used = used;
            self.idle.insert(used, address);
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name_of(meaning: Meaning) -> Option<String> {
        match meaning {
            Meaning::Name(in_use) => Some(in_use.name().to_owned()),
            Meaning::Address | Meaning::Nothing => None,
        }
    }

    #[test]
    fn a_name_keeps_its_address_and_the_address_its_name() {
        let names = Names::default();
        let address = names.address("example.com").unwrap();
        assert_ne!(names.address("example.org"), Some(address));
        assert_eq!(names.address("example.com"), Some(address));
        assert_eq!(name_of(names.meaning(address.into())).as_deref(), Some("example.com"));
        assert_eq!(names.name(address).as_deref(), Some("example.com"));
    }

    #[test]
    fn addresses_of_the_range_without_a_name_mean_nothing_and_others_themselves() {
        let names = Names::default();
        for address in ["198.18.0.0", "198.18.7.7", "198.19.255.255"] {
            let meaning = names.meaning(address.parse().unwrap());
            assert!(matches!(meaning, Meaning::Nothing), "{address}");
        }
        for address in ["198.17.255.255", "198.20.0.0", "10.0.0.1", "2001:db8::1", "::1"] {
            let meaning = names.meaning(address.parse().unwrap());
            assert!(matches!(meaning, Meaning::Address), "{address}");
        }
    }

    #[test]
    fn the_longest_unused_name_leaves_and_its_address_rests() {
        let names = Names::with_room_for(2);
        let first = names.address("first").unwrap();
        let second = names.address("second").unwrap();
        assert_eq!(names.address("first"), Some(first));
        let third = names.address("third").unwrap();
        assert!(![first, second].contains(&third));
        assert!(matches!(names.meaning(second.into()), Meaning::Nothing));
        assert_eq!(names.address("first"), Some(first));
        assert_ne!(names.address("second"), Some(second));
    }

    #[test]
    fn a_name_with_a_live_connection_stays() {
        let names = Names::with_room_for(1);
        let first = names.address("first").unwrap();
        let one = names.meaning(first.into());
        let other = names.meaning(first.into());
        assert_eq!(names.address("second"), None);
        drop(one);
        assert_eq!(names.address("second"), None);
        drop(other);
        assert!(names.address("second").is_some_and(|second| second != first));
        assert!(matches!(names.meaning(first.into()), Meaning::Nothing));
    }

    #[test]
    fn addresses_go_round_and_never_reach_our_own() {
        let names = Names::with_room_for(1);
        let mut seen = std::collections::HashSet::new();
        let count = (FIRST..END).filter(|a| !matches!(a & 0xff, 0 | 0xff)).count();
        for number in 0..count {
            let address = names.address(&format!("n{number}")).unwrap();
            assert!(seen.insert(address) && address < ADDRESS, "{address}");
        }
        assert!(seen.contains(&names.address("again").unwrap()));
    }
}
