//! Tells clients why there is no engine, in the engine's own language: HTTP with a message in JSON.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::net::SocketFlags;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::root::Root;

/// The longest request head that is looked at; clients send less than one kilobyte.
const HEAD_MAX: usize = 16 * 1024;
/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections that are answered in one go.
const MANY: usize = 256;
/// A log of which more is not read.
const LOG_MAX: u64 = 4 << 20;
/// Longest line that is passed on.
const LINE_MAX: usize = 300;

/// Answers every connection that waits.
pub(super) async fn refuse_waiting(socket: &OwnedFd, reason: &str) {
    for _ in 0..MANY {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(client) = rustix::net::accept_with(socket, flags) else { return };
        let Ok(client) = UnixStream::from_std(client.into()) else { continue };
        let reason = reason.to_owned();
        tokio::spawn(async move { timeout(PATIENCE, refuse(client, &reason)).await });
    }
}

async fn refuse(mut client: UnixStream, reason: &str) -> io::Result<()> {
    let mut head = Vec::new();
    let mut piece = [0; 4096];
    // Read to its end: a connection that is closed with something unread takes the answer with it.
    while !ends(&head) && head.len() < HEAD_MAX {
        let count = client.read(&mut piece).await?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&piece[..count]);
    }
    client.write_all(&answer(&head, reason)).await?;
    client.shutdown().await?;
    while client.read(&mut piece).await? > 0 {}
    Ok(())
}

fn ends(head: &[u8]) -> bool {
    head.windows(4).any(|end| end == b"\r\n\r\n")
}

fn answer(head: &[u8], reason: &str) -> Vec<u8> {
    let body = serde_json::json!({ "message": reason }).to_string() + "\n";
    let mut answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    if !head.starts_with(b"HEAD ") {
        answer.push_str(&body);
    }
    answer.into_bytes()
}

/// The last line of a log in the sandbox.
pub(super) fn last_words(root: &Root, log: &Path) -> Option<String> {
    let text = root.content(log, LOG_MAX).ok().flatten()?;
    last_line(&String::from_utf8_lossy(&text))
}

fn last_line(text: &str) -> Option<String> {
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    // Of `time="…" level=… msg="…"` only the message.
    let line = line.split_once("msg=").map_or(line, |(_, message)| message).trim_matches('"');
    Some(line.chars().filter(|c| !c.is_control()).take(LINE_MAX).collect())
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket_with};

    use super::*;

    #[test]
    fn the_answer_is_what_the_engine_would_say() {
        let text =
            String::from_utf8(answer(b"GET /info HTTP/1.1\r\n\r\n", "no \"engine\"")).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["message"], "no \"engine\"");
        assert!(answer(b"HEAD /_ping HTTP/1.1\r\n\r\n", "x").ends_with(b"\r\n\r\n"));
    }

    #[test]
    fn the_last_words_are_a_message_of_one_line() {
        let log =
            "time=\"x\" level=info msg=\"Starting up\"\nfailed to start daemon: no \x1b[1mdisk\n\n";
        assert_eq!(last_line(log).as_deref(), Some("failed to start daemon: no [1mdisk"));
        assert_eq!(last_line("time=\"x\" msg=\"one two\"").as_deref(), Some("one two"));
        assert_eq!(last_line(" \n"), None);
        assert_eq!(last_line(&"x".repeat(999)).map(|line| line.len()), Some(LINE_MAX));
    }

    #[tokio::test]
    async fn everyone_who_waits_is_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&socket, 8).unwrap();
        let ask = || async {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(b"GET /version HTTP/1.1\r\nHost: docker\r\n\r\n").await.unwrap();
            client
        };
        let (mut first, mut second) = (ask().await, ask().await);
        refuse_waiting(&socket, "because").await;
        for client in [&mut first, &mut second] {
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains("{\"message\":\"because\"}"), "{answer}");
        }
    }
}
