//! `hutch run`

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use clap::Args;
use hutch_agents::{AgentSpec, Agents, nearest};
use hutch_store::{SandboxRecord, Workspace};

use super::create::new_name;
use crate::agents;
use crate::context::{Context, block_on};
use crate::detach_keys;
use crate::env_file;
use crate::exit_codes;
use crate::failure::Failure;
use crate::images::Pull;
use crate::keeper_client::{self, Keeper};
use crate::printer::Printer;
use crate::sandboxes::Sandboxes;
use crate::session::{Plan, Standard};
use crate::settings::MachineFlags;
use crate::start::{self, Wish};
use crate::terminal;
use crate::workspaces;

use super::exec::{OpenedSession, bytes, terminal_variables};

/// Run an agent in a sandbox; create the sandbox if it does not exist
///
/// Names a sandbox that exists, or an agent and its workspaces; without a workspace the current directory is it. The
/// same agent on the same workspace finds its sandbox again. Each workspace appears in the sandbox at the same path as
/// here, `:ro` at the end of a path makes it read-only. What follows `--` is passed to the agent. Variables of `-e` and
/// `--env-file` are for this session; those of `create` stay with the sandbox.
///
/// Keys of providers stay here: the proxy adds them to requests. They are looked for in the secret store, then in the
/// environment of this command, then in that of a login shell; see `secret`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Name the sandbox; default: the agent and the directory, like `shell-project`
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Make it from this template; default: the agent's own
    #[arg(short, long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// Choose when to make or fetch the template although there is one
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull_template: Pull,
    /// Say nothing about what is done
    #[arg(short, long)]
    quiet: bool,
    /// Print the name of the sandbox instead of running the agent
    #[arg(short, long, hide = true)]
    detached: bool,
    /// Set a variable for the agent, or copy one of ours by its name
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Read variables for the agent from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    #[command(flatten)]
    machine: MachineFlags,
    /// Sandbox that exists, or agent
    #[arg(value_name = "SANDBOX | AGENT")]
    first: Option<String>,
    /// Directories that a new sandbox can use; the first is where the agent works
    #[arg(value_name = "WORKSPACE")]
    workspaces: Vec<OsString>,
    /// Arguments for the agent, after its own
    #[arg(value_name = "AGENT_ARGS", last = true)]
    agent_arguments: Vec<OsString>,
}

/// What `run` found or is to make.
enum Target<'c> {
    Existing(Box<SandboxRecord>),
    New { agent: &'c AgentSpec, workspaces: Vec<Workspace> },
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let printer = context.printer.quiet_if(arguments.quiet);
    // Everything that can be wrong with the request, before anything long or lasting.
    variables(context, arguments)?;
    let sandboxes = context.sandboxes()?;
    block_on(async {
        let record = match target(context, &sandboxes, arguments)? {
            Target::Existing(record) => {
                keep_as_it_is(printer, &record, arguments)?;
                start::warn_of_keys(printer, &record.workspaces);
                *record
            }
            Target::New { agent, workspaces } => {
                start::warn_of_keys(printer, &workspaces);
                make(context, printer, &sandboxes, arguments, agent, workspaces).await?
            }
        };
        attach(context, printer, &sandboxes, arguments, record).await
    })
}

fn target<'c>(
    context: &'c Context,
    sandboxes: &Sandboxes,
    arguments: &Arguments,
) -> Result<Target<'c>, Failure> {
    let agents = &context.settings.agents;
    let layout = &context.settings.layout;
    let program = context.face.program();
    if let Some(name) = &arguments.name
        && let Some(record) = sandboxes.find(name)?
    {
        if let Some(word) = &arguments.first {
            let asked = agents::require(agents, word)?;
            if asked.word != record.agent {
                return Err(Failure::user(format!(
                    "the sandbox `{name}` is for the agent `{}`, not for `{}`",
                    record.agent, asked.word
                ))
                .hint("an agent is chosen when a sandbox is created: choose another name"));
            }
        }
        return existing(record, &arguments.workspaces, layout);
    }
    let Some(first) = &arguments.first else {
        return Err(match &arguments.name {
            Some(name) => sandboxes.unknown(name),
            None => Failure::user("an agent or a sandbox must be named")
                .hint(format!("for example: {program} run shell")),
        });
    };
    if arguments.name.is_none()
        && let Some(record) = sandboxes.find(first)?
    {
        return existing(record, &arguments.workspaces, layout);
    }
    let Some(agent) = agents.find(first) else {
        return Err(neither(agents, sandboxes, first, program));
    };
    let here = [OsString::from(".")];
    let places = if arguments.workspaces.is_empty() { &here[..] } else { &arguments.workspaces };
    let workspaces = workspaces::resolve(places, layout)?;
    if arguments.name.is_none()
        && let Some(record) = attached(sandboxes, agent, &workspaces)?
    {
        return existing(record, &arguments.workspaces, layout);
    }
    Ok(Target::New { agent, workspaces })
}

fn neither(agents: &Agents, sandboxes: &Sandboxes, word: &str, program: &str) -> Failure {
    let names = sandboxes.names();
    let candidates = names.iter().map(String::as_str).chain(agents.words());
    let hint = match nearest(word, candidates) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("see what there is: {program} ls"),
    };
    Failure::user(format!(
        "`{word}` is neither a sandbox nor an agent; the agents are {}",
        agents.list()
    ))
    .hint(hint)
}

/// The sandbox of an agent and a workspace; of several the one that was made first.
pub(crate) fn attached(
    sandboxes: &Sandboxes,
    agent: &AgentSpec,
    workspaces: &[Workspace],
) -> Result<Option<SandboxRecord>, Failure> {
    let Some(primary) = workspaces.first() else { return Ok(None) };
    let same = |record: &SandboxRecord| {
        record.agent == agent.word
            && record.workspaces.first().is_some_and(|first| first.path == primary.path)
    };
    let records = sandboxes.list()?.into_iter().filter_map(|listed| listed.record.ok());
    Ok(records.filter(same).min_by_key(|record| record.created_at))
}

/// An existing sandbox, whose workspaces cannot be chosen any more.
fn existing(
    record: SandboxRecord,
    places: &[OsString],
    layout: &hutch_store::Layout,
) -> Result<Target<'static>, Failure> {
    if !places.is_empty() && workspaces::resolve(places, layout)? != record.workspaces {
        let list = record.workspaces.iter().map(|workspace| {
            let end = if workspace.read_only { ":ro" } else { "" };
            format!("{}{end}", workspace.path.as_path().display())
        });
        return Err(Failure::user(format!(
            "the sandbox `{}` was created with other workspaces: {}",
            record.name,
            list.collect::<Vec<_>>().join(" ")
        ))
        .hint(
            "workspaces are chosen when a sandbox is created: choose a new sandbox with --name",
        ));
    }
    Ok(Target::Existing(Box::new(record)))
}

/// What was chosen at creation stays: says so where something else is asked for.
fn keep_as_it_is(
    printer: Printer,
    record: &SandboxRecord,
    arguments: &Arguments,
) -> Result<(), Failure> {
    if let Some(template) = &arguments.template
        && *template != record.template.name
    {
        return Err(Failure::user(format!(
            "the sandbox `{}` was created from the template `{}`, not from `{template}`",
            record.name, record.template.name
        ))
        .hint("a template is chosen when a sandbox is created: choose a new sandbox with --name"));
    }
    let MachineFlags { cpus, memory, disk, docker, .. } = arguments.machine;
    if cpus.is_some() || memory.is_some() || disk.is_some() || docker.is_some() {
        printer.warning(&format!(
            "--cpus, --memory, --disk and --docker are ignored: the sandbox `{}` exists already",
            record.name
        ));
    }
    Ok(())
}

async fn make(
    context: &Context,
    printer: Printer,
    sandboxes: &Sandboxes,
    arguments: &Arguments,
    agent: &AgentSpec,
    workspaces: Vec<Workspace>,
) -> Result<SandboxRecord, Failure> {
    context.settings.machine(&arguments.machine)?;
    let wish = Wish {
        agent,
        name: arguments.name.as_deref().map(new_name).transpose()?,
        template: context.settings.template_for(agent, arguments.template.as_deref()),
        pull: arguments.pull_template,
        workspaces,
        machine: arguments.machine,
        environment: env_file::Variables::new(),
    };
    let template =
        start::unless_interrupted(start::prepare(context, printer, &wish), async || {}).await?;
    // Two commands for the same workspace at the same time end up in one sandbox.
    let _one_at_a_time = sandboxes.hold_creation()?;
    if wish.name.is_none()
        && let Some(record) = attached(sandboxes, agent, &wish.workspaces)?
    {
        return Ok(record);
    }
    printer
        .status(&format!("Creating new sandbox '{}'...", start::expected_name(sandboxes, &wish)));
    let record = start::create(context, sandboxes, wish, template)?;
    // Interrupted before it ever ran, it goes away again.
    let store = sandboxes.store();
    let ready = async {
        start::ready(context, printer, store, &record, &arguments.machine).await.map(drop)
    };
    let remove = async || {
        let _stopped = keeper_client::stop(store, &record.name, context.face).await;
        let _removed = sandboxes.remove(record.name.as_ref());
    };
    start::unless_interrupted(ready, remove).await?;
    Ok(record)
}

async fn attach(
    context: &Context,
    printer: Printer,
    sandboxes: &Sandboxes,
    arguments: &Arguments,
    record: SandboxRecord,
) -> Result<u8, Failure> {
    let standard = Standard::of_this_process().map_err(|error: io::Error| {
        Failure::host(format!("the standard streams cannot be used: {error}"))
    })?;
    let agent = agents::require(&context.settings.agents, &record.agent)?;
    let tty = terminal::is_terminal(&standard.stdin) && terminal::is_terminal(&standard.stdout);
    let session = OpenedSession {
        context,
        printer,
        store: sandboxes.store(),
        record,
        machine: arguments.machine,
    };
    if arguments.detached {
        session.keeper().await?;
        context.printer.data(session.record.name.as_str())?;
        return Ok(exit_codes::SUCCESS);
    }
    let variables = variables(context, arguments)?;
    let keys = context.settings.detach_keys.as_deref().unwrap_or(detach_keys::DEFAULT);
    let plan = async |keeper: &Keeper| {
        let own = &arguments.agent_arguments;
        let launch = agents::launch(agent, own, &session.record, keeper, printer).await;
        let mut spec = super::exec::spec(launch.argv);
        spec.seeds = launch.seeds.iter().map(agents::seed_file).collect();
        if tty {
            spec.tty = Some(terminal::size(standard.descriptors()));
            spec.environment = terminal_variables(&context.settings);
        } else {
            spec.stdin = true;
        }
        let of_agent =
            launch.environment.into_iter().map(|(name, value)| (name.into(), value.into()));
        // Last, so that what a person says wins.
        let all = of_agent.chain(variables.iter().cloned());
        spec.environment
            .extend(all.map(|(name, value): (OsString, OsString)| (bytes(&name), bytes(&value))));
        Plan {
            spec,
            input: tty,
            detach_keys: detach_keys::parse(keys).unwrap_or_default(),
            plugin_socket: context.settings.plugin_socket.clone(),
        }
    };
    session.run(plan, &standard).await.map_err(|failure| without_agent(failure, agent))
}

/// The template that somebody chose has everything but the agent.
fn without_agent(failure: Failure, agent: &AgentSpec) -> Failure {
    if failure.code(true) != exit_codes::NOT_FOUND {
        return failure;
    }
    Failure::user(format!(
        "agent binary \"{}\" not found in sandbox: verify this is the correct sandbox type",
        agent.program()
    ))
    .hint(format!("the template `{}` has it", agent.template))
    .with_code(exit_codes::FAILURE)
}

/// What `-e` and `--env-file` say.
fn variables(context: &Context, arguments: &Arguments) -> Result<env_file::Variables, Failure> {
    env_file::variables(&arguments.env_file, &arguments.env, &context.settings.environment)
}
