//! `hutch rm`

use clap::Args;
use hutch_store::SandboxName;

use super::each;
use crate::context::{Context, block_on};
use crate::failure::Failure;
use crate::keeper_client;
use crate::sandboxes::{Sandboxes, not_removed};

/// Remove sandboxes and everything in them
///
/// A running sandbox is stopped first. Workspaces stay as they are: they are directories of yours.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Sandboxes to remove
    #[arg(value_name = "SANDBOX", required = true)]
    names: Vec<String>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let sandboxes = context.sandboxes()?;
    block_on(each(context, &arguments.names, async |text: &str| {
        remove(context, &sandboxes, text).await
    }))
}

/// Removes one sandbox, or what remains of one.
async fn remove(context: &Context, sandboxes: &Sandboxes, text: &str) -> Result<(), Failure> {
    // A broken entry may have a name that no sandbox can have: it cannot run either.
    if let Ok(name) = SandboxName::parse(text) {
        sandboxes.name(text)?;
        keeper_client::stop(sandboxes.store(), &name, context.face).await?;
    }
    sandboxes.remove(text.as_ref()).map_err(|error| match error {
        hutch_store::RemoveError::NotFound { .. } => sandboxes.unknown(text),
        error => not_removed(&error),
    })
}
