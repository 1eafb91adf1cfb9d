//! `hutch warm`

use clap::Args;

use super::each;
use crate::agents;
use crate::context::{Context, block_on};
use crate::failure::Failure;
use crate::settings::MachineFlags;
use crate::start;
use crate::warm::Made;

/// Make the next start of an agent's sandboxes a warm one
///
/// A warm start resumes a machine that was saved when it was ready. It is saved by itself after the first start; this
/// command does it at once, for sandboxes of the given shape.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Warm this template; default: each agent's own
    #[arg(short, long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// Say nothing but what failed
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    machine: MachineFlags,
    /// Agents to warm
    #[arg(value_name = "AGENT", default_value = "shell")]
    agents: Vec<String>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let printer = context.printer.quiet_if(arguments.quiet);
    for word in &arguments.agents {
        agents::require(&context.settings.agents, word)?;
    }
    // The directories that everything is made in.
    let _prepared = context.sandboxes()?;
    block_on(each(context, &arguments.agents, async |word: &str| {
        let agent = agents::require(&context.settings.agents, word)?;
        let template = context.settings.template_for(agent, arguments.template.as_deref());
        printer.status(&format!("Warming {}...", agent.word));
        match start::warm(context, printer, template, &arguments.machine).await? {
            Made::Now => {}
            Made::Before => printer.status(&format!("{} is warm already", agent.word)),
            Made::ByAnother => {
                printer.status(&format!("another command is warming {}", agent.word));
            }
        }
        Ok(())
    }))
}
