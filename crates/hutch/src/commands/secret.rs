//! `hutch secret`
//!
//! The work is done by `hutch-proxy`, the only program that knows the store: values pass from our standard input to it
//! without being seen here.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

use clap::{Args, Subcommand};
use hutch_agents::nearest;
use hutch_store::Program;
use tokio::signal::unix::{SignalKind, signal};

use crate::context::{Context, block_on};
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::terminal::{self, ModeKept};

/// Keep the credentials of services, for the proxy alone
///
/// A credential never enters a sandbox: the proxy puts it into requests to its service's own hosts, and the sandbox
/// holds a placeholder. It is looked for in this order: in the secret store, which this command changes; in the
/// environment of the command that runs something in the sandbox, like `OPENAI_API_KEY`; in the environment of a login
/// shell, so that what `~/.bashrc` or `~/.zshrc` exports is found too. A key that changes is used by the next request.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Action,
}

/// The commands below `secret`.
#[derive(Debug, Subcommand)]
enum Action {
    /// Store the credential of a service
    ///
    /// It is read from standard input: a line, or on a terminal what is typed, without showing it.
    Set {
        /// Service, like `openai`, or one from the configuration file
        #[arg(value_name = "SERVICE")]
        service: String,
    },
    /// List the services that have a stored credential, never the credentials
    #[command(visible_alias = "list")]
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove stored credentials
    #[command(visible_alias = "remove")]
    Rm {
        /// Services to forget the credentials of
        #[arg(value_name = "SERVICE", required = true)]
        services: Vec<String>,
    },
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let program = context.settings.programs.find(Program::Proxy).map_err(|error| {
        Failure::from_error(Blame::Host, &error).hint("install hutch again with all its programs")
    })?;
    let mut command = hutch_sys::spawn::command(program);
    command.arg("secret").arg("--config").arg(&context.settings.layout.config);
    match &arguments.command {
        Action::Set { service } => {
            known(context, service)?;
            if terminal::is_terminal(io::stdin()) {
                context.printer.prompt(&format!("Credential of {service} (it does not show):"));
            }
            command.args(["set", service]);
        }
        Action::Ls { json } => {
            command.arg("ls").args(json.then_some("--json"));
        }
        Action::Rm { services } => {
            command.arg("rm").args(services);
        }
    }
    run(command)
}

/// Runs the program on our own standard streams; its exit code is ours.
fn run(mut command: Command) -> Result<u8, Failure> {
    let stdin = io::stdin();
    let status = block_on(async {
        // Ctrl-C is meant for the program; we still have to put the terminal back, which it may leave without echo.
        let _taken = signal(SignalKind::interrupt());
        let _mode = ModeKept::of(stdin.as_fd());
        command.status().map_err(|error| {
            let program = command.get_program().to_string_lossy();
            Failure::host(format!("{program} could not be started: {error}"))
        })
    })?;
    match (status.success(), status.signal().map(u8::try_from)) {
        (true, _) => Ok(exit_codes::SUCCESS),
        (false, Some(Ok(signal))) => Err(Failure::silent(exit_codes::of_signal(signal))),
        // It has said why.
        (false, _) => Err(Failure::silent(exit_codes::FAILURE)),
    }
}

/// Fails when no service has this name: the credential would never be used.
fn known(context: &Context, service: &str) -> Result<(), Failure> {
    let names = context.settings.service_names();
    if names.iter().any(|name| name == service) {
        return Ok(());
    }
    let hint = nearest(service, names.iter().map(String::as_str)).map_or_else(
        || {
            format!(
                "the services are {}; another one is described in {}",
                names.join(", "),
                context.settings.config_file().display()
            )
        },
        |near| format!("did you mean `{near}`?"),
    );
    Err(Failure::user(format!("there is no service `{service}`")).hint(hint))
}
