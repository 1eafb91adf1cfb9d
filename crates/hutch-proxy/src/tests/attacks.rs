//! What a hostile guest tries: each is refused, told to the log, and reaches no server.

use hutch_policy::policy::Decision;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{World, say, within};

async fn refused(world: &World, answer: &str, status: &str, rule: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    let record = world.record(|record| record.rule == rule).await;
    assert_eq!(record.decision, Decision::Denied);
    assert_eq!(world.server.connections(), 0);
}

#[tokio::test]
async fn requests_that_two_servers_would_read_differently_are_not_forwarded() {
    let start = "POST http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n";
    let shapes = [
        format!("{start}Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{start}Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd"),
        format!("{start}Content-Length: 4, 4\r\n\r\nabcd"),
        format!("{start}Content-Length: +4\r\n\r\nabcd"),
        format!("{start}Content-Length: 0x4\r\n\r\nabcd"),
        format!("{start}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        format!("{start}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("{start}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!("{start}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        format!("{start}X: a\r\n b\r\n\r\n"),
        format!("{start}X: a\n\r\n"),
        format!("{start}X: a\rb\r\n\r\n"),
        format!("{start}X: a\0b\r\n\r\n"),
        format!("{start}X\x0b: a\r\n\r\n"),
        format!("{start}: a\r\n\r\n"),
        format!("{start}Host: other.test\r\n\r\n"),
        format!("{start}Upgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
        format!("{start}HTTP2-Settings: AAMAAABk\r\n\r\n"),
        format!("\r\n{start}\r\n"),
        format!("\n{start}\r\n"),
        "GET http://plain.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n".to_owned(),
        "GET http://plain.test/ HTTP/1.1\r\n\r\n".to_owned(),
        "GET  http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n\r\n".to_owned(),
        "GET http://plain.test/ HTTP/1.1 \r\nHost: plain.test\r\n\r\n".to_owned(),
        "GET\thttp://plain.test/\tHTTP/1.1\r\nHost: plain.test\r\n\r\n".to_owned(),
        "GET http://plain.test/\\..\\ HTTP/1.1\r\nHost: plain.test\r\n\r\n".to_owned(),
        "GET http://plain.test/#x HTTP/1.1\r\nHost: plain.test\r\n\r\n".to_owned(),
        "GET http://user@plain.test/ HTTP/1.1\r\nHost: plain.test\r\n\r\n".to_owned(),
        "get http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
        "TRACE http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n\r\n".to_owned(),
        "GET http://plain.test/ HTTP/1.2\r\nHost: plain.test\r\n\r\n".to_owned(),
    ];
    let world = World::new("").await;
    for shape in shapes {
        let answer = world.ask(&shape).await;
        let status = &answer[..answer.len().min(12)];
        assert!(
            status.starts_with("HTTP/1.1 4") || status.starts_with("HTTP/1.1 5"),
            "{shape:?}: {answer}"
        );
        assert_eq!(answer.matches("content-length").count(), 1, "{shape:?}: {answer}");
    }
    assert_eq!(world.server.connections(), 0);
    let records = world.records();
    assert_eq!(records.len(), 32);
    assert!(records.iter().all(|record| record.rule == "<malformed request>"), "{records:?}");
}

#[tokio::test]
async fn broken_chunks_end_the_request_and_nothing_after_them_is_read() {
    let world = World::new("").await;
    for chunks in [
        "4\nabcd\r\n0\r\n\r\n",
        "4\r\nabcdX\r\n0\r\n\r\n",
        "-1\r\n",
        "\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let answer = world
            .ask(&format!(
                "POST http://plain.test/seen HTTP/1.1\r\nHost: plain.test\r\n\
                 Transfer-Encoding: chunked\r\n\r\n{chunks}\
                 GET http://plain.test/smuggled HTTP/1.1\r\nHost: plain.test\r\n\r\n"
            ))
            .await;
        assert!(
            !answer.contains("200 OK") || !answer.contains("body: abcd"),
            "{chunks:?}: {answer}"
        );
        assert!(!answer.contains("/smuggled"), "{chunks:?}: {answer}");
    }
}

#[tokio::test]
async fn a_head_that_never_ends_holds_little_and_is_refused() {
    let world = World::new("").await;
    let mut stream = world.proxy().await;
    stream.write_all(b"GET http://plain.test/ HTTP/1.1\r\nHost: plain.test\r\n").await.unwrap();
    let line = format!("X-{}: {}\r\n", "a".repeat(100), "b".repeat(900));
    let mut written = 0;
    while written < 4 << 20 {
        if stream.write_all(line.as_bytes()).await.is_err() {
            break;
        }
        written += line.len();
    }
    assert!(written < 1 << 20, "{written}");
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.ok();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn another_host_in_a_connection_is_misdirected() {
    let world = World::inspecting_all(r#""blockedDomains":["blocked.test"]"#).await;
    for host in ["blocked.test", "other.test", "tls.test:444", "127.0.0.1"] {
        let mut stream = world.tls("tls.test:443", "tls.test", &["http/1.1"]).await.unwrap();
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        within(stream.read_to_end(&mut answer)).await.ok();
        let answer = String::from_utf8(answer).unwrap();
        refused(&world, &answer, "421", "<domain fronting>").await;
    }
    let stream = world.captured("plain.test", 80).await;
    let answer = say(stream, "GET / HTTP/1.1\r\nHost: other.test\r\n\r\n").await;
    refused(&world, &answer, "421", "<domain fronting>").await;
}

#[tokio::test]
async fn another_authority_in_an_http2_connection_is_misdirected() {
    use http_body_util::BodyExt as _;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let world = World::inspecting_all("").await;
    let stream = world.tls("tls.test:443", "tls.test", &["h2"]).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = |uri: &str, host: Option<&str>| {
        let mut request = http::Request::get(uri).body(crate::exchange::empty()).unwrap();
        if let Some(host) = host {
            request.headers_mut().insert("host", host.parse().unwrap());
        }
        request
    };
    let response = sender.send_request(request("https://other.test/", None)).await.unwrap();
    assert_eq!(response.status(), 421);
    let mismatch = request("https://tls.test/", Some("other.test"));
    assert_eq!(sender.send_request(mismatch).await.unwrap().status(), 400);
    let mut trace = request("https://tls.test/", None);
    *trace.method_mut() = http::Method::TRACE;
    assert_eq!(sender.send_request(trace).await.unwrap().status(), 405);
    assert_eq!(world.server.connections(), 0);
    let response = sender.send_request(request("https://tls.test/fine", None)).await.unwrap();
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(&body[..], b"/fine\n");
}

#[tokio::test]
async fn tls_for_another_name_or_for_none_is_not_tunnelled() {
    let world = World::new("").await;
    for (name, rule) in [("other.test", "<server name mismatch>"), ("-", "<no server name>")] {
        assert!(world.tls("tls.test:443", name, &[]).await.is_err());
        let record = world.record(|record| record.rule == rule).await;
        assert_eq!(record.decision, Decision::Denied);
    }
    // The connection to the server was made before; nothing was sent on it.
    assert!(world.records().iter().all(|record| record.sent == 0));
}

#[tokio::test]
async fn what_is_neither_tls_nor_http_is_reset() {
    let world = World::new("").await;
    for first in ["SSH-2.0-OpenSSH_9.9\r\n", "\x00\x01", "*1\r\n$4\r\nPING\r\n"] {
        let mut stream = world.captured("echo.test", 22).await;
        stream.write_all(first.as_bytes()).await.unwrap();
        let error = within(stream.read_u8()).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{first:?}");
    }
    let record = world.record(|record| record.rule == "<not HTTP or TLS>").await;
    assert_eq!(record.place(), "echo.test:22");
}

#[tokio::test]
async fn a_connect_within_a_connection_is_refused() {
    let world = World::new("").await;
    let stream = world.tunnel("plain.test:80").await;
    let answer = say(stream, "CONNECT other.test:80 HTTP/1.1\r\nHost: other.test:80\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[tokio::test]
async fn an_address_does_not_hide_a_blocked_name() {
    let rules = r#""allowedDomains":["127.0.0.1"],"blockedDomains":["blocked.test"]"#;
    let world = World::new(rules).await;
    let port = world.server.plain.port();
    let request =
        |host: &str| format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let stream = world.captured("127.0.0.1", port).await;
    let answer = say(stream, &request("blocked.test")).await;
    refused(&world, &answer, "403", "blocked.test").await;
    let stream = world.captured("127.0.0.1", port).await;
    assert!(say(stream, &request("fine.test")).await.ends_with("/x\n"));
    let stream = world.captured("127.0.0.1", world.server.tls.port()).await;
    assert!(world.handshake(stream, "blocked.test", &[]).await.is_err());
    let stream = world.captured("127.0.0.1", world.server.tls.port()).await;
    assert!(world.handshake(stream, "fine.test", &[]).await.is_ok());
}

#[tokio::test]
async fn disguised_addresses_are_addresses() {
    let world = World::new("").await;
    for host in [
        "0x7f000001",
        "2130706433",
        "127.1",
        "0177.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "169.254.169.254",
        "LOCALHOST.",
        "192.168.1.1",
    ] {
        let answer =
            world.ask(&format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}:80\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
    }
    assert_eq!(world.server.connections(), 0);
}
