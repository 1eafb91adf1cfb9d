//! What is particular to workspaces: whose files are, what is read-only, what goes when the worker goes.

#![expect(clippy::disallowed_methods, reason = "these files are for the moment of a test")]

use std::fs;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::Path;

use hutch_workspace::WorkspaceSpec;
use rustix::fs::{AtFlags, CWD, FileType, Mode, mknodat};
use rustix::io::Errno;

use crate::harness::{HOST_USER, Mount, can_mount, chown_all, within};

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.expect_err("it is refused").raw_os_error()
}

const READ_ONLY: Option<i32> = Some(30);

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

#[test]
fn what_a_write_returned_for_is_on_the_host() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let mut file = fs::File::create(mount.guest("log")).unwrap();
    for line in ["one\n", "two\n"] {
        file.write_all(line.as_bytes()).unwrap();
        assert!(fs::read_to_string(mount.host("log")).unwrap().ends_with(line));
    }
    // The host appends, then the guest: nobody overwrites the other.
    let mut append = fs::File::options().append(true).open(mount.guest("log")).unwrap();
    fs::File::options().append(true).open(mount.host("log")).unwrap().write_all(b"host\n").unwrap();
    append.write_all(b"guest\n").unwrap();
    assert_eq!(fs::read_to_string(mount.host("log")).unwrap(), "one\ntwo\nhost\nguest\n");
    within("both appended lines", || {
        (fs::read_to_string(mount.guest("log")).unwrap() == "one\ntwo\nhost\nguest\n").then_some(())
    });
}

#[test]
fn a_file_above_four_gigabytes_and_a_directory_of_a_hundred_thousand() {
    if !can_mount() {
        return;
    }
    let mount = Mount::with(|host| {
        let many = host.join("many");
        fs::create_dir(&many).unwrap();
        for number in 0..100_000 {
            let name = many.join(number.to_string());
            mknodat(CWD, name, FileType::RegularFile, Mode::RUSR, 0).unwrap();
        }
        vec![WorkspaceSpec::new(host, false)]
    });
    let place = (5_u64 << 30) + 3;
    let mut file = fs::File::create_new(mount.guest("large")).unwrap();
    file.seek(SeekFrom::Start(place)).unwrap();
    file.write_all(b"far").unwrap();
    assert_eq!(fs::metadata(mount.host("large")).unwrap().len(), place + 3);
    assert!(fs::metadata(mount.guest("large")).unwrap().blocks() < 1000);
    let mut end = String::new();
    let mut file = fs::File::open(mount.guest("large")).unwrap();
    file.seek(SeekFrom::Start(place)).unwrap();
    file.read_to_string(&mut end).unwrap();
    assert_eq!(end, "far");

    let mut seen: Vec<u32> = fs::read_dir(mount.guest("many"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse().unwrap())
        .collect();
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..100_000), "{} entries", seen.len());
    fs::remove_dir_all(mount.host("many")).unwrap();
    within("the removal", || (!mount.guest("many").exists()).then_some(()));
    // Removing while listing, as `rm -r` does.
    fs::create_dir(mount.host("some")).unwrap();
    for number in 0..3000 {
        fs::write(mount.host(format!("some/{number}")), "").unwrap();
    }
    fs::remove_dir_all(mount.guest("some")).unwrap();
    assert!(!mount.host("some").exists());
}

#[test]
fn owners_are_mapped_and_changes_of_owner_remembered_but_not_applied() {
    if !can_mount() {
        return;
    }
    let mount = Mount::of_a_user(|host| {
        fs::write(host.join("own"), "x").unwrap();
        vec![WorkspaceSpec::new(host, false)]
    });
    let owner = |path: &Path| {
        let status = fs::symlink_metadata(path).unwrap();
        (status.uid(), status.gid())
    };
    assert_eq!(owner(&mount.guest("")), (1000, 1000));
    assert_eq!(owner(&mount.guest("own")), (1000, 1000));
    // Somebody else's file on the host, who has the sandbox user's number there.
    fs::write(mount.host("other"), "x").unwrap();
    chown(mount.host("other"), Some(1000), Some(1000)).unwrap();
    assert_eq!(owner(&mount.guest("other")), (65_534, 65_534));
    fs::set_permissions(mount.host("other"), fs::Permissions::from_mode(0o600)).unwrap();
    within("a file that the host user cannot read", || {
        (fs::read(mount.guest("other")).err()?.kind() == ErrorKind::PermissionDenied).then_some(())
    });

    fs::write(mount.guest("made"), "x").unwrap();
    fs::create_dir(mount.guest("made directory")).unwrap();
    symlink("made", mount.guest("made link")).unwrap();
    for name in ["made", "made directory", "made link"] {
        assert_eq!(owner(&mount.host(name)), (HOST_USER, HOST_USER), "{name}");
        assert_eq!(owner(&mount.guest(name)), (1000, 1000), "{name}");
    }
    chown(mount.guest("made"), Some(1234), Some(4321)).unwrap();
    assert_eq!(owner(&mount.guest("made")), (1234, 4321));
    assert_eq!(owner(&mount.host("made")), (HOST_USER, HOST_USER));
    // Links cannot carry the record: accepted and forgotten.
    std::os::unix::fs::lchown(mount.guest("made link"), Some(1234), None).unwrap();
    assert_eq!(owner(&mount.guest("made link")), (1000, 1000));
    // The record itself is nothing that the guest can see or make.
    let names = rustix::fs::listxattr(mount.guest("made"), &mut [0_u8; 256]).unwrap();
    assert_eq!(names, 0);
    let mut value = [0_u8; 64];
    let record = c"user.hutch.owner";
    assert_eq!(rustix::fs::getxattr(mount.guest("made"), record, &mut value), Err(Errno::NODATA));
    let set = rustix::fs::setxattr(
        mount.guest("made"),
        record,
        b"0:0:4000",
        rustix::fs::XattrFlags::empty(),
    );
    assert_eq!(set, Err(Errno::OPNOTSUPP));
    assert_eq!(rustix::fs::getxattr(mount.host("made"), record, &mut value), Ok(11));
    // Back to the usual owner: no record is left.
    chown(mount.guest("made"), Some(1000), Some(1000)).unwrap();
    assert_eq!(rustix::fs::getxattr(mount.host("made"), record, &mut value), Err(Errno::NODATA));
}

#[test]
fn set_id_bits_never_reach_the_host_and_go_when_they_should() {
    if !can_mount() {
        return;
    }
    let mount = Mount::of_a_user(|host| vec![WorkspaceSpec::new(host, false)]);
    let bits = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let (guest, host) = (mount.guest("program"), mount.host("program"));
    fs::write(&guest, "x").unwrap();
    fs::set_permissions(&guest, fs::Permissions::from_mode(0o6755)).unwrap();
    assert_eq!((bits(&guest), bits(&host)), (0o6755, 0o755));
    chown(&guest, Some(0), None).unwrap();
    assert_eq!((bits(&guest), bits(&host)), (0o755, 0o755));
    fs::set_permissions(&guest, fs::Permissions::from_mode(0o4711)).unwrap();
    assert_eq!(bits(&guest), 0o4711);
    // Written by somebody without the right to keep them.
    fs::set_permissions(&guest, fs::Permissions::from_mode(0o4777)).unwrap();
    let mut writer = hutch_sys::spawn::command("sh");
    std::os::unix::process::CommandExt::uid(&mut writer, 1000);
    let status = writer.args(["-c", "printf y >> \"$1\"", "sh"]).arg(&guest).status().unwrap();
    assert!(status.success());
    assert_eq!((bits(&guest), bits(&host)), (0o777, 0o777));
    assert_eq!(fs::read_to_string(&host).unwrap(), "xy");
    // Made with them.
    mknodat(
        CWD,
        guest.with_extension("made"),
        FileType::RegularFile,
        Mode::from_raw_mode(0o4755),
        0,
    )
    .unwrap();
    assert_eq!(bits(&host.with_extension("made")), 0o755);
    // A host file with them acts for nobody in the guest.
    fs::write(mount.host("hosts"), "x").unwrap();
    fs::set_permissions(mount.host("hosts"), fs::Permissions::from_mode(0o4755)).unwrap();
    assert_eq!(bits(&mount.guest("hosts")), 0o755);
    // On directories they mean something else.
    fs::create_dir(mount.guest("shared")).unwrap();
    fs::set_permissions(mount.guest("shared"), fs::Permissions::from_mode(0o2775)).unwrap();
    assert_eq!((bits(&mount.guest("shared")), bits(&mount.host("shared"))), (0o2775, 0o2775));
}

#[test]
fn special_files_are_made_and_never_opened() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, mount.guest("fifo"), FileType::Fifo, mode, 0).unwrap();
    mknodat(CWD, mount.guest("socket"), FileType::Socket, mode, 0).unwrap();
    assert!(fs::symlink_metadata(mount.host("fifo")).unwrap().file_type().is_fifo());
    assert!(fs::symlink_metadata(mount.host("socket")).unwrap().file_type().is_socket());
    for kind in [FileType::CharacterDevice, FileType::BlockDevice] {
        let device = rustix::fs::makedev(1, 3);
        assert_eq!(mknodat(CWD, mount.guest("device"), kind, mode, device), Err(Errno::PERM));
    }
    // A FIFO of the host is one of the guest's own: readers there wait without the worker.
    mknodat(CWD, mount.host("hosts"), FileType::Fifo, mode, 0).unwrap();
    within("the fifo", || mount.guest("hosts").exists().then_some(()));
    // More readers wait than the worker has threads.
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| fs::File::open(mount.guest("hosts")).unwrap()))
            .collect();
        fs::write(mount.guest("beside"), "x").unwrap();
        assert_eq!(fs::read_to_string(mount.guest("beside")).unwrap(), "x");
        let mut writer = fs::File::options().write(true).open(mount.guest("hosts")).unwrap();
        let mut readers: Vec<_> =
            readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        writer.write_all(b"through").unwrap();
        let mut heard = [0; 7];
        readers[0].read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"through");
    });
}

#[test]
fn nothing_in_a_read_only_workspace_changes() {
    if !can_mount() {
        return;
    }
    let mount = Mount::with(|host| {
        fs::create_dir(host.join("directory")).unwrap();
        fs::write(host.join("file"), "fixed").unwrap();
        vec![WorkspaceSpec::new(host, true)]
    });
    refuses_all_changes(&mount.guest("file"), &mount.guest("directory"));
    assert_eq!(fs::read_to_string(mount.host("file")).unwrap(), "fixed");
    assert_eq!(fs::read_dir(mount.host("")).unwrap().count(), 2);
    // The host may.
    fs::write(mount.host("file"), "newer").unwrap();
    within("the change", || {
        (fs::read_to_string(mount.guest("file")).unwrap() == "newer").then_some(())
    });
}

/// Every operation that could change a file or a directory.
fn refuses_all_changes(file: &Path, directory: &Path) {
    let beside = |name: &str| file.with_file_name(name);
    let content = fs::read(file).expect("it works");
    // Opening is the guest's own affair; writing is not.
    let written = fs::File::options().append(true).open(file).and_then(|mut f| f.write_all(b"x"));
    assert_eq!(errno(written), READ_ONLY);
    let truncated = fs::File::options().write(true).open(file).and_then(|f| f.set_len(0));
    assert_eq!(errno(truncated), READ_ONLY);
    assert_eq!(errno(fs::File::options().write(true).truncate(true).open(file)), READ_ONLY);
    assert_eq!(errno(fs::remove_file(file)), READ_ONLY);
    assert_eq!(errno(fs::remove_dir(directory)), READ_ONLY);
    assert_eq!(errno(fs::rename(file, beside("moved"))), READ_ONLY);
    assert_eq!(errno(fs::rename(directory, beside("moved"))), READ_ONLY);
    assert_eq!(errno(fs::hard_link(file, beside("linked"))), READ_ONLY);
    assert_eq!(errno(fs::set_permissions(file, fs::Permissions::from_mode(0o777))), READ_ONLY);
    assert_eq!(errno(chown(file, Some(1), Some(1))), READ_ONLY);
    let now = std::time::SystemTime::now();
    let times = fs::FileTimes::new().set_modified(now);
    assert_eq!(errno(fs::File::open(file).and_then(|f| f.set_times(times))), READ_ONLY);
    let set = rustix::fs::setxattr(file, c"user.note", b"x", rustix::fs::XattrFlags::empty());
    assert_eq!(set, Err(Errno::ROFS));
    let open = fs::File::options().write(true).open(file).expect("it works");
    let allocated = rustix::fs::fallocate(&open, rustix::fs::FallocateFlags::empty(), 0, 100);
    assert_eq!(allocated, Err(Errno::ROFS));
    for place in [directory.to_owned(), directory.join("")] {
        assert_eq!(errno(fs::write(place.join("new"), "x")), READ_ONLY);
        assert_eq!(errno(fs::create_dir(place.join("new"))), READ_ONLY);
        assert_eq!(errno(symlink("x", place.join("new"))), READ_ONLY);
        let made = mknodat(CWD, place.join("new"), FileType::Fifo, Mode::RUSR, 0);
        assert_eq!(made, Err(Errno::ROFS));
    }
    assert_eq!(fs::read(file).expect("it works"), content);
}

/// A writable workspace with a read-only directory and a read-only file inside, each a workspace of its own.
fn mixed() -> Mount {
    Mount::with(|host| {
        fs::create_dir_all(host.join("a/vendor/deep/below")).expect("it works");
        fs::write(host.join("a/vendor/library"), "fixed").expect("it works");
        fs::write(host.join("a/vendor/deep/file"), "fixed").expect("it works");
        fs::write(host.join("secret"), "fixed").expect("it works");
        vec![
            WorkspaceSpec::new(host, false),
            WorkspaceSpec::new(&host.join("a/vendor"), true),
            WorkspaceSpec::new(&host.join("secret"), true),
        ]
    })
}

#[test]
fn read_only_parts_of_a_writable_workspace_are_so_by_every_way() {
    if !can_mount() {
        return;
    }
    let mount = mixed();
    fs::write(mount.guest("free"), "x").unwrap();
    fs::write(mount.guest("a/free"), "x").unwrap();
    refuses_all_changes(&mount.guest("a/vendor/library"), &mount.guest("a/vendor/deep"));
    refuses_all_changes(&mount.guest_of(1, "library"), &mount.guest_of(1, "deep"));
    refuses_all_changes(&mount.guest("a/vendor/deep/file"), &mount.guest("a/vendor/deep/below"));
    assert_eq!(errno(fs::write(mount.guest_of(2, "").parent().unwrap().join("2"), "x")), READ_ONLY);
    assert_eq!(errno(fs::write(mount.guest("secret"), "x")), READ_ONLY);
    // Over it, out of it, into it, exchanged with it; taking it along with a parent.
    for (from, to) in [
        ("free", "secret"),
        ("free", "a/vendor/library"),
        ("free", "a/vendor/new"),
        ("secret", "moved"),
        ("a/vendor", "moved"),
        ("a/vendor/deep/file", "moved"),
        ("a", "moved"),
    ] {
        let (from, to) = (mount.guest(from), mount.guest(to));
        assert_eq!(errno(fs::rename(&from, &to)), READ_ONLY, "{from:?} to {to:?}");
    }
    let exchanged = rustix::fs::renameat_with(
        CWD,
        mount.guest("free"),
        CWD,
        mount.guest("secret"),
        rustix::fs::RenameFlags::EXCHANGE,
    );
    assert_eq!(exchanged, Err(Errno::ROFS));
    for (from, to) in [("secret", "linked"), ("free", "a/vendor/linked")] {
        assert_eq!(errno(fs::hard_link(mount.guest(from), mount.guest(to))), READ_ONLY);
    }
    for path in ["a/vendor/library", "a/vendor/deep/file", "secret"] {
        assert_eq!(fs::read_to_string(mount.host(path)).unwrap(), "fixed", "{path}");
    }
}

#[test]
fn read_only_places_stay_so_when_the_host_replaces_or_moves_things() {
    if !can_mount() {
        return;
    }
    let mount = mixed();
    // An editor's way to save: what is there now is another file.
    fs::write(mount.host("new"), "newer").unwrap();
    fs::rename(mount.host("new"), mount.host("secret")).unwrap();
    within("the new content", || {
        (fs::read_to_string(mount.guest("secret")).unwrap() == "newer").then_some(())
    });
    assert_eq!(errno(fs::write(mount.guest("secret"), "x")), READ_ONLY);
    // A directory that the guest knows as writable is moved into the read-only place.
    fs::create_dir(mount.guest("writable")).unwrap();
    fs::write(mount.guest("writable/file"), "x").unwrap();
    let directory = fs::File::open(mount.guest("writable")).unwrap();
    let mut file = fs::File::options().write(true).open(mount.guest("writable/file")).unwrap();
    file.write_all(b"y").unwrap();
    fs::rename(mount.host("writable"), mount.host("a/vendor/moved")).unwrap();
    assert_eq!(errno(file.write_all(b"z")), READ_ONLY);
    let made = rustix::fs::mkdirat(&directory, "new", Mode::RWXU);
    assert_eq!(made, Err(Errno::ROFS));
    let removed = rustix::fs::unlinkat(&directory, "file", AtFlags::empty());
    assert_eq!(removed, Err(Errno::ROFS));
    // The read-only directory is moved by the host: it stays read-only where it is now, and the place stays, too.
    fs::rename(mount.host("a/vendor"), mount.host("elsewhere")).unwrap();
    within("the new place", || mount.guest("elsewhere/library").exists().then_some(()));
    assert_eq!(errno(fs::write(mount.guest("elsewhere/library"), "x")), READ_ONLY);
    within("the old place", || (!mount.guest("a/vendor").exists()).then_some(()));
    assert_eq!(errno(fs::create_dir(mount.guest("a/vendor"))), READ_ONLY);
    // A parent of everything is renamed during use.
    fs::rename(mount.host(""), mount.host("").with_file_name("renamed")).unwrap();
    fs::write(mount.guest("still"), "works").unwrap();
    assert_eq!(errno(fs::write(mount.guest("secret"), "x")), READ_ONLY);
    assert_eq!(errno(fs::write(mount.guest("elsewhere/library"), "x")), READ_ONLY);
    fs::rename(mount.host("").with_file_name("renamed"), mount.host("")).unwrap();
    assert_eq!(fs::read_to_string(mount.host("still")).unwrap(), "works");
}

#[test]
fn a_guest_with_few_descriptors_and_watches_sees_the_same() {
    if !can_mount() {
        return;
    }
    let mount = Mount::limited(
        |host| vec![WorkspaceSpec::new(host, false)],
        |prepared| prepared.with_watches_max(2).with_descriptors_max(16),
    );
    for number in 0..40 {
        fs::create_dir(mount.host(format!("d{number}"))).unwrap();
        fs::write(mount.host(format!("d{number}/file")), "old").unwrap();
    }
    let mut open = Vec::new();
    for number in 0..40 {
        let path = mount.guest(format!("d{number}/file"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        open.push(fs::File::open(path).unwrap());
    }
    for number in 0..40 {
        fs::write(mount.host(format!("d{number}/file")), "new").unwrap();
        let path = mount.guest(format!("d{number}/file"));
        within("the change", || (fs::read_to_string(&path).unwrap() == "new").then_some(()));
        // Removed by the guest while open there: the descriptor comes back for as long as it is needed.
        fs::remove_file(&path).unwrap();
    }
    for mut file in open {
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "new");
    }
}

#[test]
fn programs_get_errors_and_do_not_hang_when_the_worker_dies() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    fs::write(mount.guest("file"), "x").unwrap();
    let mut open = fs::File::open(mount.guest("file")).unwrap();
    mount.lose_worker();
    within("the loss", || {
        let error = fs::metadata(mount.guest("another")).err()?;
        (error.raw_os_error() == Some(107)).then_some(())
    });
    let mut content = String::new();
    open.seek(SeekFrom::Start(1 << 20)).unwrap();
    assert!(open.read_to_string(&mut content).is_err());
}

#[test]
fn an_owner_of_each_workspace_when_root_serves_several_users() {
    if !can_mount() {
        return;
    }
    let mount = Mount::of_a_user(|host| {
        let other = host.with_file_name("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("file"), "x").unwrap();
        chown_all(&other, 77);
        vec![WorkspaceSpec::new(host, false), WorkspaceSpec::new(&other, false)]
    });
    fs::write(mount.guest("made"), "x").unwrap();
    fs::write(mount.guest_of(1, "made"), "x").unwrap();
    let other = mount.host("").with_file_name("other");
    assert_eq!(fs::metadata(mount.host("made")).unwrap().uid(), HOST_USER);
    assert_eq!(fs::metadata(other.join("made")).unwrap().uid(), 77);
    for path in [mount.guest("made"), mount.guest_of(1, "made"), mount.guest_of(1, "file")] {
        assert_eq!(fs::metadata(&path).unwrap().uid(), 1000, "{path:?}");
    }
}
