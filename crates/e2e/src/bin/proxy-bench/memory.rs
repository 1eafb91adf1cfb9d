//! Memory of a process and everything that it started.

use std::fs;

/// Proportional memory in MiB of `root` and its descendants.
pub(crate) fn of_family(root: u32) -> f64 {
    let mut family = vec![root];
    let all: Vec<(u32, u32)> = processes();
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(all.iter().filter(|(_, own)| *own == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    family.into_iter().filter_map(proportional).sum()
}

fn proportional(pid: u32) -> Option<f64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line =
        rollup.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"))?;
    Some(line.parse::<f64>().ok()? / 1024.0)
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
