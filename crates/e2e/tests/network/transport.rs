//! What is carried, unchanged and without being held back.

use std::time::Duration;

use hutch_testkit::TestSandbox;

use crate::credentials::{key, with_keys};

/// Speaks HTTP in bytes: WebSocket, trailers, `Expect`, events, many connections. Prints `ok` at its end.
const SPEAKS: &str = include_str!("speaks.py");

/// Runs a script and gives what it printed.
#[track_caller]
fn shell(sandbox: &TestSandbox<'_>, script: &str) -> String {
    sandbox.shell(script).limit(Duration::from_secs(180)).run().success().text()
}

#[test]
fn every_kind_of_http_passes() {
    let environment = with_keys();
    let sandbox = environment.boot("kinds");
    let version = |options: &str, url: &str| {
        let format = "'%{http_version} %{http_code}'";
        shell(&sandbox, &format!("curl -s -o /dev/null -w {format} {options} {url}"))
    };
    assert_eq!(version("", "https://public.test/"), "2 200");
    assert_eq!(version("--http1.1", "https://public.test/"), "1.1 200");
    assert_eq!(version("", "https://api.openai.com/"), "2 200");
    assert_eq!(version("--http1.1", "https://api.openai.com/"), "1.1 200");
    assert_eq!(version("--noproxy '*'", "https://api.openai.com/"), "2 200");
    let report = environment.internet().report();
    let request = report.of("api.openai.com")[0];
    assert_eq!(request.values("authorization"), [format!("Bearer {}", key("OPENAI_API_KEY"))]);

    for host in ["http://public.test", "https://tunnel.test", "https://api.openai.com"] {
        // Sizes that no buffer holds, both ways, with `Expect: 100-continue`, chunked, and by HTTP/2.
        for options in [
            "--http1.1",
            "--http2",
            "--http1.1 -H Transfer-Encoding:chunked",
            "--http1.1 --noproxy '*'",
        ] {
            if options == "--http2" && host.starts_with("http://") {
                // There curl asks for an upgrade to HTTP/2 in the clear, which is refused.
                continue;
            }
            let script = format!(
                "head -c 12345678 /dev/urandom > /tmp/up; \
                 curl -sf -X POST {options} -H 'Expect: 100-continue' --data-binary @/tmp/up {host}/echo | cmp - /tmp/up && echo same"
            );
            assert_eq!(shell(&sandbox, &script), "same", "{host} {options}");
        }
        // 300 requests over few connections, 30 at a time.
        let script = format!(
            "curl -s --parallel --parallel-max 30 -o /dev/null -w '%{{http_code}}\\n' '{host}/bytes/[1000-1299]' | sort | uniq -c | tr -s ' '"
        );
        assert_eq!(shell(&sandbox, &script).trim(), "300 200", "{host}");
    }
}

#[test]
fn streams_upgrades_and_trailers_pass() {
    let environment = with_keys();
    let sandbox = environment.boot("streams");
    let run =
        sandbox.exec(["python3", "-c", SPEAKS]).limit(Duration::from_secs(180)).run().success();
    assert!(run.text().ends_with("ok"), "{run:?}");
}
