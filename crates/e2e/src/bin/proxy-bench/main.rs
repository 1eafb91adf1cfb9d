//! The load that `cargo xtask bench` puts on a proxy: ours, squid or mitmproxy, or none.
//!
//! ```text
//!   proxy-bench server DIRECTORY                               HTTPS on a port that it prints; its CA is DIRECTORY/ca.pem
//!   proxy-bench measure SCALE PORT direct
//!   proxy-bench measure SCALE PORT tcp ADDRESS PID             a proxy that listens there, and its process
//!   proxy-bench measure SCALE PORT hutch PROGRAM DIRECTORY CA tunnel|terminated
//! ```
//!
//! Prints a line for each measurement: name, value and unit, separated by tabs. Ours has no listener: its clients are
//! streams of the connection that a guest's init would hold, over a pair of sockets. Everything else is the same:
//! `CONNECT`, TLS without resumption, then requests in HTTP/1.1 bytes.

#![expect(clippy::print_stdout, reason = "what it measures is what it prints")]

mod load;
mod memory;
mod server;
mod way;

use std::path::Path;
use std::sync::Arc;

use crate::way::Way;

/// Whatever went wrong; who reads it is a developer.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["server", directory] => server::serve(Path::new(directory)).await,
        ["measure", scale, port, rest @ ..] => {
            let port = port.parse()?;
            let way = match rest {
                ["direct"] => Way::direct(port)?,
                ["tcp", address, pid] => Way::tcp(address, pid.parse()?, port)?,
                ["hutch", program, directory, ca, "tunnel"] => {
                    Way::hutch(program, directory, ca, port, way::Terminated::No).await?
                }
                ["hutch", program, directory, ca, "terminated"] => {
                    Way::hutch(program, directory, ca, port, way::Terminated::Yes).await?
                }
                _ => return Err("measure what?".into()),
            };
            load::measure(&Arc::new(way), scale.parse()?).await
        }
        _ => Err("`server` or `measure`".into()),
    }
}
