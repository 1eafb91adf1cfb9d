//! How the templates of agents are made: what is put on the base.

use std::collections::BTreeMap;

use serde::Deserialize;

/// How a template is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recipe {
    /// The base alone.
    Base,
    /// The base with packages of npm.
    Npm(NpmRecipe),
    /// An image of somebody else, which has everything.
    Image {
        /// What a registry calls it.
        reference: &'static str,
    },
}

/// Packages of npm at the versions of a lock file, without their installation scripts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NpmRecipe {
    /// The template that this makes.
    pub template: String,
    /// `package.json`: which packages.
    pub manifest: &'static str,
    /// `package-lock.json`: which files, with their digests.
    pub lock: &'static str,
    /// Name of each program, and its file below `node_modules`.
    pub programs: BTreeMap<String, String>,
    /// What is not needed, below `node_modules`.
    pub remove: Vec<String>,
}

/// `recipe.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeConfig {
    template: String,
    #[serde(default)]
    remove: Vec<String>,
    programs: BTreeMap<String, String>,
}

macro_rules! npm {
    ($name:literal) => {
        (
            include_str!(concat!("../recipes/", $name, "/recipe.toml")),
            include_str!(concat!("../recipes/", $name, "/package.json")),
            include_str!(concat!("../recipes/", $name, "/package-lock.json")),
        )
    };
}

/// Each with its manifest and its lock.
const NPM: [(&str, &str, &str); 5] =
    [npm!("claude"), npm!("codex"), npm!("copilot"), npm!("gemini"), npm!("opencode")];

/// Agents that no package archive has: their maker's images have them.
const IMAGES: [(&str, &str); 2] = [
    ("docker-agent", "docker/sandbox-templates:docker-agent-docker"),
    ("kiro", "docker/sandbox-templates:kiro-docker"),
];

impl Recipe {
    /// How the template of this name is made, where that is known here.
    pub fn of(template: &str) -> Option<Self> {
        if template == "shell" {
            return Some(Self::Base);
        }
        let image = IMAGES.iter().find(|(name, _)| *name == template);
        if let Some((_, reference)) = image {
            return Some(Self::Image { reference });
        }
        let npm = NPM.iter().map(|recipe| NpmRecipe::parse(*recipe));
        npm.into_iter().find(|recipe| recipe.template == template).map(Self::Npm)
    }
}

impl NpmRecipe {
    fn parse((text, manifest, lock): (&str, &'static str, &'static str)) -> Self {
        let config: RecipeConfig =
            toml::from_str(text).expect("the recipes in this crate are valid, as a test checks");
        // What npm calls this machine, and what compilers call it.
        let (cpu, arch) =
            if cfg!(target_arch = "aarch64") { ("arm64", "aarch64") } else { ("x64", "x86_64") };
        let fill = |path: &str| path.replace("{cpu}", cpu).replace("{arch}", arch);
        let programs = config.programs.iter().map(|(name, path)| (name.clone(), fill(path)));
        Self {
            template: config.template,
            manifest,
            lock,
            programs: programs.collect(),
            remove: config.remove.iter().map(|path| fill(path)).collect(),
        }
    }

    /// The agent's package and its version, for people.
    pub fn version(&self) -> Option<String> {
        let manifest: serde_json::Value = serde_json::from_str(self.manifest).ok()?;
        let (name, version) = manifest.get("dependencies")?.as_object()?.iter().next()?;
        Some(format!("{name} {}", version.as_str()?))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn all() -> Vec<NpmRecipe> {
        NPM.iter().map(|recipe| NpmRecipe::parse(*recipe)).collect()
    }

    #[test]
    fn locks_pin_every_package_by_digest_and_name_no_host() {
        for recipe in all() {
            let lock: Value = serde_json::from_str(recipe.lock).unwrap();
            let packages = lock["packages"].as_object().unwrap();
            for (path, package) in packages.iter().filter(|(path, _)| !path.is_empty()) {
                let digest = package["integrity"].as_str().unwrap_or_default();
                assert!(digest.starts_with("sha512-"), "{}: {path}", recipe.template);
                assert!(package.get("resolved").is_none(), "{}: {path}", recipe.template);
            }
            let manifest: Value = serde_json::from_str(recipe.manifest).unwrap();
            assert_eq!(manifest["dependencies"], packages[""]["dependencies"]);
            assert!(recipe.version().is_some_and(|version| version.contains(' ')));
        }
    }

    #[test]
    fn programs_are_files_of_locked_packages() {
        for recipe in all() {
            let lock: Value = serde_json::from_str(recipe.lock).unwrap();
            let packages = lock["packages"].as_object().unwrap();
            let within = |path: &str| {
                let path = format!("node_modules/{path}/");
                packages
                    .keys()
                    .any(|package| path.starts_with(&format!("{package}/")) && !package.is_empty())
            };
            assert!(!recipe.programs.is_empty());
            for path in recipe.programs.values().chain(&recipe.remove) {
                assert!(within(path), "{}: {path}", recipe.template);
            }
        }
    }

    #[test]
    fn every_template_of_an_agent_has_a_recipe() {
        for agent in crate::Agents::built_in().iter() {
            let recipe = agent.recipe().unwrap_or_else(|| panic!("{}", agent.word));
            if let Recipe::Npm(recipe) = recipe {
                assert!(recipe.programs.contains_key(agent.program()), "{}", agent.word);
            }
        }
        assert_eq!(Recipe::of("other"), None);
    }
}
