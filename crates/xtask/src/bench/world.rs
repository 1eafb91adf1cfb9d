//! A home of the benchmark's own, and the sandbox that runs in it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::bench::{CPUS, MEMORY_MIB, Task, data};
use crate::prepare::TestUser;
use crate::process::{command, run};

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
        Ok(world)
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

    /// Creates a sandbox of the size that everything is measured with.
    pub(crate) fn create(&self, name: &str, workspace: &Path) -> anyhow::Result<()> {
        let (cpus, memory) = (CPUS.to_string(), format!("{MEMORY_MIB}m"));
        let workspace = workspace.to_string_lossy();
        self.hutch(&[
            "create", "-q", "--name", name, "--cpus", &cpus, "--memory", &memory, "shell",
            &workspace,
        ])?;
        Ok(())
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

    /// A program as the user of this world, with nothing in its environment.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = command(program);
        command
            .current_dir(self.path("home"))
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("HUTCH_HOME", self.path("home").join("state"))
            .env("HUTCH_IMAGES", self.stage.join("images"))
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
            let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
            let pss = rollup.lines().find_map(|line| {
                line.strip_prefix("Pss:")?.trim().strip_suffix(" kB")?.parse::<f64>().ok()
            });
            *memory.entry(process.program).or_insert(0.0) += pss.unwrap_or_default() / 1024.0;
        }
        Ok(memory)
    }

    /// The keeper of our sandbox, then everything that it started.
    fn family(&self) -> anyhow::Result<Vec<Process>> {
        let all = processes()?;
        let root = self.root.to_string_lossy();
        let keeper = all.iter().find(|process| {
            process.program == "hutch-keeper"
                && process.arguments.iter().any(|word| word.starts_with(&*root))
        });
        let Some(keeper) = keeper.cloned() else { return Ok(Vec::new()) };
        let children = all.into_iter().filter(|process| process.parent == keeper.pid);
        Ok([keeper.clone()].into_iter().chain(children).collect())
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
        let Some(parent) = parent(&entry.path()) else { continue };
        found.push(Process { pid, parent, program: program.unwrap_or_default(), arguments });
    }
    Ok(found)
}

/// The second number after the name in parentheses (proc_pid_stat(5)).
fn parent(process: &Path) -> Option<u32> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    stat[stat.rfind(')')? + 1..].split_whitespace().nth(1)?.parse().ok()
}
