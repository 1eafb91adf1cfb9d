//! `hutch inspect`

use std::collections::BTreeMap;

use clap::Args;
use hutch_api::Request;
use hutch_store::{LastEnd, SandboxName, SandboxRecord, Store};
use serde::Serialize;
use tokio::time::{Duration, timeout};

use super::network::Policy;
use crate::context::{Context, block_on};
use crate::exit_codes;
use crate::failure::Failure;
use crate::keeper_client;
use crate::printer;
use crate::sandboxes::Sandboxes;

/// How long a keeper may take to say what it knows.
const ANSWER: Duration = Duration::from_secs(2);

/// Show everything about sandboxes as JSON
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Sandboxes to show
    #[arg(value_name = "SANDBOX", required = true)]
    names: Vec<String>,
}

/// One sandbox.
#[derive(Debug, Serialize)]
struct Entry {
    id: String,
    name: SandboxName,
    created_at: String,
    status: &'static str,
    #[serde(flatten)]
    start: Option<Start>,
    agent: String,
    template: String,
    template_digest: String,
    workspaces: Vec<Workspace>,
    cpus: u32,
    memory_mib: u32,
    disk_bytes: u64,
    idle_timeout_s: u64,
    labels: BTreeMap<String, String>,
    /// What it may reach, and where credentials for that were found; nothing before its first run.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<Policy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keeper: Option<Keeper>,
    /// How it ended last; nothing while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_end: Option<Ended>,
    /// Where its files and logs are.
    directory: String,
}

#[derive(Debug, Serialize)]
struct Workspace {
    path: String,
    read_only: bool,
    /// It is not there any more.
    missing: bool,
}

#[derive(Debug, Serialize)]
struct Keeper {
    pid: u32,
    socket_path: String,
}

/// How the running sandbox came up.
#[derive(Debug, Serialize)]
struct Start {
    /// `warm`: resumed from a snapshot; `cold`: booted.
    started: &'static str,
    /// Milliseconds until sessions could begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    ready_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Ended {
    at: String,
    clean: bool,
    reason: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    console: Vec<String>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let sandboxes = context.sandboxes()?;
    let mut entries = Vec::with_capacity(arguments.names.len());
    let mut code = exit_codes::SUCCESS;
    for text in &arguments.names {
        match sandboxes.load(text).and_then(|record| entry(context, &sandboxes, record)) {
            Ok(entry) => entries.push(entry),
            Err(failure) => {
                context.printer.failure(&failure);
                code = exit_codes::FAILURE;
            }
        }
    }
    context.printer.text(&printer::json(&entries))?;
    Ok(code)
}

fn entry(
    context: &Context,
    sandboxes: &Sandboxes,
    record: SandboxRecord,
) -> Result<Entry, Failure> {
    let store = sandboxes.store();
    let running = keeper_client::is_running(store, &record.name)?;
    // Files that cannot be read say nothing: the record is what counts.
    let keeper = if running { store.keeper(&record.name).ok().flatten() } else { None };
    // While it runs, the file says what would be true if it were killed now.
    let last_end = if running { None } else { store.last_end(&record.name).ok().flatten() };
    let workspaces = record.workspaces.iter().map(|workspace| Workspace {
        path: workspace.path.as_path().display().to_string(),
        read_only: workspace.read_only,
        missing: !workspace.path.as_path().exists(),
    });
    let network = match network(context, sandboxes, &record, running) {
        Ok(network) => network,
        Err(failure) => {
            context.printer.warning(&format!(
                "the network of the sandbox `{}` is not known: {failure}",
                record.name
            ));
            None
        }
    };
    let start = if running {
        block_on(async {
            Ok(timeout(ANSWER, start(context, store, &record.name)).await.ok().flatten())
        })?
    } else {
        None
    };
    Ok(Entry {
        start,
        network,
        id: record.id.to_string(),
        created_at: format!("{:.9}", record.created_at),
        status: if running { "running" } else { "stopped" },
        template: record.template.name,
        template_digest: record.template.digest,
        workspaces: workspaces.collect(),
        cpus: record.cpus,
        memory_mib: record.memory_mib,
        disk_bytes: record.disk_bytes,
        idle_timeout_s: record.idle_timeout_s,
        labels: record.labels,
        agent: record.agent,
        keeper: keeper.map(|keeper| Keeper {
            pid: keeper.pid,
            socket_path: keeper.socket.as_path().display().to_string(),
        }),
        last_end: last_end.map(|LastEnd { at, clean, reason, console, .. }| Ended {
            at: format!("{at:.9}"),
            clean,
            reason,
            console,
        }),
        directory: store.paths(&record.name).directory.display().to_string(),
        name: record.name,
    })
}

/// How it came up, if it is up.
async fn start(context: &Context, store: &Store, name: &SandboxName) -> Option<Start> {
    let keeper = keeper_client::running(store, name, context.face).await.ok()??;
    let status = keeper.status(&Request::Status).await.ok()?;
    let started = if status.resumed { "warm" } else { "cold" };
    Some(Start { started, ready_ms: status.ready_ms })
}

/// What it may reach. A sandbox that is just starting is not waited for.
fn network(
    context: &Context,
    sandboxes: &Sandboxes,
    record: &SandboxRecord,
    running: bool,
) -> Result<Option<Policy>, Failure> {
    let store = sandboxes.store();
    if !running {
        return Policy::of_stopped(context, store, record);
    }
    block_on(async {
        let asked = async {
            match keeper_client::running(store, &record.name, context.face).await? {
                Some(keeper) => Policy::ask(&keeper).await.map(Some),
                None => Ok(None),
            }
        };
        match timeout(ANSWER, asked).await {
            Ok(policy) => policy,
            Err(_) => Policy::of_stopped(context, store, record),
        }
    })
}
