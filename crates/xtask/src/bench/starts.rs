//! Starts, cold and warm, one by one and many together; what a snapshot costs, and what a sandbox holds when it is idle.
//!
//! A start is measured from the start of the command `hutch run NAME` on a terminal to the first byte of the shell.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::figures::{Figure, p50_and_p95};
use super::milliseconds;
use super::world::{Start, World};

/// How many of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runs {
    pub(crate) cold: usize,
    pub(crate) warm: usize,
    pub(crate) exec: usize,
    /// Sandboxes alive at the same time.
    pub(crate) together: usize,
    /// How long they are left alone to see what they use.
    pub(crate) idle: Duration,
}

/// Programs that are started in the sandbox, twenty times each: a line with the name and the nanoseconds of all.
const PROGRAMS: &str = "t() { s=$(date +%s%N); for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do \
    \"$@\" > /dev/null; done; printf '%s\\t%s\\n' \"$*\" $(($(date +%s%N) - s)); }; \
    /bin/true; t /bin/true; t git --version; t bash -c true; t python3 -c 1";

/// The rows of [`PROGRAMS`].
fn programs(world: &World) -> anyhow::Result<Vec<Figure>> {
    let (_, said) = world.hutch(&["exec", "bench", "bash", "-c", PROGRAMS])?;
    let row = |line: &str| {
        let (name, nanoseconds) = line.split_once('\t')?;
        let each = nanoseconds.trim().parse::<f64>().ok()? / 20.0 / 1e6;
        Some(Figure::new(format!("in the sandbox: {name}"), each, "ms"))
    };
    said.lines().map(|line| row(line).with_context(|| format!("no measurement: {line}"))).collect()
}

/// Measures starts of one sandbox after the other, with the sandbox `bench` that is there.
pub(crate) fn one_by_one(world: &World, runs: Runs) -> anyhow::Result<Vec<Figure>> {
    eprintln!("==> cold starts");
    let mut cold = Vec::new();
    for _ in 0..runs.cold {
        world.hutch(&["stop", "bench"])?;
        cold.push(world.first_byte(Start::Cold, &["run", "bench"])?);
    }
    world.hutch(&["stop", "bench"])?;

    eprintln!("==> the snapshot");
    let making = world.warm()?;
    let size = world.snapshots_mib()?;

    eprintln!("==> warm starts");
    let mut warm = Vec::new();
    for _ in 0..runs.warm {
        warm.push(world.first_byte(Start::Warm, &["run", "bench"])?);
        world.hutch(&["stop", "bench"])?;
    }

    eprintln!("==> new sandboxes");
    let mut new = Vec::new();
    for number in 0..runs.cold {
        let name = format!("new{number}");
        let directory = world.directory(&format!("work/{name}"))?;
        let machine = World::machine_flags();
        let mut line = vec!["run", "--name", &name];
        line.extend(machine.iter().map(String::as_str));
        let directory = directory.to_string_lossy();
        line.extend(["shell", &directory]);
        new.push(world.first_byte(Start::Warm, &line)?);
        world.hutch(&["rm", &name])?;
    }

    eprintln!("==> exec true");
    world.hutch(&["exec", "bench", "true"])?;
    let mut exec = Vec::new();
    for _ in 0..runs.exec {
        exec.push(world.hutch(&["exec", "bench", "true"])?.0);
    }

    let programs = programs(world)?;
    let (cold_p50, cold_p95) = p50_and_p95(cold);
    let (warm_p50, warm_p95) = p50_and_p95(warm);
    let (new_p50, _) = p50_and_p95(new);
    let (exec_p50, exec_p95) = p50_and_p95(exec);
    let mut figures = vec![
        Figure::time("cold start to the first byte of the shell, p50", cold_p50).at_most(4000.0),
        Figure::time("cold start, p95", cold_p95),
        Figure::time("warm start to the first byte of the shell, p50", warm_p50).at_most(300.0),
        Figure::time("warm start, p95", warm_p95),
        Figure::new(
            "warm is faster than cold",
            cold_p50.as_secs_f64() / warm_p50.as_secs_f64(),
            "times",
        )
        .at_least(10.0),
        Figure::time("new sandbox to the first byte of the shell, p50", new_p50),
        Figure::time("exec true in a running sandbox, p50", exec_p50).at_most(60.0),
        Figure::time("exec true in a running sandbox, p95", exec_p95),
        Figure::time("making the snapshot", making),
        Figure::new("size of the snapshot", size, "MiB"),
    ];
    figures.extend(programs);
    Ok(figures)
}

/// Measures as many sandboxes as are wanted, all alive at the end. Nothing else of this world may run.
pub(crate) fn together(world: &World, runs: Runs) -> anyhow::Result<Vec<Figure>> {
    eprintln!("==> {} sandboxes together", runs.together);
    let free_before = free_mib()?;
    let mut starts = Vec::new();
    let mut memory_of_first = 0.0;
    for number in 1..=runs.together {
        let name = format!("many{number}");
        let directory = world.directory(&format!("work/{name}"))?;
        world.create(&name, &directory)?;
        starts.push(world.first_byte(Start::Warm, &["run", &name])?);
        if number == 1 {
            memory_of_first = world.memory_of_all()?;
        }
    }
    eprintln!("==> idle for {} s", runs.idle.as_secs());
    let (before, started) = (world.processor_time()?, Instant::now());
    thread::sleep(runs.idle);
    let used = world.processor_time()? - before;
    let seconds = started.elapsed().as_secs_f64();
    let memory = world.memory_of_all()?;
    let free_after = free_mib()?;
    let answered = (1..=runs.together)
        .map(|number| world.hutch(&["exec", &format!("many{number}"), "true"]))
        .collect::<anyhow::Result<Vec<_>>>();
    for number in 1..=runs.together {
        world.hutch(&["rm", &format!("many{number}")])?;
    }
    answered.context("not all sandboxes answer")?;

    let count = f64::from(u32::try_from(runs.together)?);
    let beyond = (count - 1.0).max(1.0);
    let at = |number: usize| starts.get(number - 1).copied();
    let mut figures = Vec::new();
    for number in [1, 10, 20, 50] {
        if let Some(start) = at(number) {
            figures.push(Figure::time(format!("start of sandbox {number} of {count}"), start));
        }
    }
    // The first start of all reads what the others find in memory.
    let (few, _) = p50_and_p95(starts.iter().take(5).copied().collect());
    let (last, _) = p50_and_p95(starts.iter().rev().take(5).copied().collect());
    figures.extend([
        Figure::new(
            "the last five start slower than the first five",
            milliseconds(&last) / milliseconds(&few),
            "times",
        )
        .at_most(2.0),
        Figure::new("memory of the first sandbox, PSS", memory_of_first, "MiB"),
        Figure::new(
            "memory of each further sandbox, PSS",
            (memory - memory_of_first) / beyond,
            "MiB",
        )
        .at_most(64.0),
        Figure::new("memory that the host lost, each", (free_before - free_after) / count, "MiB"),
        Figure::new(
            "processor of an idle sandbox, of one core",
            100.0 * used / seconds / count,
            "%",
        )
        .at_most(1.0),
    ]);
    Ok(figures)
}

/// What the host could give to programs (proc_meminfo(5)).
fn free_mib() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    Ok(kib.context("no MemAvailable")? / 1024.0)
}
