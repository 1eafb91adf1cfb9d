//! The servers of the tests' internet: see `hutch_testkit::internet`, whose commands come on standard input.
//!
//! `internet DIRECTORY`: writes `ca.pem` there and serves what is in `files/HOST/`.

mod answers;
mod names;
mod providers;
mod servers;
mod tls;
mod world;

use std::path::PathBuf;
use std::sync::Arc;

use hutch_testkit::internet::protocol::{Command, Report};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, stdin, stdout};

use crate::world::World;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from).ok_or("no directory is given")?;
    let certificates = Arc::new(tls::Certificates::new()?);
    tokio::fs::write(directory.join("ca.pem"), certificates.ca_pem()).await?;
    let world = Arc::new(World::new(directory.join("files")));
    names::serve(&world).await?;
    servers::serve(&world, &certificates).await?;
    let mut output = stdout();
    output.write_all(b"ready\n").await?;
    output.flush().await?;
    let mut commands = BufReader::new(stdin()).lines();
    while let Some(line) = commands.next_line().await? {
        let mut answer = serde_json::to_vec(&obey(&world, &line)?)?;
        answer.push(b'\n');
        output.write_all(&answer).await?;
        output.flush().await?;
    }
    Ok(())
}

fn obey(world: &World, line: &str) -> Result<Report, Failure> {
    Ok(match serde_json::from_str(line)? {
        Command::Report => world.report(),
        Command::Forget => world.forget(),
        Command::Name { name, answers } => world.name(name, answers),
    })
}
