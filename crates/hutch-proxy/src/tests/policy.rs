//! Refusals, and what a change of the policy does to what there is.

use std::time::{Duration, Instant};

use hutch_policy::log::How;
use hutch_policy::policy::Decision;
use hutch_policy::settings::Inspect;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::world::{World, policy, read_head, say, within};
use crate::control::PolicyState;

const BLOCKED: &str = r#""blockedDomains":["blocked.test"]"#;

#[tokio::test]
async fn a_blocked_host_is_refused_with_403_and_no_dial() {
    let world = World::new(BLOCKED).await;
    let head = "CONNECT blocked.test:443 HTTP/1.1\r\nHost: blocked.test:443\r\n\r\n";
    let answer = world.ask(head).await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    assert!(answer.contains("Blocked by network policy: domain blocked.test:443"), "{answer}");
    let head = "GET http://blocked.test/ HTTP/1.1\r\nHost: blocked.test\r\n\
                Accept: application/json\r\n\r\n";
    let answer = world.ask(head).await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    assert!(answer.contains("\"error\":\"blocked_by_network_policy\""), "{answer}");
    assert_eq!(world.server.connections(), 0);
    let records = world.records();
    assert!(records.iter().all(|record| record.decision == Decision::Denied), "{records:?}");
    assert!(records.iter().all(|record| record.rule == "blocked.test"), "{records:?}");
    assert_eq!(records.len(), 2);
}

#[tokio::test]
async fn a_captured_client_of_a_blocked_host_is_told_if_it_speaks_http_and_reset_if_not() {
    let world = World::new(BLOCKED).await;
    let stream = world.captured("blocked.test", 80).await;
    let answer = say(stream, "GET / HTTP/1.1\r\nHost: blocked.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    let stream = world.captured("blocked.test", 443).await;
    assert!(world.handshake(stream, "blocked.test", &[]).await.is_err());
    // A client that waits for the server is not kept waiting.
    let mut stream = world.captured("blocked.test", 25).await;
    let error = within(stream.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(world.server.connections(), 0);
}

#[tokio::test]
async fn loopback_is_refused_by_name_and_by_address_unless_a_rule_allows_it() {
    let world = World::new("").await;
    let port = world.server.plain.port();
    for host in ["localhost", "host.docker.internal", "gateway.docker.internal", "127.0.0.1"] {
        let request = format!("GET http://{host}:{port}/x HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n");
        let answer = world.ask(&request).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{host}: {answer}");
    }
    assert_eq!(world.server.connections(), 0);
    let rule = format!(r#""allowedDomains":["localhost:{port}"]"#);
    world.gate.configure(&policy(&rule)).unwrap();
    for host in ["localhost", "host.docker.internal", "gateway.docker.internal"] {
        let request = format!(
            "GET http://{host}:{port}/seen HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
        );
        let answer = world.ask(&request).await;
        assert!(answer.contains(&format!("host: localhost:{port}\n")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn the_proxy_is_not_reached_through_itself() {
    let world = World::new(r#""allowedDomains":["*"]"#).await;
    for request in [
        "CONNECT host.docker.internal:3128 HTTP/1.1\r\nHost: host.docker.internal:3128\r\n\r\n",
        "GET http://gateway.docker.internal:3128/ HTTP/1.1\r\nHost: gateway.docker.internal:3128\r\n\r\n",
    ] {
        let answer = world.ask(request).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
        assert!(answer.contains("<proxy loop>"), "{answer}");
    }
    // Captured, the same place is the explicit proxy.
    let stream = world.captured("host.docker.internal", 3128).await;
    let request =
        "GET http://plain.test/x HTTP/1.1\r\nHost: plain.test\r\nConnection: close\r\n\r\n";
    assert!(say(stream, request).await.ends_with("/x\n"));
}

#[tokio::test]
async fn a_change_cuts_what_no_longer_passes_and_nothing_else() {
    let world = World::new(r#""bypassDomains":["echo.test"]"#).await;
    let mut tunnel = world.tunnel("echo.test:22").await;
    tunnel.write_all(b"a").await.unwrap();
    within(tunnel.read_u8()).await.unwrap();
    let mut events = Vec::new();
    for host in ["plain.test", "other.test"] {
        let mut stream = world.proxy().await;
        let head = format!("GET http://{host}/events HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        read_head(&mut stream).await;
        let mut event = [0; 18];
        within(stream.read_exact(&mut event)).await.unwrap();
        events.push(stream);
    }
    let blocked = r#""bypassDomains":["echo.test"],"blockedDomains":["echo.test","plain.test"]"#;
    let begun = Instant::now();
    let (_, cut) = world.gate.configure(&policy(blocked)).unwrap();
    assert_eq!(cut, 2);
    assert!(within(tunnel.read_u8()).await.is_err());
    assert!(within(events[0].read_u8()).await.is_err());
    // The bar is 10 ms; a machine that tests everything at once is given more.
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    let untouched = tokio::time::timeout(Duration::from_millis(50), events[1].read_u8()).await;
    assert!(untouched.is_err(), "{untouched:?}");
    let record = world.record(|record| record.how == How::Bypass).await;
    assert!(record.error.unwrap().contains("policy was changed"));
}

#[tokio::test]
async fn a_tunnel_is_cut_when_it_is_no_longer_bypassed() {
    let world = World::new(r#""bypassDomains":["echo.test"]"#).await;
    let mut tunnel = world.tunnel("echo.test:22").await;
    tunnel.write_all(b"a").await.unwrap();
    within(tunnel.read_u8()).await.unwrap();
    assert_eq!(world.gate.configure(&policy("")).unwrap().1, 1);
    assert!(within(tunnel.read_u8()).await.is_err());
}

#[tokio::test]
async fn a_waiting_connection_is_not_used_under_a_policy_that_refuses_it() {
    let world = World::new("").await;
    let request = "GET http://plain.test/x HTTP/1.1\r\nHost: plain.test\r\n\r\n";
    assert!(world.ask(request).await.starts_with("HTTP/1.1 200"));
    world.gate.configure(&policy(r#""blockedDomains":["plain.test"]"#)).unwrap();
    assert!(world.ask(request).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn a_policy_that_cannot_be_read_changes_nothing() {
    let world = World::new(BLOCKED).await;
    let broken = PolicyState { proxy_config: "{".to_owned(), inspect: Inspect::All };
    assert!(world.gate.configure(&broken).is_err());
    let request = "GET http://blocked.test/x HTTP/1.1\r\nHost: blocked.test\r\n\r\n";
    assert!(world.ask(request).await.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn a_wider_inspection_makes_another_certificate_of_the_same_key() {
    let world = World::new("").await;
    let before = world.gate.state().ca.pem().to_owned();
    let same = world.gate.configure(&policy("")).unwrap().0;
    assert_eq!(same, before);
    let all = PolicyState { inspect: Inspect::All, ..policy("") };
    let after = world.gate.configure(&all).unwrap().0;
    assert_ne!(after, before);
    // Trusted with the new certificate; with the old one, the name is outside.
    world.tls("tls.test:443", "tls.test", &[]).await.unwrap();
}

#[tokio::test]
async fn an_unreachable_server_is_a_bad_gateway() {
    let world = World::new(r#""allowedDomains":["localhost"]"#).await;
    let answer = world.ask("CONNECT localhost:1 HTTP/1.1\r\nHost: localhost:1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("localhost:1 cannot be reached: it refuses connections"), "{answer}");
    let answer =
        world.ask("GET http://nowhere.invalid/ HTTP/1.1\r\nHost: nowhere.invalid\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.contains("the name nowhere.invalid cannot be resolved"), "{answer}");
}
