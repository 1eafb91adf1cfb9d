//! Changes on the host: seen in the guest at once, and noticed by its watchers.

#![expect(clippy::disallowed_methods, reason = "these files are for the moment of a test")]

use std::ffi::OsString;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use hutch_workspace::WorkspaceSpec;

use hutch_workspace::abi::opcode;

use crate::harness::{Mount, can_mount, within};
use crate::relay::HoldListings;

/// What a program in the guest is told of a directory.
struct GuestWatch {
    inotify: OwnedFd,
    heard: Vec<(ReadFlags, OsString)>,
}

impl GuestWatch {
    fn of(directory: &Path) -> Self {
        let inotify =
            inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).expect("it works");
        let interest = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVE
            | WatchFlags::MODIFY
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB;
        inotify::add_watch(&inotify, directory, interest).expect("it works");
        Self { inotify, heard: Vec::new() }
    }

    /// Waits until this was heard; forgets everything up to it.
    fn hear(&mut self, event: ReadFlags, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let wanted = |(heard, of): &(ReadFlags, OsString)| {
                heard.contains(event) && of.as_bytes() == name.as_bytes()
            };
            if let Some(at) = self.heard.iter().position(wanted) {
                self.heard.drain(..=at);
                return;
            }
            assert!(Instant::now() < deadline, "no {event:?} of {name}: {:?}", self.heard);
            self.read(Duration::from_millis(100));
        }
    }

    fn read(&mut self, at_most: Duration) {
        let timeout = Timespec { tv_sec: 0, tv_nsec: at_most.subsec_nanos().into() };
        poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&timeout)).expect("it works");
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let name = event.file_name().map(|name| std::ffi::OsStr::from_bytes(name.to_bytes()));
            self.heard.push((event.events(), name.unwrap_or_default().to_owned()));
        }
    }

    /// What was heard until nothing more came for a while.
    fn quiet(&mut self) -> Vec<(ReadFlags, OsString)> {
        loop {
            let before = self.heard.len();
            self.read(Duration::from_millis(300));
            if self.heard.len() == before {
                return std::mem::take(&mut self.heard);
            }
        }
    }
}

#[test]
fn content_attributes_and_names_follow_the_host_within_a_tenth_of_a_second() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let (host, guest) = (mount.host("file"), mount.guest("file"));
    assert!(!guest.exists());
    let mut delays = Vec::new();
    for round in 0..50 {
        let content = format!("content {round}");
        match round % 3 {
            0 => fs::write(&host, &content).unwrap(),
            1 => {
                fs::write(mount.host("new"), &content).unwrap();
                fs::rename(mount.host("new"), &host).unwrap();
            }
            _ => {
                fs::remove_file(&host).unwrap();
                fs::write(&host, &content).unwrap();
            }
        }
        let changed = Instant::now();
        within("the new content", || (fs::read_to_string(&guest).ok()? == content).then_some(()));
        delays.push(changed.elapsed());
    }
    delays.sort();
    assert!(delays[44] < Duration::from_millis(100), "{delays:?}");
    fs::remove_file(&host).unwrap();
    within("the removal", || (!guest.exists()).then_some(()));
    fs::create_dir(mount.host("file")).unwrap();
    within("the directory", || guest.is_dir().then_some(()));
    fs::write(mount.host("file/inner"), "x").unwrap();
    within("the listing", || (fs::read_dir(&guest).unwrap().count() == 1).then_some(()));
    fs::write(mount.host("file/other"), "x").unwrap();
    within("the longer listing", || (fs::read_dir(&guest).unwrap().count() == 2).then_some(()));
    rustix::fs::chmod(&host, rustix::fs::Mode::from_raw_mode(0o700)).unwrap();
    within("the mode", || (fs::metadata(&guest).unwrap().mode() & 0o777 == 0o700).then_some(()));
}

#[test]
fn a_file_with_two_names_follows_changes_through_the_other() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    // The other name is in a directory that the guest never looks at.
    fs::create_dir(mount.host("elsewhere")).unwrap();
    fs::write(mount.host("elsewhere/name"), "one").unwrap();
    fs::hard_link(mount.host("elsewhere/name"), mount.host("name")).unwrap();
    let guest = mount.guest("name");
    assert_eq!(fs::read_to_string(&guest).unwrap(), "one");
    assert_eq!(fs::metadata(&guest).unwrap().nlink(), 2);
    fs::write(mount.host("elsewhere/name"), "other").unwrap();
    within("the content", || (fs::read_to_string(&guest).unwrap() == "other").then_some(()));
}

#[test]
fn changes_in_a_directory_that_cannot_be_searched_when_they_are_noticed_are_seen_later() {
    if !can_mount() {
        return;
    }
    let mount = Mount::of_a_user(|host| {
        fs::create_dir(host.join("d")).unwrap();
        fs::write(host.join("d/file"), "old").unwrap();
        vec![WorkspaceSpec::new(host, false)]
    });
    let set_mode = |mode: u32| {
        rustix::fs::chmod(mount.host("d"), rustix::fs::Mode::from_raw_mode(mode)).unwrap();
    };
    for round in 0..20 {
        let (content, made) = (format!("new {round}"), format!("d/made {round}"));
        fs::read_to_string(mount.guest("d/file")).unwrap();
        assert!(!mount.guest(&made).exists());
        fs::write(mount.host("d/file"), &content).unwrap();
        fs::write(mount.host(&made), "x").unwrap();
        set_mode(0o600);
        let mode = || fs::metadata(mount.guest("d")).unwrap().mode() & 0o777;
        within("the mode", || (mode() == 0o600).then_some(()));
        set_mode(0o755);
        within("the content", || {
            (fs::read_to_string(mount.guest("d/file")).ok()? == content).then_some(())
        });
        within("the new file", || mount.guest(&made).exists().then_some(()));
    }
}

#[test]
fn directories_moved_on_the_host_take_their_content_along() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    fs::create_dir_all(mount.host("a/b/c")).unwrap();
    fs::write(mount.host("a/b/c/file"), "deep").unwrap();
    assert_eq!(fs::read_to_string(mount.guest("a/b/c/file")).unwrap(), "deep");
    let open = fs::File::open(mount.guest("a/b")).unwrap();
    fs::rename(mount.host("a/b"), mount.host("moved")).unwrap();
    within("the new place", || {
        (fs::read_to_string(mount.guest("moved/c/file")).ok()? == "deep").then_some(())
    });
    within("the old place", || (!mount.guest("a/b").exists()).then_some(()));
    fs::write(mount.host("moved/c/file"), "deeper").unwrap();
    within("a change below", || {
        (fs::read_to_string(mount.guest("moved/c/file")).unwrap() == "deeper").then_some(())
    });
    drop(open);
}

#[test]
fn a_directory_that_the_host_moves_out_of_sight_is_usable_where_it_is_found_again() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    fs::create_dir_all(mount.host("never looked at")).unwrap();
    fs::create_dir(mount.host("d")).unwrap();
    let mut watch = GuestWatch::of(&mount.guest(""));
    fs::write(mount.guest("d/file"), "x").unwrap();
    let open = fs::File::open(mount.guest("d")).unwrap();
    fs::rename(mount.host("d"), mount.host("never looked at/d")).unwrap();
    watch.hear(ReadFlags::DELETE | ReadFlags::ISDIR, "d");
    rustix::fs::mkdirat(&open, "made by descriptor", rustix::fs::Mode::RWXU).unwrap();
    fs::write(mount.guest("never looked at/d/file"), "y").unwrap();
    fs::write(mount.guest("never looked at/d/new"), "z").unwrap();
    assert_eq!(fs::read_dir(mount.host("never looked at/d")).unwrap().count(), 3);
}

#[test]
fn watchers_in_the_guest_hear_of_changes_on_the_host() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    fs::create_dir(mount.host("watched")).unwrap();
    fs::write(mount.host("watched/old"), "never looked at").unwrap();
    let mut watch = GuestWatch::of(&mount.guest("watched"));
    let at = |name: &str| mount.host("watched").join(name);

    fs::write(at("new"), "x").unwrap();
    watch.hear(ReadFlags::CREATE, "new");
    watch.hear(ReadFlags::CLOSE_WRITE, "new");
    assert_eq!(fs::read_to_string(mount.guest("watched/new")).unwrap(), "x");
    fs::write(at("new"), "changed").unwrap();
    watch.hear(ReadFlags::MODIFY, "new");
    watch.hear(ReadFlags::CLOSE_WRITE, "new");
    within("the content", || {
        (fs::read_to_string(mount.guest("watched/new")).unwrap() == "changed").then_some(())
    });
    rustix::fs::chmod(at("new"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    watch.hear(ReadFlags::ATTRIB, "new");
    fs::rename(at("new"), at("moved")).unwrap();
    watch.hear(ReadFlags::MOVED_FROM, "new");
    watch.hear(ReadFlags::MOVED_TO, "moved");
    assert_eq!(fs::read_to_string(mount.guest("watched/moved")).unwrap(), "changed");
    assert!(!mount.guest("watched/new").exists());
    fs::remove_file(at("moved")).unwrap();
    watch.hear(ReadFlags::DELETE, "moved");
    fs::remove_file(at("old")).unwrap();
    watch.hear(ReadFlags::DELETE, "old");
    fs::create_dir(at("directory")).unwrap();
    watch.hear(ReadFlags::CREATE | ReadFlags::ISDIR, "directory");
    fs::remove_dir(at("directory")).unwrap();
    watch.hear(ReadFlags::DELETE | ReadFlags::ISDIR, "directory");
    std::os::unix::fs::symlink("x", at("link")).unwrap();
    watch.hear(ReadFlags::CREATE, "link");
    // As editors save.
    fs::write(at("file"), "1").unwrap();
    watch.hear(ReadFlags::CLOSE_WRITE, "file");
    fs::write(at("file~"), "2").unwrap();
    fs::rename(at("file~"), at("file")).unwrap();
    watch.hear(ReadFlags::MOVED_TO, "file");
    within("the content", || {
        (fs::read_to_string(mount.guest("watched/file")).unwrap() == "2").then_some(())
    });
    // And nothing of it was done to the host by the show.
    let mut left: Vec<_> =
        fs::read_dir(at("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "link"]);
}

#[test]
fn changes_by_the_guest_are_heard_once() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let mut watch = GuestWatch::of(&mount.guest(""));
    let at = |name: &str| mount.guest(name);
    fs::write(at("a"), "x").unwrap();
    fs::rename(at("a"), at("b")).unwrap();
    fs::write(at("b"), "y").unwrap();
    fs::remove_file(at("b")).unwrap();
    fs::create_dir(at("d")).unwrap();
    fs::remove_dir(at("d")).unwrap();
    let heard: Vec<_> = watch
        .quiet()
        .into_iter()
        .map(|(event, name)| (event, name.to_string_lossy().into_owned()))
        .collect();
    let directory = ReadFlags::ISDIR;
    let expected = [
        (ReadFlags::CREATE, "a"),
        (ReadFlags::MODIFY, "a"),
        (ReadFlags::CLOSE_WRITE, "a"),
        (ReadFlags::MOVED_FROM, "a"),
        (ReadFlags::MOVED_TO, "b"),
        (ReadFlags::MODIFY, "b"),
        (ReadFlags::MODIFY, "b"),
        (ReadFlags::CLOSE_WRITE, "b"),
        (ReadFlags::DELETE, "b"),
        (ReadFlags::CREATE | directory, "d"),
        (ReadFlags::DELETE | directory, "d"),
    ]
    .map(|(event, name)| (event, name.to_owned()));
    let mut heard = heard;
    heard.dedup();
    let mut expected = expected.to_vec();
    expected.dedup();
    assert_eq!(heard, expected);
}

#[test]
fn a_late_answer_to_a_listing_does_not_pass_for_a_new_one() {
    if !can_mount() {
        return;
    }
    let at_most = Duration::from_millis(300);
    let mount = Mount::with_late_listings(HoldListings { count: 2, at_most });
    for round in 0..3 {
        let directory = format!("d{round}");
        fs::create_dir(mount.host(&directory)).unwrap();
        let guest = mount.guest(&directory);
        let list = || fs::read_dir(&guest).unwrap().count();
        let modified = |path: &Path| fs::metadata(path).unwrap().mtime_nsec();
        fs::metadata(&guest).unwrap();
        std::thread::scope(|scope| {
            let asked = mount.counts().of(opcode::READDIRPLUS);
            scope.spawn(list);
            within("the first listing is made", || {
                (mount.counts().of(opcode::READDIRPLUS) > asked).then_some(())
            });
            // The worker has looked, probably; if not, there is nothing to see here. So many changes at once that watchers
            // are not told of all: what they are told would renew the listing.
            for number in 0..600 {
                fs::write(mount.host(format!("{round}-{number}")), "").unwrap();
            }
            fs::write(mount.host(&directory).join("f"), "x").unwrap();
            let new = modified(&mount.host(&directory));
            within("the new time", || (modified(&guest) == new).then_some(()));
            // The directory's time is the new one, and the first listing has not arrived.
            scope.spawn(list);
        });
        within("the file in the listing", || (list() == 1).then_some(()));
    }
}
