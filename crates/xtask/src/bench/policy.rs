//! How long a change of the policy takes, from the start of the command until a live connection is cut.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::bench::world::World;

/// A connection that is neither made nor cut in this time never will be.
const LIMIT: Duration = Duration::from_secs(60);

/// What the server saw of a connection.
enum Seen {
    Begun,
    Cut(Instant),
}

/// Changes the policy of the running sandbox `bench` so often; each time a connection to this machine is cut by it.
///
/// The time ends with whatever is later: the cut as the server sees it, or the command.
pub(crate) fn measure(world: &World, runs: usize) -> anyhow::Result<Vec<Duration>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let (tell, seen) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if hold(stream, &tell).is_none() {
                return;
            }
        }
    });
    let place = format!("localhost:{port}");
    let url = format!("http://host.docker.internal:{port}/");
    let mut took = Vec::new();
    for _ in 0..runs {
        world.hutch(&["network", "proxy", "bench", "--allow-host", &place])?;
        world.hutch(&["exec", "-d", "bench", "curl", "-sN", &url])?;
        match seen.recv_timeout(LIMIT).context("nothing connects")? {
            Seen::Begun => {}
            Seen::Cut(_) => anyhow::bail!("the connection ended before the policy was changed"),
        }
        let started = Instant::now();
        let (command, _) = world.hutch(&["network", "proxy", "bench", "--block-host", &place])?;
        match seen.recv_timeout(LIMIT).context("the connection is not cut")? {
            Seen::Cut(at) => took.push(at.saturating_duration_since(started).max(command)),
            Seen::Begun => anyhow::bail!("another connection was made"),
        }
    }
    Ok(took)
}

/// Answers a request with a body that never ends, and tells when the client is gone.
fn hold(mut stream: TcpStream, tell: &mpsc::Sender<Seen>) -> Option<()> {
    let mut buffer = [0; 4096];
    let asked = stream.read(&mut buffer).is_ok_and(|length| length > 0);
    let head = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nfirst\n";
    if !asked || stream.write_all(head).is_err() {
        return Some(());
    }
    tell.send(Seen::Begun).ok()?;
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
    tell.send(Seen::Cut(Instant::now())).ok()
}
