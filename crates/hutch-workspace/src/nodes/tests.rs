#![expect(clippy::disallowed_methods, reason = "these files are for the moment of a test")]

use std::ffi::CString;
use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::host::hold;

struct Place {
    directory: TempDir,
    nodes: Nodes,
    root: Arc<Node>,
}

fn place(descriptors_max: usize) -> Place {
    let directory = TempDir::new().expect("it works");
    let nodes = Nodes::new(descriptors_max);
    let root = open(directory.path());
    let root = nodes.add_root(0, Arc::clone(&root), &status(&*root).expect("it works"));
    Place { directory, nodes, root }
}

fn open(path: &Path) -> Handle {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
    Arc::new(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).expect("it works"))
}

impl Place {
    /// What a lookup does.
    fn enter(&self, parent: &Arc<Node>, name: &CStr) -> Arc<Node> {
        let name = Name::parse(name).expect("it works");
        let handle =
            Arc::new(hold(&*self.nodes.handle(parent).expect("it works"), name).expect("it works"));
        let node =
            self.nodes.adopt(0, &handle, &status(&*handle).expect("it works")).expect("it works");
        self.nodes.believe(parent, &mut parent.names(), name.as_c_str(), &node);
        node
    }

    fn make(&self, name: &str) {
        fs::write(self.directory.path().join(name), "x").expect("it works");
    }
}

#[test]
fn a_file_is_one_node_by_all_its_names_until_it_is_forgotten() {
    let place = place(100);
    place.make("a");
    fs::hard_link(place.directory.path().join("a"), place.directory.path().join("b")).unwrap();
    let (a, b) = (place.enter(&place.root, c"a"), place.enter(&place.root, c"b"));
    assert_eq!(a.id, b.id);
    assert!(place.nodes.forget(a.id, 1).is_none());
    assert!(place.nodes.find(a.id).is_ok());
    assert!(place.nodes.forget(a.id, 1).is_some());
    assert_eq!(place.nodes.find(a.id).unwrap_err(), Errno::STALE);
    assert!(place.root.names().believed.is_empty());
    // Numbers are never used again.
    assert!(place.enter(&place.root, c"a").id > a.id);
    // A root stays, however often it is forgotten.
    assert!(place.nodes.forget(place.root.id, u64::MAX).is_none());
    assert!(place.nodes.find(place.root.id).is_ok());
}

#[test]
fn closed_nodes_come_back_by_name_and_only_as_the_same_file() {
    let place = place(4);
    fs::create_dir(place.directory.path().join("d")).unwrap();
    let directory = place.enter(&place.root, c"d");
    let names: Vec<CString> =
        (0..50).map(|number| CString::new(format!("f{number}")).unwrap()).collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| {
            place.make(&format!("d/{}", name.to_str().unwrap()));
            place.enter(&directory, name)
        })
        .collect();
    let open = files.iter().filter(|file| locked(&file.handle).is_some()).count();
    assert!(open <= 8, "{open} are open");
    for file in &files {
        let found = status(&*place.nodes.handle(file).unwrap()).unwrap();
        assert_eq!(Some(Key::of(&found)), file.key);
    }
    // Replaced on the host while closed: not the file that the guest knows.
    let closed = files.iter().position(|file| locked(&file.handle).is_none()).unwrap();
    assert_ne!(closed, 49, "used last");
    let path = place.directory.path().join("d").join(names[closed].to_str().unwrap());
    fs::rename(place.directory.path().join("d/f49"), &path).unwrap();
    assert_eq!(place.nodes.handle(&files[closed]).unwrap_err(), Errno::STALE);
}

#[test]
fn what_is_pinned_stays_reachable_without_its_name() {
    let place = place(4);
    for number in 0..20 {
        place.make(&format!("f{number}"));
        place.enter(&place.root, &CString::new(format!("f{number}")).unwrap());
    }
    let name = Name::parse(c"f3").unwrap();
    let root = place.nodes.handle(&place.root).unwrap();
    let node = place.nodes.pin(0, &root, name).unwrap();
    fs::remove_file(place.directory.path().join("f3")).unwrap();
    place.nodes.disbelieve(&place.root, &mut place.root.names(), c"f3");
    for number in 10..20 {
        let file = place.enter(&place.root, &CString::new(format!("f{number}")).unwrap());
        place.nodes.handle(&file).unwrap();
    }
    assert_eq!(status(&*place.nodes.handle(&node).unwrap()).unwrap().stx_nlink, 0);
}

#[test]
fn a_chain_of_closed_directories_as_long_as_a_guest_likes_is_an_error_and_no_crash() {
    let place = place(4);
    let mut parent = Arc::clone(&place.root);
    let mut at = open(place.directory.path());
    let name = Name::parse(c"d").unwrap();
    for _ in 0..5000 {
        rustix::fs::mkdirat(&at, c"d", rustix::fs::Mode::RWXU).unwrap();
        at = Arc::new(hold(&at, name).unwrap());
        let node = place.nodes.adopt(0, &at, &status(&*at).unwrap()).unwrap();
        place.nodes.believe(&parent, &mut parent.names(), c"d", &node);
        locked(&node.handle).take();
        parent = node;
    }
    assert_eq!(place.nodes.handle(&parent).unwrap_err(), Errno::STALE);
}

#[test]
fn marks_are_taken_once_and_bounded() {
    let place = place(4);
    let mut names = place.root.names();
    let name = Name::parse(c"a").unwrap();
    names.mark(Mark::Made, name);
    assert!(!names.unmark(Mark::Removed, c"a") && !names.unmark(Mark::Made, c"b"));
    assert!(names.unmark(Mark::Made, c"a") && !names.unmark(Mark::Made, c"a"));
    for _ in 0..3 * MARKS_MAX {
        names.mark(Mark::Made, name);
    }
    assert!(names.own.len() <= MARKS_MAX);
}
