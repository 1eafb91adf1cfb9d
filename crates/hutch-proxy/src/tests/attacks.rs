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
    assert_eq!(records.len(), 30);
    assert!(records.iter().all(|record| record.rule == "<malformed request>"), "{records:?}");
}

#[tokio::test]
async fn requests_are_not_hidden_behind_an_upgrade_to_h2c() {
    let world = World::new("").await;
    let answer = world
        .ask(
            "GET http://plain.test/seen HTTP/1.1\r\nHost: plain.test\r\n\
             Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n\
             PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0",
        )
        .await;
    let (first, second) = answer.split_once("HTTP/1.1 505").expect("the preface is refused");
    assert!(first.starts_with("HTTP/1.1 200"), "{answer}");
    let first = first.to_ascii_lowercase();
    assert!(!first.contains("upgrade") && !first.contains("settings"), "{answer}");
    assert!(second.contains("connection: close"), "{answer}");
    assert_eq!(world.record(|record| record.rule == "<malformed request>").await.status, Some(505));
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
async fn a_second_client_hello_in_a_tunnel_names_the_same_server() {
    use crate::retried::tests::{client_hello, record};
    let world = World::new("").await;
    let hello = |name| record(22, &client_hello(name));
    for (second, passes) in [("echo.test", true), ("blocked.test", false)] {
        let mut stream = world.tunnel("echo.test:443").await;
        let both = [hello("echo.test"), record(20, &[1]), hello(second)].concat();
        // In one piece, so that the server has not answered in between.
        stream.write_all(&both).await.unwrap();
        let mut back = vec![0; both.len()];
        let answer = within(stream.read_exact(&mut back)).await;
        assert_eq!(answer.is_ok(), passes, "{second}");
    }
    let record = world.record(|record| record.decision == Decision::Denied).await;
    assert_eq!((record.rule.as_str(), record.received), ("<server name mismatch>", 0));
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

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const CONTINUATION: u8 = 9;
/// The end of the stream, and of its fields.
const END: u8 = 1 | 4;

/// Fields, none of them indexed or compressed (RFC 7541, 6.2.2).
fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in all {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

async fn raw_http2(world: &World) -> tokio_rustls::client::TlsStream<hutch_wire::Stream> {
    let mut stream = world.tls("tls.test:443", "tls.test", &["h2"]).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    stream
}

/// The first frame that ends something or answers: its kind, and what is in it.
async fn answered(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> (u8, Vec<u8>) {
    within(async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return (GO_AWAY, Vec::new());
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut payload).await.unwrap();
            if [HEADERS, RESET, GO_AWAY].contains(&head[3]) {
                return (head[3], payload);
            }
        }
    })
    .await
}

#[tokio::test]
async fn requests_of_http2_that_are_none_in_http1_reach_nobody() {
    let world = World::inspecting_all("").await;
    let get = |path: &'static str| {
        vec![(":method", "GET"), (":scheme", "https"), (":authority", "tls.test"), (":path", path)]
    };
    let with = |name, value| [get("/x"), vec![(name, value)]].concat();
    for request in [
        get("http://blocked.test/x"),
        get("blocked.test/x"),
        get("@blocked.test/x"),
        get("?x"),
        get("*"),
        get(""),
        get("/a b"),
        get("/\u{e9}"),
        get("/x HTTP/1.1\r\nHost: blocked.test\r\n\r\n"),
        with(":path", "/y"),
        with(":authority", "blocked.test"),
        with("x\r\nhost", "blocked.test"),
        with("x", "a\r\nhost: blocked.test"),
        with("X-Upper", "a"),
        with("x y", "a"),
        with("connection", "close"),
        with("transfer-encoding", "chunked"),
        with("upgrade", "websocket"),
        with("te", "gzip"),
        with("host", "blocked.test"),
        with("content-length", "5"),
        with(":protocol", "websocket"),
        vec![(":method", "GET"), (":scheme", "https"), (":path", "/x")],
        vec![(":method", "CONNECT"), (":authority", "blocked.test:443")],
        vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":authority", "tls.test"),
            (":path", "/x"),
        ],
    ] {
        let mut stream = raw_http2(&world).await;
        stream.write_all(&frame(HEADERS, END, 1, &fields(&request))).await.unwrap();
        let (kind, payload) = answered(&mut stream).await;
        // 400, 405 and 421 have no place of their own in the static table; 200 has, and 400 too.
        let fine = payload.first() == Some(&0x88);
        assert!(kind != HEADERS || !fine, "{request:?} was answered {kind} {payload:?}");
        assert_eq!(world.server.connections(), 0, "{request:?}");
    }
    let mut stream = raw_http2(&world).await;
    stream.write_all(&frame(HEADERS, END, 1, &fields(&get("/x")))).await.unwrap();
    let (kind, payload) = answered(&mut stream).await;
    assert_eq!((kind, payload.first()), (HEADERS, Some(&0x88)), "{payload:?}");
}

#[tokio::test]
async fn a_head_of_http2_that_never_ends_holds_little() {
    let world = World::inspecting_all("").await;
    let mut stream = raw_http2(&world).await;
    let begin = fields(&[(":method", "GET"), (":scheme", "https"), (":path", "/x")]);
    stream.write_all(&frame(HEADERS, 0, 1, &begin)).await.unwrap();
    let more: Vec<u8> = (0..80).flat_map(|_| fields(&[("x-filler", &"y".repeat(120))])).collect();
    let more = frame(CONTINUATION, 0, 1, &more);
    let mut written = 0;
    let ended = within(async {
        while written < 16 << 20 {
            let sent = async {
                stream.write_all(&more).await?;
                stream.flush().await
            };
            if sent.await.is_err() {
                return true;
            }
            written += more.len();
        }
        false
    })
    .await;
    assert!(ended && written < 2 << 20, "{written}");
    assert_eq!(world.server.connections(), 0);
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_do_not_keep_others_out() {
    let world = World::inspecting_all("").await;
    let mut stream = raw_http2(&world).await;
    let get = fields(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "tls.test"),
        (":path", "/events"),
    ]);
    for number in 0..5000 {
        let id = number * 2 + 1;
        let both = [frame(HEADERS, END, id, &get), frame(RESET, 0, id, &[0, 0, 0, 8])].concat();
        // The connection may be ended at any time.
        if within(stream.write_all(&both)).await.is_err() {
            break;
        }
    }
    let mut other = raw_http2(&world).await;
    let get = fields(&[
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "tls.test"),
        (":path", "/x"),
    ]);
    other.write_all(&frame(HEADERS, END, 1, &get)).await.unwrap();
    let (kind, payload) = answered(&mut other).await;
    assert_eq!((kind, payload.first()), (HEADERS, Some(&0x88)), "{payload:?}");
    assert!(world.server.connections() < 200, "{}", world.server.connections());
}
