//! `make bench`: what the design promises, measured in one run on this machine. See `docs/benchmarks.md`.
//!
//! Prints a table and writes `target/bench/report.json`. The workspace is measured beside virtio-fs: the same program,
//! the same kernel, template, processors and memory, one after the other.

mod data;
mod policy;
mod proxy;
mod virtiofs;
mod world;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

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
    cold_start_ms: Vec<f64>,
    exec_true_ms: Percentiles,
    policy_change_ms: Percentiles,
    idle_pss_mib: BTreeMap<String, f64>,
    workspace: Vec<Row>,
    proxy: Vec<proxy::Row>,
}

#[derive(Debug, Serialize)]
struct Percentiles {
    runs: usize,
    p50: f64,
    p95: f64,
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
pub(crate) fn bench(wanted: Wanted) -> anyhow::Result<()> {
    let stage = wanted.stage.map_or_else(prepare::prepare, Ok)?;
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

    eprintln!("==> cold start");
    let mut cold_start = Vec::new();
    for _ in 0..if quick { 1 } else { 5 } {
        world.hutch(&["stop", "bench"])?;
        cold_start.push(world.hutch(&["exec", "bench", "true"])?.0);
    }
    eprintln!("==> exec true");
    let runs = if quick { 20 } else { 200 };
    let mut latencies = Vec::new();
    for _ in 0..runs {
        latencies.push(world.hutch(&["exec", "bench", "true"])?.0);
    }
    eprintln!("==> policy change");
    let policy_changes = policy::measure(&world, if quick { 5 } else { 20 })?;
    let machine = world.machine()?;
    let idle_pss_mib = world.memory()?;
    let report = Report {
        format_version: 1,
        accelerator: machine.accelerator(),
        cold_start_ms: cold_start.iter().map(milliseconds).collect(),
        exec_true_ms: percentiles(latencies)?,
        policy_change_ms: percentiles(policy_changes)?,
        idle_pss_mib,
        workspace: workspace(&world, &task, &machine, &ours)?,
        proxy: proxy::measure(&world, quick)?,
    };
    print(&report);
    proxy::print(&report.proxy);
    let path = target().join("bench/report.json");
    write(&path, &serde_json::to_string_pretty(&report)?)?;
    println!("\n{}", path.display());
    Ok(())
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

fn percentiles(mut latencies: Vec<Duration>) -> anyhow::Result<Percentiles> {
    latencies.sort();
    let at = |percent: usize| {
        let index = (latencies.len() * percent / 100).min(latencies.len().saturating_sub(1));
        latencies.get(index).map(milliseconds).context("nothing was measured")
    };
    Ok(Percentiles { runs: latencies.len(), p50: at(50)?, p95: at(95)? })
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

fn print(report: &Report) {
    println!("accelerator          {}", report.accelerator);
    let starts: Vec<String> =
        report.cold_start_ms.iter().map(|start| format!("{start:.0}")).collect();
    println!("cold start           {} ms", starts.join(" "));
    for (what, times) in
        [("exec true", &report.exec_true_ms), ("policy change", &report.policy_change_ms)]
    {
        println!(
            "{what:<20} p50 {:.1} ms, p95 {:.1} ms, {} runs",
            times.p50, times.p95, times.runs
        );
    }
    for (program, memory) in &report.idle_pss_mib {
        println!("idle memory          {memory:>7.1} MiB PSS of {program}");
    }
    print_table(&report.workspace);
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

    #[test]
    fn percentiles_of_a_hundred() {
        let all = (1..=100).map(Duration::from_millis).collect();
        let found = percentiles(all).unwrap();
        assert!((found.p50 - 51.0).abs() < 0.1 && (found.p95 - 96.0).abs() < 0.1, "{found:?}");
    }
}
