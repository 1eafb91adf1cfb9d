//! `hutch network proxy`

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use hutch_api::{NetworkEdit, NetworkPolicy, NetworkRequest, NetworkService, Response};
use hutch_policy::config::{Edit, ProxyConfig};
use hutch_policy::settings::Inspect;
use hutch_store::{SandboxName, atomic};
use serde::Serialize;

use super::{ask, keeper, unexpected};
use crate::context::{Context, block_on};
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::keeper_client;
use crate::printer::{self, escaped_line};
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
    policy: Option<Policy>,
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
enum Policy {
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

/// The policy of one sandbox, in JSON and for the table.
#[derive(Debug, Serialize)]
struct Shown {
    format_version: u32,
    sandbox: SandboxName,
    status: &'static str,
    policy: &'static str,
    inspect: String,
    allowed_hosts: Vec<String>,
    blocked_hosts: Vec<String>,
    bypassed_hosts: Vec<String>,
    blocked_cidrs: Vec<String>,
    bypassed_cidrs: Vec<String>,
    /// Known while the sandbox runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<Vec<ShownService>>,
}

/// A service, and where its credential was found.
#[derive(Debug, Serialize)]
struct ShownService {
    name: String,
    credential: Option<String>,
}

/// Version of the JSON form.
const FORMAT_VERSION: u32 = 1;
/// No policy file is larger.
const POLICY_MAX: u64 = 16 << 20;
/// Width of the first column.
const LABEL_WIDTH: usize = 17;

impl Arguments {
    fn edit(&self) -> Option<NetworkEdit> {
        let word = |word: &str| Some(word.to_owned());
        let edit = NetworkEdit {
            policy: self.policy.and_then(|policy| match policy {
                Policy::Allow => word("allow"),
                Policy::Deny => word("deny"),
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
        applied(&mut ProxyConfig::default(), edit)?;
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

/// Applies a change to a copy of a policy; gives what has no effect.
fn applied(config: &mut ProxyConfig, edit: &NetworkEdit) -> Result<Vec<String>, Failure> {
    let edit = Edit {
        policy: edit.policy.clone(),
        allow_hosts: edit.allow_hosts.clone(),
        block_hosts: edit.block_hosts.clone(),
        bypass_hosts: edit.bypass_hosts.clone(),
        allow_cidrs: edit.allow_cidrs.clone(),
        block_cidrs: edit.block_cidrs.clone(),
        bypass_cidrs: edit.bypass_cidrs.clone(),
    };
    config.apply(&edit).map_err(|error| Failure::from_error(Blame::User, &error))
}

async fn change(
    context: &Context,
    sandboxes: &Sandboxes,
    name: SandboxName,
    edit: NetworkEdit,
    json: bool,
) -> Result<(), Failure> {
    let keeper = keeper(context, sandboxes, &name).await?;
    let policy = async |request| match ask(context, &name, &keeper, request).await? {
        Response::NetworkPolicy(policy) => Ok(policy),
        _ => Err(unexpected(context, &name)),
    };
    // Taking away a range that is not there looks like opening it.
    if !edit.allow_cidrs.is_empty() {
        let before = policy(NetworkRequest::Policy).await?;
        for note in applied(&mut parsed(&before.proxy_config)?, &edit)? {
            context.printer.warning(&note);
        }
    }
    let after = policy(NetworkRequest::Edit(edit)).await?;
    let cut = match after.cut {
        0 => "no live connection was cut".to_owned(),
        1 => "1 live connection was cut".to_owned(),
        more => format!("{more} live connections were cut"),
    };
    context.printer.status(&format!("Changed the network of '{name}'; {cut}."));
    if json {
        let services = services(context, &name, &keeper).await?;
        context.printer.text(&printer::json(&shown(name, &after, Some(services))?))?;
    }
    Ok(())
}

async fn show(
    context: &Context,
    sandboxes: &Sandboxes,
    name: SandboxName,
    json: bool,
) -> Result<(), Failure> {
    let shown = match keeper_client::running(sandboxes.store(), &name, context.face).await? {
        Some(keeper) => {
            let policy = match ask(context, &name, &keeper, NetworkRequest::Policy).await? {
                Response::NetworkPolicy(policy) => policy,
                _ => return Err(unexpected(context, &name)),
            };
            let services = services(context, &name, &keeper).await?;
            shown(name, &policy, Some(services))?
        }
        None => of_stopped(context, sandboxes, name)?,
    };
    let text = if json { printer::json(&shown) } else { table(&shown) };
    context.printer.text(&text)
}

async fn services(
    context: &Context,
    name: &SandboxName,
    keeper: &keeper_client::Keeper,
) -> Result<Vec<NetworkService>, Failure> {
    match ask(context, name, keeper, NetworkRequest::Services).await? {
        Response::NetworkServices(services) => Ok(services),
        _ => Err(unexpected(context, name)),
    }
}

/// The policy that holds when it is started again, as far as it ran before.
fn of_stopped(
    context: &Context,
    sandboxes: &Sandboxes,
    name: SandboxName,
) -> Result<Shown, Failure> {
    let path = sandboxes.store().paths(&name).directory.join("proxy-config.json");
    if !path.exists() {
        return Err(Failure::user(format!("the sandbox `{name}` has no policy yet: it never ran"))
            .hint(format!("start it: {} run {name}", context.face.program())));
    }
    let text = atomic::read(&path, POLICY_MAX)
        .map_err(|error| Failure::from_error(Blame::Host, &error))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let inspect = match context.settings.inspect() {
        Inspect::Credentials => "credentials",
        Inspect::All => "all",
    };
    let policy = NetworkPolicy { proxy_config: text, inspect: inspect.to_owned(), cut: 0, notes: Vec::new() };
    shown(name, &policy, None)
}

fn parsed(proxy_config: &str) -> Result<ProxyConfig, Failure> {
    ProxyConfig::parse(proxy_config).map_err(|error| Failure::from_error(Blame::Host, &error))
}

fn shown(
    sandbox: SandboxName,
    policy: &NetworkPolicy,
    services: Option<Vec<NetworkService>>,
) -> Result<Shown, Failure> {
    let config = parsed(&policy.proxy_config)?;
    let services = services.map(|services| {
        let one = |NetworkService { name, found }| ShownService { name, credential: found };
        services.into_iter().map(one).collect()
    });
    Ok(Shown {
        format_version: FORMAT_VERSION,
        sandbox,
        status: if services.is_some() { "running" } else { "stopped" },
        policy: config.policy.default.as_str(),
        inspect: policy.inspect.clone(),
        allowed_hosts: config.network.allowed_domains,
        blocked_hosts: config.network.blocked_domains,
        bypassed_hosts: config.network.bypass_domains,
        blocked_cidrs: config.network.blocked_cidrs,
        bypassed_cidrs: config.network.bypass_cidrs,
        services,
    })
}

/// The policy for people.
fn table(shown: &Shown) -> String {
    let policy = match shown.policy {
        "deny" => "deny: only hosts that are allowed",
        _ => "allow: every host that is not blocked",
    };
    let inspect = match shown.inspect.as_str() {
        "all" => "all: TLS of every host that is not bypassed",
        _ => "credentials: TLS of hosts that a credential is for",
    };
    let services = shown.services.as_ref().map(|services| {
        let width = services.iter().map(|service| service.name.chars().count()).max().unwrap_or(0);
        let line = |service: &ShownService| {
            let found = service.credential.as_deref().unwrap_or("no credential found");
            format!("{:<width$}   {found}", service.name)
        };
        services.iter().map(line).collect::<Vec<_>>()
    });
    let mut text = String::new();
    let mut add = |label: &str, lines: &[String]| {
        let none = ["-".to_owned()];
        let lines = if lines.is_empty() { &none } else { lines };
        for (index, line) in lines.iter().enumerate() {
            let label = if index == 0 { label } else { "" };
            // Infallible: a String can always grow.
            let _: std::fmt::Result = writeln!(text, "{label:<LABEL_WIDTH$}{}", escaped_line(line));
        }
    };
    add("POLICY", &[policy.to_owned()]);
    add("INSPECTED", &[inspect.to_owned()]);
    add("ALLOWED HOSTS", &shown.allowed_hosts);
    add("BLOCKED HOSTS", &shown.blocked_hosts);
    add("BYPASSED HOSTS", &shown.bypassed_hosts);
    add("BLOCKED RANGES", &shown.blocked_cidrs);
    add("BYPASSED RANGES", &shown.bypassed_cidrs);
    if let Some(services) = services {
        add("CREDENTIALS", &services);
    }
    text
}
