//! Templates of agents: the base with a layer of the agent's packages.

use hutch_agents::{NpmRecipe, Recipe as AgentRecipe};

use super::recipe::DOCKER_PREFIX;
use super::{
    LayerFiles, NewLayer, Origin, PullTemplate, Template, TemplateError, TemplateOptions,
    add_layer, npm, template_of_source,
};
use crate::Progress;
use crate::cache::{Cache, CacheError};
use crate::digest::Key;
use crate::tool::Toolbox;

/// What all of them stand on.
const BASE: &str = "shell";
/// Says which agent a template is for, as Docker's templates say it.
const FLAVOR_LABEL: &str = "com.docker.sandboxes.flavor";

/// The recipe of the agent whose template has this name, or Docker's name for it.
pub(super) fn recipe(name: &str) -> Option<NpmRecipe> {
    let flavor = name.strip_prefix(DOCKER_PREFIX).unwrap_or(name);
    // Docker has variants without an engine and with one; ours have one.
    match AgentRecipe::of(flavor.strip_suffix("-docker").unwrap_or(flavor))? {
        AgentRecipe::Npm(recipe) => Some(recipe),
        AgentRecipe::Base | AgentRecipe::Image { .. } => None,
    }
}

/// Returns the agent's template, making it, and what it stands on, where that is not there yet. Blocks.
pub(super) fn template(
    options: &TemplateOptions,
    recipe: &NpmRecipe,
    progress: &dyn Progress,
) -> Result<Template, TemplateError> {
    // The base is not made again with the agent: all agents stand on one.
    let pull =
        if options.pull == PullTemplate::Never { options.pull } else { PullTemplate::Missing };
    let base = TemplateOptions { name: BASE.to_owned(), pull, ..options.clone() };
    let base = super::template(&base, progress)?;
    let source = key(recipe, &base.digest);
    let found = || template_of_source(&options.images, &source, &options.name);
    match options.pull {
        PullTemplate::Always => {}
        PullTemplate::Missing | PullTemplate::Never => {
            if let Some(found) = found() {
                return Ok(found);
            }
        }
    }
    if options.pull == PullTemplate::Never {
        return Err(TemplateError::Absent { name: options.name.clone() });
    }
    let cache = Cache::new(options.images.join("agents"));
    let locked = cache.lock(progress)?;
    // Whoever had the lock may have made it meanwhile.
    if options.pull == PullTemplate::Missing
        && let Some(found) = found()
    {
        return Ok(found);
    }
    let log = options.images.join("logs/agent.log");
    let tools = Toolbox::new(&options.environment, &log, locked.file())
        .map_err(CacheError::io("create", &log))?;
    locked.clean()?;
    let draft = locked.begin("npm")?;
    let tree = npm::tree(&tools, recipe, draft.path(), progress)
        .map_err(|source| TemplateError::Agent { name: options.name.clone(), source })?;
    let mut config = base.config.clone();
    config.labels.insert(FLAVOR_LABEL.to_owned(), recipe.template.clone());
    let new = NewLayer {
        images: &options.images,
        base: &base,
        files: LayerFiles::Directory(&tree),
        name: &format!("{DOCKER_PREFIX}{}", recipe.template),
        config,
        source: &source,
        origin: Origin::Recipe,
        environment: &options.environment,
    };
    let made = add_layer(new, progress)?;
    Ok(Template { name: options.name.clone(), ..made })
}

/// Changes with all that the template is made from.
fn key(recipe: &NpmRecipe, base: &str) -> String {
    let mut key = Key::default()
        .part("tree", npm::TREE_VERSION)
        .part("base", base)
        .part("template", &recipe.template)
        .part("manifest", recipe.manifest)
        .part("lock", recipe.lock);
    for (program, path) in &recipe.programs {
        key = key.part(program, path);
    }
    key.part("remove", recipe.remove.join("\n")).finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_names_mean_our_templates() {
        for name in [
            "claude-code",
            "docker/sandbox-templates:claude-code",
            "docker/sandbox-templates:claude-code-docker",
        ] {
            assert_eq!(recipe(name).unwrap().template, "claude-code", "{name}");
        }
        for name in ["shell", "kiro", "claude", "other/claude-code", ""] {
            assert!(recipe(name).is_none(), "{name}");
        }
    }

    #[test]
    fn the_key_changes_with_the_base_and_the_recipe() {
        let mut claude = recipe("claude-code").unwrap();
        let first = key(&claude, "sha256:1");
        assert_ne!(first, key(&claude, "sha256:2"));
        claude.remove.push("x".to_owned());
        assert_ne!(first, key(&claude, "sha256:1"));
    }
}
