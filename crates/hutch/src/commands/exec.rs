//! `hutch exec`

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use hutch_store::{SandboxRecord, Store};
use hutch_wire::guest::{Bytes, ExecSpec};

use crate::context::{Context, block_on};
use crate::detach_keys;
use crate::env_file;
use crate::failure::{Blame, Failure};
use crate::keeper_client::{self, Keeper};
use crate::printer::Printer;
use crate::session::{self, End, Plan, Standard};
use crate::settings::{MachineFlags, OF_THE_TERMINAL, Settings};
use crate::start;
use crate::terminal;

/// A sandbox that always goes away when a session is to begin is given up.
const ATTEMPTS: u32 = 3;
/// How long a sandbox that went away may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// The type of terminal when nobody says which.
const TERM_USUAL: &str = "xterm";

/// Run a command in a sandbox; start the sandbox if it does not run
///
/// The exit code is that of the command, 128 and the number of the signal that ended it, 126 when it cannot be run, 127
/// when there is none, or 125 when hutch itself fails. Without `-i` the command has no input.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Run the command in the background
    #[arg(short, long)]
    detach: bool,
    /// Override the key sequence that leaves the command running
    #[arg(long, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Set a variable, or copy one of ours by its name
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    env: Vec<OsString>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Keep standard input open
    #[arg(short, long)]
    interactive: bool,
    /// Give the command all capabilities
    #[arg(long)]
    privileged: bool,
    /// Allocate a terminal
    #[arg(short, long)]
    tty: bool,
    /// Run as this user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Run in this directory; default: the first workspace
    #[arg(short, long, value_name = "DIRECTORY")]
    workdir: Option<OsString>,
    /// Sandbox, then command and arguments
    #[arg(
        value_names = ["SANDBOX", "COMMAND"],
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<OsString>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let Some((name, command)) = arguments.words.split_first() else {
        return Err(Failure::bug("a command line without words was accepted"));
    };
    let program = context.face.program();
    if let Some(flag) = name.to_str().filter(|name| name.starts_with('-')) {
        let kind = if flag.starts_with("--") { "flag" } else { "shorthand flag" };
        return Err(wrong_words(&format!("unknown {kind}: {flag}"), program));
    }
    let command = match command {
        // Some people write it to be sure.
        [first, rest @ ..] if first == "--" => rest,
        command => command,
    };
    if command.is_empty() {
        return Err(wrong_words("exec needs a sandbox and a command", program));
    }
    let keys = arguments.detach_keys.as_deref().or(context.settings.detach_keys.as_deref());
    let keys = detach_keys::parse(keys.unwrap_or(detach_keys::DEFAULT))
        .map_err(|error| Failure::from_error(Blame::User, &error))?;
    let variables =
        env_file::variables(&arguments.env_file, &arguments.env, &context.settings.environment)?;
    let standard = Standard::of_this_process().map_err(|error: io::Error| {
        Failure::host(format!("the standard streams cannot be used: {error}"))
    })?;
    let attached = !arguments.detach;
    if attached && arguments.tty && arguments.interactive && !terminal::is_terminal(&standard.stdin)
    {
        return Err(Failure::user("the input device is not a TTY")
            .hint("leave `-t` out where standard input is no terminal"));
    }
    let sandboxes = context.sandboxes()?;
    let record = sandboxes.load(&name.to_string_lossy())?;
    let session = OpenedSession {
        context,
        printer: context.printer,
        store: sandboxes.store(),
        record,
        machine: MachineFlags::default(),
    };
    let plan = async |_: &Keeper| {
        let mut spec = spec(command.to_vec());
        spec.user = user(arguments.user.as_deref());
        spec.directory = arguments.workdir.as_deref().map(bytes);
        spec.privileged = arguments.privileged;
        spec.detached = arguments.detach;
        spec.stdin = attached && arguments.interactive && !arguments.tty;
        if arguments.tty {
            spec.tty = Some(terminal::size(standard.descriptors()));
            spec.environment = terminal_variables(&context.settings);
        }
        spec.environment.extend(variables.iter().map(|(name, value)| (bytes(name), bytes(value))));
        Plan {
            spec,
            input: attached && arguments.interactive && arguments.tty,
            detach_keys: keys.clone(),
            plugin_socket: context.settings.plugin_socket.clone(),
        }
    };
    block_on(session.run(plan, &standard))
}

/// An empty name is none, as for docker.
fn user(text: Option<&str>) -> Option<String> {
    text.filter(|text| !text.is_empty()).map(str::to_owned)
}

fn wrong_words(what: &str, program: &str) -> Failure {
    Failure::usage(format!(
        "{what}\n\nUsage: {program} exec [OPTIONS] SANDBOX COMMAND [ARG...]\n\nRun '{program} exec --help' for more information"
    ))
}

/// A process without anything special about it.
pub(crate) fn spec(argv: Vec<OsString>) -> ExecSpec {
    ExecSpec {
        argv: argv.into_iter().map(|word| Bytes::from(word.into_vec())).collect(),
        environment: Vec::new(),
        directory: None,
        user: None,
        tty: None,
        stdin: false,
        privileged: false,
        detached: false,
        seeds: Vec::new(),
    }
}

/// Variables that describe the terminal which the session is shown on. Not the language: the sandbox may not have it, and
/// programs fall back to ASCII then.
pub(crate) fn terminal_variables(settings: &Settings) -> Vec<(Bytes, Bytes)> {
    let mut variables = settings.environment.some(OF_THE_TERMINAL);
    if !variables.iter().any(|(name, _)| name == "TERM") {
        variables.push(("TERM".into(), TERM_USUAL.into()));
    }
    variables.iter().map(|(name, value)| (bytes(name), bytes(value))).collect()
}

pub(super) fn bytes(text: &OsStr) -> Bytes {
    Bytes::from(text.as_bytes().to_vec())
}

/// A sandbox in which a session is to run.
pub(crate) struct OpenedSession<'a> {
    pub(crate) context: &'a Context,
    pub(crate) printer: Printer,
    pub(crate) store: &'a Store,
    pub(crate) record: SandboxRecord,
    pub(crate) machine: MachineFlags,
}

impl OpenedSession<'_> {
    /// Its keeper, ready.
    pub(crate) async fn keeper(&self) -> Result<Keeper, Failure> {
        start::ready(self.context, self.printer, self.store, &self.record, &self.machine).await
    }

    /// Runs a session; the exit code is that of its process.
    pub(crate) async fn run(
        &self,
        plan: impl AsyncFn(&Keeper) -> Plan,
        standard: &Standard,
    ) -> Result<u8, Failure> {
        let mut attempt = 1;
        loop {
            let keeper = self.keeper().await?;
            let standard = standard.duplicate().map_err(|error| {
                Failure::host(format!("the standard streams cannot be used: {error}"))
            })?;
            let plan = plan(&keeper).await;
            let tty = plan.spec.tty.is_some();
            match session::run(&keeper, plan, standard).await? {
                // It was on its way down and nothing has run: the next one is new.
                End::NotBegun(reason) if attempt < ATTEMPTS => {
                    self.printer.debug(&format!("the session did not begin: {reason}"));
                    attempt += 1;
                }
                End::Lost(reason) => {
                    if tty {
                        // The session left the cursor in the middle of a line.
                        self.printer.status("");
                    }
                    return Err(self.lost(&reason));
                }
                end => return end.code(),
            }
        }
    }

    /// The sandbox went away in the middle; says why where somebody knows.
    fn lost(&self, reason: &str) -> Failure {
        let name = &self.record.name;
        // The keeper knows more than the session that broke off, a moment later.
        let running = !keeper_client::has_ended(self.store, name, LAST_WORDS).unwrap_or(false);
        let known = self.store.last_end(name).ok().flatten().map(|end| end.reason);
        let why = match known {
            Some(known) if !running => known,
            _ => reason.to_owned(),
        };
        Failure::host(format!(
            "the sandbox `{name}` went away while the command ran: {}",
            crate::printer::guest_sentence(&why)
        ))
        .hint(format!("its logs are in {}", self.store.paths(name).logs().display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_user_is_the_usual_one() {
        assert_eq!(user(None), None);
        assert_eq!(user(Some("")), None);
        assert_eq!(user(Some("0:0")).as_deref(), Some("0:0"));
    }
}
