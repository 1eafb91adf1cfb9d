//! What may leave: rows N1 to N8 and N10 of the reference's checklist.

use std::fs;
use std::time::Duration;

use hutch_testkit::internet::{PRIVATE, SERVER};
use hutch_testkit::{TestEnvironment, TestSandbox, eventually};
use serde_json::{Value, json};

use crate::guest::{expect, fetch, proxy};

/// How curl ignores the proxy's variables.
const CAPTURED: &[&str] = &["--noproxy", "*"];

const DEFAULT_RANGES: [&str; 8] = [
    "10.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// No server at a private address has seen a connection.
#[track_caller]
fn nothing_private(environment: &TestEnvironment) {
    let private = |server: &str| {
        let address = server.rsplit_once(':').map_or(server, |(address, _)| address);
        PRIVATE.contains(&address.trim_matches(['[', ']']))
    };
    let report = environment.internet().report();
    let reached: Vec<_> =
        report.connections.iter().filter(|connection| private(&connection.server)).collect();
    assert!(reached.is_empty(), "private servers were reached: {reached:#?}");
}

/// The policy file of a sandbox.
#[track_caller]
fn policy_file(sandbox: &TestSandbox<'_>) -> Value {
    let path = sandbox.directory().join("proxy-config.json");
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[track_caller]
fn list(config: &Value, key: &str) -> Vec<String> {
    let list = config["network"][key].as_array().unwrap_or_else(|| panic!("{key} in {config}"));
    list.iter().map(|entry| entry.as_str().unwrap_or_default().to_owned()).collect()
}

/// N1: everything but private networks and this machine, however it is named and on both ways out.
#[test]
fn by_default_everything_is_open_but_private_networks() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("default");
    let open = [
        "http://public.test/",
        "https://public.test/",
        "https://public.test:8443/",
        "http://public.test:8080/",
        "https://v6.test/",
        "http://203.0.113.10/",
    ];
    let private = [
        "http://10.0.0.5/",
        "http://172.16.0.5/",
        "http://192.168.1.5/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00::5]/",
        "http://private.test/",
        "https://private.test/",
        "http://loop.test:8080/",
        "http://metadata.test/",
        "http://unique.test/",
        "http://mapped.test/",
        "http://nat64.test/",
        "http://sixtofour.test/",
        "http://zero.test:8080/",
        "http://mixed.test/",
        "http://metadata.google.internal/",
        "http://host.docker.internal:8080/",
    ];
    for options in [&[][..], CAPTURED] {
        expect(&environment, &sandbox, options, &open, &private);
    }
    nothing_private(&environment);
    let config = policy_file(&sandbox);
    assert_eq!(config["policy"]["default"], "allow");
    assert_eq!(list(&config, "blockedCIDRs"), DEFAULT_RANGES);
}

/// N2 and the ranges of N7.
#[test]
fn ranges_are_added_to_the_default_ones_and_taken_away() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("ranges");
    proxy(&environment, &sandbox, &["--policy", "allow", "--block-cidr", "10.0.0.0/8"]);
    expect(&environment, &sandbox, &[], &["http://public.test/"], &["http://10.0.0.5/"]);
    assert_eq!(list(&policy_file(&sandbox), "blockedCIDRs"), DEFAULT_RANGES);

    proxy(&environment, &sandbox, &["--block-cidr", "203.0.113.0/24"]);
    let both = ["http://public.test/", "https://public.test/", "http://203.0.113.10/"];
    expect(
        &environment,
        &sandbox,
        &[],
        &["http://v6.test/"],
        &[&both[..], &["http://10.0.0.5/"]].concat(),
    );
    expect(&environment, &sandbox, CAPTURED, &["http://v6.test/"], &both);
    let mut ranges: Vec<String> = DEFAULT_RANGES.map(str::to_owned).into();
    ranges.push("203.0.113.0/24".to_owned());
    assert_eq!(list(&policy_file(&sandbox), "blockedCIDRs"), ranges);

    // A host that is allowed by name is not asked for its address.
    proxy(&environment, &sandbox, &["--allow-host", "public.test"]);
    expect(&environment, &sandbox, &[], &both[..2], &["http://other.test/"]);

    proxy(
        &environment,
        &sandbox,
        &["--allow-cidr", "203.0.113.0/24", "--allow-cidr", "10.0.0.0/8"],
    );
    expect(
        &environment,
        &sandbox,
        &[],
        &["http://other.test/", "http://10.0.0.5/"],
        &["http://172.16.0.5/"],
    );
}

/// N3, N4 and N5: only what is allowed, at once, for one sandbox, and again after a restart.
#[test]
fn deny_means_only_what_is_allowed_at_once_and_for_good() {
    let environment = TestEnvironment::with_internet();
    let (sandbox, other) = (environment.boot("strict"), environment.boot("free"));
    let allowed = ["https://api.anthropic.com/", "https://any.npmjs.org/", "http://a.b.npmjs.org/"];
    let denied = [
        "http://npmjs.org/",
        "https://evilnpmjs.org/",
        "https://anthropic.com/",
        "https://www.anthropic.com/",
        "https://platform.claude.com/",
        "https://github.com/",
        "http://public.test/",
        "http://203.0.113.10/",
    ];
    expect(&environment, &sandbox, &[], &["http://public.test/"], &[]);
    let words =
        ["--policy", "deny", "--allow-host", "api.anthropic.com", "--allow-host", "*.npmjs.org"];
    proxy(&environment, &sandbox, &words);
    for options in [&[][..], CAPTURED] {
        expect(&environment, &sandbox, options, &allowed, &denied);
    }
    expect(&environment, &other, &[], &["http://public.test/", "https://github.com/"], &[]);
    assert_eq!(policy_file(&sandbox)["policy"]["default"], "deny");
    assert_eq!(policy_file(&other)["policy"]["default"], "allow");

    sandbox.stop();
    sandbox.start();
    expect(&environment, &sandbox, &[], &allowed, &denied);
}

/// N4: what is forbidden from now on is cut, on every kind of connection; what is not goes on.
#[test]
fn live_connections_are_cut_when_they_no_longer_pass() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("cut");
    let streams = [
        ("http://plain.test/forever", "plain.test", &[][..]),
        ("https://tunnel.test/forever", "tunnel.test", &[]),
        ("https://captured.test/forever", "captured.test", CAPTURED),
        ("https://api.openai.com/forever", "api.openai.com", &[]),
    ];
    let running: Vec<_> = streams
        .iter()
        .chain([&("https://kept.test/forever", "kept.test", &[][..])])
        .map(|(url, _, options)| {
            let curl = sandbox.exec(["curl", "--silent", "--show-error", "--no-buffer", url]);
            curl.args(options.iter()).start()
        })
        .collect();
    eventually("all streams flow", Duration::from_secs(60), || {
        (environment.internet().report().requests.len() == 5).then_some(())
    });
    for (_, host, _) in streams {
        proxy(&environment, &sandbox, &["--block-host", host]);
    }
    let mut running = running.into_iter();
    for (stream, (url, ..)) in running.by_ref().take(4).zip(streams) {
        let ended = stream.wait(Duration::from_secs(20)).failure();
        assert!(ended.text().contains("piece"), "{url} had flowed: {ended:?}");
    }
    let kept = running.next().expect("it is the fifth");
    kept.signal(rustix::process::Signal::TERM);
    let ended = kept.wait(Duration::from_secs(20));
    assert!(ended.talk().is_empty(), "it was not cut: {ended:?}");
}

/// N6: every row of the table of patterns, and of their order, as `network check` tells it and as it is.
#[test]
fn the_most_specific_pattern_decides() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("patterns");
    let check = |host: &str| {
        let answer =
            environment.hutch(["network", "check", "--json", sandbox.name(), host]).run().json();
        (
            answer["allowed"].as_bool().expect("allowed"),
            answer["rule"].as_str().expect("rule").to_owned(),
        )
    };
    let words = [
        "--policy",
        "deny",
        "--allow-host",
        "exact.test",
        "--allow-host",
        "port.test:443",
        "--allow-host",
        "*.wild.test",
        "--block-host",
        "*.deep.wild.test",
        "--allow-host",
        "one.deep.wild.test:8443",
        "--allow-host",
        "*:8080",
        "--allow-host",
        "both.test",
        "--block-host",
        "example.com",
        "--block-host",
        "*.example.com",
        "--allow-host",
        "api.example.com:443",
        "--allow-host",
        "203.0.113.10:80",
    ];
    proxy(&environment, &sandbox, &words);
    // Both ways in one command is refused as a slip; one after the other, the last command wins.
    proxy(&environment, &sandbox, &["--block-host", "both.test"]);
    for (host, allowed, rule) in [
        ("exact.test", true, "exact.test"),
        ("EXACT.test.:80", true, "exact.test"),
        ("sub.exact.test", false, "<default policy>"),
        ("notexact.test", false, "<default policy>"),
        ("port.test:443", true, "port.test:443"),
        ("port.test:80", false, "<default policy>"),
        ("a.wild.test", true, "*.wild.test"),
        ("a.b.wild.test", true, "*.wild.test"),
        ("wild.test", false, "<default policy>"),
        ("x.deep.wild.test:443", false, "*.deep.wild.test"),
        ("one.deep.wild.test:8443", true, "one.deep.wild.test:8443"),
        ("one.deep.wild.test:443", false, "*.deep.wild.test"),
        ("anything.test:8080", true, "*:8080"),
        ("x.deep.wild.test:8080", false, "*.deep.wild.test"),
        ("both.test", false, "both.test"),
        ("api.example.com:443", true, "api.example.com:443"),
        ("api.example.com:80", false, "*.example.com"),
        ("example.com", false, "example.com"),
        ("203.0.113.10:80", true, "203.0.113.10:80"),
        ("203.0.113.10:443", false, "<default policy>"),
    ] {
        assert_eq!(check(host), (allowed, rule.to_owned()), "{host}");
    }
    expect(
        &environment,
        &sandbox,
        &[],
        &[
            "https://api.example.com/",
            "http://x.wild.test/",
            "http://any.test:8080/",
            "http://203.0.113.10/",
        ],
        &[
            "http://api.example.com/",
            "http://both.test/",
            "https://x.deep.wild.test/",
            "http://wild.test/",
        ],
    );
    proxy(&environment, &sandbox, &["--allow-host", "*"]);
    assert_eq!(check("whatever.test"), (true, "*".to_owned()));
}

/// N7: bypassed hosts show their own certificate, others that of the sandbox.
#[test]
fn bypassed_hosts_keep_their_own_certificate() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("bypass");
    let issuer = |host: &str| {
        let script =
            format!("curl -svo /dev/null https://{host}/ 2>&1 | sed -n 's/^.*issuer: *//p'");
        sandbox.shell(&script).run().success().text()
    };
    let own = |issuer: &str| issuer.contains("CA of the tests' internet");
    assert!(own(&issuer("public.test")), "without a credential it is not terminated");
    let terminated = issuer("api.anthropic.com");
    assert!(!own(&terminated) && !terminated.is_empty(), "{terminated}");

    proxy(&environment, &sandbox, &["--inspect", "all"]);
    let terminated = issuer("public.test");
    assert!(!own(&terminated) && !terminated.is_empty(), "{terminated}");
    proxy(
        &environment,
        &sandbox,
        &["--bypass-host", "public.test", "--bypass-host", "api.anthropic.com"],
    );
    assert!(own(&issuer("public.test")) && own(&issuer("api.anthropic.com")));
    assert!(!own(&issuer("other.test")));
    proxy(&environment, &sandbox, &["--bypass-cidr", "203.0.113.0/24"]);
    assert!(own(&issuer("other.test")));
    proxy(&environment, &sandbox, &["--allow-cidr", "203.0.113.0/24"]);
    assert!(!own(&issuer("other.test")));
    // A bypassed host is still subject to the rules, and may speak something else.
    let echo = "exec 3<>/dev/tcp/raw.test/7; echo ping >&3; read -t 10 line <&3; echo $line";
    sandbox.exec(["bash", "-c", echo]).run().says("");
    proxy(&environment, &sandbox, &["--bypass-host", "raw.test"]);
    sandbox.exec(["bash", "-c", echo]).run().says("ping");
    proxy(&environment, &sandbox, &["--block-host", "raw.test"]);
    sandbox.exec(["bash", "-c", echo]).run().says("");
}

/// N8: one port of the user's machine, by either of its names, and no other.
#[test]
fn one_port_of_the_host_can_be_opened() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("host");
    let eighty = [
        "http://host.docker.internal/",
        "http://gateway.docker.internal/",
        "http://host.docker.internal:8443/",
    ];
    let port = ["http://host.docker.internal:8080/", "http://gateway.docker.internal:8080/"];
    expect(&environment, &sandbox, &[], &[], &[&eighty[..], &port[..]].concat());
    nothing_private(&environment);
    proxy(&environment, &sandbox, &["--allow-host", "localhost:8080"]);
    for options in [&[][..], CAPTURED] {
        expect(&environment, &sandbox, options, &port, &eighty);
    }
    // It opens the port of the machine, not a name of somebody's that leads there.
    expect(&environment, &sandbox, &[], &[], &["http://loop.test:8080/"]);
    let reached = environment.internet().report();
    assert!(
        reached.connections.iter().all(
            |connection| ["127.0.0.1:8080", "[::1]:8080"].contains(&connection.server.as_str())
        ),
        "{reached:#?}"
    );

    let second = environment.boot("second");
    proxy(&environment, &second, &["--policy", "deny", "--allow-host", "host.docker.internal:80"]);
    expect(&environment, &second, &[], &["http://host.docker.internal/"], &port);
}

/// N10: the files have the schema of the reference, are read from where a user puts them, and never overwritten.
#[test]
fn the_default_file_is_for_new_sandboxes_and_never_overwritten() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("first");
    let made = environment.path("home/.config/hutch/proxy-config.json");
    let default: Value =
        serde_json::from_str(&fs::read_to_string(&made).expect("the first start made it"))
            .expect("it is JSON");
    assert_eq!(default, policy_file(&sandbox));
    assert_eq!(
        default,
        json!({
            "policy": { "default": "allow", "logBlocked": false, "logAllowed": false },
            "network": {
                "allowedDomains": [],
                "blockedDomains": ["metadata.azure.internal", "metadata.google.internal", "kube-dns.kube-system.svc.cluster.local"],
                "blockedCIDRs": DEFAULT_RANGES,
                "bypassDomains": [],
                "bypassCIDRs": []
            }
        })
    );

    // Edited by hand: for new sandboxes only, and left alone.
    let edited = "{ \"policy\": { \"default\": \"deny\", \"logBlocked\": false, \"logAllowed\": false },\n \"network\": { \"allowedDomains\": [\"mine.test\"], \"blockedDomains\": [], \"blockedCIDRs\": [], \"bypassDomains\": [], \"bypassCIDRs\": [] } }\n";
    environment.write(&made, edited);
    let second = environment.boot("second");
    expect(&environment, &second, &[], &["http://mine.test/"], &["http://public.test/"]);
    expect(&environment, &sandbox, &[], &["http://public.test/"], &[]);
    proxy(&environment, &second, &["--allow-host", "more.test"]);
    assert_eq!(fs::read_to_string(&made).expect("it is there"), edited);

    // Docker's own file, where there is one, comes first.
    environment.account().act(|| {
        fs::create_dir(environment.path("home/.sandboxd")).expect("a directory can be made");
    });
    let docker = environment.path("home/.sandboxd/proxy-config.json");
    environment
        .program("cp")
        .args([&second.directory().join("proxy-config.json"), &docker])
        .run()
        .success();
    let before = fs::read_to_string(&docker).expect("it was copied");
    let third = environment.boot("third");
    assert_eq!(policy_file(&third), policy_file(&second));
    expect(&environment, &third, &[], &["http://more.test/"], &["http://public.test/"]);
    proxy(&environment, &third, &["--policy", "allow"]);
    assert_eq!(fs::read_to_string(&docker).expect("it is there"), before);

    // A file that cannot be read is no open door.
    environment.write(&docker, "{ \"policy\": ");
    environment
        .hutch(["create", "-q", "--name", "fourth", "shell"])
        .args([environment.project("fourth")])
        .run();
    let refused = environment.hutch(["exec", "fourth", "true"]).run().failure();
    assert!(refused.talk().contains("proxy-config.json"), "{refused:?}");
}

/// A server that may be reached does not lead to one that may not.
#[test]
fn redirects_get_no_special_trust() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("redirect");
    let urls = [
        "http://public.test/redirect/302?to=http://169.254.169.254/",
        "http://public.test/redirect/307?to=http://loop.test:8080/",
        "https://api.openai.com/redirect/302?to=http://private.test/",
    ];
    let transfers = fetch(&environment, &sandbox, &["--location"], &urls);
    assert!(transfers.iter().all(super::guest::Transfer::denied), "{transfers:#?}");
    nothing_private(&environment);
    let report = environment.internet().report();
    assert_eq!(report.requests.len(), 3, "{report:#?}");
    let outside = |server: &String| server.starts_with(SERVER);
    assert!(report.connections.iter().all(|connection| outside(&connection.server)));
}
