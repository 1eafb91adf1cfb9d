//! A home of the benchmark's own, and the sandbox that runs in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::bench::{CPUS, MEMORY_MIB, Task, data};
use crate::prepare::TestUser;
use crate::process::{command, output, run};

/// What the kernel counts processor time in (`USER_HZ`, the same everywhere Linux has one for programs).
const TICKS_PER_SECOND: f64 = 100.0;

/// How a sandbox is to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    Cold,
    Warm,
}

/// The directories of one run; they go away with it.
#[derive(Debug)]
pub(crate) struct World {
    root: PathBuf,
    stage: PathBuf,
    user: TestUser,
}

impl World {
    pub(crate) fn new(stage: PathBuf) -> anyhow::Result<Self> {
        // Short: the path of a socket has at most 107 bytes.
        let root = PathBuf::from(format!("/tmp/hutch-bench-{}", std::process::id()));
        let world = Self { root, stage, user: TestUser::find_or_make()? };
        for directory in ["", "home", "run", "work"] {
            let directory = world.path(directory);
            fs::create_dir(&directory).with_context(|| format!("{}", directory.display()))?;
            world.user.give(&directory)?;
        }
        fs::set_permissions(world.path("run"), fs::Permissions::from_mode(0o700))?;
        world.images()?;
        Ok(world)
    }

    /// The stage's images, with snapshots of our own beside them.
    fn images(&self) -> anyhow::Result<()> {
        let images = self.directory("images")?;
        let theirs = self.stage.join("images");
        for entry in fs::read_dir(&theirs).with_context(|| format!("{}", theirs.display()))? {
            let entry = entry?;
            if entry.file_name() != "snapshots" {
                symlink(entry.path(), images.join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// What all snapshots take on the disk, in MiB.
    pub(crate) fn snapshots_mib(&self) -> anyhow::Result<f64> {
        let snapshots = self.path("images/snapshots");
        let said = output(command("du").args(["--summarize", "--block-size=1K"]).arg(&snapshots))?;
        let kib: f64 = said.split_whitespace().next().context("du says nothing")?.parse()?;
        Ok(kib / 1024.0)
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        if below.is_empty() { self.root.clone() } else { self.root.join(below) }
    }

    /// Programs and images.
    pub(crate) fn stage(&self) -> &Path {
        &self.stage
    }

    /// Makes a directory of the user's.
    pub(crate) fn directory(&self, below: &str) -> anyhow::Result<PathBuf> {
        let directory = self.path(below);
        fs::create_dir(&directory).with_context(|| format!("{}", directory.display()))?;
        self.user.give(&directory)?;
        Ok(directory)
    }

    /// A program of the tests that runs in guests.
    pub(crate) fn guest_program(&self, name: &str) -> PathBuf {
        self.stage.join("guest").join(name)
    }

    /// A new directory with the data to be measured and the program that measures.
    pub(crate) fn workspace(&self, name: &str, task: &Task) -> anyhow::Result<PathBuf> {
        let directory = self.path("work").join(name);
        data::make(&directory, task)?;
        fs::copy(self.guest_program("workspace-bench"), directory.join("workspace-bench"))?;
        self.user.give_all(&directory)?;
        Ok(directory)
    }

    /// The flags for the size that everything is measured with.
    pub(crate) fn machine_flags() -> [String; 4] {
        ["--cpus".to_owned(), CPUS.to_string(), "--memory".to_owned(), format!("{MEMORY_MIB}m")]
    }

    /// Creates a sandbox.
    pub(crate) fn create(&self, name: &str, workspace: &Path) -> anyhow::Result<()> {
        let (machine, workspace) = (Self::machine_flags(), workspace.to_string_lossy());
        let mut line = vec!["create", "-q", "--name", name];
        line.extend(machine.iter().map(String::as_str));
        line.extend(["shell", &workspace]);
        self.hutch(&line)?;
        Ok(())
    }

    /// Makes the snapshot of such sandboxes; gives how long it took.
    pub(crate) fn warm(&self) -> anyhow::Result<Duration> {
        let machine = Self::machine_flags();
        let mut line = vec!["warm", "-q"];
        line.extend(machine.iter().map(String::as_str));
        line.push("shell");
        Ok(self.hutch(&line)?.0)
    }

    /// Runs `hutch`; gives how long it took and what it printed.
    pub(crate) fn hutch(&self, arguments: &[&str]) -> anyhow::Result<(Duration, String)> {
        let mut hutch = self.command(&self.stage.join("programs/hutch"));
        hutch.args(arguments).stdin(Stdio::null()).stderr(Stdio::inherit());
        let started = Instant::now();
        let output = hutch.output().context("cannot run hutch")?;
        let took = started.elapsed();
        if !output.status.success() {
            bail!("hutch {} failed: {}", arguments.join(" "), output.status);
        }
        Ok((took, String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// Runs `hutch` on a terminal until the first byte comes of what it runs; then types `exit`.
    pub(crate) fn first_byte(&self, start: Start, arguments: &[&str]) -> anyhow::Result<Duration> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = PathBuf::from(ptsname(&master, Vec::new())?.into_string()?);
        self.user.give(&name)?;
        let slave = File::options().read(true).write(true).open(&name)?;
        let mut master = File::from(master);
        let mut hutch = self.command(&self.stage.join("programs/hutch"));
        hutch.args(arguments).env("TERM", "xterm").env("HUTCH_START", start.word());
        // What `hutch` itself says is no first byte of a program.
        hutch.stdin(slave.try_clone()?).stdout(slave).stderr(Stdio::null());
        let started = Instant::now();
        let mut running = hutch.spawn().context("cannot run hutch")?;
        // Our copies of the terminal's other end.
        drop(hutch);
        let mut bytes = [0; 4096];
        let first = master.read(&mut bytes[..1]);
        let took = started.elapsed();
        let said = || format!("hutch {}", arguments.join(" "));
        if !first.is_ok_and(|count| count == 1) {
            bail!("{} ended without a byte: {}", said(), running.wait()?);
        }
        master.write_all(b"exit\n")?;
        // The end of a terminal is an error of its other side.
        while master.read(&mut bytes).is_ok_and(|count| count > 0) {}
        let status = running.wait()?;
        if !status.success() {
            bail!("{} failed: {status}", said());
        }
        Ok(took)
    }

    /// A program as the user of this world, with nothing in its environment.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = command(program);
        command
            .current_dir(self.path("home"))
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("HUTCH_HOME", self.path("home").join("state"))
            .env("HUTCH_IMAGES", self.path("images"))
            .env("HUTCH_START", Start::Cold.word())
            .env("XDG_RUNTIME_DIR", self.path("run"));
        self.user.apply(&mut command);
        command
    }

    /// The VM of the running sandbox, as its processes' command lines tell it.
    pub(crate) fn machine(&self) -> anyhow::Result<Machine> {
        let mut family = self.family()?.into_iter();
        let keeper = family.next().context("no keeper runs")?;
        let vmm = family
            .find(|process| process.program.starts_with("qemu-system"))
            .context("no VMM runs")?;
        Ok(Machine { keeper: keeper.arguments, vmm: vmm.arguments })
    }

    /// Proportional memory of each program of the running sandbox in MiB.
    pub(crate) fn memory(&self) -> anyhow::Result<BTreeMap<String, f64>> {
        let mut memory = BTreeMap::new();
        for process in self.family()? {
            let pss = process.pss_mib()?;
            *memory.entry(process.program).or_insert(0.0) += pss;
        }
        Ok(memory)
    }

    /// Proportional memory of everything that runs for all sandboxes of this world, in MiB.
    pub(crate) fn memory_of_all(&self) -> anyhow::Result<f64> {
        self.family()?.iter().map(Process::pss_mib).sum()
    }

    /// Processor time that everything of this world has used, in seconds.
    pub(crate) fn processor_time(&self) -> anyhow::Result<f64> {
        Ok(self.family()?.iter().map(|process| process.ticks).sum::<f64>() / TICKS_PER_SECOND)
    }

    /// The keepers of our sandboxes, and everything that they started.
    fn family(&self) -> anyhow::Result<Vec<Process>> {
        let all = processes()?;
        let root = self.root.to_string_lossy();
        let mut family: Vec<Process> = all
            .iter()
            .filter(|process| {
                process.program == "hutch-keeper"
                    && process.arguments.iter().any(|word| word.starts_with(&*root))
            })
            .cloned()
            .collect();
        let mut at = 0;
        while let Some(member) = family.get(at).map(|member| member.pid) {
            let known = |process: &Process| family.iter().any(|one| one.pid == process.pid);
            let children: Vec<Process> = all
                .iter()
                .filter(|process| process.parent == member && !known(process))
                .cloned()
                .collect();
            family.extend(children);
            at += 1;
        }
        Ok(family)
    }
}

impl Start {
    fn word(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Warm => "warm",
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let reset =
            self.command(&self.stage.join("programs/hutch")).args(["reset", "--force"]).output();
        if reset.is_ok_and(|output| output.status.success()) {
            // What cannot be removed is in /tmp.
            let _left = run(command("rm").arg("-rf").arg(&self.root));
        }
    }
}

/// What the VMM and the keeper were started with.
#[derive(Debug)]
pub(crate) struct Machine {
    keeper: Vec<String>,
    vmm: Vec<String>,
}

impl Machine {
    /// The VMM's program.
    pub(crate) fn program(&self) -> anyhow::Result<&str> {
        self.vmm.first().map(String::as_str).context("the VMM has no name")
    }

    /// The value of one of the VMM's options.
    pub(crate) fn option(&self, name: &str) -> anyhow::Result<&str> {
        after(&self.vmm, name)
    }

    /// A file that the keeper was given.
    pub(crate) fn file(&self, name: &str) -> anyhow::Result<&Path> {
        after(&self.keeper, name).map(Path::new)
    }

    pub(crate) fn accelerator(&self) -> String {
        let accelerator = self.option("-accel").unwrap_or("unknown");
        accelerator.split(',').next().unwrap_or(accelerator).to_owned()
    }
}

fn after<'a>(arguments: &'a [String], name: &str) -> anyhow::Result<&'a str> {
    let mut words = arguments.iter().skip_while(|word| *word != name);
    words.nth(1).map(String::as_str).with_context(|| format!("no {name} among the arguments"))
}

#[derive(Debug, Clone)]
struct Process {
    pid: u32,
    parent: u32,
    program: String,
    arguments: Vec<String>,
    /// Processor time that it has used.
    ticks: f64,
}

impl Process {
    fn pss_mib(&self) -> anyhow::Result<f64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))?;
        let kib = rollup.lines().find_map(|line| {
            line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok()
        });
        // A process that has just ended has none.
        Ok(kib.unwrap_or_default() / 1024.0)
    }
}

fn processes() -> anyhow::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let arguments: Vec<String> = line
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        let program =
            arguments.first().map(|path| path.rsplit('/').next().unwrap_or(path).to_owned());
        let Some((parent, ticks)) = stat(&entry.path()) else { continue };
        found.push(Process { pid, parent, program: program.unwrap_or_default(), arguments, ticks });
    }
    Ok(found)
}

/// The parent, and user and system time (proc_pid_stat(5): fields 4, 14 and 15; the name in parentheses is the second).
fn stat(process: &Path) -> Option<(u32, f64)> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((fields.get(1)?.parse().ok()?, ticks(11)? + ticks(12)?))
}
