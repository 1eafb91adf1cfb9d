//! `make run`: from a fresh clone to a shell in a sandbox on this repository.

use std::fs;
use std::io::{IsTerminal as _, stdin, stdout};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::install::install;
use crate::process::{command, root, run as run_command};

/// What a sandbox without a terminal shows of itself. `$1` is a file to write on the host's side of the workspace.
const TRANSCRIPT: &str = r#"
show() { printf '\n$ %s\n' "$*"; "$@"; }
show uname -srm
show pwd
show id
show git log --oneline -1
printf '\n$ echo "written by $(id -un) on kernel $(uname -r)" > %s\n' "$1"
echo "written by $(id -un) on kernel $(uname -r)" > "$1"
"#;

/// Builds, installs and opens the sandbox.
pub(crate) fn run(prefix: &Path) -> anyhow::Result<()> {
    install(prefix)?;
    let hutch = prefix.join("bin/hutch");
    if stdin().is_terminal() && stdout().is_terminal() {
        eprintln!("$ hutch run shell .");
        return run_command(command(&hutch).args(["run", "shell", "."]));
    }
    let witness = "target/written-in-the-sandbox";
    let outside = root().join(witness);
    if outside.exists() {
        fs::remove_file(&outside)
            .with_context(|| format!("cannot remove {}", outside.display()))?;
    }
    println!("$ hutch run shell . -- -c '…'");
    let words = ["run", "shell", ".", "--", "-c", TRANSCRIPT, "transcript", witness];
    let status = command(&hutch).args(words).status().context("cannot run hutch")?;
    if !status.success() {
        bail!("the sandbox ended with {status}");
    }
    let text =
        fs::read_to_string(&outside).context("the file written in the sandbox is not here")?;
    let owner = fs::metadata(&outside)?.uid();
    let own = fs::metadata(root().join("target"))?.uid();
    println!("\nOutside, {witness} belongs to user {owner} and says:\n{}", text.trim_end());
    if owner != own {
        bail!("{witness} should belong to user {own}");
    }
    println!(
        "\nThe sandbox goes on: hutch ls, hutch exec -it NAME bash, hutch stop NAME, hutch rm NAME."
    );
    Ok(())
}
