//! `hutch system df`

use clap::Args;
use serde::Serialize;

use super::kept::{self, Extent, Kind};
use super::shown;
use crate::context::Context;
use crate::exit_codes;
use crate::failure::Failure;
use crate::{printer, table};

/// Version of the JSON form.
const FORMAT_VERSION: u32 = 1;

/// Show what takes space on the disk
///
/// ACTIVE counts what runs, or what something that runs or the next start stands on. RECLAIMABLE is what `system prune`
/// frees.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Usage {
    format_version: u32,
    kinds: Vec<Kind>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let sandboxes = context.sandboxes()?;
    let kinds = kept::all(context, &sandboxes, Extent::Unneeded)?;
    let text = match arguments.json {
        true => printer::json(&Usage { format_version: FORMAT_VERSION, kinds }),
        false => rows(&kinds),
    };
    context.printer.text(&text)?;
    Ok(exit_codes::SUCCESS)
}

fn rows(kinds: &[Kind]) -> String {
    table::render(
        &["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"],
        kinds.iter().map(|kind| {
            vec![
                kind.kind.to_owned(),
                kind.count.to_string(),
                kind.active.to_string(),
                shown(kind.bytes),
                shown(kind.reclaimable_bytes),
            ]
        }),
        usize::MAX,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_rows() {
        let kinds = [Kind {
            kind: "Snapshots",
            count: 3,
            active: 1,
            bytes: 600_000_000,
            reclaimable_bytes: 200_000_000,
        }];
        insta::assert_snapshot!(rows(&kinds), @r"
        TYPE        TOTAL   ACTIVE   SIZE     RECLAIMABLE
        Snapshots   3       1        600 MB   200 MB
        ");
    }
}
