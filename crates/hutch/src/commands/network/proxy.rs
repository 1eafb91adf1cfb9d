//! `hutch network proxy`

use clap::{Args, ValueEnum};
use hutch_api::{NetworkEdit, NetworkRequest, Response};
use hutch_policy::config::{Edit, ProxyConfig};
use hutch_store::SandboxName;
use serde::Serialize;

use super::policy::Policy;
use super::{ask, keeper, unexpected};
use crate::context::{Context, block_on};
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::keeper_client;
use crate::printer::{self, guest_sentence};
use crate::sandboxes::Sandboxes;

/// Show or change what a sandbox may reach
///
/// Without an option the policy is shown. Changes add to what holds, take effect at once, also on connections that
/// exist, and are kept. The most specific pattern decides: `example.com:443` before `example.com` before
/// `*.example.com` before `*`; of two that are the same the one that blocks. `*.example.com` is every subdomain and not
/// `example.com` itself. A host that no pattern covers is judged by the policy and, when that allows it, by its
/// addresses: private networks, this machine and link-local addresses are blocked unless the host is allowed by
/// a pattern. `localhost:PORT` is a port of this machine, which sandboxes reach as `host.docker.internal:PORT`.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Allow or deny hosts that no pattern covers
    #[arg(long, value_name = "POLICY")]
    policy: Option<Otherwise>,
    /// Allow a host, like `api.example.com`, `*.example.com` or `localhost:3000`
    #[arg(long, value_name = "HOST")]
    allow_host: Vec<String>,
    /// Block a host
    #[arg(long, value_name = "HOST")]
    block_host: Vec<String>,
    /// Pass TLS to a host through: nothing of it is seen, and no credential is added
    #[arg(long, value_name = "HOST")]
    bypass_host: Vec<String>,
    /// Take a range of addresses off the blocked and the bypassed ones
    #[arg(long, value_name = "CIDR")]
    allow_cidr: Vec<String>,
    /// Block a range of addresses, like `203.0.113.0/24`
    #[arg(long, value_name = "CIDR")]
    block_cidr: Vec<String>,
    /// Pass TLS to a range of addresses through
    #[arg(long, value_name = "CIDR")]
    bypass_cidr: Vec<String>,
    /// Choose whose TLS is terminated: of hosts that a credential is for, or of all that are not bypassed
    #[arg(long, value_name = "WHAT")]
    inspect: Option<Inspected>,
    /// Print the policy as JSON
    #[arg(long)]
    json: bool,
    /// Sandbox, which must run to be changed
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
}

/// What happens to a host that no pattern covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Otherwise {
    /// It may be reached
    Allow,
    /// It may not
    Deny,
}

/// Whose TLS is terminated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Inspected {
    /// That of hosts that a credential is for
    Credentials,
    /// That of all hosts that are not bypassed
    All,
}

/// The policy of one sandbox in JSON.
#[derive(Debug, Serialize)]
struct Shown {
    format_version: u32,
    sandbox: SandboxName,
    status: &'static str,
    #[serde(flatten)]
    policy: Policy,
}

/// Version of the JSON form.
const FORMAT_VERSION: u32 = 1;

impl Shown {
    fn new(sandbox: SandboxName, status: &'static str, policy: Policy) -> Self {
        Self { format_version: FORMAT_VERSION, sandbox, status, policy }
    }
}

impl Arguments {
    fn edit(&self) -> Option<NetworkEdit> {
        let word = |word: &str| Some(word.to_owned());
        let edit = NetworkEdit {
            policy: self.policy.and_then(|policy| match policy {
                Otherwise::Allow => word("allow"),
                Otherwise::Deny => word("deny"),
            }),
            inspect: self.inspect.and_then(|inspect| match inspect {
                Inspected::Credentials => word("credentials"),
                Inspected::All => word("all"),
            }),
            allow_hosts: self.allow_host.clone(),
            block_hosts: self.block_host.clone(),
            bypass_hosts: self.bypass_host.clone(),
            allow_cidrs: self.allow_cidr.clone(),
            block_cidrs: self.block_cidr.clone(),
            bypass_cidrs: self.bypass_cidr.clone(),
        };
        (edit != NetworkEdit::default()).then_some(edit)
    }
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let edit = arguments.edit();
    if let Some(edit) = &edit {
        // What can never be right is told whether the sandbox runs or not.
        check(edit)?;
    }
    let sandboxes = context.sandboxes()?;
    let name = sandboxes.name(&arguments.sandbox)?;
    block_on(async {
        match edit {
            Some(edit) => change(context, &sandboxes, name, edit, arguments.json).await,
            None => show(context, &sandboxes, name, arguments.json).await,
        }
    })?;
    Ok(exit_codes::SUCCESS)
}

/// Says what of a change cannot be.
fn check(edit: &NetworkEdit) -> Result<(), Failure> {
    let edit = Edit {
        policy: edit.policy.clone(),
        allow_hosts: edit.allow_hosts.clone(),
        block_hosts: edit.block_hosts.clone(),
        bypass_hosts: edit.bypass_hosts.clone(),
        allow_cidrs: edit.allow_cidrs.clone(),
        block_cidrs: edit.block_cidrs.clone(),
        bypass_cidrs: edit.bypass_cidrs.clone(),
    };
    let applied = ProxyConfig::default().apply(&edit);
    applied.map(drop).map_err(|error| Failure::from_error(Blame::User, &error))
}

async fn change(
    context: &Context,
    sandboxes: &Sandboxes,
    name: SandboxName,
    edit: NetworkEdit,
    json: bool,
) -> Result<(), Failure> {
    let keeper = keeper(context, sandboxes, &name).await?;
    let answer = ask(context, &name, &keeper, NetworkRequest::Edit(edit)).await?;
    let Response::NetworkPolicy(after) = answer else {
        return Err(unexpected(context, &name));
    };
    for note in &after.notes {
        context.printer.warning(&guest_sentence(note));
    }
    let cut = match after.cut {
        0 => "no live connection was cut".to_owned(),
        1 => "1 live connection was cut".to_owned(),
        more => format!("{more} live connections were cut"),
    };
    context.printer.status(&format!("Changed the network of '{name}'; {cut}."));
    if json {
        let policy = Policy::ask(&keeper).await?;
        context.printer.text(&printer::json(&Shown::new(name, "running", policy)))?;
    }
    Ok(())
}

async fn show(
    context: &Context,
    sandboxes: &Sandboxes,
    name: SandboxName,
    json: bool,
) -> Result<(), Failure> {
    let store = sandboxes.store();
    let (status, policy) = match keeper_client::running(store, &name, context.face).await? {
        Some(keeper) => ("running", Policy::ask(&keeper).await?),
        None => {
            let record = sandboxes.load(name.as_str())?;
            let policy = Policy::of_stopped(context, store, &record)?;
            let never = || {
                Failure::user(format!("the sandbox `{name}` has no policy yet: it never ran"))
                    .hint(format!("start it: {} run {name}", context.face.program()))
            };
            ("stopped", policy.ok_or_else(never)?)
        }
    };
    let text = if json { printer::json(&Shown::new(name, status, policy)) } else { policy.table() };
    context.printer.text(&text)
}
