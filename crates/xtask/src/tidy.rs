//! Rules of this repository that no other tool checks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::dependencies;
use crate::process::{cargo, output, root};

/// Crates in order: each may depend only on those after it. Crates that exist only for tests and tools are free.
const ORDER: [&str; 16] = [
    "hutch",
    "hutch-keeper",
    "hutch-init",
    "hutch-vmm",
    "hutch-proxy",
    "hutch-workspace",
    "hutch-image",
    "hutch-agents",
    "hutch-config",
    "hutch-store",
    "hutch-secrets",
    "hutch-policy",
    "hutch-wire",
    "hutch-api",
    "hutch-layer",
    "hutch-sys",
];
const FREE: [&str; 3] = ["hutch-testkit", "e2e", "xtask"];

/// Longest file, tests not counted.
const LINES_MAX: usize = 1000;

/// Checks all rules and reports every violation; `bless` rewrites the checked-in lists instead of comparing them.
pub(crate) fn tidy(bless: bool) -> anyhow::Result<()> {
    let mut violations = crate_order()?;
    violations.extend(file_lengths()?);
    violations.extend(init_dependencies(bless)?);
    violations.extend(dependencies::violations()?);
    if violations.is_empty() {
        return Ok(());
    }
    bail!("{} violation(s):\n{}", violations.len(), violations.join("\n"))
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `dev`, `build`, or nothing for what the crate itself uses.
    kind: Option<String>,
    /// Only crates of this workspace have a path.
    path: Option<PathBuf>,
}

fn crate_order() -> anyhow::Result<Vec<String>> {
    let metadata =
        output(cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]))?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    Ok(metadata.packages.iter().flat_map(order_violations).collect())
}

fn order_violations(package: &Package) -> Vec<String> {
    if FREE.contains(&package.name.as_str()) {
        return Vec::new();
    }
    let place = |name: &str| ORDER.iter().position(|entry| *entry == name);
    let Some(own) = place(&package.name) else {
        return vec![format!(
            "crate {} has no place in the order of crates (xtask, tidy.rs)",
            package.name
        )];
    };
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.path.is_some() && dependency.kind.as_deref() != Some("dev"))
        .filter(|dependency| place(&dependency.name).is_none_or(|other| other <= own))
        .map(|dependency| {
            format!("crate {} may not depend on {}: order of crates", package.name, dependency.name)
        })
        .collect()
}

fn file_lengths() -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for file in rust_files(&root().join("crates"))? {
        let text = fs::read_to_string(&file).with_context(|| format!("{}", file.display()))?;
        let lines = lines_without_tests(&text);
        if lines > LINES_MAX {
            violations.push(format!(
                "{}: {lines} lines without tests, at most {LINES_MAX}",
                file.display()
            ));
        }
    }
    Ok(violations)
}

/// Every Rust file but those that hold only tests.
fn rust_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| format!("{}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() && name != "tests" {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") && name != "tests.rs"
        {
            files.push(path);
        }
    }
    Ok(files)
}

/// Lines before the test module, which stands last in a file.
fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests"))
        .unwrap_or(lines.len())
}

/// What is linked into init is reviewed: a new crate in there is a change of this list.
fn init_dependencies(bless: bool) -> anyhow::Result<Vec<String>> {
    let tree = output(cargo().args([
        "tree",
        "--package",
        "hutch-init",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--format",
        "{p}",
        "--locked",
    ]))?;
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    let mut actual = String::new();
    for name in &names {
        actual.push_str(name);
        actual.push('\n');
    }
    let list = root().join("crates/hutch-init/dependencies.txt");
    if bless {
        write(&list, &actual)?;
        return Ok(Vec::new());
    }
    let expected = fs::read_to_string(&list).unwrap_or_default();
    let expected: BTreeSet<&str> = expected.lines().collect();
    Ok(names
        .symmetric_difference(&expected)
        .map(|name| {
            let what = if names.contains(name) { "is not in" } else { "is only in" };
            format!("hutch-init: {name} {what} crates/hutch-init/dependencies.txt (cargo xtask tidy --bless)")
        })
        .collect())
}

/// Writes a file that is checked in or a report; nothing reads it back while we run.
#[expect(clippy::disallowed_methods, reason = "not one of the files that Hutch keeps")]
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("{}", directory.display()))?;
    }
    fs::write(path, text).with_context(|| format!("{}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependency: &str, kind: Option<&str>) -> Package {
        Package {
            name: name.to_owned(),
            dependencies: vec![Dependency {
                name: dependency.to_owned(),
                kind: kind.map(str::to_owned),
                path: Some(PathBuf::from("/crates/x")),
            }],
        }
    }

    #[test]
    fn a_crate_may_use_only_crates_below_it() {
        assert!(order_violations(&package("hutch-keeper", "hutch-vmm", None)).is_empty());
        assert_eq!(order_violations(&package("hutch-vmm", "hutch-keeper", None)).len(), 1);
        assert_eq!(order_violations(&package("hutch-vmm", "hutch-testkit", None)).len(), 1);
    }

    #[test]
    fn tests_may_use_any_crate() {
        assert!(order_violations(&package("hutch-vmm", "hutch-testkit", Some("dev"))).is_empty());
        assert!(order_violations(&package("e2e", "hutch", None)).is_empty());
    }

    #[test]
    fn an_unknown_crate_needs_a_place() {
        assert_eq!(order_violations(&package("hutch-new", "hutch-sys", None)).len(), 1);
    }

    #[test]
    fn the_test_module_is_not_counted() {
        assert_eq!(lines_without_tests("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert_eq!(lines_without_tests("a\n#[cfg(test)]\nfn helper() {}\nb\n"), 4);
    }
}
