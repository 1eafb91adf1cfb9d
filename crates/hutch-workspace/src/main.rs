//! The workspace worker: one process per sandbox, started by its keeper ([`hutch_workspace::spawn`]).
//!
//! Standard input is the stream to the guest, standard error the log. The arguments are the numbers of open files: the
//! spec, and the disk of large contents, if the guest has one.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use hutch_workspace::{Prepared, WorkerSpec, confine};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let mut arguments = std::env::args().skip(1);
    let (Some(spec), bulk, None) = (arguments.next(), arguments.next(), arguments.next()) else {
        tracing::error!("started by the keeper, with the numbers of the descriptors");
        return ExitCode::from(2);
    };
    match run(&spec, bulk.as_deref()) {
        Ok(()) => {
            tracing::info!("the guest closed the stream");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut text = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            tracing::error!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(spec: &str, bulk: Option<&str>) -> Result<(), Box<dyn Error>> {
    let open = |number: &str, write: bool| -> Result<File, Box<dyn Error>> {
        let number: u32 = number.parse()?;
        let path = format!("/proc/self/fd/{number}");
        Ok(File::options().read(true).write(write).open(path)?)
    };
    let spec = open(spec, false)?;
    let bulk = bulk.map(|number| open(number, true)).transpose()?;
    let spec: WorkerSpec = serde_json::from_reader(spec)?;
    let port = std::io::stdin().as_fd().try_clone_to_owned()?;
    let prepared = Prepared::open(spec)?.with_bulk(bulk.map(Into::into));
    let report = confine(&prepared)?;
    for weakness in report.weaknesses() {
        tracing::warn!("{weakness}");
    }
    tracing::info!(workspaces = prepared.paths().len(), "serving");
    let counts = prepared.counts();
    let served = prepared.serve(port);
    tracing::info!(requests = %counts, "served");
    Ok(served?)
}
