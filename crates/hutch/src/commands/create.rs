//! `hutch create`

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use hutch_store::SandboxName;

use crate::agents;
use crate::context::{Context, block_on};
use crate::env_file;
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::images::Pull;
use crate::sandboxes::Sandboxes;
use crate::settings::MachineFlags;
use crate::start::{self, Wish};
use crate::workspaces;

/// Create a sandbox for an agent without starting it
///
/// Each workspace appears in the sandbox at the same path as here. `:ro` at the end of a path makes it read-only. Keys of
/// providers are looked for when the sandbox is used, not now; see `secret`. Variables of `-e` and `--env-file` are written
/// down with the sandbox, so they are no place for secrets.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name the sandbox; default: the agent and the directory, like `shell-project`
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Make it from this template; default: the agent's own
    #[arg(short, long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// Choose when to make or fetch the template although there is one
    #[arg(long, value_name = "WHEN", default_value = "missing", hide_possible_values = false)]
    pull_template: Pull,
    /// Print only the name of the sandbox
    #[arg(short, long)]
    quiet: bool,
    /// Set a variable for all that runs in the sandbox, or copy one of ours by its name
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Read such variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    #[command(flatten)]
    machine: MachineFlags,
    /// Agent that the sandbox is for
    #[arg(value_name = "AGENT")]
    agent: String,
    /// Directories that the sandbox can use; the first is where the agent works
    #[arg(value_name = "WORKSPACE", required = true)]
    workspaces: Vec<OsString>,
}

/// The name that somebody chose for a new sandbox.
pub(crate) fn new_name(text: &str) -> Result<SandboxName, Failure> {
    SandboxName::parse_new(text).map_err(|error| Failure::from_error(Blame::User, &error))
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let printer = context.printer.quiet_if(arguments.quiet);
    let agent = agents::require(&context.settings.agents, &arguments.agent)?;
    // Everything that can be wrong with the request, before anything long or lasting.
    context.settings.machine(&arguments.machine)?;
    let name = arguments.name.as_deref().map(new_name).transpose()?;
    let wish = Wish {
        agent,
        name,
        template: context.settings.template_for(agent, arguments.template.as_deref()),
        pull: arguments.pull_template,
        workspaces: workspaces::resolve(&arguments.workspaces, &context.settings.layout)?,
        machine: arguments.machine,
        environment: env_file::variables(
            &arguments.env_file,
            &arguments.env,
            &context.settings.environment,
        )?,
    };
    let sandboxes = context.sandboxes()?;
    if let Some(name) = &wish.name
        && sandboxes.name(name.as_str()).is_ok()
    {
        let error = hutch_store::CreateError::Exists { name: name.clone() };
        return Err(crate::sandboxes::not_created(&error));
    }
    refuse_second(context, &sandboxes, &wish)?;
    start::warn_of_keys(printer, &wish.workspaces);
    let record = block_on(async {
        let template =
            start::unless_interrupted(start::prepare(context, printer, &wish), async || {}).await?;
        let _one_at_a_time = sandboxes.hold_creation()?;
        // Another command may have made one meanwhile.
        refuse_second(context, &sandboxes, &wish)?;
        printer.status(&format!(
            "Creating new sandbox '{}'...",
            start::expected_name(&sandboxes, &wish)
        ));
        start::create(context, &sandboxes, wish, template)
    })?;
    context.printer.data(record.name.as_str())?;
    printer.status(&format!("Start it with: {} run {}", context.face.program(), record.name));
    Ok(exit_codes::SUCCESS)
}

/// A workspace has one sandbox for an agent, unless somebody names another.
fn refuse_second(context: &Context, sandboxes: &Sandboxes, wish: &Wish<'_>) -> Result<(), Failure> {
    if wish.name.is_some() {
        return Ok(());
    }
    let Some(existing) = super::run::attached(sandboxes, wish.agent, &wish.workspaces)? else {
        return Ok(());
    };
    Err(Failure::user(format!(
        "the sandbox `{}` is for this agent and workspace already",
        existing.name
    ))
    .hint(format!(
        "run it: {} run {}, or choose another name with --name",
        context.face.program(),
        existing.name
    )))
}
