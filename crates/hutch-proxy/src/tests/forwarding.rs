//! Requests and responses go through whole, whatever their shape.

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use hutch_policy::log::How;
use hutch_policy::policy::Decision;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{KEY, World, read_head, say, within};
use crate::exchange::{Body, empty, full};

fn get(path: &str) -> String {
    format!("GET http://plain.test{path} HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n")
}

#[tokio::test]
async fn an_absolute_request_reaches_its_server_in_origin_form() {
    let world = World::new("").await;
    let answer = world
        .ask(
            "POST http://plain.test/seen?q=1 HTTP/1.1\r\nHost: plain.test\r\nContent-Length: 4\r\n\
             Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nX-Own: \"a b\"\r\n\
             Connection: x-gone, close\r\nX-Gone: 1\r\n\r\nbody",
        )
        .await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("POST /seen?q=1 HTTP/1.1\n"), "{answer}");
    assert!(answer.contains("host: plain.test\n"), "{answer}");
    assert!(answer.contains("x-own: \"a b\"\n"), "{answer}");
    assert!(answer.contains("body: body\n"), "{answer}");
    for gone in ["proxy-", "x-gone", "via"] {
        assert!(!answer.contains(gone), "{gone} in {answer}");
    }
    let record = world.record(|record| record.method.is_some()).await;
    assert_eq!((record.how, record.decision), (How::Plain, Decision::Allowed));
    assert_eq!(record.url.as_deref(), Some("http://plain.test/seen?q=1"));
    assert_eq!((record.status, record.sent), (Some(200), 4));
    assert!(record.received > 50);
}

#[tokio::test]
async fn one_connection_carries_requests_to_several_hosts_and_each_is_judged() {
    let world = World::new(r#""blockedDomains":["blocked.test"]"#).await;
    let answer = world
        .ask(
            "GET http://plain.test/one HTTP/1.1\r\nHost: plain.test\r\n\r\n\
             GET http://blocked.test/two HTTP/1.1\r\nHost: blocked.test\r\n\r\n\
             GET http://other.test/three HTTP/1.1\r\nHost: other.test\r\n\r\n",
        )
        .await;
    let statuses: Vec<&str> = answer.lines().filter(|line| line.starts_with("HTTP/1.1")).collect();
    assert_eq!(statuses, ["HTTP/1.1 200 OK", "HTTP/1.1 403 Forbidden", "HTTP/1.1 200 OK"]);
    assert!(answer.contains("/one\n") && answer.contains("/three\n"), "{answer}");
    assert!(answer.contains("Blocked by network policy: domain blocked.test:80"), "{answer}");
    assert!(!answer.contains("/two"), "{answer}");
}

#[tokio::test]
async fn requests_to_one_place_share_a_connection() {
    let world = World::new("").await;
    for _ in 0..5 {
        assert!(world.ask(&get("/again")).await.contains("/again\n"));
    }
    assert_eq!(world.server.connections(), 1);
}

#[tokio::test]
async fn a_server_that_closes_after_each_response_is_connected_to_again() {
    let world = World::new("").await;
    for _ in 0..3 {
        assert!(world.ask(&get("/close")).await.contains("closed"));
    }
    assert_eq!(world.server.connections(), 3);
}

#[tokio::test]
async fn chunks_and_trailers_go_both_ways() {
    let world = World::new("").await;
    let answer = world
        .ask(
            "POST http://plain.test/seen HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\
             Trailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
             3;ext=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nX-Sum: 7\r\n\r\n",
        )
        .await;
    assert!(answer.contains("body: abc0123456789\n"), "{answer}");
    assert!(answer.contains(r#"trailers: {"x-sum": "7"}"#), "{answer}");

    let request = get("/trailers").replace("\r\n\r\n", "\r\nTE: trailers\r\n\r\n");
    let answer = world.ask(&request).await;
    assert!(answer.ends_with("4\r\ndata\r\n0\r\ngrpc-status: 0\r\n\r\n"), "{answer:?}");
}

#[tokio::test]
async fn a_waiting_client_is_told_to_go_on_only_when_its_body_is_wanted() {
    let world = World::new(r#""blockedDomains":["blocked.test"]"#).await;
    let mut stream = world.proxy().await;
    let head = "POST http://plain.test/seen HTTP/1.1\r\nHost: plain.test\r\nContent-Length: 2\r\n\
                Expect: 100-continue\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(read_head(&mut stream).await, "HTTP/1.1 100 Continue\r\n\r\n");
    let answer = say(stream, "ok").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("body: ok\n"), "{answer}");
    assert!(!answer.contains("expect"), "{answer}");

    let answer = world.ask(&head.replace("plain.test", "blocked.test")).await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let world = World::new("").await;
    let answer = world
        .ask(
            "HEAD http://plain.test/x HTTP/1.1\r\nHost: plain.test\r\n\r\n\
             GET http://plain.test/nothing HTTP/1.1\r\nHost: plain.test\r\n\r\n\
             GET http://plain.test/end HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n",
        )
        .await;
    let responses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).collect();
    assert_eq!(responses.len(), 3, "{answer}");
    assert!(responses[0].starts_with("200") && responses[0].contains("content-length: 3\r\n"));
    assert!(responses[0].ends_with("\r\n\r\n"), "{answer}");
    assert!(responses[1].starts_with("204") && !responses[1].contains("content-length"));
    assert!(responses[2].ends_with("\r\n\r\n/end\n"), "{answer}");
}

#[tokio::test]
async fn an_old_client_gets_a_body_that_ends_with_the_connection() {
    let world = World::new("").await;
    let answer = world.ask("GET http://plain.test/trailers HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains("connection: close\r\n") && !answer.contains("chunked"), "{answer}");
    assert!(answer.ends_with("\r\n\r\ndata"), "{answer:?}");
}

#[tokio::test]
async fn events_come_as_they_are_sent() {
    let world = World::new("").await;
    let mut stream = world.proxy().await;
    stream.write_all(get("/events").as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    let mut chunk = [0; 17];
    within(stream.read_exact(&mut chunk)).await.unwrap();
    assert_eq!(&chunk, b"d\r\ndata: first\n\n\r");
}

#[tokio::test]
async fn a_web_socket_goes_on_as_bytes() {
    let world = World::new("").await;
    let mut stream = world.proxy().await;
    let head = "GET http://plain.test/upgrade HTTP/1.1\r\nHost: plain.test\r\n\
                Connection: Upgrade\r\nUpgrade: websocket\r\n\r\nfour";
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("upgrade: websocket"), "{head}");
    let answer = say(stream, "more").await;
    assert_eq!(answer, "fourmore");
    let record = world.record(|record| record.status == Some(101)).await;
    assert_eq!(record.protocol.as_deref(), Some("websocket"));
    assert_eq!((record.sent, record.received), (8, 8));
}

#[tokio::test]
async fn much_goes_through_in_both_directions_at_once() {
    let world = World::new("").await;
    let stream = world.proxy().await;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let count = 3 << 20;
    let writing = tokio::spawn(async move {
        let head = format!(
            "POST http://plain.test/echo HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\
             Content-Length: {count}\r\n\r\n"
        );
        writer.write_all(head.as_bytes()).await.unwrap();
        writer.write_all(&vec![b'x'; count]).await.unwrap();
        writer
    });
    let head = read_head(&mut reader).await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let mut body = Vec::new();
    within(reader.read_to_end(&mut body)).await.unwrap();
    assert_eq!(body.iter().filter(|byte| **byte == b'x').count(), count);
    writing.await.unwrap();
}

async fn http2(world: &World, host: &str) -> hyper::client::conn::http2::SendRequest<Body> {
    let stream = world.tls(&format!("{host}:443"), host, &["h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

fn request(uri: &str, body: Body) -> Request<Body> {
    Request::post(uri).body(body).unwrap()
}

async fn text(response: http::Response<hyper::body::Incoming>) -> String {
    let bytes = within(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn http2_is_spoken_on_both_sides_with_many_requests_at_once() {
    let world = World::new("").await;
    let sender = http2(&world, "api.test").await;
    let mut tasks = Vec::new();
    for number in 0..50 {
        let mut sender = sender.clone();
        tasks.push(tokio::spawn(async move {
            let request = request("https://api.test/seen", full(format!("number {number}")));
            text(sender.send_request(request).await.unwrap()).await
        }));
    }
    for (number, task) in tasks.into_iter().enumerate() {
        let text = within(task).await.unwrap();
        assert!(text.contains("POST https://api.test/seen HTTP/2.0\n"), "{text}");
        assert!(text.contains(&format!("body: number {number}\n")), "{text}");
        assert!(text.contains(&format!("authorization: {KEY}\n")), "{text}");
    }
    let record = world.record(|record| record.credential.is_some()).await;
    assert_eq!((record.how, record.protocol.as_deref()), (How::Terminated, Some("h2")));
}

#[tokio::test]
async fn trailers_pass_over_http2() {
    let world = World::inspecting_all("").await;
    let mut sender = http2(&world, "tls.test").await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", http::HeaderValue::from_static("9"));
    let body = full("data").with_trailers(async move { Some(Ok(trailers)) }).boxed_unsync();
    let response = sender.send_request(request("https://tls.test/echo", body)).await.unwrap();
    let collected = within(response.into_body().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-checksum"], "9");
    assert_eq!(collected.to_bytes(), Bytes::from_static(b"data"));
}

#[tokio::test]
async fn an_http2_client_reaches_an_http1_server() {
    let world = World::inspecting_all("").await;
    let mut sender = http2(&world, "tls1.test").await;
    let response = sender.send_request(request("https://tls1.test/seen", full("x"))).await.unwrap();
    let text = text(response).await;
    assert!(text.contains("POST /seen HTTP/1.1\n"), "{text}");
    assert!(text.contains("host: tls1.test\n"), "{text}");
    let response =
        sender.send_request(request("https://tls1.test/nothing", empty())).await.unwrap();
    assert_eq!(response.status(), 204);
}

#[tokio::test]
async fn head_over_http2_has_a_length_and_no_body_whoever_answers() {
    let world = World::inspecting_all("").await;
    // Servers of both versions (the one of HTTP/2 sends a body, which it must not), and the proxy itself.
    for (host, uri, status) in [
        ("tls.test", "https://tls.test/x", 200),
        ("tls1.test", "https://tls1.test/x", 200),
        ("tls.test", "https://other.test/x", 421),
    ] {
        let mut sender = http2(&world, host).await;
        let head = Request::head(uri).body(empty()).unwrap();
        let response = within(sender.send_request(head)).await.unwrap();
        assert_eq!(response.status(), status, "{uri}");
        let length = response.headers().get("content-length").cloned();
        assert_eq!(text(response).await, "", "{uri}");
        if status == 200 {
            assert_eq!(length.unwrap(), "3", "{uri}");
        } else {
            assert_ne!(length.unwrap(), "0", "{uri}");
        }
        // The connection is still good.
        let host = format!("https://{host}/y");
        let get = Request::get(host).body(empty()).unwrap();
        assert_eq!(text(within(sender.send_request(get)).await.unwrap()).await, "/y\n");
    }
}

#[tokio::test]
async fn a_part_of_a_file_passes_over_http2() {
    let world = World::inspecting_all("").await;
    let mut sender = http2(&world, "tls.test").await;
    let part = Request::get("https://tls.test/seen").header("range", "bytes=0-3").body(empty());
    let seen = text(within(sender.send_request(part.unwrap())).await.unwrap()).await;
    assert!(seen.contains("range: bytes=0-3\n"), "{seen}");
}

#[tokio::test]
async fn cookies_in_several_fields_are_one_for_an_http1_server() {
    let world = World::inspecting_all("").await;
    for (host, expected) in
        [("tls1.test", "cookie: a=1; b=2\n"), ("tls.test", "cookie: a=1\ncookie: b=2\n")]
    {
        let mut sender = http2(&world, host).await;
        let request = Request::get(format!("https://{host}/seen"))
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(empty())
            .unwrap();
        let seen = text(within(sender.send_request(request)).await.unwrap()).await;
        assert!(seen.contains(expected), "{seen}");
    }
}
