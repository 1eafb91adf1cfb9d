//! `hutch network`: what sandboxes may reach, and what they did reach.

mod check;
mod log;
mod policy;
mod proxy;

pub(crate) use self::policy::Policy;

use clap::{Args, Subcommand};
use hutch_api::{NetworkRequest, Response};
use hutch_store::SandboxName;

use crate::context::Context;
use crate::failure::Failure;
use crate::keeper_client::{self, CallError, Keeper};
use crate::printer::guest_sentence;
use crate::sandboxes::Sandboxes;

/// Show and change what sandboxes may reach
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// The commands below `network`.
#[derive(Debug, Subcommand)]
enum Command {
    Proxy(proxy::Arguments),
    Log(log::Arguments),
    Check(check::Arguments),
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.command {
        Command::Proxy(arguments) => proxy::execute(context, arguments),
        Command::Log(arguments) => log::execute(context, arguments),
        Command::Check(arguments) => check::execute(context, arguments),
    }
}

/// The keeper of a sandbox that must run.
async fn keeper(
    context: &Context,
    sandboxes: &Sandboxes,
    name: &SandboxName,
) -> Result<Keeper, Failure> {
    let running = keeper_client::running(sandboxes.store(), name, context.face).await?;
    running.ok_or_else(|| {
        Failure::user(format!("the sandbox `{name}` does not run"))
            .hint(format!("start it: {} run {name}", context.face.program()))
    })
}

/// Asks a keeper; an answer that says that it did not work is a failure.
async fn ask(
    context: &Context,
    name: &SandboxName,
    keeper: &Keeper,
    request: NetworkRequest,
) -> Result<Response, Failure> {
    match keeper.network(request).await {
        Ok(Response::Failed { reason }) => Err(Failure::user(guest_sentence(&reason))),
        Ok(response) => Ok(response),
        Err(error @ CallError::Version(_)) => {
            Err(keeper_client::other_version(name, context.face, &error))
        }
        Err(error @ CallError::Lost(_)) => {
            Err(Failure::host(format!("the sandbox `{name}` cannot be asked: {error}")))
        }
    }
}

/// An answer to something that was not asked.
fn unexpected(context: &Context, name: &SandboxName) -> Failure {
    keeper_client::other_version(name, context.face, &keeper_client::another_question())
}
