//! `hutch ls`
//!
//! As `docker sandbox ls` it has the seven columns and the key `vms` of that command's documentation, as `hutch ls` four
//! columns and the key `sandboxes`: programs written for either find what they look for.

use clap::Args;
use hutch_store::Listed;
use serde::Serialize;

use crate::context::Context;
use crate::exit_codes;
use crate::failure::Failure;
use crate::plugin::Face;
use crate::printer;
use crate::sandboxes::Sandboxes;
use crate::table;

/// Longest cell unless `--no-trunc` is given.
const CELL_MAX: usize = 60;

/// List sandboxes, running and stopped
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Print only the names
    #[arg(short, long)]
    quiet: bool,
    /// Do not shorten anything
    #[arg(long)]
    no_trunc: bool,
}

/// One sandbox in JSON.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    agent: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    socket_path: Option<String>,
    sandbox_count: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    workspaces: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<String>,
    /// Why the record cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The list in JSON, as `hutch` prints it.
#[derive(Debug, Serialize)]
struct SandboxList {
    format_version: u32,
    sandboxes: Vec<Entry>,
}

/// The list in JSON, as `docker sandbox` prints it.
#[derive(Debug, Serialize)]
struct VmList {
    format_version: u32,
    vms: Vec<Entry>,
}

/// Version of the JSON forms.
const FORMAT_VERSION: u32 = 1;

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let sandboxes = context.sandboxes()?;
    let entries: Vec<Entry> =
        sandboxes.list()?.into_iter().map(|listed| entry(&sandboxes, listed)).collect();
    if arguments.quiet {
        for entry in &entries {
            context.printer.data(&entry.name)?;
        }
    } else if arguments.json {
        context.printer.text(&json(context.face, entries))?;
    } else {
        context.printer.text(&rows(context.face, &entries, arguments.no_trunc))?;
        for entry in entries.iter().filter(|entry| entry.error.is_some()) {
            let why = entry.error.as_deref().unwrap_or_default();
            context.printer.warning(&format!("the sandbox `{}` cannot be used: {why}", entry.name));
        }
    }
    Ok(exit_codes::SUCCESS)
}

fn entry(sandboxes: &Sandboxes, listed: Listed) -> Entry {
    let name = listed.name.to_string_lossy().into_owned();
    let status = if listed.running { "running" } else { "stopped" };
    match listed.record {
        Ok(record) => {
            let socket = listed
                .running
                .then(|| sandboxes.store().keeper(&record.name).ok().flatten())
                .flatten();
            Entry {
                name,
                status,
                socket_path: socket.map(|keeper| keeper.socket.as_path().display().to_string()),
                sandbox_count: u32::from(listed.running),
                workspaces: record
                    .workspaces
                    .iter()
                    .map(|workspace| workspace.path.as_path().display().to_string())
                    .collect(),
                id: record.id.to_string(),
                created_at: Some(record.created_at.to_string()),
                agent: record.agent,
                error: None,
            }
        }
        Err(error) => Entry {
            name,
            id: String::new(),
            agent: String::new(),
            status,
            socket_path: None,
            sandbox_count: u32::from(listed.running),
            workspaces: Vec::new(),
            created_at: None,
            error: Some(crate::failure::chain(&error)),
        },
    }
}

fn json(face: Face, entries: Vec<Entry>) -> String {
    let format_version = FORMAT_VERSION;
    match face {
        Face::Hutch => printer::json(&SandboxList { format_version, sandboxes: entries }),
        Face::Docker => printer::json(&VmList { format_version, vms: entries }),
    }
}

fn rows(face: Face, entries: &[Entry], whole: bool) -> String {
    let limit = if whole { usize::MAX } else { CELL_MAX };
    let first = |entry: &Entry| entry.workspaces.first().cloned().unwrap_or_default();
    let agent = |entry: &Entry| {
        if entry.error.is_some() { "(broken)".to_owned() } else { entry.agent.clone() }
    };
    match face {
        Face::Hutch => table::render(
            &["NAME", "AGENT", "STATUS", "WORKSPACE"],
            entries.iter().map(|entry| {
                vec![entry.name.clone(), agent(entry), entry.status.to_owned(), first(entry)]
            }),
            limit,
        ),
        Face::Docker => table::render(
            &["VM ID", "NAME", "STATUS", "WORKSPACE", "SOCKET PATH", "SANDBOXES", "AGENTS"],
            entries.iter().map(|entry| {
                let running = entry.status == "running";
                let when_running = |text: String| if running { text } else { String::new() };
                vec![
                    entry.id.clone(),
                    entry.name.clone(),
                    entry.status.to_owned(),
                    first(entry),
                    entry.socket_path.clone().unwrap_or_default(),
                    when_running(entry.sandbox_count.to_string()),
                    when_running(agent(entry)),
                ]
            }),
            limit,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let entry = |name: &str, status, workspace: &str, socket: Option<&str>| Entry {
            name: name.to_owned(),
            id: "0123456789ab".to_owned(),
            agent: "shell".to_owned(),
            status,
            socket_path: socket.map(str::to_owned),
            sandbox_count: u32::from(status == "running"),
            workspaces: vec![workspace.to_owned()],
            created_at: Some("2026-01-02T03:04:05.000000006Z".to_owned()),
            error: None,
        };
        let mut broken = entry("broken", "stopped", "", None);
        broken.workspaces.clear();
        broken.error = Some("it is damaged".to_owned());
        vec![
            entry(
                "shell-app",
                "running",
                "/home/user/app",
                Some("/run/user/1000/hutch/0123456789ab.sock"),
            ),
            entry("shell-other", "stopped", "/home/user/a\nb", None),
            broken,
        ]
    }

    #[test]
    fn hutch_prints_four_columns() {
        insta::assert_snapshot!(rows(Face::Hutch, &entries(), false), @r"
        NAME          AGENT      STATUS    WORKSPACE
        shell-app     shell      running   /home/user/app
        shell-other   shell      stopped   /home/user/a\nb
        broken        (broken)   stopped
        ");
    }

    #[test]
    fn docker_prints_its_documented_seven_columns() {
        insta::assert_snapshot!(rows(Face::Docker, &entries(), false), @r"
        VM ID          NAME          STATUS    WORKSPACE         SOCKET PATH                              SANDBOXES   AGENTS
        0123456789ab   shell-app     running   /home/user/app    /run/user/1000/hutch/0123456789ab.sock   1           shell
        0123456789ab   shell-other   stopped   /home/user/a\nb
        0123456789ab   broken        stopped
        ");
    }

    #[test]
    fn the_key_of_the_list_is_the_one_that_each_programs_users_know() {
        let value =
            |face| serde_json::from_str::<serde_json::Value>(&json(face, entries())).unwrap();
        let list = value(Face::Docker);
        assert_eq!(list["vms"][0]["sandbox_count"], 1);
        assert_eq!(list["vms"][1].get("socket_path"), None);
        assert_eq!(list.get("sandboxes"), None);
        assert_eq!(value(Face::Hutch)["sandboxes"][2]["error"], "it is damaged");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json(Face::Hutch, vec![])).unwrap()["sandboxes"],
            serde_json::json!([])
        );
    }
}
