//! `hutch build`
//!
//! ```text
//!   Dockerfile ──▶ which templates it stands on ──▶ a sandbox with their layers as disks
//!      docker load (placeholders), mount     base images that nobody had to copy
//!      docker build                          BuildKit, with the proxy and the network policy
//!      docker save ──▶ store                 only what is new becomes layers
//! ```
//!
//! The sandbox goes away at the end, however that comes. It has nobody's credentials: what a Dockerfile runs is not the
//! agent that a key was given to.

mod builder;
mod dockerfile;

use std::ffi::OsString;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use hutch_agents::Recipe;
use hutch_image::{BaseImage, Reference, find_template};
use hutch_store::Workspace;

use self::builder::Builder;
use crate::context::{Context, block_on};
use crate::env_file;
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::images::{Images, Pull, template_failure};
use crate::progress::Shown;
use crate::settings::{Accel, MachineFlags};
use crate::size::{ByteSize, CpuCount};
use crate::start;
use crate::warm::StartMode;
use crate::workspaces;

/// No Dockerfile is larger.
const DOCKERFILE_MAX: u64 = 4 << 20;
/// Docker's name for templates.
const DOCKER_PREFIX: &str = "docker/sandbox-templates:";

/// Build a template of your own from a Dockerfile
///
/// The file is that of `docker build`. What it runs runs in a sandbox that is there for the build alone and has the
/// network of a new sandbox, without any of your keys. Templates of this machine, and Docker's names for them, can stand
/// after FROM: `docker/sandbox-templates:claude-code` is the template of Claude Code that is built here.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name the template, like `my-template:v1`
    #[arg(short, long = "tag", value_name = "NAME[:TAG]")]
    tags: Vec<String>,
    /// Read this Dockerfile; default: `Dockerfile` in the directory; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Set a variable of the build, or copy one of ours by its name
    #[arg(long, value_name = "NAME[=VALUE]")]
    build_arg: Vec<OsString>,
    /// Build this stage of the file instead of the last one
    #[arg(long, value_name = "STAGE")]
    target: Option<String>,
    /// Add a label
    #[arg(long, value_name = "NAME=VALUE")]
    label: Vec<String>,
    /// Accepted as that of `docker build`: each build here begins with nothing
    #[arg(long)]
    no_cache: bool,
    /// Choose how the steps are shown
    #[arg(long, value_name = "HOW", default_value = "auto")]
    progress: Steps,
    /// Print only the digest of the template
    #[arg(short, long)]
    quiet: bool,
    /// Give the build this many virtual CPUs
    #[arg(long, value_name = "N")]
    cpus: Option<CpuCount>,
    /// Give the build this much memory, like `4g`
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<ByteSize>,
    /// Give the build a disk of this size, like `64g`; it takes only the space that is used
    #[arg(long, value_name = "SIZE")]
    disk: Option<ByteSize>,
    /// Choose what runs the build's machine
    #[arg(long, value_name = "NAME")]
    accel: Option<Accel>,
    /// Directory with the files that the build may copy
    #[arg(value_name = "DIR")]
    directory: OsString,
}

/// How BuildKit shows its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Steps {
    /// Drawn on a terminal, in lines elsewhere
    Auto,
    /// In lines, with all output
    Plain,
    /// Drawn
    Tty,
}

/// A Dockerfile, and how the builder gets it.
struct Dockerfile {
    text: String,
    /// In the directory, under this path; otherwise its text is passed on.
    path: Option<PathBuf>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let printer = context.printer.quiet_if(arguments.quiet);
    // Everything that can be wrong with the request, before anything long or lasting.
    let names: Vec<Reference> =
        arguments.tags.iter().map(|tag| name(tag)).collect::<Result<_, _>>()?;
    let machine = MachineFlags {
        cpus: arguments.cpus,
        memory: arguments.memory,
        disk: arguments.disk,
        accel: arguments.accel,
        docker: None,
    };
    context.settings.machine(&machine)?;
    let workspace = workspace(context, &arguments.directory)?;
    let dockerfile = dockerfile(arguments.file.as_deref(), workspace.path.as_path())?;
    let variables = variables(context, arguments)?;
    let mut builder_context = Context {
        face: context.face,
        settings: context.settings.of_builder(),
        printer,
        debug: context.debug,
    };
    let sandboxes = context.sandboxes()?;
    let template = block_on(async {
        builder::remove_leftovers(&builder_context, &sandboxes).await?;
        let bases = dockerfile::images(&dockerfile.text, &variables);
        let offer = start::unless_interrupted(
            builder::prepare(&builder_context, bases, machine),
            async || {},
        )
        .await?;
        if offer.is_for_builder_alone {
            // A snapshot would never be used.
            builder_context.settings.start = StartMode::Cold;
        }
        let builder =
            Builder::create(&builder_context, &sandboxes, offer, workspace.clone(), machine)?;
        let work = builder.run(
            docker_arguments(arguments, &dockerfile, &variables, &names, &workspace),
            dockerfile.path.is_none().then_some(dockerfile.text.as_str()),
            &names,
        );
        let made = start::unless_interrupted(work, async || builder.remove().await).await;
        builder.remove().await;
        made
    })?;
    if arguments.quiet || names.is_empty() {
        context.printer.data(&template.digest)?;
    } else {
        for name in &names {
            context.printer.data(&name.to_string())?;
        }
    }
    Ok(exit_codes::SUCCESS)
}

/// A name that the result is to have.
fn name(text: &str) -> Result<Reference, Failure> {
    let name = Reference::parse(text).map_err(|error| Failure::from_error(Blame::User, &error))?;
    if name.digest().is_some() {
        return Err(Failure::user(format!(
            "a template cannot be built as `{name}`: its digest is known when it is there"
        )));
    }
    Ok(name)
}

/// The directory, which the build can read.
fn workspace(context: &Context, directory: &OsString) -> Result<Workspace, Failure> {
    let text = directory.to_string_lossy();
    if text == "-" || text.contains("://") || text.starts_with("git@") {
        return Err(Failure::user(format!(
            "`{text}` is not a directory, and hutch builds directories alone"
        ))
        .hint("fetch or unpack it, and name the directory"));
    }
    let mut places =
        workspaces::resolve(std::slice::from_ref(directory), &context.settings.layout)?;
    let mut place =
        places.pop().ok_or_else(|| Failure::bug("a directory was resolved to nothing"))?;
    place.read_only = true;
    Ok(place)
}

fn dockerfile(chosen: Option<&Path>, directory: &Path) -> Result<Dockerfile, Failure> {
    let usual = directory.join("Dockerfile");
    let path = chosen.unwrap_or(&usual);
    let failed = |why: String| {
        Failure::user(format!("the Dockerfile {} cannot be read: {why}", path.display()))
    };
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(DOCKERFILE_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path)
            .and_then(|file| file.take(DOCKERFILE_MAX + 1).read_to_string(&mut text))
    };
    let read = read.map_err(|error| {
        let failure = failed(error.to_string());
        if chosen.is_none() { failure.hint("name another one with -f") } else { failure }
    })?;
    if read as u64 > DOCKERFILE_MAX {
        return Err(failed(format!("it is larger than {} MiB", DOCKERFILE_MAX >> 20)));
    }
    // As the builder sees it, where it does.
    let place = std::fs::canonicalize(path).ok().filter(|path| path.starts_with(directory));
    Ok(Dockerfile { text, path: place })
}

/// What `--build-arg` says.
fn variables(context: &Context, arguments: &Arguments) -> Result<Vec<(String, String)>, Failure> {
    let none: [&Path; 0] = [];
    let all = env_file::variables(&none, &arguments.build_arg, &context.settings.environment)?;
    all.into_iter()
        .map(|(name, value)| match (name.to_str(), value.to_str()) {
            (Some(name), Some(value)) => Ok((name.to_owned(), value.to_owned())),
            _ => Err(Failure::user(format!("`--build-arg {}` is not text", name.display()))),
        })
        .collect()
}

fn docker_arguments(
    arguments: &Arguments,
    dockerfile: &Dockerfile,
    variables: &[(String, String)],
    names: &[Reference],
    workspace: &Workspace,
) -> Vec<OsString> {
    let mut words: Vec<OsString> = ["docker", "build", "--tag"].map(OsString::from).into();
    words.push(builder::result(names).into());
    let mut option = |name: &str, value: OsString| words.extend([name.into(), value]);
    match &dockerfile.path {
        Some(path) => option("--file", path.into()),
        None => option("--file", "-".into()),
    }
    for (name, value) in variables {
        option("--build-arg", format!("{name}={value}").into());
    }
    for label in &arguments.label {
        option("--label", label.into());
    }
    if let Some(target) = &arguments.target {
        option("--target", target.into());
    }
    let how = arguments.progress.to_possible_value();
    option("--progress", how.map_or_else(OsString::new, |how| how.get_name().into()));
    if arguments.no_cache {
        words.push("--no-cache".into());
    }
    if arguments.quiet {
        words.push("--quiet".into());
    }
    words.extend(["--".into(), workspace.path.as_path().into()]);
    words
}

/// Those of the images that are templates here, or can be made here.
fn templates_of(images: &Images, names: &[String]) -> Result<Vec<BaseImage>, Failure> {
    let mut bases: Vec<BaseImage> = Vec::new();
    for name in names {
        let Ok(reference) = Reference::parse(name) else { continue };
        let name = reference.to_string();
        let there = find_template(images.directory(), &name)
            .is_ok_and(|template| template.references.contains(&name));
        let flavor =
            name.strip_prefix(DOCKER_PREFIX).map(|flavor| flavor.trim_end_matches("-docker"));
        let made_here = matches!(flavor.and_then(Recipe::of), Some(Recipe::Base | Recipe::Npm(_)));
        if (there || made_here) && !bases.iter().any(|base| base.name == name) {
            bases.push(BaseImage { template: images.template(&name, Pull::Missing)?, name });
        }
    }
    Ok(bases)
}

/// What a builder is offered.
fn offer(images: &Images, names: &[String]) -> Result<hutch_image::Offer, Failure> {
    let engine = images.template("shell", Pull::Missing)?;
    let bases = templates_of(images, names)?;
    let shown = Shown::new(images.printer());
    hutch_image::Offer::new(images.directory(), &engine, &bases, &shown)
        .map_err(|error| template_failure(&error))
}
