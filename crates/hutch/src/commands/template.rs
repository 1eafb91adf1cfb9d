//! `hutch template`

use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hutch_agents::{AgentSpec, Recipe as AgentRecipe};
use hutch_image::{
    ExportError, ManageError, Origin, Reference, Removed, Template, TemplateStatus,
    export_template, find_template, load_images, prune_templates, remove_template, tag_template,
    template_image, templates,
};
use indicatif::HumanBytes;
use jiff::Timestamp;
use serde::Serialize;

use crate::agents;
use crate::context::Context;
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::images::{Images, Pull, template_failure};
use crate::printer::{self, Printer};
use crate::progress::Shown;
use crate::table;

/// Look at, load, name and remove templates
///
/// A template is what sandboxes start from. Templates that were built here, loaded, pulled or saved are kept by digest,
/// with each layer once for all templates that have it.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Action,
}

/// The commands below `template`.
#[derive(Debug, Subcommand)]
enum Action {
    /// List templates
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long, conflicts_with = "quiet")]
        json: bool,
        /// Print only the digests
        #[arg(short, long)]
        quiet: bool,
    },
    /// Show everything about templates, as JSON
    Inspect {
        /// Templates by name or digest
        #[arg(value_name = "TEMPLATE", required = true)]
        templates: Vec<String>,
    },
    /// Remove names, and templates with their last one
    #[command(visible_alias = "remove")]
    Rm {
        /// Templates by name or digest
        #[arg(value_name = "TEMPLATE", required = true)]
        templates: Vec<String>,
    },
    /// Load images from a file of `docker save` or an OCI archive or layout
    Load {
        /// File or directory, compressed or not
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Name for the first image instead of its own
        #[arg(value_name = "NAME")]
        name: Option<String>,
        /// Print only the result
        #[arg(short, long)]
        quiet: bool,
    },
    /// Write a template to a file, for `docker load`, skopeo or `template load` elsewhere
    Save {
        /// File, which is replaced
        #[arg(short, long, value_name = "FILE", required = true)]
        output: PathBuf,
        /// Template by name or digest
        #[arg(value_name = "TEMPLATE")]
        template: String,
    },
    /// Build the templates of agents, where they are not there or their recipes have changed
    Build {
        /// Build those of all agents that can be built here
        #[arg(long)]
        all: bool,
        /// Agents
        #[arg(value_name = "AGENT", required_unless_present = "all", conflicts_with = "all")]
        agents: Vec<String>,
    },
    /// Give a template another name
    Tag {
        /// Template by name or digest
        #[arg(value_name = "TEMPLATE")]
        template: String,
        /// New name, taken from the template that has it
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// Remove templates without a name that no sandbox uses, and layers that no template has
    Prune {
        /// Remove those with a name too
        #[arg(short, long)]
        all: bool,
    },
}

/// Version of the JSON forms.
const FORMAT_VERSION: u32 = 1;

/// A template in JSON.
#[derive(Debug, Serialize)]
struct Entry {
    digest: String,
    references: Vec<String>,
    origin: Origin,
    created_at: String,
    bytes: u64,
    layers: Vec<Layer>,
    config: hutch_image::TemplateConfig,
}

/// A layer in JSON.
#[derive(Debug, Serialize)]
struct Layer {
    digest: String,
    bytes: u64,
}

/// The list in JSON.
#[derive(Debug, Serialize)]
struct List {
    format_version: u32,
    templates: Vec<Entry>,
}

impl From<TemplateStatus> for Entry {
    fn from(status: TemplateStatus) -> Self {
        let layers = status.layers.into_iter();
        let layers: Vec<_> =
            layers.map(|layer| Layer { digest: layer.digest, bytes: layer.bytes }).collect();
        Self {
            digest: status.digest,
            references: status.references,
            origin: status.origin,
            created_at: Timestamp::try_from(status.made).unwrap_or_default().to_string(),
            bytes: layers.iter().map(|layer| layer.bytes).sum(),
            layers,
            config: status.config,
        }
    }
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    // The directories are made, and refused where somebody else may change them.
    let sandboxes = context.sandboxes()?;
    let images = context.settings.layout.images.as_path();
    let printer = context.printer;
    match &arguments.command {
        Action::Ls { json, quiet } => list(context, images, *json, *quiet)?,
        Action::Inspect { templates } => {
            let found: Result<Vec<Entry>, Failure> = templates
                .iter()
                .map(|name| find_template(images, name).map(Entry::from).map_err(|e| failure(&e)))
                .collect();
            printer.text(&printer::json(&found?))?;
        }
        Action::Rm { templates } => {
            let _nobody_creates = sandboxes.hold_creation()?;
            let in_use = sandboxes.templates_in_use()?;
            for name in templates {
                let shown = Shown::new(printer);
                let removed = remove_template(images, name, &in_use, &shown);
                drop(shown);
                tell(context, &removed.map_err(|error| failure(&error))?)?;
            }
        }
        Action::Load { path, name, quiet } => {
            let name = name.as_deref().map(Reference::parse).transpose();
            let name = name.map_err(|error| Failure::from_error(Blame::User, &error))?;
            let shown = Shown::new(printer.quiet_if(*quiet));
            let loaded = load_images(images, path, name.as_ref(), &shown);
            drop(shown);
            for template in loaded.map_err(|error| template_failure(&error))? {
                printer.data(&template.name)?;
            }
        }
        Action::Save { output, template: name } => {
            let found = find_template(images, name).map_err(|error| failure(&error))?;
            let names: Vec<Reference> = match Reference::parse(name) {
                Ok(given) if found.references.contains(&given.to_string()) => vec![given],
                _ => found.references.iter().flat_map(|name| Reference::parse(name)).collect(),
            };
            let shown = Shown::new(printer);
            let template = template_image(images, name, &found.digest, &shown);
            drop(shown);
            let template = template.map_err(|error| template_failure(&error))?;
            write_archive(printer, &template, &names, output)?;
        }
        Action::Build { all, agents: words } => build(context, *all, words)?,
        Action::Tag { template, name } => {
            let shown = Shown::new(printer);
            let tagged = tag_template(images, template, name, &shown);
            drop(shown);
            printer.data(&tagged.map_err(|error| failure(&error))?)?;
        }
        Action::Prune { all } => {
            let _nobody_creates = sandboxes.hold_creation()?;
            let in_use = sandboxes.templates_in_use()?;
            let shown = Shown::new(printer);
            let removed = prune_templates(images, *all, &in_use, &shown);
            drop(shown);
            tell(context, &removed.map_err(|error| failure(&error))?)?;
        }
    }
    Ok(exit_codes::SUCCESS)
}

/// Writes a template to a file.
pub(super) fn write_archive(
    printer: Printer,
    template: &Template,
    names: &[Reference],
    path: &Path,
) -> Result<(), Failure> {
    let made = Timestamp::now().to_string();
    let shown = Shown::new(printer);
    export_template(template, names, &made, path, &shown).map_err(|error| {
        let blame = match &error {
            ExportError::Write { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Blame::User
            }
            _ => Blame::Host,
        };
        Failure::from_error(blame, &error)
    })
}

fn build(context: &Context, all: bool, words: &[String]) -> Result<(), Failure> {
    let known = &context.settings.agents;
    let built_here = |agent: &&AgentSpec| {
        matches!(agent.recipe(), Some(AgentRecipe::Base | AgentRecipe::Npm(_)))
    };
    let wanted: Vec<&AgentSpec> = if all {
        known.iter().filter(built_here).collect()
    } else {
        words.iter().map(|word| agents::require(known, word)).collect::<Result<_, _>>()?
    };
    let images = Images::new(&context.settings, context.printer)?;
    for agent in wanted {
        context.printer.data(&images.template(&agent.template, Pull::Missing)?.name)?;
    }
    Ok(())
}

fn list(context: &Context, images: &Path, json: bool, quiet: bool) -> Result<(), Failure> {
    let templates: Vec<Entry> = templates(images).into_iter().map(Entry::from).collect();
    if quiet {
        templates.iter().try_for_each(|template| context.printer.data(&template.digest))
    } else if json {
        let list = List { format_version: FORMAT_VERSION, templates };
        context.printer.text(&printer::json(&list))
    } else {
        let headings = ["NAME", "DIGEST", "ORIGIN", "LAYERS", "SIZE", "CREATED"];
        context.printer.text(&table::render(&headings, templates.iter().flat_map(rows), CELL_MAX))
    }
}

/// Longest cell.
const CELL_MAX: usize = 80;
/// Digits of a digest that tell it from others for people.
const DIGITS: usize = 12;

/// A row for each name, as `docker images` has them.
fn rows(template: &Entry) -> Vec<Vec<String>> {
    let none = ["<none>".to_owned()];
    let names = if template.references.is_empty() { &none } else { template.references.as_slice() };
    let digits = template.digest.trim_start_matches("sha256:");
    names
        .iter()
        .map(|name| {
            vec![
                name.clone(),
                digits.chars().take(DIGITS).collect(),
                serde_json::to_value(template.origin)
                    .ok()
                    .and_then(|origin| origin.as_str().map(str::to_owned))
                    .unwrap_or_default(),
                template.layers.len().to_string(),
                HumanBytes(template.bytes).to_string(),
                template.created_at.chars().take(19).collect(),
            ]
        })
        .collect()
}

fn tell(context: &Context, removed: &Removed) -> Result<(), Failure> {
    for name in removed.references.iter().chain(&removed.templates) {
        context.printer.data(name)?;
    }
    if removed.bytes > 0 {
        context.printer.status(&format!("{} free", HumanBytes(removed.bytes)));
    }
    Ok(())
}

fn failure(error: &ManageError) -> Failure {
    let failure = |blame| Failure::from_error(blame, error);
    match error {
        ManageError::Unknown { .. } | ManageError::Ambiguous { .. } => {
            failure(Blame::User).hint("see what there is: hutch template ls")
        }
        ManageError::InUse { .. } => failure(Blame::User).hint("remove the sandbox first"),
        ManageError::Reference(_) => failure(Blame::User),
        ManageError::Cache(_) => failure(Blame::Host),
    }
}
