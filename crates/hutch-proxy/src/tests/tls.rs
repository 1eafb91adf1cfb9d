//! Tunnels, termination, and the certificates of both sides.

use hutch_policy::log::How;
use hutch_policy::policy::Decision;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::client::TlsStream;

use super::world::{KEY, World, read_head, say, within};

/// Whether the server's certificate is one of the sandbox's CA.
fn is_terminated(world: &World, stream: &TlsStream<hutch_wire::Stream>) -> bool {
    let state = world.gate.state();
    let ca = CertificateDer::from_pem_slice(state.ca.pem().as_bytes()).unwrap();
    stream.get_ref().1.peer_certificates().unwrap().contains(&ca)
}

async fn ask(stream: &mut TlsStream<hutch_wire::Stream>, host: &str, path: &str) -> String {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within(stream.read_to_end(&mut answer)).await.ok();
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn tls_to_a_host_without_a_service_is_tunnelled() {
    let world = World::new("").await;
    let mut stream = world.tls("tls1.test:443", "tls1.test", &[]).await.unwrap();
    assert!(!is_terminated(&world, &stream));
    assert!(ask(&mut stream, "tls1.test", "/x").await.ends_with("/x\n"));
    drop(stream);
    let record = world.record(|record| record.how == How::Tunnel).await;
    assert_eq!(record.place(), "tls1.test:443");
    assert_eq!(record.decision, Decision::Allowed);
    assert!(record.url.is_none() && record.sent > 200 && record.received > 200);
}

#[tokio::test]
async fn tls_to_a_host_with_a_service_is_terminated_and_given_the_credential() {
    let world = World::new("").await;
    let mut stream = world.tls("api.test:443", "api.test", &["http/1.1"]).await.unwrap();
    assert!(is_terminated(&world, &stream));
    let answer = ask(&mut stream, "api.test", "/seen").await;
    assert!(answer.contains(&format!("authorization: {KEY}\n")), "{answer}");
    assert!(answer.contains("x-scrubbed: yes\r\n"), "{answer}");
    let record = world.record(|record| record.how == How::Terminated).await;
    assert_eq!(record.credential.as_deref(), Some("api"));
    assert_eq!(record.url.as_deref(), Some("https://api.test/seen"));
}

#[tokio::test]
async fn a_captured_connection_is_treated_as_one_through_the_proxy() {
    let world = World::new("").await;
    let stream = world.captured("api.test", 443).await;
    let mut stream = world.handshake(stream, "api.test", &[]).await.unwrap();
    assert!(ask(&mut stream, "api.test", "/seen").await.contains(KEY));
    let stream = world.captured("tls1.test", 443).await;
    let mut stream = world.handshake(stream, "tls1.test", &[]).await.unwrap();
    assert!(!is_terminated(&world, &stream));
    assert!(ask(&mut stream, "tls1.test", "/y").await.ends_with("/y\n"));
    let answer = say(
        world.captured("plain.test", 80).await,
        "GET /z HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.ends_with("/z\n"), "{answer}");
}

#[tokio::test]
async fn inspecting_all_terminates_every_host_that_no_rule_bypasses() {
    let world = World::inspecting_all(r#""bypassDomains":["tls1.test"]"#).await;
    let stream = world.tls("tls.test:443", "tls.test", &["http/1.1"]).await.unwrap();
    assert!(is_terminated(&world, &stream));
    let mut stream = world.tls("tls1.test:443", "tls1.test", &[]).await.unwrap();
    assert!(!is_terminated(&world, &stream));
    assert!(ask(&mut stream, "tls1.test", "/x").await.ends_with("/x\n"));
    drop(stream);
    let record = world.record(|record| record.how == How::Bypass).await;
    assert_eq!(record.place(), "tls1.test:443");
}

#[tokio::test]
async fn a_bypassed_host_is_given_no_credential() {
    let world = World::new(r#""bypassDomains":["api.test"]"#).await;
    let mut stream = world.tls("api.test:443", "api.test", &[]).await.unwrap();
    assert!(!is_terminated(&world, &stream));
    assert!(!ask(&mut stream, "api.test", "/seen").await.contains("authorization"));
}

#[tokio::test]
async fn a_bypassed_connection_may_speak_anything_even_with_the_server_first_to_end() {
    let world = World::new(r#""bypassDomains":["echo.test"]"#).await;
    let mut stream = world.tunnel("echo.test:22").await;
    stream.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    let mut answer = [0; 11];
    within(stream.read_exact(&mut answer)).await.unwrap();
    // The end of one direction goes on as that: the answer to what came before it still arrives.
    assert_eq!(say(stream, "last words").await, "last words");
    let record = world.record(|record| record.how == How::Bypass).await;
    assert_eq!((record.sent, record.received), (21, 21));
    assert_eq!(record.error, None);
}

#[tokio::test]
async fn the_certificate_is_for_the_host_alone_and_reaches_back() {
    let world = World::new("").await;
    let error = world.tls("api.test:443", "api.test", &[]).await;
    assert!(error.is_ok());
    let ca = world.gate.state().ca.pem().to_owned();
    assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"));
}

#[tokio::test]
async fn a_server_that_cannot_prove_its_name_is_a_bad_gateway_with_one_sentence() {
    let world = World::inspecting_all("").await;
    // The plain server does not speak TLS at all.
    let mut stream = world.tls("plain.test:443", "plain.test", &["http/1.1"]).await.unwrap();
    let answer = ask(&mut stream, "plain.test", "/x").await;
    assert!(answer.starts_with("HTTP/1.1 502 Bad Gateway\r\n"), "{answer}");
    assert!(answer.contains("TLS with plain.test failed: "), "{answer}");
    let record = world.record(|record| record.status == Some(502)).await;
    assert!(record.error.unwrap().starts_with("TLS with plain.test failed"));
}

#[tokio::test]
async fn sessions_are_resumed_upstream_and_connections_kept() {
    let world = World::inspecting_all("").await;
    for _ in 0..4 {
        let mut stream = world.tls("tls1.test:443", "tls1.test", &["http/1.1"]).await.unwrap();
        assert!(ask(&mut stream, "tls1.test", "/x").await.ends_with("/x\n"));
    }
    assert_eq!(world.server.connections(), 1);
}

#[tokio::test]
async fn a_web_socket_to_an_http2_server_is_asked_for_in_http1() {
    let world = World::inspecting_all("").await;
    let mut stream = world.tls("tls.test:443", "tls.test", &["http/1.1"]).await.unwrap();
    let head = "GET /upgrade HTTP/1.1\r\nHost: tls.test\r\nConnection: upgrade\r\n\
                Upgrade: websocket\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    within(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"ping");
}

#[tokio::test]
async fn http2_is_not_offered_where_it_would_hold_too_much() {
    let world = World::inspecting_all("").await;
    let both = ["h2", "http/1.1"];
    let stream = world.tls("tls.test:443", "tls.test", &both).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let slots = world.gate.http2.available_permits();
    let taken = world.gate.http2.try_acquire_many(u32::try_from(slots).unwrap()).unwrap();
    let mut stream = world.tls("tls.test:443", "tls.test", &both).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert!(ask(&mut stream, "tls.test", "/x").await.ends_with("/x\n"));
    drop(taken);
}
