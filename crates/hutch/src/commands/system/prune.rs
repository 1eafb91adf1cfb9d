//! `hutch system prune`

use clap::Args;
use hutch_store::Snapshots;
use hutch_store::usage::bytes_on_disk;
use serde::Serialize;

use super::kept::{self, Extent};
use super::shown;
use crate::context::Context;
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::images::Images;
use crate::printer;
use crate::progress::Shown;

/// Version of the JSON form.
const FORMAT_VERSION: u32 = 1;

/// Free the space of what nobody needs
///
/// Removes templates without a name that no sandbox stands on, guest images and kernels that no start uses any more,
/// snapshots that cannot be resumed, logs that were put
/// aside, and what was left behind by commands that were killed. Sandboxes stay, and so does everything that they or
/// anything that runs need; `rm` removes sandboxes.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Remove all snapshots that no sandbox runs on; they are made again
    #[arg(short, long)]
    all: bool,
    /// Do not ask
    #[arg(short, long)]
    force: bool,
    /// Print JSON
    #[arg(long, requires = "force")]
    json: bool,
}

/// What was freed, by kind.
#[derive(Debug, Serialize)]
struct Freed {
    kind: &'static str,
    count: usize,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Pruned {
    format_version: u32,
    freed: Vec<Freed>,
    bytes: u64,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let extent = if arguments.all { Extent::All } else { Extent::Unneeded };
    let sandboxes = context.sandboxes()?;
    if !arguments.force {
        let kinds = kept::all(context, &sandboxes, extent)?;
        let bytes: u64 = kinds.iter().map(|kind| kind.reclaimable_bytes).sum();
        let what = format!("This will free about {}; sandboxes stay.", shown(bytes));
        context.printer.status(&what);
        if !context.printer.confirmed("Are you sure you want to continue? (y/N):") {
            return Err(Failure::user("nothing was removed"));
        }
    }
    let images = Images::to_look_at(&context.settings, context.printer);
    let images_place = context.settings.layout.images.as_path();
    let snapshots = Snapshots::new(images_place);
    // Images first: snapshots of those that go cannot be resumed any more.
    let shown_progress = Shown::new(context.printer.quiet_if(arguments.json));
    let removed = hutch_image::remove_unneeded(&images.guest_options(), &shown_progress)
        .map_err(|error| Failure::from_error(Blame::Host, &error))?;
    let mut freed = vec![Freed {
        kind: "Guest images and kernels",
        count: removed.len(),
        bytes: removed.iter().map(|one| one.bytes).sum(),
    }];
    let removed = {
        let _nobody_creates = sandboxes.hold_creation()?;
        match sandboxes.templates_in_use() {
            // Never those that have a name: nobody can make a saved one again.
            Ok(in_use) => {
                hutch_image::prune_templates(images_place, false, &in_use, &shown_progress)
                    .map_err(|error| Failure::from_error(Blame::Host, &error))?
            }
            // Where it is not known what is in use, nothing goes.
            Err(unknown) => {
                context.printer.debug(&format!("templates stay: {unknown:?}"));
                hutch_image::Removed::default()
            }
        }
    };
    freed.push(Freed { kind: "Templates", count: removed.templates.len(), bytes: removed.bytes });
    let removed = snapshots.remove_unneeded(extent.of_snapshots());
    let left = snapshots.remove_leftovers();
    freed.push(Freed {
        kind: "Snapshots",
        count: removed.len(),
        bytes: removed.iter().map(|one| one.bytes).sum::<u64>() + left,
    });
    let logs = kept::old_logs(&sandboxes, &sandboxes.list()?);
    let bytes = bytes_on_disk(&logs);
    let logs = logs.into_iter().filter(|path| std::fs::remove_file(path).is_ok()).count();
    freed.push(Freed { kind: "Logs", count: logs, bytes });
    report(context, arguments, freed)?;
    Ok(exit_codes::SUCCESS)
}

fn report(context: &Context, arguments: &Arguments, freed: Vec<Freed>) -> Result<(), Failure> {
    let bytes = freed.iter().map(|one| one.bytes).sum();
    if arguments.json {
        let pruned = Pruned { format_version: FORMAT_VERSION, freed, bytes };
        return context.printer.text(&printer::json(&pruned));
    }
    for Freed { kind, count, bytes } in freed.iter().filter(|one| one.bytes > 0) {
        context.printer.status(&format!("{kind}: {count} removed, {}", shown(*bytes)));
    }
    context.printer.data(&format!("Freed {}", shown(bytes)))
}
