use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::elf;

fn order(
    wanted: &[&str],
    known: &[&str],
    depends: &BTreeMap<&str, Vec<&str>>,
) -> Result<Vec<String>, OrderError> {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    load_order(&owned(wanted), &owned(known).into_iter().collect(), &mut |name| {
        Ok(depends.get(name).map(|names| owned(names)))
    })
}

#[test]
fn what_is_needed_comes_first_and_once() {
    let depends =
        BTreeMap::from([("a", vec!["b", "c"]), ("b", vec!["c"]), ("c", vec![]), ("d", vec!["a"])]);
    assert_eq!(order(&["a", "d", "c"], &[], &depends).unwrap(), ["c", "b", "a", "d"]);
    assert_eq!(order(&["d"], &["b", "c"], &depends).unwrap(), ["a", "d"]);
}

#[test]
fn missing_and_circular_dependencies_are_named() {
    let depends = BTreeMap::from([("a", vec!["b"]), ("x", vec!["y"]), ("y", vec!["x"])]);
    assert!(matches!(
        order(&["a"], &[], &depends),
        Err(OrderError::Missing { module, missing }) if module == "a" && missing == "b"
    ));
    assert!(matches!(order(&["x"], &[], &depends), Err(OrderError::Cycle { .. })));
}

proptest! {
    #[test]
    fn any_order_can_be_loaded(
        edges in proptest::collection::vec((0_usize..40, 0_usize..40), 0..200),
        wanted in proptest::collection::vec(0_usize..40, 1..20),
    ) {
        // Edges to smaller numbers only cannot be circular.
        let names: Vec<String> = (0..40).map(|number| format!("m{number}")).collect();
        let mut depends: BTreeMap<String, Vec<String>> =
            names.iter().map(|name| (name.clone(), Vec::new())).collect();
        for (one, other) in edges {
            if one != other {
                let below = names[one.min(other)].clone();
                depends.entry(names[one.max(other)].clone()).or_default().push(below);
            }
        }
        let wanted: Vec<String> = wanted.iter().map(|number| names[*number].clone()).collect();
        let order =
            load_order(&wanted, &BTreeSet::new(), &mut |name| Ok(depends.get(name).cloned()))
                .unwrap();
        let mut loaded = BTreeSet::new();
        for name in &order {
            for below in &depends[name] {
                prop_assert!(loaded.contains(below), "{below} before {name}");
            }
            prop_assert!(loaded.insert(name.clone()), "{name} once");
        }
        prop_assert!(wanted.iter().all(|name| loaded.contains(name)));
    }

    #[test]
    fn any_bytes_are_no_module_and_no_panic(bytes: Vec<u8>) {
        prop_assert!(read_depends(&bytes).is_none());
    }
}

fn put(path: &Path, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::File::create(path).unwrap().write_all(content).unwrap();
}

#[test]
fn modules_are_found_decompressed_and_ordered() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    let zstd = |content: Vec<u8>| zstd::encode_all(&content[..], 1).unwrap();
    put(&at("kernel/drivers/block/virtio_blk.ko"), &elf::module(""));
    put(&at("kernel/fs/erofs/erofs.ko.zst"), &zstd(elf::module("libcrc32c,crc_built_in")));
    put(&at("kernel/lib/libcrc32c.ko.zst"), &zstd(elf::module("")));
    put(&at("kernel/drivers/char/virtio-rng.ko"), &elf::module(""));
    put(&at("kernel/net/tun.ko"), &elf::module("virtio_blk\0alias=devname:net/tun\0alias=pci:v*"));
    put(&at("kernel/net/dummy.ko"), &elf::module("libcrc32c\0alias=rtnl-link-dummy"));
    put(&at("kernel/net/unwanted.ko"), b"not read at all");
    put(&at("modules.builtin"), b"kernel/lib/crc-built-in.ko\n");
    let set = collect(directory.path()).unwrap();
    let names = |modules: &[Module]| {
        modules.iter().map(|module| module.file_name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(names(&set.boot), ["virtio_blk.ko", "libcrc32c.ko", "erofs.ko", "virtio-rng.ko"]);
    assert_eq!(names(&set.network), ["dummy.ko"]);
    assert_eq!(set.network[0].aliases, ["rtnl-link-dummy"]);
    assert_eq!(names(&set.later), ["tun.ko"]);
    assert_eq!(set.later[0].aliases, ["devname:net/tun"]);
    assert_eq!(set.boot[1].content, elf::module(""));
}

#[test]
fn a_file_that_is_no_module_is_named() {
    let directory = tempfile::tempdir().unwrap();
    put(&directory.path().join("kernel/overlay.ko"), b"\x7fELF but not really");
    let error = collect(directory.path()).unwrap_err();
    assert!(error.to_string().contains("overlay.ko is not a kernel module"), "{error}");
}

#[test]
fn only_a_whole_signature_is_removed() {
    let signed = |length: u32| {
        let mut content = b"module".to_vec();
        content.extend_from_slice(&[7; 20]);
        content.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0]);
        content.extend_from_slice(&length.to_be_bytes());
        content.extend_from_slice(SIGNATURE_END);
        Module { file_name: String::new(), content, depends: Vec::new(), aliases: Vec::new() }
    };
    let mut module = signed(20);
    module.strip_signature();
    assert_eq!(module.content, b"module");
    let mut module = signed(27);
    let before = module.content.clone();
    module.strip_signature();
    assert_eq!(module.content, before);
}
