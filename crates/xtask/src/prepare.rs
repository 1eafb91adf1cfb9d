//! What the VM tests need before the first of them runs.
//!
//! ```text
//!   target/e2e/           a directory, or a link to one in /var/tmp when others cannot reach the repository
//!     programs/           the programs under test
//!     guest/              static programs of the tests' own that run in a guest
//!     images/             guest image and template, made by the program under test as an ordinary user
//!     qemu-10/            QEMU 10 from Debian 13, beside the machine's own
//!     registry/           the distribution's registry server
//! ```
//!
//! As root it also makes the ordinary user that the programs run as.

use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::build::{self, HOST_PROGRAMS, INIT, built};
use crate::process::{command, is_root, root, run, target};

/// The ordinary user of the tests; hutch-testkit knows it by the same name.
const TEST_USER: &str = "hutch-test";

/// Programs of hutch-testkit that run in a guest.
pub(crate) const GUEST_PROGRAMS: [&str; 3] = ["hostile-init", "workspace-bench", "internet"];

/// Makes it all; what is there and current stays.
pub(crate) fn prepare() -> anyhow::Result<PathBuf> {
    build::build()?;
    build::build_static("hutch-testkit")?;
    let stage = stage()?;
    for directory in ["programs", "guest"] {
        fs::create_dir_all(stage.join(directory))?;
    }
    for program in HOST_PROGRAMS.into_iter().chain([INIT]) {
        place(&built(program), &stage.join("programs").join(program))?;
    }
    for program in GUEST_PROGRAMS {
        place(&build::built_static(program), &stage.join("guest").join(program))?;
    }
    go_program(&stage.join("guest").join("fetch"))?;
    run(command(root().join("scripts/fetch-qemu-10")).arg(stage.join("qemu-10")))?;
    run(command(root().join("scripts/fetch-registry")).arg(stage.join("registry")))?;
    let user = TestUser::find_or_make()?;
    images(&stage, &user)?;
    Ok(stage)
}

/// Compiles the tests' program of Go, without the system's libraries. In a guest its standard library takes minutes.
fn go_program(to: &Path) -> anyhow::Result<()> {
    let built = target().join("fetch");
    let mut go = command("go");
    go.args(["build", "-o"]).arg(&built);
    go.arg(root().join("crates/e2e/tests/network/fetch.go"));
    go.env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOCACHE", target().join("go"));
    run(&mut go).context("a test needs Go: `scripts/setup test` installs it")?;
    place(&built, to)
}

/// The directory behind `target/e2e`.
fn stage() -> anyhow::Result<PathBuf> {
    let link = target().join("e2e");
    if !link.exists() {
        if reachable(&target())? {
            fs::create_dir_all(&link)?;
        } else {
            let elsewhere = elsewhere()?;
            // A link that points nowhere may be left from before.
            if link.is_symlink() {
                fs::remove_file(&link)?;
            }
            symlink(&elsewhere, &link)
                .with_context(|| format!("cannot link {}", link.display()))?;
        }
    }
    link.canonicalize().with_context(|| format!("{}", link.display()))
}

/// Whether every user can go through `directory` and all directories above it.
fn reachable(directory: &Path) -> anyhow::Result<bool> {
    for directory in directory.ancestors() {
        if fs::metadata(directory)?.permissions().mode() & 0o001 == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A directory of this repository's own where every user can reach it.
fn elsewhere() -> anyhow::Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    root().hash(&mut hasher);
    let directory = PathBuf::from(format!("/var/tmp/hutch-e2e-{:016x}", hasher.finish()));
    if !directory.exists() {
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
    }
    let owner = fs::symlink_metadata(&directory)?.uid();
    let own = fs::metadata("/proc/self")?.uid();
    if owner != own {
        bail!("{} belongs to user {owner}, not to user {own}", directory.display());
    }
    Ok(directory)
}

/// Puts a program in its place, whole at any moment and readable by everyone.
fn place(from: &Path, to: &Path) -> anyhow::Result<()> {
    let temporary = to.with_extension("new");
    fs::copy(from, &temporary).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755))?;
    fs::rename(&temporary, to).with_context(|| format!("cannot place {}", to.display()))
}

/// Who makes the images and runs the programs under test.
#[derive(Debug)]
pub(crate) struct TestUser {
    /// User and group number when it is not ourselves.
    other: Option<(u32, u32)>,
}

impl TestUser {
    pub(crate) fn find_or_make() -> anyhow::Result<Self> {
        if !is_root() {
            return Ok(Self { other: None });
        }
        if numbers()?.is_none() {
            // Not a system user: those get no subordinate user numbers, which mmdebstrap needs.
            run(command("useradd").args([
                "--no-create-home",
                "--home-dir",
                "/nonexistent",
                "--shell",
                "/usr/sbin/nologin",
                "--comment",
                "tests of Hutch",
                TEST_USER,
            ]))?;
        }
        let other =
            numbers()?.with_context(|| format!("user {TEST_USER} was made, but is not there"))?;
        Ok(Self { other: Some(other) })
    }

    pub(crate) fn apply(&self, command: &mut Command) {
        if let Some((uid, gid)) = self.other {
            command.uid(uid).gid(gid);
        }
    }

    pub(crate) fn give(&self, path: &Path) -> anyhow::Result<()> {
        if let Some((uid, gid)) = self.other {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .with_context(|| format!("cannot give {} to {TEST_USER}", path.display()))?;
        }
        Ok(())
    }
}

impl TestUser {
    /// Gives a directory and everything below it.
    pub(crate) fn give_all(&self, path: &Path) -> anyhow::Result<()> {
        match self.other {
            Some((uid, gid)) => {
                run(command("chown").arg("-R").arg(format!("{uid}:{gid}")).arg(path))
            }
            None => Ok(()),
        }
    }
}

/// User and group number of [`TEST_USER`], if there is one.
fn numbers() -> anyhow::Result<Option<(u32, u32)>> {
    let passwd = fs::read_to_string("/etc/passwd").context("/etc/passwd")?;
    let Some(line) = passwd.lines().find(|line| line.starts_with(&format!("{TEST_USER}:"))) else {
        return Ok(None);
    };
    let fields: Vec<&str> = line.split(':').collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok());
    Ok(number(2).zip(number(3)))
}

/// Agents whose templates the tests use.
const AGENTS: [&str; 5] = ["claude", "codex", "copilot", "gemini", "opencode"];

/// Has the program under test make guest image and template, by creating a sandbox that never runs; then the agents'.
fn images(stage: &Path, user: &TestUser) -> anyhow::Result<()> {
    let world = stage.join("prepare");
    if world.exists() {
        fs::remove_dir_all(&world)?;
    }
    for directory in ["prepare", "prepare/home", "prepare/run", "prepare/work", "images"] {
        let directory = stage.join(directory);
        fs::create_dir_all(&directory)?;
        user.give(&directory)?;
    }
    fs::set_permissions(world.join("run"), fs::Permissions::from_mode(0o700))?;
    let hutch = || {
        let mut hutch = command(stage.join("programs/hutch"));
        hutch
            .current_dir(world.join("work"))
            .env("HOME", world.join("home"))
            .env("HUTCH_HOME", world.join("home/state"))
            .env("HUTCH_IMAGES", stage.join("images"))
            .env("XDG_RUNTIME_DIR", world.join("run"));
        user.apply(&mut hutch);
        hutch
    };
    run(hutch().args(["create", "--name", "prepare", "shell"]).arg(world.join("work")))?;
    run(hutch().args(["template", "build"]).args(AGENTS))?;
    fs::remove_dir_all(&world).with_context(|| format!("cannot remove {}", world.display()))?;
    // The tests run as several users, and all of them read it.
    run(command("chmod").args(["-R", "a+rX"]).arg(stage.join("images")))?;
    if user.other.is_some() {
        images_for_root(stage)?;
    }
    Ok(())
}

/// Root's own images, because nobody uses images that somebody else could change: the same files under other names.
fn images_for_root(stage: &Path) -> anyhow::Result<()> {
    let images = stage.join("images-of-root");
    if images.exists() {
        fs::remove_dir_all(&images)?;
    }
    run(command("cp").args(["--archive", "--link"]).arg(stage.join("images")).arg(&images))?;
    run(command("find").arg(&images).args(["-type", "d", "-exec", "chown", "0:0", "{}", "+"]))
}
