//! `hutch reset`

use std::io;
use std::path::Path;

use clap::Args;
use hutch_store::SandboxName;

use crate::context::{Context, block_on};
use crate::exit_codes;
use crate::failure::Failure;
use crate::keeper_client;
use crate::sandboxes::{Sandboxes, not_removed};

/// Stop and remove all sandboxes, and the images that they were made from
///
/// Images are made anew when they are next needed, unless they are kept outside of the state directory. Workspaces and
/// the configuration file stay as they are.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Do not ask
    #[arg(short, long)]
    force: bool,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    if !arguments.force && !confirmed(context) {
        return Err(Failure::user("nothing was removed"));
    }
    let sandboxes = context.sandboxes()?;
    let code = block_on(remove_all(context, &sandboxes))?;
    if code == exit_codes::SUCCESS {
        remove_images(context)?;
        context.printer.data("All VMs reset successfully")?;
    }
    Ok(code)
}

fn confirmed(context: &Context) -> bool {
    context.printer.status(
        "⚠️  WARNING: This will permanently delete all VM data and stop all running agents!",
    );
    context.printer.confirmed("Are you sure you want to continue? (y/N):")
}

/// Removes every sandbox, whatever state it is in; goes on when one cannot be.
async fn remove_all(context: &Context, sandboxes: &Sandboxes) -> Result<u8, Failure> {
    let mut code = exit_codes::SUCCESS;
    for listed in sandboxes.list()? {
        let shown = listed.name.to_string_lossy().into_owned();
        let removed = async {
            if let Some(Ok(name)) = listed.name.to_str().map(SandboxName::parse) {
                keeper_client::stop(sandboxes.store(), &name, context.face).await?;
            }
            match sandboxes.remove(&listed.name) {
                Ok(()) | Err(hutch_store::RemoveError::NotFound { .. }) => Ok(()),
                Err(error) => Err(not_removed(&error)),
            }
        };
        context.printer.debug(&format!("removing {shown}"));
        if let Err(failure) = removed.await {
            context.printer.failure(&failure);
            code = exit_codes::FAILURE;
        }
    }
    Ok(code)
}

/// Images outside of the state directory may be shared with others: those stay.
fn remove_images(context: &Context) -> Result<(), Failure> {
    let layout = &context.settings.layout;
    if !layout.images.starts_with(&layout.state) || layout.images == layout.state {
        context.printer.debug(&format!(
            "images are kept outside of the state directory: {}",
            layout.images.display()
        ));
        return Ok(());
    }
    remove_contents(&layout.images).map_err(|error| {
        Failure::host(format!("{} cannot be removed: {error}", layout.images.display()))
    })
}

fn remove_contents(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        // Not followed: a link to somewhere else is only a link.
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
