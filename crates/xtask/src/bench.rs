//! `make bench`: what the design promises, measured in one run on this machine. See `docs/benchmarks.md`.
//!
//! Prints tables and writes `target/bench/report.json` and `starts.svg` beside it. The workspace is measured beside virtio-fs: the same program,
//! the same kernel, template, processors and memory, one after the other.

mod data;
mod figures;
mod peers;
mod policy;
mod proxy;
mod starts;
mod virtiofs;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

use crate::bench::figures::{Figure, p50_and_p95};
use crate::bench::starts::Runs;
use crate::bench::world::{Machine, World};
use crate::prepare;
use crate::process::target;
use crate::tidy::write;

/// Processors and memory of every VM measured.
const CPUS: u32 = 2;
const MEMORY_MIB: u32 = 2048;

/// How much of everything: the files of one directory are multiples of it.
const SCALE: usize = 100;
const SCALE_QUICK: usize = 10;

/// What one run found.
#[derive(Debug, Serialize)]
struct Report {
    format_version: u32,
    accelerator: String,
    /// The processor of the host and how many of it there are.
    machine: String,
    quick: bool,
    starts: Vec<Figure>,
    /// Of the first sandbox, each program's.
    idle_pss_mib: BTreeMap<String, f64>,
    workspace: Vec<Row>,
    proxy: Vec<proxy::Row>,
}

/// One row of the workspace table. Rates are better when larger, times when smaller.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    unit: String,
    hutch: f64,
    virtiofs: f64,
    /// How many times better we are.
    ratio: f64,
}

/// A measured value by the row's name.
type Rows = Vec<(String, f64, String)>;

/// What to measure.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// A tenth of the work.
    pub(crate) quick: bool,
    /// The proxies, and nothing else.
    pub(crate) proxy: bool,
    /// Starts, memory and peers, and nothing else.
    pub(crate) starts: bool,
    /// So many sandboxes alive at the same time, where the usual number is not wanted.
    pub(crate) together: Option<usize>,
    /// Of the workspace table these groups of rows, and nothing else.
    pub(crate) groups: Vec<String>,
    /// Programs and images, where they shall not be built: to compare two builds.
    pub(crate) stage: Option<PathBuf>,
}

/// Every group of rows of the workspace table, in the order of the table.
const GROUPS: [&str; 6] = ["stat", "read", "make", "git", "big", "written"];

/// How much of what `workspace-bench` measures.
#[derive(Debug)]
pub(crate) struct Task {
    scale: usize,
    groups: Vec<String>,
}

impl Task {
    fn has(&self, group: &str) -> bool {
        self.groups.iter().any(|one| one == group)
    }
}

/// Measures.
pub(crate) fn bench(wanted: &Wanted) -> anyhow::Result<()> {
    let stage = wanted.stage.clone().map_or_else(prepare::prepare, Ok)?;
    let quick = wanted.quick;
    let task = Task {
        scale: if quick { SCALE_QUICK } else { SCALE },
        groups: if wanted.groups.is_empty() {
            GROUPS.map(str::to_owned).to_vec()
        } else {
            wanted.groups.clone()
        },
    };
    let world = World::new(stage)?;
    if wanted.proxy {
        proxy::print(&proxy::measure(&world, quick)?);
        return Ok(());
    }
    let ours = world.workspace("ours", &task)?;
    world.create("bench", &ours)?;
    if !wanted.groups.is_empty() {
        world.hutch(&["exec", "bench", "true"])?;
        let machine = world.machine()?;
        print_table(&workspace(&world, &task, &machine, &ours)?);
        return Ok(());
    }

    let runs = wanted.runs();
    let mut figures = starts::one_by_one(&world, runs)?;
    eprintln!("==> policy change");
    let (p50, p95) = p50_and_p95(policy::measure(&world, if quick { 5 } else { 20 })?);
    figures.push(Figure::time("policy change to its effect, p50", p50).at_most(50.0));
    figures.push(Figure::time("policy change to its effect, p95", p95));
    let machine = world.machine()?;
    let idle_pss_mib = world.memory()?;
    let accelerator = machine.accelerator();
    let workspace = match wanted.starts {
        true => Vec::new(),
        false => workspace(&world, &task, &machine, &ours)?,
    };
    world.hutch(&["stop", "bench"])?;
    figures.extend(starts::together(&world, runs)?);
    figures.extend(peers::measure(&world, &machine, runs.warm)?);
    figures::print(&figures);
    for (program, memory) in &idle_pss_mib {
        println!("{:<52} {memory:>10.1} MiB", format!("of the first sandbox: {program}"));
    }
    let chart = target().join("bench/starts.svg");
    let title = format!("Starts, {accelerator}, on {}", processor());
    write(&chart, &figures::chart(&title, &figures))?;
    let proxy = match wanted.starts {
        true => Vec::new(),
        false => proxy::measure(&world, quick)?,
    };
    let report = Report {
        format_version: 2,
        accelerator,
        machine: processor(),
        quick,
        starts: figures,
        idle_pss_mib,
        workspace,
        proxy,
    };
    if !wanted.starts {
        print_table(&report.workspace);
        proxy::print(&report.proxy);
    }
    let path = target().join("bench/report.json");
    write(&path, &serde_json::to_string_pretty(&report)?)?;
    println!("\n{}\n{}", path.display(), chart.display());
    Ok(())
}

impl Wanted {
    fn runs(&self) -> Runs {
        let mut runs = if self.quick {
            Runs { cold: 2, warm: 5, exec: 20, together: 5, idle: Duration::from_secs(5) }
        } else {
            Runs { cold: 5, warm: 30, exec: 200, together: 50, idle: Duration::from_secs(30) }
        };
        runs.together = self.together.unwrap_or(runs.together).max(2);
        runs
    }
}

/// The host's processor by its own description, and how many of it there are.
fn processor() -> String {
    let description = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let named =
        description.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let name = named.map_or("an unknown processor", |(_, name)| name.trim());
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{count} × {name}")
}

/// Measures the workspace of the running sandbox, stops that, and measures virtio-fs.
fn workspace(
    world: &World,
    task: &Task,
    machine: &Machine,
    ours: &Path,
) -> anyhow::Result<Vec<Row>> {
    eprintln!("==> workspace, Hutch");
    let (program, directory) = (ours.join("workspace-bench"), ours.to_string_lossy());
    let (program, scale) = (program.to_string_lossy(), task.scale.to_string());
    let mut line = vec!["exec", "bench", &program, &directory, &scale];
    line.extend(task.groups.iter().map(String::as_str));
    let (_, hutch_rows) = world.hutch(&line)?;
    world.hutch(&["stop", "bench"])?;
    eprintln!("==> workspace, virtio-fs");
    let theirs = world.workspace("theirs", task)?;
    let virtiofs_rows = virtiofs::measure(world, machine, &theirs, task)?;
    table(&parse_rows(&hutch_rows)?, &virtiofs_rows)
}

fn milliseconds(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Lines of `workspace-bench`: name, value, unit, separated by tabs.
fn parse_rows(text: &str) -> anyhow::Result<Rows> {
    let rows: Option<Rows> = text
        .lines()
        .filter(|line| line.contains('\t'))
        .map(|line| {
            let mut fields = line.trim_end().split('\t');
            let (name, value, unit) =
                (fields.next()?, fields.next()?.parse().ok()?, fields.next()?);
            Some((name.to_owned(), value, unit.to_owned()))
        })
        .collect();
    rows.filter(|rows| !rows.is_empty()).with_context(|| format!("no measurements in:\n{text}"))
}

fn table(hutch: &Rows, virtiofs: &Rows) -> anyhow::Result<Vec<Row>> {
    hutch
        .iter()
        .map(|(what, value, unit)| {
            let (_, other, _) = virtiofs
                .iter()
                .find(|(name, ..)| name == what)
                .with_context(|| format!("virtio-fs has no row {what}"))?;
            let ratio = if unit == "MiB/s" { value / other } else { other / value };
            Ok(Row {
                what: what.clone(),
                unit: unit.clone(),
                hutch: *value,
                virtiofs: *other,
                ratio,
            })
        })
        .collect()
}

fn print_table(rows: &[Row]) {
    println!("\n{:<20} {:>12} {:>12} {:>8}", "workspace", "Hutch", "virtio-fs", "ratio");
    for row in rows {
        println!(
            "{:<20} {:>6.1} {:<5} {:>6.1} {:<5} {:>7.2}",
            row.what, row.hutch, row.unit, row.virtiofs, row.unit, row.ratio
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_by_what_is_better() {
        let ours =
            parse_rows("cold stat\t10.0\tµs\nnoise\nsequential read\t200.0\tMiB/s\n").unwrap();
        let theirs = parse_rows("sequential read\t100.0\tMiB/s\ncold stat\t30.0\tµs\r\n").unwrap();
        let table = table(&ours, &theirs).unwrap();
        assert_eq!(table.iter().map(|row| row.ratio).collect::<Vec<_>>(), [3.0, 2.0]);
    }

    #[test]
    fn a_run_without_rows_is_an_error() {
        assert!(parse_rows("failed: no such file\n").is_err());
    }
}
