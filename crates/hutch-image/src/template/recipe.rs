//! What a template built here consists of: data, and the digest that tells one recipe from another.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::apt::SUITE;
use crate::digest::Key;
use crate::template::TemplateConfig;

/// Changes whenever the same recipe would be built in another way.
const BUILD_VERSION: &str = "1";

const SHELL: &str = include_str!("shell.toml");
const SETUP: &str = include_str!("setup.sh");

/// Docker's name for its templates; ours of the same flavor stand in for them.
pub(super) const DOCKER_PREFIX: &str = "docker/sandbox-templates:";

/// A template built from the distribution's packages.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Recipe {
    /// Its flavor: `shell`.
    pub(crate) name: String,
    /// Packages of the distribution, without what they depend on.
    pub(crate) packages: Vec<String>,
    /// Packages of the Python package index.
    pub(crate) python_packages: Vec<String>,
    /// Patterns of paths that are not unpacked.
    pub(crate) path_excludes: Vec<String>,
    /// Patterns of paths that are unpacked all the same.
    pub(crate) path_includes: Vec<String>,
    /// Who runs sessions.
    pub(crate) user: String,
    /// Variables of sessions.
    pub(crate) environment: BTreeMap<String, String>,
}

impl Recipe {
    /// The recipe that a person means by `name`: a flavor, or Docker's name for it.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let flavor = name.strip_prefix(DOCKER_PREFIX).unwrap_or(name);
        let recipe = Self::shell();
        (recipe.name == flavor).then_some(recipe)
    }

    fn shell() -> Self {
        toml::from_str(SHELL).expect("the recipe in this crate is valid, as a test checks")
    }

    /// Docker's name for a template of this flavor.
    pub(crate) fn reference(&self) -> String {
        format!("{DOCKER_PREFIX}{}", self.name)
    }

    /// What a template of it says of its sessions.
    pub(crate) fn config(&self) -> TemplateConfig {
        TemplateConfig {
            environment: self.environment.clone(),
            user: Some(self.user.clone()),
            ..TemplateConfig::default()
        }
    }

    /// The script that is run in the new root file system.
    pub(crate) fn setup(&self) -> &'static str {
        SETUP
    }

    /// Tells this recipe from all others.
    pub(crate) fn key(&self) -> String {
        let parts: [(&str, &[String]); 4] = [
            ("packages", &self.packages),
            ("python", &self.python_packages),
            ("excludes", &self.path_excludes),
            ("includes", &self.path_includes),
        ];
        let mut key = Key::default()
            .part("build", BUILD_VERSION)
            .part("suite", SUITE)
            .part("architecture", std::env::consts::ARCH)
            .part("name", &self.name)
            .part("user", &self.user)
            .part("setup", self.setup());
        for (label, list) in parts {
            // The order has no meaning to the package manager.
            let mut list = list.to_vec();
            list.sort();
            key = key.part(label, list.join("\n"));
        }
        for (name, value) in &self.environment {
            key = key.part(name, value);
        }
        key.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_names_mean_the_same_recipe() {
        let shell = Recipe::named("shell").unwrap();
        assert_eq!(Recipe::named("docker/sandbox-templates:shell").unwrap().key(), shell.key());
        for other in
            ["", "shel", "docker/sandbox-templates:", "docker/sandbox-templates:x", "other/shell"]
        {
            assert!(Recipe::named(other).is_none(), "{other}");
        }
    }

    #[test]
    fn the_key_changes_with_the_content_and_not_with_the_order() {
        let shell = Recipe::named("shell").unwrap();
        let mut other = shell.clone();
        other.packages.reverse();
        assert_eq!(other.key(), shell.key());
        other.packages.push("cowsay".to_owned());
        assert_ne!(other.key(), shell.key());
        let mut other = shell.clone();
        other.environment.insert("LANG".to_owned(), "C".to_owned());
        assert_ne!(other.key(), shell.key());
    }

    #[test]
    fn the_base_environment_has_what_is_promised() {
        let shell = Recipe::named("shell").unwrap();
        for package in [
            "docker.io",
            "docker-cli",
            "docker-buildx",
            "docker-compose",
            "git",
            "gh",
            "nodejs",
            "npm",
            "golang-go",
            "python3",
            "make",
            "jq",
            "ripgrep",
            "sudo",
        ] {
            assert!(shell.packages.iter().any(|have| have == package), "{package}");
        }
        assert_eq!(shell.python_packages, ["uv"]);
        assert_eq!(shell.user, "agent");
    }
}
