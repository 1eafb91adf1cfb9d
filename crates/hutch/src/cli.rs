//! The command line: which words there are. One command, one file in `commands/`.

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use std::ffi::OsString;

use crate::commands::{
    agent, build, completion, create, exec, inspect, ls, network, reset, rm, run, save, secret,
    stop, system, template, version, warm,
};
use crate::context::Context;
use crate::failure::Failure;
use crate::plugin::Face;
use crate::usage;

/// Run coding agents in microVM sandboxes
#[derive(Debug, Parser)]
#[command(
    name = "hutch",
    version,
    max_term_width = 100,
    disable_help_subcommand = false,
    subcommand_required = true,
    propagate_version = false
)]
pub(crate) struct Cli {
    /// Tell what happens and why
    #[arg(short = 'D', long, global = true)]
    pub(crate) debug: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Arguments),
    Create(create::Arguments),
    Exec(exec::Arguments),
    Agent(agent::Arguments),
    #[command(visible_alias = "list")]
    Ls(ls::Arguments),
    Inspect(inspect::Arguments),
    Network(network::Arguments),
    Secret(secret::Arguments),
    Save(save::Arguments),
    Stop(stop::Arguments),
    #[command(visible_alias = "remove")]
    Rm(rm::Arguments),
    Reset(reset::Arguments),
    Template(template::Arguments),
    Build(build::Arguments),
    Warm(warm::Arguments),
    System(system::Arguments),
    Version(version::Arguments),
    Completion(completion::Arguments),
}

impl Command {
    /// Whether exit codes belong to what runs in the sandbox.
    pub(crate) fn passes_through(&self) -> bool {
        matches!(self, Self::Run(_) | Self::Exec(_))
    }

    /// Does it; gives the exit code.
    pub(crate) fn execute(self, context: &Context) -> Result<u8, Failure> {
        match self {
            Self::Run(arguments) => run::execute(context, &arguments),
            Self::Create(arguments) => create::execute(context, &arguments),
            Self::Exec(arguments) => exec::execute(context, &arguments),
            Self::Agent(arguments) => agent::execute(context, &arguments),
            Self::Ls(arguments) => ls::execute(context, &arguments),
            Self::Inspect(arguments) => inspect::execute(context, &arguments),
            Self::Network(arguments) => network::execute(context, &arguments),
            Self::Secret(arguments) => secret::execute(context, &arguments),
            Self::Save(arguments) => save::execute(context, &arguments),
            Self::Stop(arguments) => stop::execute(context, &arguments),
            Self::Rm(arguments) => rm::execute(context, &arguments),
            Self::Reset(arguments) => reset::execute(context, &arguments),
            Self::Build(arguments) => build::execute(context, &arguments),
            Self::Template(arguments) => template::execute(context, &arguments),
            Self::Warm(arguments) => warm::execute(context, &arguments),
            Self::System(arguments) => system::execute(context, &arguments),
            Self::Version(arguments) => version::execute(context, &arguments),
            Self::Completion(arguments) => completion::execute(context, &arguments),
        }
    }
}

/// The command line of one of our faces.
pub(crate) fn command(face: Face) -> clap::Command {
    let program = face.program();
    let mut command = Cli::command()
        .bin_name(program)
        .mut_subcommands(|command| usage::with_examples(command, program));
    if face == Face::Docker {
        // Docker has completion of its own.
        command = command.mut_subcommand("completion", |command| command.hide(true));
    }
    command
}

/// Reads the words after the program's name. `Ok(None)` when help or a version was asked for and printed text is in the
/// second place.
pub(crate) fn parse(face: Face, words: Vec<OsString>) -> Result<Cli, Unparsed> {
    if words.is_empty() {
        return Err(Unparsed::Shown(command(face).render_help().to_string()));
    }
    let passes_through = words.iter().find(|word| !word.as_encoded_bytes().starts_with(b"-"));
    let passes_through = passes_through.is_some_and(|word| word == "run" || word == "exec");
    let program = OsString::from(face.program());
    let parsed = command(face)
        .try_get_matches_from(std::iter::once(program).chain(words))
        .and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| {
        // A command that only has commands below it tells them.
        let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        if error.use_stderr() && !is_help {
            Unparsed::Wrong { text: usage::explain(&error, face.program()), passes_through }
        } else {
            Unparsed::Shown(error.render().to_string())
        }
    })
}

/// What there is when there is no command to execute.
#[derive(Debug)]
pub(crate) enum Unparsed {
    /// Help or a version, for standard output.
    Shown(String),
    /// The words make no sense.
    Wrong { text: String, passes_through: bool },
}
