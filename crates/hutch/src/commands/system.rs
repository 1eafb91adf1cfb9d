//! `hutch system`: what Hutch keeps on the disk.

mod df;
mod kept;
mod prune;

use clap::{Args, Subcommand};

use crate::context::Context;
use crate::failure::Failure;

/// Show what takes space, and free what nobody needs
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The commands below `system`.
#[derive(Debug, Subcommand)]
enum Command {
    Df(df::Arguments),
    Prune(prune::Arguments),
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.command {
        Command::Df(arguments) => df::execute(context, arguments),
        Command::Prune(arguments) => prune::execute(context, arguments),
    }
}

/// Bytes as people read them.
fn shown(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut amount = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if amount < 999.5 {
            break;
        }
        amount /= 1000.0;
        unit = larger;
    }
    if amount < 9.95 && unit != "B" {
        format!("{amount:.1} {unit}")
    } else {
        format!("{amount:.0} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_two_or_three_digits() {
        let all = [0, 1, 999, 1000, 1499, 9949, 9950, 999_499, 999_500, 64 << 30, u64::MAX];
        assert_eq!(
            all.map(shown),
            [
                "0 B",
                "1 B",
                "999 B",
                "1.0 kB",
                "1.5 kB",
                "9.9 kB",
                "10 kB",
                "999 kB",
                "1.0 MB",
                "69 GB",
                "18446744 TB"
            ]
        );
    }
}
