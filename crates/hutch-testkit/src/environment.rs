//! One test's world.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::account::Account;
use crate::internet::Internet;
use crate::invocation::Invocation;
use crate::sandbox::TestSandbox;
use crate::stage::Stage;
use crate::traces::{self, Process};
use crate::wait::eventually;

/// Lines of each log that a failing test prints.
const LOG_LINES: usize = 150;

/// A home, a state directory and a runtime directory that nobody else uses.
///
/// When it goes away, everything that ran in it is removed by `hutch reset`, and it is checked that no process and no
/// mount is left. When the test has failed, the logs of every sandbox are printed first.
#[derive(Debug)]
pub struct TestEnvironment {
    root: TempDir,
    account: Account,
    stage: Stage,
    variables: Vec<(String, String)>,
    internet: Option<Internet>,
}

impl TestEnvironment {
    /// A world of an ordinary user.
    #[must_use]
    pub fn new() -> Self {
        Self::of(Account::ordinary())
    }

    /// A world of root's. Tests that use it are called `as_root_…`.
    #[must_use]
    pub fn as_root() -> Self {
        Self::of(Account::root())
    }

    /// A world of an ordinary user whose internet is a stand-in, which the configuration trusts.
    #[must_use]
    pub fn with_internet() -> Self {
        let internet = Internet::start();
        let ca_file = internet.ca_file();
        let mut environment = Self::of(Account::ordinary());
        environment.internet = Some(internet);
        environment.configure(&format!("[network]\nca_files = [\"{}\"]\n", ca_file.display()));
        environment
    }

    /// The stand-in for the internet of a world that has one.
    #[track_caller]
    #[must_use]
    pub fn internet(&self) -> &Internet {
        self.internet.as_ref().expect("this world has an internet")
    }

    /// Writes `config.toml`.
    pub fn configure(&self, text: &str) {
        let directory = self.path("home/.config/hutch");
        self.account.act(|| fs::create_dir_all(&directory).expect("a directory can be made"));
        self.write(&directory.join("config.toml"), text);
    }

    fn of(account: Account) -> Self {
        let stage = Stage::find();
        // Short, because the path of a socket has at most 107 bytes.
        let root =
            tempfile::Builder::new().prefix("ht-").tempdir_in("/tmp").expect("/tmp is writable");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.path(), open).expect("a new directory can be opened up");
        account.give(root.path());
        let environment = Self { root, account, stage, variables: Vec::new(), internet: None };
        for directory in ["home", "state", "run", "work"] {
            environment.make_directory(&environment.path(directory));
        }
        let private = fs::Permissions::from_mode(0o700);
        fs::set_permissions(environment.path("run"), private)
            .expect("a new directory can be closed");
        environment
    }

    /// Has sandboxes start warm, with snapshots of this world alone in `images`; the other images are the stage's.
    #[must_use]
    pub fn warm(self, images: &Path) -> Self {
        self.make_directory(images);
        let shared = fs::read_dir(self.images()).expect("the stage has images");
        for shared in shared.flatten().filter(|entry| entry.file_name() != "snapshots") {
            let link = images.join(shared.file_name());
            self.account.act(|| symlink(shared.path(), &link).expect("a link can be made"));
        }
        self.variable("HUTCH_IMAGES", images.to_string_lossy()).variable("HUTCH_START", "warm")
    }

    /// Has a store of templates of its own, which begins with the stage's templates and may be changed.
    #[must_use]
    pub fn own_templates(self) -> Self {
        let images = self.path("images");
        let shared = self.images();
        let copied = ["templates", "layers", "references.json", "digests.json", "logs"];
        for directory in ["", "templates", "layers"] {
            self.make_directory(&images.join(directory));
        }
        let link = |below: &Path| {
            symlink(shared.join(below), images.join(below)).expect("a link can be made");
        };
        self.account.act(|| {
            for entry in entries(&shared).iter().filter(|name| !copied.contains(&name.as_str())) {
                link(Path::new(entry));
            }
            // Layers are only read, and removing a link removes no layer of the stage.
            for entry in entries(&shared.join("layers")) {
                link(&Path::new("layers").join(entry));
            }
            for entry in entries(&shared.join("templates")) {
                let below = Path::new("templates").join(entry);
                if shared.join(&below).is_dir() {
                    fs::create_dir(images.join(&below)).expect("a directory can be made");
                    let manifest = below.join("manifest.json");
                    fs::copy(shared.join(&manifest), images.join(&manifest))
                        .expect("a manifest can be copied");
                }
            }
            fs::copy(shared.join("references.json"), images.join("references.json"))
                .expect("the names can be copied");
        });
        self.variable("HUTCH_IMAGES", images.to_string_lossy())
    }

    /// Sets a variable for every program that runs in this world.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Uses another place for the state: a small file system, say. It is given to the world's user.
    pub fn move_state(&mut self, to: &Path) {
        self.account.give(to);
        self.variables.push(("HUTCH_HOME".to_owned(), to.to_string_lossy().into_owned()));
    }

    /// Who runs the programs.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account
    }

    /// The prepared programs and images.
    #[must_use]
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Guest images and templates.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.stage.images(self.account)
    }

    /// The directory of this world.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A path below this world's directory.
    #[must_use]
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.path().join(below)
    }

    /// Where Hutch keeps its state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        let moved = self.variables.iter().rev().find(|(name, _)| name == "HUTCH_HOME");
        moved.map_or_else(|| self.path("state"), |(_, path)| PathBuf::from(path))
    }

    /// A new directory of the world's user, to be a workspace.
    #[must_use]
    pub fn project(&self, name: &str) -> PathBuf {
        let path = self.path("work").join(name);
        self.make_directory(&path);
        path
    }

    /// Makes a directory of the world's user.
    pub fn make_directory(&self, path: &Path) {
        fs::DirBuilder::new()
            .mode(0o755)
            .create(path)
            .unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
        self.account.give(path);
    }

    /// Writes a file of the world's user.
    #[expect(clippy::disallowed_methods, reason = "a file of a test, not one that Hutch keeps")]
    pub fn write(&self, path: &Path, content: impl AsRef<[u8]> + Send) {
        self.account.act(|| {
            fs::write(path, content)
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        });
    }

    /// `hutch` with these arguments.
    #[must_use]
    pub fn hutch(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Invocation {
        self.program(self.stage.programs().join("hutch")).args(arguments)
    }

    /// Another program in this world.
    #[must_use]
    pub fn program(&self, program: impl AsRef<OsStr>) -> Invocation {
        self.program_as(self.account, program)
    }

    /// Another program in this world, run by somebody else.
    #[must_use]
    pub fn program_as(&self, account: Account, program: impl AsRef<OsStr>) -> Invocation {
        let home = self.path("home");
        let mut invocation = match &self.internet {
            Some(internet) => {
                Invocation::new("nsenter", account).args(internet.entrance()).args([program])
            }
            None => Invocation::new(program, account),
        };
        invocation = invocation
            .directory(&home)
            .variable("HOME", &home)
            .variable("USER", "tester")
            .variable("HUTCH_HOME", self.path("state"))
            .variable("HUTCH_IMAGES", self.images())
            // Each test says itself when it wants a snapshot: the first to start would make one for all others.
            .variable("HUTCH_START", "cold")
            .variable("XDG_RUNTIME_DIR", self.path("run"));
        for (name, value) in &self.variables {
            invocation = invocation.variable(name, value);
        }
        invocation
    }

    /// Creates the sandbox `name` on a new, empty workspace, without starting it.
    #[track_caller]
    pub fn create(&self, name: &str) -> TestSandbox<'_> {
        let workspace = self.project(name);
        self.create_on(name, &workspace)
    }

    /// Creates the sandbox `name` on `workspace`, without starting it.
    #[track_caller]
    pub fn create_on(&self, name: &str, workspace: &Path) -> TestSandbox<'_> {
        self.hutch(["create", "-q", "--name", name, "shell"]).args([workspace]).run().success();
        TestSandbox::new(self, name, workspace)
    }

    /// A running sandbox on a new, empty workspace.
    #[track_caller]
    pub fn boot(&self, name: &str) -> TestSandbox<'_> {
        let sandbox = self.create(name);
        sandbox.start();
        sandbox
    }

    /// The processes of this world.
    #[must_use]
    pub fn processes(&self) -> Vec<Process> {
        traces::processes(self.root.path())
    }

    /// The one process that runs this program.
    #[track_caller]
    pub fn process(&self, program: &str) -> Process {
        let all = self.processes();
        let mut matching: Vec<_> =
            all.iter().filter(|process| process.program.starts_with(program)).collect();
        assert_eq!(matching.len(), 1, "processes of {program} among {all:#?}");
        matching.remove(0).clone()
    }

    /// Waits until no process and no socket of this world is left.
    #[track_caller]
    pub fn is_quiet(&self) {
        let mut left = Vec::new();
        let quiet = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("all processes have ended", Duration::from_secs(20), || {
                left = self.processes();
                left.is_empty().then_some(())
            });
        }));
        assert!(quiet.is_ok(), "processes are left: {left:#?}");
        let mounts = traces::mounts(self.root.path());
        assert!(mounts.is_empty() || mounts == [self.state()], "mounts are left: {mounts:?}");
    }

    /// Files below the runtime directory.
    #[must_use]
    pub fn sockets(&self) -> Vec<PathBuf> {
        files(&self.path("run"))
    }

    /// The last lines of every log of every sandbox.
    #[must_use]
    pub fn logs(&self) -> String {
        let mut text = String::new();
        for file in files(&self.state()) {
            let name = file.to_string_lossy();
            if !name.ends_with(".log") && !name.ends_with("status.json") {
                continue;
            }
            let bytes = fs::read(&file).unwrap_or_default();
            let content = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = content.lines().collect();
            let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
            text.extend(["=== ", &name, ", the last of ", &lines.len().to_string(), " lines\n"]);
            for line in last {
                // The guest writes some of it.
                text.extend(line.chars().filter(|char| !char.is_control()));
                text.push('\n');
            }
        }
        text
    }

    fn kill_everything(&self) {
        for process in self.processes() {
            process.signal(Signal::KILL);
        }
    }
}

impl Default for TestEnvironment {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for TestEnvironment {
    #[expect(clippy::print_stderr, reason = "what a person needs of a failed test")]
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", self.logs());
            eprintln!("processes: {:#?}", self.processes());
            self.kill_everything();
            return;
        }
        if self.state().join("sandboxes").is_dir() {
            self.hutch(["reset", "--force"]).run().success();
        }
        self.is_quiet();
        assert!(self.sockets().is_empty(), "sockets are left: {:?}", self.sockets());
    }
}

/// Names in a directory.
fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory of the stage can be read");
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Every file below a directory that is there.
#[must_use]
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(directory) else { return found };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}
