//! What `deny.toml` asks of the dependencies, checked here as far as it needs no network, so that it is part of every
//! test run without another program: licences, duplicate versions, sources, and how many there are.
//!
//! The file is cargo-deny's own format; `make deny` runs cargo-deny itself, which also reads the advisory database.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::Context as _;
use serde::Deserialize;

use crate::process::{cargo, command, output, root, run};

/// Most locked packages; a project of this kind needs no more.
const PACKAGES_MAX: usize = 350;

/// The part of `deny.toml` that we check.
#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    #[serde(default)]
    skip: Vec<Skip>,
}

/// A duplicate that is allowed, with the reason.
#[derive(Deserialize)]
struct Skip {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

/// Every violation of `deny.toml` that can be seen without the network.
pub(crate) fn violations() -> anyhow::Result<Vec<String>> {
    let deny = fs::read_to_string(root().join("deny.toml")).context("deny.toml")?;
    let deny: Deny = toml::from_str(&deny).context("deny.toml")?;
    // What is only for other systems is never compiled.
    let platform = "x86_64-unknown-linux-gnu";
    let metadata = ["metadata", "--format-version", "1", "--locked", "--filter-platform", platform];
    let metadata = output(cargo().args(metadata))?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata")?;
    Ok(check(&deny, &metadata.packages))
}

/// Runs cargo-deny, after installing it when it is missing: minutes, so it is not part of the tests.
pub(crate) fn cargo_deny() -> anyhow::Result<()> {
    if command("cargo-deny").arg("--version").output().is_err() {
        run(cargo().args(["install", "--locked", "cargo-deny"]))?;
    }
    run(cargo().args(["deny", "--workspace", "check"]))
}

fn check(deny: &Deny, packages: &[Package]) -> Vec<String> {
    let mut violations = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().insert(&package.version);
        let license = package.license.as_deref().unwrap_or("none");
        if !satisfied(license, &deny.licenses.allow) {
            violations.push(format!(
                "{} {}: licence {license} is not allowed",
                package.name, package.version
            ));
        }
        let source = package.source.as_deref();
        if source
            .is_some_and(|source| source != "registry+https://github.com/rust-lang/crates.io-index")
        {
            violations.push(format!("{} {}: unknown source", package.name, package.version));
        }
    }
    let skipped: BTreeSet<&str> = deny.bans.skip.iter().map(|skip| skip.name.as_str()).collect();
    for (name, versions) in &versions {
        if versions.len() > 1 && !skipped.contains(name) {
            violations.push(format!(
                "{name} in {} versions without a reason in deny.toml",
                versions.len()
            ));
        }
    }
    for skip in &deny.bans.skip {
        let name = skip.name.as_str();
        if versions.get(name).is_none_or(|versions| versions.len() < 2) {
            violations.push(format!("deny.toml allows duplicates of {name}, but there are none"));
        }
        if skip.reason.is_empty() {
            violations.push(format!("deny.toml gives no reason for duplicates of {name}"));
        }
    }
    if packages.len() > PACKAGES_MAX {
        violations.push(format!("{} locked packages, at most {PACKAGES_MAX}", packages.len()));
    }
    violations
}

/// Whether an SPDX expression can be satisfied with the allowed licences: `OR` of `AND`s, which is all that occurs.
fn satisfied(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ");
    if let Some((left, right)) = split_outside(&expression, " OR ") {
        return satisfied(left, allowed) || satisfied(right, allowed);
    }
    if let Some((left, right)) = split_outside(&expression, " AND ") {
        return satisfied(left, allowed) && satisfied(right, allowed);
    }
    let term = expression.trim();
    match term.strip_prefix('(').and_then(|term| term.strip_suffix(')')) {
        Some(inner) => satisfied(inner, allowed),
        None => allowed.contains(term),
    }
}

/// Splits at the first `separator` that is not within parentheses.
fn split_outside<'a>(text: &'a str, separator: &str) -> Option<(&'a str, &'a str)> {
    text.match_indices(separator)
        .map(|(at, _)| (&text[..at], &text[at + separator.len()..]))
        .find(|(left, _)| left.matches('(').count() == left.matches(')').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deny(skip: &[(&str, &str)]) -> Deny {
        let allow = ["MIT", "Apache-2.0", "Unicode-3.0"].map(str::to_owned).into();
        let skip = skip
            .iter()
            .map(|(name, reason)| Skip { name: (*name).into(), reason: (*reason).into() });
        Deny { licenses: Licenses { allow }, bans: Bans { skip: skip.collect() } }
    }

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.into(),
            version: version.into(),
            license: Some("MIT".into()),
            source: None,
        }
    }

    #[test]
    fn licence_expressions() {
        let allowed = deny(&[]).licenses.allow;
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-2.0 OR Apache-2.0",
            "(MIT OR Zlib) AND Unicode-3.0",
            "MIT OR Zlib AND ISC",
            "MIT/BSD",
        ] {
            assert!(satisfied(good, &allowed), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "none", "", "(MIT OR Zlib) AND GPL-3.0"] {
            assert!(!satisfied(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn duplicates_need_a_reason_and_reasons_need_duplicates() {
        let two = [package("a", "1.0.0"), package("a", "2.0.0")];
        assert_eq!(check(&deny(&[]), &two).len(), 1);
        assert!(check(&deny(&[("a", "b needs the old one")]), &two).is_empty());
        assert_eq!(check(&deny(&[("a", "")]), &two).len(), 1);
        assert_eq!(check(&deny(&[("a", "gone")]), &two[..1]).len(), 1);
    }

    #[test]
    fn other_registries_are_refused() {
        let mut other = package("a", "1.0.0");
        other.source = Some("git+https://example.com/a".into());
        assert_eq!(check(&deny(&[]), &[other]).len(), 1);
    }
}
