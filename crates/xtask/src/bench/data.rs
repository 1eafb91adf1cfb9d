//! The directory that is measured: the same for every share.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

use crate::bench::Task;
use crate::process::{command, run};
use crate::tidy::write;

/// Files of the repository for one unit of scale; the full run has 10,000.
const REPOSITORY: usize = 100;

/// Makes everything that `workspace-bench` looks at.
pub(crate) fn make(directory: &Path, task: &Task) -> anyhow::Result<()> {
    let scale = task.scale;
    fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
    files(&directory.join("stat"), scale * 20, 100)?;
    files(&directory.join("read"), scale * 10, 4096)?;
    if task.has("big") {
        let big = "0123456789abcdef".repeat(1 << 16).repeat(2 * scale);
        write(&directory.join("big"), &big)?;
    }
    if task.has("git") { repository(directory, scale) } else { Ok(()) }
}

fn repository(directory: &Path, scale: usize) -> anyhow::Result<()> {
    let repository = directory.join("repository");
    for number in 0..scale * REPOSITORY / 100 {
        files(&repository.join(format!("directory-{number:03}")), 100, 200)?;
    }
    for arguments in [
        &["init", "--quiet"][..],
        &["add", "--all"],
        &[
            "-c",
            "user.name=bench",
            "-c",
            "user.email=bench@example.com",
            "commit",
            "--quiet",
            "--message",
            "all",
        ],
    ] {
        run(command("git").args(arguments).current_dir(&repository))?;
    }
    Ok(())
}

fn files(directory: &Path, count: usize, size: usize) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
    let content = "x".repeat(size);
    (0..count).try_for_each(|number| write(&directory.join(format!("file-{number:05}")), &content))
}
