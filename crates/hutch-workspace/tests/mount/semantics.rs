//! What programs expect of a file system.

use std::fs;

use crate::harness::{Mount, can_mount};

#[test]
fn a_file_crosses_both_ways() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    fs::write(mount.host("from host"), "host").unwrap();
    assert_eq!(fs::read_to_string(mount.guest("from host")).unwrap(), "host");
    fs::write(mount.guest("from guest"), "guest").unwrap();
    assert_eq!(fs::read_to_string(mount.host("from guest")).unwrap(), "guest");
    fs::create_dir(mount.guest("directory")).unwrap();
    fs::rename(mount.guest("from guest"), mount.guest("directory/moved")).unwrap();
    assert_eq!(fs::read_to_string(mount.host("directory/moved")).unwrap(), "guest");
    let names: Vec<_> =
        fs::read_dir(mount.guest("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    fs::remove_file(mount.guest("directory/moved")).unwrap();
    fs::remove_dir(mount.guest("directory")).unwrap();
    assert!(!mount.host("directory").exists());
}
