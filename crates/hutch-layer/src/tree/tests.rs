use super::*;
use crate::entry::Limits;
use crate::tar::Writer as TarWriter;

fn path(text: &str) -> EntryPath {
    EntryPath::parse(text.as_bytes()).unwrap()
}

fn try_tree(entries: &[(&str, Kind)]) -> Result<Tree, LayerError> {
    let mut tree = Tree::default();
    for (uid, (at, kind)) in (1..).zip(entries) {
        let metadata = Metadata { mode: 0o700, uid, ..Metadata::default() };
        let content = matches!(kind, Kind::File { .. }).then(|| file(u64::from(uid)));
        tree.insert(Entry { path: path(at), kind: kind.clone(), metadata }, content)?;
    }
    Ok(tree)
}

fn tree(entries: &[(&str, Kind)]) -> Tree {
    try_tree(entries).unwrap()
}

fn file(size: u64) -> Content {
    Content::Flat { size, block: 1, tail: None }
}

const FILE: Kind = Kind::File { size: 0, extents: None };

/// The tree as lines: path, what it is, owner.
fn lines(tree: &Tree) -> Vec<String> {
    fn add(tree: &Tree, id: NodeId, at: &str, lines: &mut Vec<String>) {
        let inode = &tree.inodes[id];
        let what = match &inode.node {
            Node::Directory { opaque: true, .. } => "opaque",
            Node::Directory { .. } => "directory",
            Node::File(_) => "file",
            Node::Symlink(_) => "link",
            Node::Whiteout => "gone",
            _ => "other",
        };
        lines.push(format!("{at} {what} {}", inode.metadata.uid));
        for (name, &child) in tree.children(id) {
            add(tree, child, &format!("{at}/{}", String::from_utf8_lossy(name)), lines);
        }
    }
    let mut all = Vec::new();
    add(tree, ROOT, "", &mut all);
    all
}

fn merged(lower: &[(&str, Kind)], upper: &[(&str, Kind)]) -> Vec<String> {
    let mut tree = tree(lower);
    let mut over = self::tree(upper);
    for inode in &mut over.inodes {
        inode.metadata.uid += 100;
    }
    tree.lay_over(&over);
    lines(&tree)
}

fn refusal(entries: &[(&str, Kind)]) -> String {
    try_tree(entries).unwrap_err().to_string()
}

#[test]
fn directories_on_the_way_are_made_and_later_described() {
    let tree = tree(&[("a/b/c", FILE), ("a/b", Kind::Directory)]);
    assert_eq!(
        lines(&tree),
        [" directory 0", "/a directory 0", "/a/b directory 2", "/a/b/c file 1"]
    );
}

#[test]
fn the_last_of_two_entries_counts() {
    let all = [("a/b", FILE), ("a", FILE), ("x", FILE), ("x", Kind::Directory)];
    assert_eq!(lines(&tree(&all)), [" directory 0", "/a file 2", "/x directory 4"]);
}

#[test]
fn nothing_goes_through_a_link() {
    let link = ("a", Kind::Symlink(b"/etc".to_vec()));
    assert!(
        refusal(&[link.clone(), ("a/passwd", FILE)])
            .contains("`a/passwd` lies behind a symbolic link")
    );
    assert!(refusal(&[link.clone(), ("a/b/c", Kind::Directory)]).contains("symbolic link"));
    assert!(refusal(&[link.clone(), ("a/b", Kind::Whiteout)]).contains("symbolic link"));
    assert!(refusal(&[link, ("a", Kind::Opaque)]).contains("symbolic link"));
    assert!(refusal(&[("a", FILE), ("a/b", FILE)]).contains("no directory"));
}

#[test]
fn hard_links_lead_to_files_that_came_before() {
    let link = |target| Kind::HardLink(path(target));
    let linked = tree(&[("a", FILE), ("b", link("a")), ("c/d", link("b"))]);
    assert_eq!(linked.find(&path("a")), linked.find(&path("c/d")));
    assert!(refusal(&[("b", link("a"))]).contains("not in the layer before it"));
    assert!(refusal(&[("b", link("b"))]).contains("not in the layer before it"));
    assert!(refusal(&[("a", Kind::Directory), ("b", link("a"))]).contains("cannot have one"));
    assert!(refusal(&[("a", Kind::Directory), ("a/b", link(""))]).contains("cannot have one"));
    let behind = [("e", Kind::Symlink(b"/etc".to_vec())), ("b", link("e/passwd"))];
    assert!(refusal(&behind).contains("not in the layer before it"));
}

#[test]
fn a_whiteout_hides_what_is_below_only() {
    let gone = |at| (at, Kind::Whiteout);
    let lower = [("a/x", FILE), ("b", FILE), ("c/y", FILE), ("d/z", FILE)];
    assert_eq!(
        merged(&lower, &[gone("a"), gone("b"), ("b", FILE), ("c", Kind::Opaque), ("c/new", FILE)]),
        [
            " directory 0",
            "/a gone 100",
            "/b file 103",
            "/c opaque 0",
            "/c/new file 105",
            "/d directory 0",
            "/d/z file 4",
        ]
    );
    // In one layer a directory in a removed one's place shows nothing of it, whichever entry comes first.
    for upper in [[gone("a"), ("a/n", FILE)], [("a/n", FILE), gone("a")]] {
        let merged = merged(&lower[..1], &upper);
        assert_eq!(merged[1], "/a opaque 0", "{merged:?}");
        assert_eq!(merged.len(), 3);
    }
}

#[test]
fn the_lowest_layer_hides_nothing() {
    let mut tree = tree(&[("a", Kind::Whiteout), ("b", Kind::Opaque), ("b/c", Kind::Whiteout)]);
    tree.settle();
    assert_eq!(lines(&tree), [" directory 0", "/b directory 0"]);
}

#[test]
fn a_file_in_place_of_a_directory_and_back() {
    assert_eq!(merged(&[("a/b", FILE)], &[("a", FILE)]), [" directory 0", "/a file 101"]);
    assert_eq!(
        merged(&[("a", FILE)], &[("a/b", FILE)]),
        [" directory 0", "/a opaque 0", "/a/b file 101"]
    );
}

#[test]
fn hard_links_stay_links_in_a_merged_layer() {
    let mut lower = tree(&[("a", FILE)]);
    lower.lay_over(&tree(&[("b", FILE), ("c", Kind::HardLink(path("b")))]));
    assert_eq!(lower.find(&path("b")), lower.find(&path("c")));
}

#[test]
fn directories_nobody_described_are_as_they_are_below() {
    let lower = tree(&[("a", Kind::Directory), ("a/b", Kind::Directory)]);
    let mut upper = tree(&[("a/b/c", FILE), ("a", Kind::Directory)]);
    upper.take_directories_from(&lower);
    assert_eq!(lines(&upper)[1..3], ["/a directory 2", "/a/b directory 2"]);
}

#[test]
fn the_root_can_only_be_a_directory() {
    assert_eq!(lines(&tree(&[("", Kind::Directory)])), [" directory 1"]);
    assert!(refusal(&[("", FILE)]).contains("root directory"));
    assert!(refusal(&[(".", Kind::Symlink(b"/".to_vec()))]).contains("root directory"));
}

#[test]
fn devices_and_attributes_have_limits() {
    let device = Kind::CharacterDevice { major: 4096, minor: 0 };
    assert!(refusal(&[("a", device)]).contains("device number"));
    let mut metadata = Metadata::default();
    metadata.xattrs.insert(b"user.a".to_vec(), vec![0; 70_000]);
    let entry = Entry { path: path("a"), kind: Kind::Fifo, metadata };
    assert!(Tree::default().insert(entry, None).is_err());
}

#[test]
fn an_archive_becomes_an_image_and_an_archive_again() {
    let mut archive = TarWriter::new(Vec::new());
    let entry = |at: &str, kind| Entry {
        path: path(at),
        kind,
        metadata: Metadata { mode: 0o755, ..Metadata::default() },
    };
    archive.append(&entry("", Kind::Directory), &mut std::io::empty()).unwrap();
    archive.append(&entry("a", Kind::Directory), &mut std::io::empty()).unwrap();
    let file = entry("a/b", Kind::File { size: 3, extents: None });
    archive.append(&file, &mut b"abc".as_slice()).unwrap();
    archive.append(&entry("a/c", Kind::Whiteout), &mut std::io::empty()).unwrap();
    let archive = archive.finish().unwrap();

    let mut writer = Writer::new(tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut reader = tar::Reader::new(archive.as_slice(), Limits::default());
    let tree = Tree::from_tar(&mut reader, &mut writer).unwrap();
    let image = Image::open(writer.finish(&tree).unwrap(), Limits::default()).unwrap();
    let mut again = TarWriter::new(Vec::new());
    image.walk(&mut |entry, content| again.append(&entry, content)).unwrap();
    let again = again.finish().unwrap();
    let names = |archive: &[u8]| {
        let mut reader = tar::Reader::new(archive, Limits::default());
        let mut names = Vec::new();
        while let Some(entry) = reader.next().unwrap() {
            names.push((entry.path, entry.kind));
        }
        names
    };
    assert_eq!(names(&again), names(&archive));
}
