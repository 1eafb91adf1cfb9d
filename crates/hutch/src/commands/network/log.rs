//! `hutch network log`

mod entries;

use clap::Args;
use hutch_policy::log::{Record, Table};
use hutch_policy::policy::Decision;
use hutch_store::SandboxName;
use jiff::tz::TimeZone;
use tokio::time::{Duration, sleep};

use self::entries::{Entry, EntryList, line};
use crate::context::{Context, block_on};
use crate::exit_codes;
use crate::failure::Failure;
use crate::log_files::Tail;
use crate::plugin;
use crate::printer;
use crate::sandboxes::Sandboxes;
use crate::table;

/// How often we look whether there is more.
const LOOK_AGAIN: Duration = Duration::from_millis(150);

/// Show what sandboxes reached and what was blocked
///
/// One line for each host and rule, or with `--requests` for each request, in the order in which they began. Of hosts
/// whose TLS is not terminated only the connections are seen: choose that with `network proxy --inspect`. Headers,
/// bodies and what may be a credential in a URL are never written down.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Show each request
    #[arg(long)]
    requests: bool,
    /// Show each request, and go on with those to come until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Print JSON: each request; with `--follow` one object a line
    #[arg(long)]
    json: bool,
    /// Show only the last N entries; 0 shows all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: usize,
    /// Print only the entries, no headings
    #[arg(short, long)]
    quiet: bool,
    /// Sandbox, running or stopped; default: all
    #[arg(value_name = "SANDBOX")]
    sandbox: Option<String>,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let sandboxes = context.sandboxes()?;
    let only = arguments.sandbox.as_deref().map(|text| sandboxes.name(text)).transpose()?;
    let mut logs = Logs { only, tails: Vec::new() };
    let mut records = logs.read(&sandboxes)?;
    if arguments.follow {
        last(&mut records, arguments.limit);
        let forever = follow(context, arguments, &sandboxes, &mut logs, records);
        block_on(async {
            tokio::select! {
                result = forever => result,
                () = plugin::wait_for_end(context.settings.plugin_socket.as_deref()) => Ok(()),
            }
        })?;
        return Ok(exit_codes::SUCCESS);
    }
    if arguments.json || arguments.requests {
        last(&mut records, arguments.limit);
        if arguments.json {
            context.printer.text(&printer::json(&EntryList::new(&records)))?;
        } else {
            let lines: String = records.iter().map(|record| line(record) + "\n").collect();
            context.printer.text(&lines)?;
        }
    } else {
        let text = aggregated(&records, arguments.limit, arguments.quiet, &TimeZone::system());
        context.printer.text(&text)?;
        for note in records.iter().filter(|record| record.host.is_empty()) {
            context.printer.warning(&format!("{}: {}", note.sandbox, note.reason));
        }
    }
    if !arguments.json && !arguments.quiet && records.is_empty() {
        context.printer.status("No requests yet.");
    }
    Ok(exit_codes::SUCCESS)
}

/// The logs of one sandbox or of all.
struct Logs {
    only: Option<SandboxName>,
    tails: Vec<(SandboxName, Tail)>,
}

impl Logs {
    /// Every record that is new, in the order in which they began.
    fn read(&mut self, sandboxes: &Sandboxes) -> Result<Vec<Record>, Failure> {
        let names = match &self.only {
            Some(name) => vec![name.clone()],
            None => names(sandboxes)?,
        };
        // A sandbox that is gone took its log along.
        self.tails.retain(|(name, _)| names.contains(name));
        let mut records = Vec::new();
        for name in names {
            let directory = sandboxes.store().paths(&name).network();
            let at = match self.tails.iter().position(|(known, _)| *known == name) {
                Some(at) => at,
                None => {
                    self.tails.push((name.clone(), Tail::new(&directory)));
                    self.tails.len() - 1
                }
            };
            let read = self.tails[at].1.read(|line| {
                let record = std::str::from_utf8(line).ok().and_then(Record::from_line);
                // Whose log it is decides whose requests they are.
                records.extend(record.map(|record| Record { sandbox: name.to_string(), ..record }));
            });
            read.map_err(|error| {
                Failure::host(format!("the log in {} cannot be read: {error}", directory.display()))
            })?;
        }
        records.sort_by_key(|record| record.time_ms);
        Ok(records)
    }
}

/// The names of all sandboxes that there are now, broken ones included.
fn names(sandboxes: &Sandboxes) -> Result<Vec<SandboxName>, Failure> {
    let directory = sandboxes.store().layout().sandboxes();
    let failed = |error: std::io::Error| {
        Failure::host(format!("{} cannot be read: {error}", directory.display()))
    };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.extend(name.to_str().and_then(|name| SandboxName::parse(name).ok()));
    }
    names.sort_by(|one, other| one.as_str().cmp(other.as_str()));
    Ok(names)
}

/// Shows records until the end of time, or of the one sandbox.
async fn follow(
    context: &Context,
    arguments: &Arguments,
    sandboxes: &Sandboxes,
    logs: &mut Logs,
    mut records: Vec<Record>,
) -> Result<(), Failure> {
    loop {
        let mut text = String::new();
        for record in &records {
            if arguments.json {
                text.push_str(&printer::json_line(&Entry::new(record)));
            } else {
                text.push_str(&line(record));
                text.push('\n');
            }
        }
        if !text.is_empty() {
            context.printer.text(&text)?;
        }
        if logs.only.as_ref().is_some_and(|name| sandboxes.name(name.as_str()).is_err()) {
            return Ok(());
        }
        sleep(LOOK_AGAIN).await;
        records = logs.read(sandboxes)?;
    }
}

/// Keeps the last ones; 0 means all.
fn last(records: &mut Vec<Record>, limit: usize) {
    if limit > 0 && records.len() > limit {
        records.drain(..records.len() - limit);
    }
}

/// A row for each sandbox, host and rule; of the rows those that were seen last.
fn aggregated(records: &[Record], limit: usize, quiet: bool, zone: &TimeZone) -> String {
    let mut counted = Table::default();
    // Without a host it is a note of the log about itself.
    counted.extend(records.iter().filter(|record| !record.host.is_empty()));
    let mut seen: Vec<u64> = [Decision::Denied, Decision::Allowed]
        .into_iter()
        .flat_map(|decision| counted.rows(decision).map(|row| row.last_seen_ms))
        .collect();
    seen.sort_unstable_by(|one, other| other.cmp(one));
    let mut room = if limit == 0 { seen.len() } else { limit };
    let oldest = seen.get(room.saturating_sub(1)).copied().unwrap_or_default();
    let mut text = String::new();
    let mut without_headings = Vec::new();
    for (decision, heading) in
        [(Decision::Denied, "Blocked requests:"), (Decision::Allowed, "Allowed requests:")]
    {
        let rows: Vec<Vec<String>> = counted
            .rows(decision)
            .filter(|row| row.last_seen_ms >= oldest)
            // Several may have been seen at the very instant.
            .take_while(|_| {
                let fits = room > 0;
                room = room.saturating_sub(1);
                fits
            })
            .map(|row| {
                let seen = entries::local_time(row.last_seen_ms, zone);
                let mut cells = vec![
                    row.sandbox.clone(),
                    row.host.clone(),
                    row.rule.clone(),
                    seen,
                    row.count.to_string(),
                ];
                if quiet {
                    cells.push(decision.as_str().to_owned());
                }
                cells
            })
            .collect();
        if quiet {
            without_headings.extend(rows);
            continue;
        }
        if rows.is_empty() {
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(heading);
        text.push('\n');
        text.push_str(&table::narrow(&["SANDBOX", "HOST", "RULE", "LAST SEEN", "COUNT"], rows));
    }
    text.push_str(&table::rows::<6>(without_headings));
    text
}

#[cfg(test)]
mod tests;
