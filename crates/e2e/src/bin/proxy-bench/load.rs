//! What is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::way::{Secure, Way};
use crate::{Failure, memory};

/// Connections at a time.
const CONNECTIONS: usize = 32;
/// A small answer, as an API gives.
const SMALL: usize = 1000;
/// Connections that do nothing while memory is measured.
const IDLE: usize = 1000;

/// Prints everything; `scale` is seconds a rate is measured for.
pub(crate) async fn measure(way: &Arc<Way>, scale: u64) -> Result<(), Failure> {
    let time = Duration::from_secs(scale);
    // Certificates are made, pools and caches filled.
    for _ in 0..20 {
        fetch(&mut way.connect().await?, way, SMALL).await?;
    }
    throughput(way, time).await?;
    latency(way, time).await?;
    print_rate("requests on kept connections", requests(way, time).await?);
    print_rate("requests on new connections", connections(way, time).await?);
    if let Some(pid) = way.pid {
        idle(way, pid).await?;
    }
    Ok(())
}

async fn fetch(stream: &mut Secure, way: &Way, bytes: usize) -> Result<(), Failure> {
    stream.write_all(way.request(bytes).as_bytes()).await?;
    stream.flush().await?;
    let mut buffer = [0; 16 * 1024];
    let mut filled = 0;
    let head = loop {
        let length = stream.read(&mut buffer[filled..]).await?;
        if length == 0 {
            return Err("the connection ended in a head".into());
        }
        filled += length;
        if let Some(end) = buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 200") {
        return Err(String::from_utf8_lossy(&buffer[..head]).into_owned().into());
    }
    let mut left = bytes.checked_sub(filled - head).ok_or("more came than was asked for")?;
    let mut large = vec![0; 256 * 1024];
    while left > 0 {
        let length = stream.read(&mut large).await?;
        if length == 0 {
            return Err("the connection ended in a body".into());
        }
        left = left.checked_sub(length).ok_or("more came than was asked for")?;
    }
    Ok(())
}

async fn throughput(way: &Way, time: Duration) -> Result<(), Failure> {
    let mut stream = way.connect().await?;
    let piece = 32 << 20;
    let used = || way.pid.map_or(Ok(0.0), memory::processor_time);
    let before = used()?;
    let started = Instant::now();
    let mut pieces = 0_u32;
    while started.elapsed() < time {
        fetch(&mut stream, way, piece).await?;
        pieces += 1;
    }
    let rate = f64::from(pieces) * 32.0 / started.elapsed().as_secs_f64();
    println!("throughput\t{rate}\tMiB/s");
    if way.pid.is_some() {
        let cost = (used()? - before) * 1000.0 / (f64::from(pieces) / 32.0);
        println!("processor time of a GiB\t{cost}\tms");
    }
    Ok(())
}

/// One request after the other on one connection.
async fn latency(way: &Way, time: Duration) -> Result<(), Failure> {
    let mut stream = way.connect().await?;
    let started = Instant::now();
    let mut took = Vec::new();
    while started.elapsed() < time {
        let start = Instant::now();
        fetch(&mut stream, way, SMALL).await?;
        took.push(start.elapsed());
    }
    took.sort();
    for (name, percent) in [("latency p50", 50), ("latency p99", 99)] {
        let at = (took.len() * percent / 100).min(took.len().saturating_sub(1));
        let value = took.get(at).ok_or("nothing was measured")?;
        println!("{name}\t{}\tµs", value.as_secs_f64() * 1e6);
    }
    Ok(())
}

fn print_rate(name: &str, rate: f64) {
    println!("{name}\t{rate}\t/s");
}

/// Requests a second on connections that stay.
async fn requests(way: &Arc<Way>, time: Duration) -> Result<f64, Failure> {
    let mut streams = Vec::new();
    for _ in 0..CONNECTIONS {
        streams.push(way.connect().await?);
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        let way = Arc::clone(way);
        tasks.spawn(async move {
            let mut count = 0_u32;
            while started.elapsed() < time {
                fetch(&mut stream, &way, SMALL).await?;
                count += 1;
            }
            Ok(count)
        });
    }
    rate(tasks, started).await
}

/// Requests a second, each on a connection of its own.
async fn connections(way: &Arc<Way>, time: Duration) -> Result<f64, Failure> {
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let way = Arc::clone(way);
        tasks.spawn(async move {
            let mut count = 0_u32;
            while started.elapsed() < time {
                let mut stream = way.connect().await?;
                fetch(&mut stream, &way, SMALL).await?;
                // The other side's end is not waited for; that it may be gone already is no failure.
                let _ended = stream.shutdown().await;
                count += 1;
            }
            Ok(count)
        });
    }
    rate(tasks, started).await
}

async fn rate(mut tasks: JoinSet<Result<u32, Failure>>, started: Instant) -> Result<f64, Failure> {
    let mut count = 0.0;
    while let Some(ended) = tasks.join_next().await {
        count += f64::from(ended??);
    }
    Ok(count / started.elapsed().as_secs_f64())
}

/// Memory of the proxy before and while it holds connections that do nothing.
async fn idle(way: &Way, pid: u32) -> Result<(), Failure> {
    let before = memory::of_family(pid)?;
    println!("memory after load\t{before}\tMiB");
    let mut held = Vec::new();
    for _ in 0..IDLE {
        let mut stream = way.connect().await?;
        fetch(&mut stream, way, SMALL).await?;
        held.push(stream);
    }
    println!("memory with 1000 idle\t{}\tMiB", memory::of_family(pid)?);
    Ok(())
}
