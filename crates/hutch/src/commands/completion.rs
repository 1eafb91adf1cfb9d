//! `hutch completion`

use clap::Args;
use clap_complete::Shell;

use crate::cli;
use crate::context::Context;
use crate::exit_codes;
use crate::failure::Failure;

/// Print a completion script for a shell
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The shell
    shell: Shell,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut cli::command(context.face), "hutch", &mut script);
    context.printer.text(&String::from_utf8_lossy(&script))?;
    Ok(exit_codes::SUCCESS)
}
