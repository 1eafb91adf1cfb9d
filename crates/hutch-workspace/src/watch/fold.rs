//! Many events of one batch into one change a name. Pure.

use std::collections::HashMap;
use std::ffi::CStr;

use rustix::fs::inotify::ReadFlags;

/// Everything that happened to one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    /// The watched node: the directory, or the node itself where there is no name.
    pub(crate) node: u64,
    pub(crate) name: Option<Box<CStr>>,
    /// How often something new got the name. The kernel merges only equal events in a row, which these never are.
    pub(crate) created: usize,
    /// How often the name went.
    pub(crate) deleted: usize,
    /// The name may stand for something else than before.
    pub(crate) of_name: bool,
    pub(crate) modified: bool,
    pub(crate) closed: bool,
    pub(crate) attributes: bool,
    /// What it was about is a directory.
    pub(crate) directory: bool,
    from: Option<u32>,
    to: Option<u32>,
}

/// A name that moved within what is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rename {
    pub(crate) from: (u64, Box<CStr>),
    pub(crate) to: (u64, Box<CStr>),
    pub(crate) directory: bool,
}

/// What was read at once.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) changes: Vec<Change>,
    pub(crate) renames: Vec<Rename>,
    pub(crate) overflowed: bool,
    index: HashMap<(u64, Option<Box<CStr>>), usize>,
}

impl Batch {
    /// Adds one event.
    pub(crate) fn add(&mut self, node: u64, name: Option<&CStr>, events: ReadFlags, cookie: u32) {
        let name: Option<Box<CStr>> = name.map(Box::from);
        let at = *self.index.entry((node, name.clone())).or_insert_with(|| {
            self.changes.push(Change {
                node,
                name,
                created: 0,
                deleted: 0,
                of_name: false,
                modified: false,
                closed: false,
                attributes: false,
                directory: false,
                from: None,
                to: None,
            });
            self.changes.len() - 1
        });
        let Some(change) = self.changes.get_mut(at) else { return };
        let has = |flag: ReadFlags| events.contains(flag);
        change.directory |= has(ReadFlags::ISDIR);
        change.created += usize::from(has(ReadFlags::CREATE) || has(ReadFlags::MOVED_TO));
        change.deleted += usize::from(has(ReadFlags::DELETE) || has(ReadFlags::MOVED_FROM));
        change.of_name = change.created + change.deleted > 0;
        change.modified |= has(ReadFlags::MODIFY);
        change.closed |= has(ReadFlags::CLOSE_WRITE);
        change.attributes |= has(ReadFlags::ATTRIB);
        if has(ReadFlags::MOVED_FROM) {
            change.from = Some(cookie);
        }
        if has(ReadFlags::MOVED_TO) {
            change.to = Some(cookie);
        }
    }

    /// Finds the renames of which both ends are known. The ends stay as changes, too: whatever the rename does not
    /// explain is settled by them.
    pub(crate) fn paired(mut self) -> Self {
        let sources: HashMap<u32, usize> = (0..)
            .zip(&self.changes)
            .filter_map(|(at, change)| change.from.map(|cookie| (cookie, at)))
            .collect();
        for target in &self.changes {
            let Some(source) = target.to.and_then(|cookie| sources.get(&cookie)) else { continue };
            let Some(source) = self.changes.get(*source) else { continue };
            if let (Some(from), Some(to)) = (&source.name, &target.name) {
                self.renames.push(Rename {
                    from: (source.node, from.clone()),
                    to: (target.node, to.clone()),
                    directory: target.directory,
                });
            }
        }
        self
    }

    /// Both ends of a rename are told already.
    pub(crate) fn explain(&mut self, rename: &Rename) {
        for change in &mut self.changes {
            let is = |(node, name): &(u64, Box<CStr>)| {
                change.node == *node && change.name.as_ref() == Some(name)
            };
            let (from, to) = (is(&rename.from), is(&rename.to));
            change.deleted = change.deleted.saturating_sub(usize::from(from));
            change.created = change.created.saturating_sub(usize::from(to));
        }
    }
}

impl Change {
    /// Whether what it stands for may have changed.
    pub(crate) fn of_content(&self) -> bool {
        self.modified || self.closed || self.attributes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_a_name() {
        let mut batch = Batch::default();
        batch.add(2, Some(c"a"), ReadFlags::CREATE, 0);
        for _ in 0..100 {
            batch.add(2, Some(c"a"), ReadFlags::MODIFY, 0);
        }
        batch.add(2, Some(c"a"), ReadFlags::CLOSE_WRITE, 0);
        batch.add(3, Some(c"a"), ReadFlags::DELETE | ReadFlags::ISDIR, 0);
        let batch = batch.paired();
        assert_eq!(batch.changes.len(), 2);
        assert!(batch.renames.is_empty());
        let first = &batch.changes[0];
        assert!(first.created == 1 && first.modified && first.closed && first.deleted == 0);
        assert!(batch.changes[1].deleted == 1 && batch.changes[1].directory);
    }

    #[test]
    fn both_ends_of_a_rename_find_each_other() {
        let mut batch = Batch::default();
        batch.add(2, Some(c"old"), ReadFlags::MOVED_FROM, 7);
        batch.add(3, Some(c"new"), ReadFlags::MOVED_TO, 7);
        batch.add(3, Some(c"from elsewhere"), ReadFlags::MOVED_TO, 8);
        let mut batch = batch.paired();
        let rename = Rename { from: (2, c"old".into()), to: (3, c"new".into()), directory: false };
        assert_eq!(batch.renames, std::slice::from_ref(&rename));
        batch.explain(&rename);
        let left: Vec<_> =
            batch.changes.iter().map(|change| (change.created, change.deleted)).collect();
        assert_eq!(left, [(0, 0), (0, 0), (1, 0)]);
        assert!(batch.changes.iter().all(|change| change.of_name));
    }
}
