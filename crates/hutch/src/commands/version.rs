//! `hutch version`

use clap::Args;

use crate::context::Context;
use crate::exit_codes;
use crate::failure::Failure;

/// Show the version
#[derive(Debug, Args)]
pub(crate) struct Arguments {}

pub(crate) fn execute(context: &Context, _: &Arguments) -> Result<u8, Failure> {
    context.printer.data(concat!("hutch v", env!("CARGO_PKG_VERSION")))?;
    Ok(exit_codes::SUCCESS)
}
