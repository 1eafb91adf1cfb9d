//! The commands: each file has the arguments, whose documentation is the help text, and what is done with them.

pub(crate) mod agent;
pub(crate) mod build;
pub(crate) mod completion;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod inspect;
pub(crate) mod ls;
pub(crate) mod network;
pub(crate) mod reset;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod secret;
pub(crate) mod stop;
pub(crate) mod system;
pub(crate) mod template;
pub(crate) mod version;
pub(crate) mod warm;

use crate::context::Context;
use crate::exit_codes;
use crate::failure::Failure;

/// Does something with each of the names, prints those with which it worked, and fails when one did not.
pub(crate) async fn each(
    context: &Context,
    names: &[String],
    mut work: impl AsyncFnMut(&str) -> Result<(), Failure>,
) -> Result<u8, Failure> {
    let mut code = exit_codes::SUCCESS;
    for name in names {
        match work(name).await {
            Ok(()) => context.printer.data(name)?,
            Err(failure) => {
                context.printer.failure(&failure);
                code = exit_codes::FAILURE;
            }
        }
    }
    Ok(code)
}
