//! Memory and processor time of a process and everything that it started.
//!
//! What the kernel lets nobody but root see of a worker that is not dumpable (`smaps_rollup`, and with it the proportional
//! set size) is not asked for: `status` is open to everybody. Pages of program files, which processes share, are left out.

use std::fs;

use crate::Failure;

/// Memory in MiB that `root` and its descendants hold for themselves.
pub(crate) fn of_family(root: u32) -> Result<f64, Failure> {
    family(root).into_iter().map(own).sum()
}

/// Seconds of a processor that `root` and its descendants have used.
pub(crate) fn processor_time(root: u32) -> Result<f64, Failure> {
    // User and system time are the twelfth and thirteenth words after the name (proc_pid_stat(5)), in `USER_HZ`.
    let ticks = |pid: u32| -> Result<f64, Failure> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let words = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let mut times = words.skip(11).map(str::parse::<f64>);
        let mut time = || times.next().ok_or("the kernel tells no processor time");
        Ok((time()?? + time()??) / 100.0)
    };
    family(root).into_iter().map(ticks).sum()
}

fn family(root: u32) -> Vec<u32> {
    let mut family = vec![root];
    let all = processes();
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(all.iter().filter(|(_, own)| *own == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    family
}

fn own(pid: u32) -> Result<f64, Failure> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    // proc_pid_status(5)
    let pages = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let line = line.ok_or_else(|| format!("process {pid} has no {name}"))?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok::<_, Failure>(kib / 1024.0)
    };
    Ok(pages("RssAnon:")? + pages("RssShmem:")?)
}

/// Every process with its parent.
fn processes() -> Vec<(u32, u32)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let process = |name: &str| {
        let pid = name.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{name}/stat")).ok()?;
        // The parent is the second word after the name in parentheses (proc_pid_stat(5)).
        let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    };
    entries.flatten().filter_map(|entry| process(entry.file_name().to_str()?)).collect()
}
