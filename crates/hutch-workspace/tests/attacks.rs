//! A guest that speaks FUSE to the worker as it likes, and a worker that was taken over.
//!
//! The worker is the program in its jail, as the keeper starts it.

#![expect(clippy::disallowed_methods, reason = "these files are for the moment of a test")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hutch_wire::workspace::{CODE_BULK, CODE_EVENT, Event, Hello, OPCODE_HELLO, VERSION, bulk};
use hutch_workspace::abi::opcode;
use hutch_workspace::{Worker, WorkerSpec, WorkspaceSpec, spawn};
use tempfile::TempDir;

/// Error numbers of Linux as the guest gets them.
mod errno {
    pub(super) const PERM: i32 = -1;
    pub(super) const NOENT: i32 = -2;
    pub(super) const NOTDIR: i32 = -20;
    pub(super) const INVAL: i32 = -22;
    pub(super) const ROFS: i32 = -30;
    pub(super) const NAMETOOLONG: i32 = -36;
    pub(super) const NOSYS: i32 = -38;
    pub(super) const STALE: i32 = -116;
}

/// The root of the mount and that of the first workspace.
const ROOT: u64 = 1;

struct Guest {
    root: TempDir,
    stream: UnixStream,
    worker: Worker,
    unique: u64,
    events: Vec<Event>,
}

struct Answer {
    error: i32,
    body: Vec<u8>,
}

impl Answer {
    fn ok(self) -> Vec<u8> {
        assert_eq!(self.error, 0);
        self.body
    }

    /// The node of an entry.
    fn node(self) -> u64 {
        let body = self.ok();
        u64::from_le_bytes(body[..8].try_into().expect("an entry"))
    }
}

impl Guest {
    fn new() -> Self {
        Self::with_bulk(None)
    }

    fn with_bulk(disk: Option<OwnedFd>) -> Self {
        let root = TempDir::new().expect("a temporary directory");
        for place in ["workspace", "outside"] {
            fs::create_dir(root.path().join(place)).expect("a directory");
        }
        fs::write(root.path().join("outside/secret"), "secret").expect("a file");
        let (worker_end, stream) = UnixStream::pair().expect("a socket pair");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a socket");
        let spec = WorkerSpec::new(vec![WorkspaceSpec::new(&root.path().join("workspace"), false)]);
        let log = fs::File::create(root.path().join("log")).expect("a log");
        let program = Path::new(env!("CARGO_BIN_EXE_hutch-workspace"));
        let worker = spawn(program, &spec, worker_end.into(), disk, log).expect("a worker");
        let mut guest = Self { root, stream, worker, unique: 0, events: Vec::new() };
        let mut init = Vec::new();
        for field in [7_u32, 40, 0, u32::MAX] {
            init.extend_from_slice(&field.to_le_bytes());
        }
        guest.ask(opcode::INIT, 0, &init).ok();
        guest
    }

    fn host(&self, path: &str) -> PathBuf {
        self.root.path().join("workspace").join(path)
    }

    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> u64 {
        self.unique += 2;
        let len = u32::try_from(40 + body.len()).expect("a small message");
        let message = [
            &len.to_le_bytes()[..],
            &opcode.to_le_bytes(),
            &self.unique.to_le_bytes(),
            &node.to_le_bytes(),
            &[0; 16],
            body,
        ]
        .concat();
        self.stream.write_all(&message).expect("the worker lives");
        self.unique
    }

    /// The next answer; of what comes in between, events are kept.
    fn receive(&mut self) -> (u64, Answer) {
        loop {
            let mut header = [0; 16];
            self.stream.read_exact(&mut header).expect("an answer");
            let number = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4"));
            let len = usize::try_from(number(0)).expect("a length");
            let unique = u64::from_le_bytes(header[8..].try_into().expect("8 bytes"));
            let mut body = vec![0; len - 16];
            self.stream.read_exact(&mut body).expect("a whole answer");
            if number(4).cast_signed() == CODE_EVENT && unique == 0 {
                self.events.push(Event::decode(&body).expect("an event"));
            }
            if unique != 0 {
                return (unique, Answer { error: number(4).cast_signed(), body });
            }
        }
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Answer {
        let unique = self.send(opcode, node, body);
        loop {
            let (of, answer) = self.receive();
            if of == unique {
                return answer;
            }
        }
    }

    fn lookup(&mut self, node: u64, name: &[u8]) -> Answer {
        self.ask(opcode::LOOKUP, node, &terminated(name))
    }

    /// The node of the workspace.
    fn workspace(&mut self) -> u64 {
        self.lookup(ROOT, b"0").node()
    }

    fn read(&mut self, node: u64) -> Answer {
        self.ask(opcode::READ, node, &read_body(0, 4096))
    }

    /// Ends, and says whether the worker ended cleanly.
    fn end(mut self) {
        self.stream.shutdown(std::net::Shutdown::Both).expect("a socket");
        let status = self.worker.wait(Duration::from_secs(20)).expect("a child");
        let log = fs::read_to_string(self.root.path().join("log")).expect("a log");
        assert!(status.expect("it ends").success(), "{log}");
    }

    /// Whether the worker still answers.
    fn alive(&mut self) {
        let workspace = self.workspace();
        self.ask(opcode::GETATTR, workspace, &[0; 16]).ok();
    }
}

fn terminated(name: &[u8]) -> Vec<u8> {
    [name, &[0]].concat()
}

fn read_body(offset: u64, size: u32) -> Vec<u8> {
    [&[0; 8][..], &offset.to_le_bytes(), &size.to_le_bytes(), &[0; 20]].concat()
}

/// A READ or WRITE that names a place on the disk of large contents.
fn with_place(number: u32, size: u32) -> Vec<u8> {
    [&[0; 16][..], &size.to_le_bytes(), &[0; 16], &number.to_le_bytes()].concat()
}

#[test]
fn only_places_that_there_are_can_be_named() {
    const LARGE: u32 = bulk::WORTH_IT;
    let disk = hutch_workspace::bulk::file().expect("a file in memory");
    let mut guest = Guest::with_bulk(Some(disk.try_clone().expect("a descriptor")));
    fs::write(guest.host("large"), vec![7; 200_000]).expect("a file");
    let workspace = guest.workspace();
    let node = guest.lookup(workspace, b"large").node();
    for number in [bulk::PLACES + 1, u32::MAX] {
        for opcode in [opcode::READ, opcode::WRITE] {
            assert_eq!(guest.ask(opcode, node, &with_place(number, LARGE)).error, errno::INVAL);
        }
    }
    // More than a place has, and more than there is.
    let whole = u32::try_from(bulk::PLACE_BYTES).expect("a small number");
    let refused = guest.ask(opcode::WRITE, node, &with_place(1, whole + 1));
    assert_eq!(refused.error, errno::INVAL);
    let last = guest.ask(opcode::READ, node, &with_place(bulk::PLACES, u32::MAX));
    assert_eq!((last.error, last.body), (CODE_BULK, 200_000_u32.to_le_bytes().to_vec()));
    let mut place = vec![0; 200_001];
    rustix::io::pread(&disk, &mut place, bulk::offset(bulk::PLACES - 1).expect("a place"))
        .expect("it can be read");
    assert!(place[..200_000].iter().all(|&byte| byte == 7) && place[200_000] == 0);
    // Nothing is cut off the disk, by whoever has it.
    assert!(rustix::fs::ftruncate(&disk, 0).is_err());
    guest.alive();

    // Without a disk a place means nothing.
    let mut guest = Guest::new();
    fs::write(guest.host("large"), vec![7; 200_000]).expect("a file");
    let workspace = guest.workspace();
    let node = guest.lookup(workspace, b"large").node();
    let read = guest.ask(opcode::READ, node, &with_place(1, LARGE));
    assert_eq!((read.error, read.body.len()), (0, LARGE as usize));
    assert_eq!(guest.ask(opcode::WRITE, node, &with_place(1, LARGE)).error, errno::INVAL);
    guest.end();
}

/// Requests with a name, and their bodies.
fn with_name(name: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let name = terminated(name);
    let fine = terminated(b"fine");
    let after = |fixed: usize, names: &[&[u8]]| [&vec![0; fixed][..], &names.concat()].concat();
    vec![
        (opcode::LOOKUP, name.clone()),
        (opcode::SYMLINK, after(0, &[&name, b"target\0"])),
        (opcode::MKNOD, [&0o100_644_u32.to_le_bytes()[..], &[0; 12], &name].concat()),
        (opcode::MKDIR, after(8, &[&name])),
        (opcode::UNLINK, name.clone()),
        (opcode::RMDIR, name.clone()),
        (opcode::RENAME, [&2_u64.to_le_bytes()[..], &name, &fine].concat()),
        (opcode::RENAME, [&2_u64.to_le_bytes()[..], &fine, &name].concat()),
        (opcode::RENAME2, [&2_u64.to_le_bytes()[..], &[0; 8], &fine, &name].concat()),
        (opcode::LINK, [&2_u64.to_le_bytes()[..], &name].concat()),
        (opcode::CREATE, after(16, &[&name])),
    ]
}

#[test]
fn a_directory_asked_for_name_by_name_is_suggested_for_listing_once() {
    let mut guest = Guest::new();
    let hello = Hello { version: VERSION, event_thread: 4242 }.encode().expect("a message");
    guest.send(OPCODE_HELLO, 0, &hello);
    for name in 0..20 {
        fs::write(guest.host(&name.to_string()), "x").expect("a file");
    }
    let workspace = guest.workspace();
    for name in 0..20 {
        guest.lookup(workspace, name.to_string().as_bytes()).node();
    }
    let suggested: Vec<_> = guest
        .events
        .iter()
        .filter(|event| matches!(event, Event::Listed { directory } if **directory == *b"0"))
        .collect();
    assert_eq!(suggested.len(), 1, "{:?}", guest.events);
    guest.end();
}

#[test]
fn names_are_single_components() {
    let mut guest = Guest::new();
    let workspace = guest.workspace();
    let outside = guest.root.path().join("outside/secret");
    let names: [&[u8]; 8] = [
        b"",
        b".",
        b"..",
        b"/",
        b"../outside/secret",
        b"a/../../outside/secret",
        b"./x",
        outside.as_os_str().as_bytes(),
    ];
    for name in names {
        for (opcode, body) in with_name(name) {
            for node in [ROOT, workspace] {
                let answer = guest.ask(opcode, node, &body);
                assert_eq!(answer.error, errno::INVAL, "operation {opcode}, {name:?}");
            }
        }
    }
    let long = vec![b'x'; 256];
    assert_eq!(guest.lookup(workspace, &long).error, errno::NAMETOOLONG);
    assert_eq!(fs::read_dir(guest.host("")).unwrap().count(), 0);
    guest.end();
}

#[test]
fn links_are_told_and_never_followed() {
    let mut guest = Guest::new();
    let outside = guest.root.path().join("outside");
    symlink(&outside, guest.host("absolute")).unwrap();
    symlink("../outside", guest.host("relative")).unwrap();
    symlink("/proc/self/root/etc", guest.host("magic")).unwrap();
    symlink(outside.join("secret"), guest.host("file")).unwrap();
    let workspace = guest.workspace();
    for name in ["absolute", "relative", "magic", "file"] {
        let link = guest.lookup(workspace, name.as_bytes()).node();
        let target = guest.ask(opcode::READLINK, link, &[]).ok();
        assert_eq!(
            Path::new(std::ffi::OsStr::from_bytes(&target)),
            fs::read_link(guest.host(name)).unwrap()
        );
        // Nothing below it, nothing in it, no change through it.
        assert_eq!(guest.lookup(link, b"secret").error, errno::NOTDIR);
        assert_eq!(guest.read(link).error, errno::INVAL);
        let write = [&[0; 16][..], &1_u32.to_le_bytes(), &[0; 20], b"x"].concat();
        assert_eq!(guest.ask(opcode::WRITE, link, &write).error, errno::INVAL);
        assert_eq!(guest.ask(opcode::READDIR, link, &read_body(0, 4096)).error, errno::NOTDIR);
        // A change of mode is one of nothing; a change of size has nowhere to go.
        let mut size = [0; 88];
        size[0] = 1 << 3;
        assert_eq!(guest.ask(opcode::SETATTR, link, &size).error, errno::INVAL);
    }
    // Creating over one makes nothing where it points to.
    symlink(outside.join("made"), guest.host("dangling")).unwrap();
    let create = [&0o102_u32.to_le_bytes()[..], &0o644_u32.to_le_bytes(), &[0; 8], b"dangling\0"];
    let answer = guest.ask(opcode::CREATE, workspace, &create.concat());
    assert_eq!(answer.error, errno::STALE);
    assert!(!outside.join("made").exists());
    guest.end();
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere() {
    let mut guest = Guest::new();
    fs::create_dir(guest.host("real")).unwrap();
    fs::write(guest.host("real/secret"), "harmless").unwrap();
    symlink("../outside", guest.host("link")).unwrap();
    let workspace = guest.workspace();
    let (real, link) = (guest.host("real"), guest.host("link"));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                let at = rustix::fs::CWD;
                rustix::fs::renameat_with(at, &real, at, &link, exchange).unwrap();
            }
        });
        let (mut seen, mut refused) = (0, 0);
        for _ in 0..3000 {
            let answer = guest.lookup(workspace, b"real");
            let directory = answer.node();
            let file = guest.lookup(directory, b"secret");
            if file.error == 0 {
                let node = file.node();
                if node != 0 {
                    let content = guest.read(node).ok();
                    assert_eq!(content, b"harmless");
                    seen += 1;
                }
            } else {
                assert_eq!(file.error, errno::NOTDIR);
                refused += 1;
            }
            // Files made through the name land in the workspace or nowhere.
            let create =
                [&0o101_u32.to_le_bytes()[..], &0o644_u32.to_le_bytes(), &[0; 8], b"new\0"];
            guest.ask(opcode::CREATE, directory, &create.concat());
        }
        stop.store(true, Ordering::Relaxed);
        swapper.join().unwrap();
        assert!(seen > 0 && refused > 0, "both happened: {seen} {refused}");
    });
    assert_eq!(fs::read_dir(guest.root.path().join("outside")).unwrap().count(), 1);
    guest.end();
}

#[test]
fn a_directory_moved_out_of_the_workspace_cannot_be_followed() {
    let mut guest = Guest::new();
    fs::create_dir_all(guest.host("a/b")).unwrap();
    let workspace = guest.workspace();
    let a = guest.lookup(workspace, b"a").node();
    let b = guest.lookup(a, b"b").node();
    // The host takes it out, next to the secret: the guest keeps what it holds, and `..` does not exist.
    let taken = guest.root.path().join("outside/b");
    fs::rename(guest.host("a/b"), &taken).unwrap();
    assert_eq!(guest.lookup(b, b"..").error, errno::INVAL);
    assert_eq!(guest.lookup(b, b"../secret").error, errno::INVAL);
    let create = [&0o101_u32.to_le_bytes()[..], &0o644_u32.to_le_bytes(), &[0; 8], b"new\0"];
    let answer = guest.ask(opcode::CREATE, b, &create.concat());
    // The jail judges by where the directory is now.
    assert_eq!(answer.error, -13);
    assert_eq!(fs::read_dir(&taken).unwrap().count(), 0);
    // And the workspace's own parent may move.
    fs::rename(guest.host(""), guest.root.path().join("moved")).unwrap();
    let answer = guest.ask(opcode::CREATE, workspace, &create.concat());
    answer.ok();
    assert!(guest.root.path().join("moved/new").exists());
    guest.end();
}

#[test]
fn a_fifo_blocks_nobody() {
    let mut guest = Guest::new();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, guest.host("fifo"), fifo, mode, 0).unwrap();
    let workspace = guest.workspace();
    let node = guest.lookup(workspace, b"fifo").node();
    for _ in 0..50 {
        assert_eq!(guest.ask(opcode::READ, node, &read_body(0, 10)).error, errno::INVAL);
        let write = [&[0; 16][..], &1_u32.to_le_bytes(), &[0; 20], b"x"].concat();
        assert_eq!(guest.ask(opcode::WRITE, node, &write).error, errno::INVAL);
        guest.ask(opcode::FSYNC, node, &[0; 16]).ok();
        let create = [&0o101_u32.to_le_bytes()[..], &0o644_u32.to_le_bytes(), &[0; 8], b"fifo\0"];
        assert_eq!(guest.ask(opcode::CREATE, workspace, &create.concat()).error, errno::STALE);
    }
    for kind in [0o020_644_u32, 0o060_644] {
        let device = [&kind.to_le_bytes()[..], &0x103_u32.to_le_bytes(), &[0; 8], b"null\0"];
        assert_eq!(guest.ask(opcode::MKNOD, workspace, &device.concat()).error, errno::PERM);
    }
    guest.end();
}

#[test]
fn unknown_nodes_operations_and_bodies_are_errors() {
    let mut guest = Guest::new();
    for opcode in (0..60).chain([4096, 1_048_576, 436_207_616, 0x4855_0001, 0x4855_0002, u32::MAX])
    {
        let answered =
            ![opcode::FORGET, opcode::BATCH_FORGET].contains(&opcode) && opcode < 0x4855_0000;
        for node in [0, 999, u64::MAX] {
            for body in [&[][..], &[0; 3], &[0xff; 40], &[0; 200]] {
                if answered {
                    let answer = guest.ask(opcode, node, body);
                    let harmless = [opcode::INIT, opcode::DESTROY, opcode::SYNCFS, opcode::RELEASE];
                    let fine = harmless.contains(&opcode) || answer.error != 0;
                    assert!(fine, "operation {opcode}, node {node}, {} bytes", body.len());
                } else {
                    guest.send(opcode, node, body);
                }
            }
        }
    }
    assert_eq!(guest.ask(14, 2, &[0; 8]).error, errno::NOSYS);
    let workspace = guest.workspace();
    assert_eq!(guest.lookup(999, b"x").error, errno::STALE);
    assert_eq!(guest.ask(opcode::MKDIR, ROOT, &[&[0; 8][..], b"x\0"].concat()).error, errno::ROFS);
    for name in ["1", "00", "+0", "0x0", " 0", "18446744073709551616"] {
        assert_eq!(guest.lookup(ROOT, name.as_bytes()).error, errno::NOENT, "{name}");
    }
    // Forgetting more than there is, and what stays for ever.
    for _ in 0..3 {
        guest.send(opcode::FORGET, workspace, &u64::MAX.to_le_bytes());
    }
    guest.alive();
    guest.end();
}

#[test]
fn a_length_that_cannot_be_ends_the_stream_and_the_worker() {
    for len in [0_u32, 39, (1 << 20) + (64 << 10) + 1, u32::MAX] {
        let mut guest = Guest::new();
        let message = [&len.to_le_bytes()[..], &[0; 36]].concat();
        guest.stream.write_all(&message).unwrap();
        let mut rest = Vec::new();
        guest.stream.read_to_end(&mut rest).unwrap();
        let status = guest.worker.wait(Duration::from_secs(20)).unwrap().expect("it ends");
        assert!(!status.success());
        let log = fs::read_to_string(guest.root.path().join("log")).unwrap();
        assert!(log.contains("the guest broke the protocol"), "{log}");
    }
}

#[test]
fn a_guest_that_never_reads_costs_bounded_memory() {
    let mut guest = Guest::new();
    fs::write(guest.host("file"), vec![7; 1 << 20]).unwrap();
    let workspace = guest.workspace();
    let file = guest.lookup(workspace, b"file").node();
    guest.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let body = read_body(0, 1 << 20);
    // Until the worker takes no more: everything it has read is in its threads' hands.
    let mut sent = 0;
    loop {
        let len = u32::try_from(40 + body.len()).unwrap();
        let message = [
            &len.to_le_bytes()[..],
            &opcode::READ.to_le_bytes(),
            &2_u64.to_le_bytes(),
            &file.to_le_bytes(),
            &[0; 16],
            &body,
        ]
        .concat();
        if guest.stream.write_all(&message).is_err() {
            break;
        }
        sent += 1;
        assert!(sent < 100_000, "the worker takes everything");
    }
    let status = fs::read_to_string(format!("/proc/{}/status", guest.worker.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("a size");
    let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().unwrap();
    assert!(kib < 64 << 10, "{line}");
}

#[test]
fn random_bytes_after_a_good_header_are_survived() {
    let mut guest = Guest::new();
    fs::create_dir(guest.host("d")).unwrap();
    fs::write(guest.host("f"), "content").unwrap();
    let workspace = guest.workspace();
    let nodes = [
        ROOT,
        workspace,
        guest.lookup(workspace, b"d").node(),
        guest.lookup(workspace, b"f").node(),
        77,
    ];
    // A small generator of our own: the same on every run.
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..20_000 {
        let opcode = u32::try_from(random() % 60).unwrap();
        if [opcode::FORGET, opcode::BATCH_FORGET, opcode::DESTROY, opcode::SYNCFS].contains(&opcode)
        {
            continue;
        }
        let node = nodes[usize::try_from(random() % 5).unwrap()];
        let len = usize::try_from(random() % 120).unwrap();
        let mask = if random() % 2 == 0 { 0xff } else { 0x03 };
        let body: Vec<u8> = (0..len).map(|_| random().to_le_bytes()[0] & mask).collect();
        guest.ask(opcode, node, &body);
    }
    guest.alive();
    // Nothing outside came to be, and the secret is as it was.
    let outside = guest.root.path().join("outside");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    guest.end();
}

#[test]
fn a_taken_over_worker_reaches_its_workspaces_and_nothing_else() {
    let root = TempDir::new().unwrap();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (writable, fixed) = (root.path().join("writable"), root.path().join("fixed"));
    for place in [&writable, &fixed] {
        fs::create_dir(place).unwrap();
        fs::write(place.join("file"), "x").unwrap();
    }
    fs::write(root.path().join("outside"), "x").unwrap();
    // Started by root, the worker becomes the owner of the workspaces.
    if rustix::process::geteuid().is_root() {
        for path in [&writable, &fixed, &writable.join("file"), &fixed.join("file")] {
            std::os::unix::fs::chown(path, Some(4242), Some(4242)).unwrap();
        }
    }
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples/confined");
    let output = hutch_sys::spawn::command(program).arg(&writable).arg(&fixed).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let allowed = ["complete", "read-inside", "write-inside"];
    let mut attempts = 0;
    for line in told.lines() {
        let (attempt, succeeded) = line.split_once(' ').unwrap();
        assert_eq!(succeeded == "YES", allowed.contains(&attempt), "{attempt}\n{told}");
        attempts += 1;
    }
    assert_eq!(attempts, 22, "{told}");
}
