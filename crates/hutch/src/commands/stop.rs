//! `hutch stop`

use clap::Args;

use super::each;
use crate::context::{Context, block_on};
use crate::failure::Failure;
use crate::keeper_client;

/// Stop sandboxes without removing them
///
/// Everything on their disks is kept; `run` and `exec` start them again.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Sandboxes to stop
    #[arg(value_name = "SANDBOX", required = true)]
    names: Vec<String>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let sandboxes = context.sandboxes()?;
    block_on(each(context, &arguments.names, async |text: &str| {
        let name = sandboxes.name(text)?;
        keeper_client::stop(sandboxes.store(), &name, context.face).await?;
        Ok(())
    }))
}
