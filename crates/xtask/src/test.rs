//! The checks and tests of this repository, in the order of what fails fastest.

use std::process::Command;

use anyhow::bail;

use crate::process::{cargo, is_root, run};
use crate::{prepare, tidy};

/// The fast half: needs no VM and no root.
pub(crate) fn check() -> anyhow::Result<()> {
    run_all(&mut fast_steps())
}

/// Everything. The VM tests come last, so that nextest's summary of them is the last thing printed.
pub(crate) fn test() -> anyhow::Result<()> {
    let mut steps = fast_steps();
    steps.push(Step { name: "VM tests", action: Box::new(vm_tests) });
    run_all(&mut steps)
}

struct Step {
    name: &'static str,
    action: Box<dyn FnMut() -> anyhow::Result<()>>,
}

impl Step {
    fn command(name: &'static str, mut command: Command) -> Self {
        Self { name, action: Box::new(move || run(&mut command)) }
    }
}

fn fast_steps() -> Vec<Step> {
    let mut format = cargo();
    format.args(["fmt", "--all", "--check"]);
    let mut clippy = cargo();
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]);
    let mut tests = cargo();
    tests.args([
        "nextest",
        "run",
        "--workspace",
        "--locked",
        "--profile",
        "ci",
        "--status-level",
        "slow",
    ]);
    let mut doc_tests = cargo();
    doc_tests.args(["test", "--doc", "--workspace", "--locked", "--quiet"]);
    vec![
        Step::command("format", format),
        Step { name: "tidy", action: Box::new(|| tidy::tidy(false)) },
        Step::command("clippy", clippy),
        Step::command("unit and in-process tests", tests),
        Step::command("doc tests", doc_tests),
    ]
}

fn vm_tests() -> anyhow::Result<()> {
    prepare::prepare()?;
    let mut tests = cargo();
    tests.args([
        "nextest",
        "run",
        "--package",
        "e2e",
        "--locked",
        "--profile",
        "ci",
        "--status-level",
        "pass",
    ]);
    run(tests.arg("--ignore-default-filter").args(filter()))
}

/// Leaves out the tests that only root can run, and says so, when we are not root.
fn filter() -> Vec<&'static str> {
    if is_root() {
        return Vec::new();
    }
    eprintln!("==> not root: the tests called as_root_… are left out");
    vec!["--filterset", "not test(/(^|::)as_root_/)"]
}

/// Runs every step even when one fails: one run tells everything. Prints nothing after a last step that passed.
fn run_all(steps: &mut [Step]) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for step in steps {
        eprintln!("==> {}", step.name);
        if let Err(error) = (step.action)() {
            eprintln!("==> {} failed: {error:#}", step.name);
            failed.push(step.name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}
