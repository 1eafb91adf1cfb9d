//! V10: the proxy is the only way out, and whatever else is tried fails at once.

use std::time::Duration;

use hutch_testkit::{TestEnvironment, TestSandbox};

/// What a program with every right in the sandbox may try. Prints a line for each way: `NAME SECONDS OUTCOME`.
const TRIES: &str = include_str!("tries.py");

/// A network namespace behind a pair of devices, as a container runtime makes one.
const CONTAINER: &str = "set -e
ip netns add inner
ip link add outer type veth peer name eth0 netns inner
ip address add 172.31.77.1/24 dev outer
ip link set outer up
ip -n inner address add 172.31.77.2/24 dev eth0
ip -n inner link set lo up
ip -n inner link set eth0 up
ip -n inner route add default via 172.31.77.1
sysctl -qw net.ipv4.ip_forward=1
";

#[test]
fn there_is_no_other_way_out() {
    let environment = TestEnvironment::with_internet();
    let (sandbox, neighbour) = (environment.boot("alone"), environment.boot("neighbour"));
    neighbour.exec_with(["-d"], ["python3", "-m", "http.server", "9999"]).run().success();
    sandbox.exec(["curl", "-sf", "http://public.test/"]).run().success();
    sandbox.exec(["curl", "-sf", "--noproxy", "*", "https://public.test/"]).run().success();
    environment.internet().forget();
    every_try_fails(&sandbox, &[]);

    privileged(&sandbox, &["sh", "-c", CONTAINER]);
    let inner = ["ip", "netns", "exec", "inner"];
    let fetch = "curl -sf http://public.test/ && curl -sf --noproxy '*' https://public.test/";
    let fetched = privileged(&sandbox, &[&inner[..], &["sh", "-c", fetch]].concat());
    assert_eq!(fetched, "hello from public.test\nhello from public.test");
    environment.internet().forget();
    every_try_fails(&sandbox, &inner);

    let report = environment.internet().report();
    assert!(report.connections.is_empty() && report.raw.is_empty(), "{report:#?}");
    // Names are not asked for outside before something connects to them: no data leaves in them.
    let told: Vec<_> = report.queries.iter().filter(|name| name.contains("smuggled")).collect();
    assert!(told.is_empty(), "{told:?}");
}

#[track_caller]
fn every_try_fails(sandbox: &TestSandbox<'_>, before: &[&str]) {
    let tried = privileged(sandbox, &[before, &["python3", "-c", TRIES]].concat());
    let lines: Vec<&str> = tried.lines().collect();
    assert!(lines.len() >= 30, "{tried}");
    for line in lines {
        let mut fields = line.splitn(3, ' ');
        let (_, seconds, outcome) = (fields.next(), fields.next(), fields.next());
        let seconds: f64 = seconds.and_then(|seconds| seconds.parse().ok()).expect("seconds");
        assert!(outcome.is_some_and(|outcome| outcome.starts_with("failed")), "{line}");
        // In a container the link is the container's own, and what nobody there takes is lost without a word.
        let own_link = !before.is_empty() && line.starts_with("link-");
        let waited = outcome.is_some_and(|outcome| outcome.contains("timed out"));
        assert!(seconds < 8.0 && (own_link || !waited), "it hung: {line}");
    }
}

#[track_caller]
fn privileged(sandbox: &TestSandbox<'_>, words: &[&str]) -> String {
    let run = sandbox.exec_with(["--privileged", "-u", "root"], words);
    run.limit(Duration::from_secs(240)).run().success().text()
}
