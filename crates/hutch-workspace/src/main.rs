//! The workspace worker: one process per sandbox, started by its keeper ([`hutch_workspace::spawn`]).
//!
//! Standard input is the stream to the guest, standard error the log. The one argument is the number of the open file
//! that holds the spec.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use hutch_workspace::{Prepared, WorkerSpec, confine};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    let mut arguments = std::env::args().skip(1);
    let (Some(number), None) = (arguments.next(), arguments.next()) else {
        tracing::error!("started by the keeper, with the number of the spec's descriptor");
        return ExitCode::from(2);
    };
    match run(&number) {
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

fn run(number: &str) -> Result<(), Box<dyn Error>> {
    let number: u32 = number.parse()?;
    let spec = File::open(format!("/proc/self/fd/{number}"))?;
    let spec: WorkerSpec = serde_json::from_reader(spec)?;
    let port = std::io::stdin().as_fd().try_clone_to_owned()?;
    let prepared = Prepared::open(spec)?;
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
