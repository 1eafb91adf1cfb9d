//! `hutch agent`

use clap::{Args, Subcommand};
use hutch_agents::AgentSpec;
use serde::Serialize;

use crate::agents;
use crate::context::Context;
use crate::exit_codes;
use crate::failure::Failure;
use crate::printer;
use crate::table;

/// Longest cell of the list.
const CELL_MAX: usize = 60;
/// Version of the JSON forms.
const FORMAT_VERSION: u32 = 1;

/// Show which agents there are
///
/// An agent of your own is a file `agents/NAME.toml` in the configuration directory; one with the name of a built-in agent
/// takes its place.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Action,
}

/// The commands below `agent`.
#[derive(Debug, Subcommand)]
enum Action {
    /// List the agents
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show everything about agents
    Inspect {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Agents to show
        #[arg(value_name = "AGENT", required = true)]
        agents: Vec<String>,
    },
}

#[derive(Serialize)]
struct List<T> {
    format_version: u32,
    agents: Vec<T>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let all = &context.settings.agents;
    let text = match &arguments.command {
        Action::Ls { json: true } => as_json(all.iter()),
        Action::Ls { json: false } => {
            let row = |agent: &AgentSpec| {
                vec![
                    agent.word.clone(),
                    agent.about.clone(),
                    agent.template.clone(),
                    agent.origin.to_string(),
                ]
            };
            table::render(&["AGENT", "ABOUT", "TEMPLATE", "ORIGIN"], all.iter().map(row), CELL_MAX)
        }
        Action::Inspect { json, agents: words } => {
            let found: Vec<&AgentSpec> =
                words.iter().map(|word| agents::require(all, word)).collect::<Result<_, _>>()?;
            if *json {
                as_json(found.into_iter())
            } else {
                found.into_iter().map(described).collect::<Vec<_>>().join("\n")
            }
        }
    };
    context.printer.text(&text)?;
    Ok(exit_codes::SUCCESS)
}

fn as_json<'a>(agents: impl Iterator<Item = &'a AgentSpec>) -> String {
    let agents: Vec<_> = agents.map(AgentSpec::description).collect();
    printer::json(&List { format_version: FORMAT_VERSION, agents })
}

/// One agent for people.
fn described(agent: &AgentSpec) -> String {
    let argv = agent.argv(&[]);
    let words: Vec<_> = argv.iter().map(|word| word.to_string_lossy()).collect();
    let credentials = agent
        .services
        .iter()
        .map(|service| format!("{} ({})", service.name, service.variables.join(", ")));
    let environment = agent.environment.iter().map(|(name, value)| format!("{name}={value}"));
    let mut rows = vec![
        vec!["name".to_owned(), agent.word.clone()],
        vec!["about".to_owned(), agent.about.clone()],
        vec!["command".to_owned(), words.join(" ")],
        vec!["template".to_owned(), agent.template.clone()],
        vec!["origin".to_owned(), agent.origin.to_string()],
    ];
    let mut list = |heading: &str, entries: Vec<String>| {
        for (index, entry) in entries.into_iter().enumerate() {
            let heading = if index == 0 { heading.to_owned() } else { String::new() };
            rows.push(vec![heading, entry]);
        }
    };
    list("aliases", agent.aliases.clone());
    list("credentials", credentials.collect());
    list("environment", environment.collect());
    list("files", agent.files());
    table::rows::<2>(rows)
}
