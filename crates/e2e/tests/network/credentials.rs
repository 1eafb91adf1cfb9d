//! Credentials: rows C1 to C9 and C11 to C13 of the reference's checklist. That keys are nowhere inside is in `leaks`.

use std::fs;
use std::path::Path;

use hutch_testkit::stage::repository;
use hutch_testkit::{TestEnvironment, TestSandbox};

use crate::guest::{expect, proxy};

/// Service by service: the variable on the host, a host of the provider, the header that it wants, and its format.
pub(crate) const SERVICES: [(&str, &str, &str, &str); 12] = [
    ("ANTHROPIC_API_KEY", "api.anthropic.com", "x-api-key", "%s"),
    ("OPENAI_API_KEY", "api.openai.com", "authorization", "Bearer %s"),
    ("GH_TOKEN", "api.github.com", "authorization", "Bearer %s"),
    ("COPILOT_GITHUB_TOKEN", "api.githubcopilot.com", "authorization", "Bearer %s"),
    ("GEMINI_API_KEY", "generativelanguage.googleapis.com", "x-goog-api-key", "%s"),
    ("GROQ_API_KEY", "api.groq.com", "authorization", "Bearer %s"),
    ("XAI_API_KEY", "api.x.ai", "authorization", "Bearer %s"),
    ("OPENROUTER_API_KEY", "openrouter.ai", "authorization", "Bearer %s"),
    ("MISTRAL_API_KEY", "api.mistral.ai", "authorization", "Bearer %s"),
    ("NEBIUS_API_KEY", "api.studio.nebius.com", "authorization", "Bearer %s"),
    ("CURSOR_API_KEY", "api2.cursor.sh", "authorization", "Bearer %s"),
    ("FACTORY_API_KEY", "api.factory.ai", "authorization", "Bearer %s"),
];

/// The key of a service in these tests: long and unlike anything else.
pub(crate) fn key(variable: &str) -> String {
    format!("{}-of-the-host-7f3a91", variable.to_lowercase().replace('_', "-"))
}

/// A world whose user has a key of every service in the environment.
pub(crate) fn with_keys() -> TestEnvironment {
    let environment = TestEnvironment::with_internet();
    SERVICES.iter().fold(environment, |environment, (variable, ..)| {
        environment.variable(variable, key(variable))
    })
}

/// Runs curl in the sandbox and expects that it works.
#[track_caller]
fn curl(sandbox: &TestSandbox<'_>, words: &[&str]) -> String {
    sandbox
        .exec(["curl", "--silent", "--show-error", "--max-time", "30"])
        .args(words)
        .run()
        .success()
        .text()
}

/// C1 to C3, C5 to C7, C9 and C11: every service's key, on its own hosts alone, in place of whatever the client sent.
#[test]
fn each_service_gets_its_own_key_and_no_other() {
    let environment = with_keys();
    let sandbox = environment.boot("keys");
    let urls: Vec<String> =
        SERVICES.iter().map(|(_, host, ..)| format!("https://{host}/v1/thing")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let wrong = [
        "--header",
        "Authorization: Bearer proxy-managed",
        "--header",
        "X-Api-Key: sent-by-the-client",
        "--header",
        "X-Goog-Api-Key: sent-by-the-client",
    ];
    expect(&environment, &sandbox, &wrong, &urls, &[]);
    // A program that knows no proxy gets it too.
    expect(&environment, &sandbox, &["--noproxy", "*"], &urls, &[]);
    let report = environment.internet().report();
    for (variable, host, header, format) in SERVICES {
        let requests = report.of(host);
        assert_eq!(requests.len(), 2, "{host}");
        for request in requests {
            assert_eq!(request.values(header), [format.replace("%s", &key(variable))], "{host}");
            let text = format!("{request:?}");
            for (other, ..) in SERVICES {
                assert!(other == variable || !text.contains(&key(other)), "{host} got {other}");
            }
        }
    }
    let anthropic = report.of("api.anthropic.com");
    assert!(anthropic[0].values("authorization").is_empty(), "{:?}", anthropic[0]);
}

/// C2: what the sandbox itself holds.
#[test]
fn inside_there_are_placeholders() {
    let environment = with_keys();
    let sandbox = environment.boot("placeholders");
    let inside = sandbox.shell("env; sudo env; bash -lc env").run().success().text();
    for (variable, ..) in SERVICES {
        assert!(!inside.contains(&key(variable)), "{variable} is inside");
    }
    assert!(inside.contains("GROQ_API_KEY=proxy-managed"), "{inside}");
    // A client that sends its placeholder is the usual case.
    curl(
        &sandbox,
        &[
            "--header",
            "Authorization: Bearer proxy-managed",
            "https://api.groq.com/openai/v1/models",
        ],
    );
    let report = environment.internet().report();
    let request = report.of("api.groq.com")[0];
    assert_eq!(request.values("authorization"), [format!("Bearer {}", key("GROQ_API_KEY"))]);
}

/// C4 and C5: either of the variables is taken, and the next request uses what the next command brings.
#[test]
fn a_key_may_have_several_names_and_may_change() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("names");
    for (variable, value, host, header) in [
        // What an earlier command brought stays known: the names come in the reverse order of preference.
        ("GITHUB_TOKEN", "github-token-of-the-host-1", "api.github.com", "authorization"),
        ("GITHUB_TOKEN", "github-token-of-the-host-2", "api.github.com", "authorization"),
        ("GH_TOKEN", "gh-token-of-the-host-3", "api.github.com", "authorization"),
        (
            "GOOGLE_API_KEY",
            "google-key-of-the-host-4",
            "generativelanguage.googleapis.com",
            "x-goog-api-key",
        ),
        (
            "GEMINI_API_KEY",
            "gemini-key-of-the-host-5",
            "generativelanguage.googleapis.com",
            "x-goog-api-key",
        ),
    ] {
        let url = format!("https://{host}/");
        sandbox
            .exec(["curl", "--silent", "--fail", &url])
            .variable(variable, value)
            .run()
            .success();
        let report = environment.internet().report();
        let requests = report.of(host);
        let sent = requests.last().expect("it came").values(header);
        assert_eq!(sent.len(), 1, "{variable}: {sent:?}");
        assert!(sent[0].ends_with(value), "{variable}: {sent:?}");
    }
}

/// C4: git over HTTPS, whose servers take a token as Basic.
#[test]
fn git_is_given_the_token_as_basic() {
    let environment = with_keys();
    let sandbox = environment.boot("git");
    repository_at(&environment, &environment.internet().files("github.com").join("me/thing.git"));
    let refs =
        sandbox.exec(["git", "ls-remote", "https://github.com/me/thing.git"]).run().success();
    assert!(refs.text().contains("refs/heads/main"), "{refs:?}");
    let report = environment.internet().report();
    for request in report.of("github.com") {
        let sent = request.values("authorization");
        assert_eq!(sent.len(), 1, "{request:?}");
        let encoded = sent[0].strip_prefix("Basic ").expect("it is Basic");
        let decoded =
            environment.program("base64").args(["-d"]).stdin(encoded).run().success().text();
        assert_eq!(decoded, format!("x-access-token:{}", key("GH_TOKEN")));
    }
}

/// Makes a repository with one commit that a plain web server can serve.
pub(crate) fn repository_at(environment: &TestEnvironment, place: &Path) {
    let script = "set -e; export HOME=/nonexistent GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.com \
        GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.com; mkdir -p \"$1\"; work=$(mktemp -d); \
        cd \"$work\"; git init -q -b main; echo content > file; git add file; git commit -q -m one; \
        git clone -q --bare . \"$1\"; cd \"$1\"; git update-server-info; rm -rf \"$work\"";
    environment.program("sh").args(["-c", script, "sh"]).args([place]).run().success();
}

/// C12: not on bypassed and blocked hosts, not on other hosts, ports or without TLS.
#[test]
fn keys_go_nowhere_else() {
    let environment = with_keys();
    let sandbox = environment.boot("elsewhere");
    proxy(&environment, &sandbox, &["--bypass-host", "api.groq.com", "--block-host", "api.x.ai"]);
    let placeholder = ["--header", "Authorization: Bearer proxy-managed"];
    let open = [
        "https://api.groq.com/",
        "https://evil.test/",
        "http://api.openai.com/",
        "https://api.openai.com:8443/",
        "https://sub.api.openai.com/",
        "https://api.openai.com.evil.test/",
    ];
    expect(&environment, &sandbox, &placeholder, &open, &["https://api.x.ai/"]);
    let report = environment.internet().report();
    assert_eq!(report.requests.len(), open.len(), "{report:#?}");
    for request in &report.requests {
        assert_eq!(request.values("authorization"), ["Bearer proxy-managed"], "{request:?}");
    }
    for (variable, ..) in SERVICES {
        assert!(!report.text().contains(&key(variable)), "{variable}");
    }
}

/// Sources in their order: the secret store, the caller's environment, the login shell's.
#[test]
fn keys_are_found_in_the_store_then_the_environment_then_the_login_shell() {
    let environment = TestEnvironment::with_internet().variable("SHELL", "/bin/bash");
    let from_shell = "export GROQ_API_KEY=key-from-the-login-shell\n";
    environment.write(&environment.path("home/.bashrc"), from_shell);
    environment.write(&environment.path("home/.bash_profile"), ". ~/.bashrc\n");
    let sandbox = environment.boot("sources");
    let sent = |variables: &[(&str, &str)]| {
        environment.internet().forget();
        let mut fetch = sandbox.exec(["curl", "--silent", "--fail", "https://api.groq.com/"]);
        for (name, value) in variables {
            fetch = fetch.variable(name, value);
        }
        fetch.run().success();
        let report = environment.internet().report();
        report.of("api.groq.com")[0].values("authorization").join(", ")
    };
    assert_eq!(sent(&[]), "Bearer key-from-the-login-shell");
    assert_eq!(sent(&[("GROQ_API_KEY", "key-of-the-caller")]), "Bearer key-of-the-caller");
    environment.hutch(["secret", "set", "groq"]).stdin("key-of-the-store\n").run().success();
    assert_eq!(sent(&[("GROQ_API_KEY", "key-of-the-caller")]), "Bearer key-of-the-store");
    let listed = environment.hutch(["secret", "ls"]).run().success();
    assert!(listed.text().contains("groq") && !listed.text().contains("key-of-the-store"));
    let inspected = environment.hutch(["inspect", "sources"]).run().success().text();
    assert!(!inspected.contains("key-of-the"), "{inspected}");
    environment.hutch(["secret", "rm", "groq"]).run().success();
    assert_eq!(sent(&[("GROQ_API_KEY", "key-of-the-caller")]), "Bearer key-of-the-caller");
}

/// A service of the user's own works like a built-in one.
#[test]
fn a_custom_service_is_like_a_built_in_one() {
    let environment =
        TestEnvironment::with_internet().variable("EXAMPLE_API_KEY", "key-of-example");
    let ca_file = environment.internet().ca_file();
    environment.configure(&format!(
        "[network]\nca_files = [\"{}\"]\n[[network.services]]\nname = \"example\"\n\
         hosts = [\"api.example.test\"]\nheader = \"x-example-key\"\nformat = \"Key %s\"\n\
         variables = [\"EXAMPLE_API_KEY\"]\n",
        ca_file.display()
    ));
    let sandbox = environment.boot("custom");
    curl(&sandbox, &["--header", "X-Example-Key: mine", "https://api.example.test/"]);
    curl(&sandbox, &["--header", "X-Example-Key: mine", "https://other.test/"]);
    let report = environment.internet().report();
    assert_eq!(report.of("api.example.test")[0].values("x-example-key"), ["Key key-of-example"]);
    assert_eq!(report.of("other.test")[0].values("x-example-key"), ["mine"]);
}

/// `network.upstreams`: a gateway in a provider's place, also where the address would not be allowed.
#[test]
fn a_gateway_can_stand_in_for_a_provider() {
    let environment = with_keys();
    let ca_file = environment.internet().ca_file();
    environment.configure(&format!(
        "[network.upstreams]\n\"api.openai.com\" = {{ address = \"127.0.0.1:8443\", ca_file = \"{}\" }}\n",
        ca_file.display()
    ));
    let sandbox = environment.boot("gateway");
    curl(&sandbox, &["https://api.openai.com/v1/models"]);
    let report = environment.internet().report();
    let request = report.of("api.openai.com")[0];
    assert_eq!(request.connection.server, "127.0.0.1:8443");
    assert_eq!(request.values("authorization"), [format!("Bearer {}", key("OPENAI_API_KEY"))]);
    // Its CA is trusted for it alone.
    sandbox.exec(["curl", "--silent", "--fail", "https://api.groq.com/"]).run().failure();
}

/// Sign-in tokens stay on the host: inside there are sentinels, which work.
#[test]
fn sign_in_tokens_are_swapped_for_sentinels() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("oauth");
    for (endpoint, api, access, refresh) in [
        (
            "https://platform.claude.com/v1/oauth/token",
            "api.anthropic.com",
            "sk-ant-oat01-proxy-managed",
            "sk-ant-ort01-proxy-managed",
        ),
        (
            "https://auth.openai.com/oauth/token",
            "chatgpt.com",
            "oai-oat01-proxy-managed",
            "oai-ort01-proxy-managed",
        ),
    ] {
        let json = ["--header", "Content-Type: application/json", "--data"];
        let sign_in = "{\"grant_type\":\"authorization_code\",\"code\":\"abc\"}";
        let tokens = curl(&sandbox, &[&json[..], &[sign_in, endpoint]].concat());
        assert!(tokens.contains(access) && tokens.contains(refresh), "{tokens}");
        assert!(!tokens.contains("real-"), "{tokens}");
        assert!(tokens.contains("3600"), "what is no secret stays: {tokens}");

        let bearer = format!("Authorization: Bearer {access}");
        let url = format!("https://{api}/");
        curl(&sandbox, &["--header", &bearer, &url]);
        let report = environment.internet().report();
        let sent = report.of(api)[0].values("authorization").join(", ");
        assert!(sent.starts_with("Bearer real-access-token-"), "{sent}");

        let again = format!("{{\"grant_type\":\"refresh_token\",\"refresh_token\":\"{refresh}\"}}");
        let tokens = curl(&sandbox, &[&json[..], &[&again, endpoint]].concat());
        assert!(tokens.contains(access) && !tokens.contains("real-"), "{tokens}");
        let host = endpoint.split('/').nth(2).expect("a host");
        let report = environment.internet().report();
        let refreshed = report.of(host)[1];
        assert!(refreshed.body.contains("real-refresh-token-"), "{refreshed:?}");
        // The new one is used from now on.
        curl(&sandbox, &["--header", &bearer, &url]);
        let report = environment.internet().report();
        assert_ne!(report.of(api)[1].values("authorization").join(", "), sent);
        // Nobody else is sent a token for the sentinel.
        curl(&sandbox, &["--header", &bearer, "https://evil.test/"]);
        let report = environment.internet().report();
        let last = report.of("evil.test");
        assert_eq!(
            last.last().expect("it came").values("authorization"),
            [format!("Bearer {access}")]
        );
    }
    // They outlive the sandbox's run.
    sandbox.stop();
    environment.internet().forget();
    curl(
        &sandbox,
        &[
            "--header",
            "Authorization: Bearer sk-ant-oat01-proxy-managed",
            "https://api.anthropic.com/",
        ],
    );
    let report = environment.internet().report();
    let sent = report.of("api.anthropic.com")[0].values("authorization").join(", ");
    assert!(sent.starts_with("Bearer real-access-token-"), "{sent}");
}

/// C8: a device flow shows address and code on the user's terminal, and what it was given stays until `rm`.
#[test]
fn a_device_flow_signs_in_and_stays_signed_in() {
    let environment = TestEnvironment::with_internet();
    environment.internet().serve(
        "device.kiro.test",
        "/device",
        "{\"user_code\":\"ABCD-1234\",\"verification_uri\":\"https://device.kiro.test/\"}",
    );
    let program = "#!/bin/bash\n\
        if [ -f ~/.kiro/token ]; then echo signed in; exit; fi\n\
        jq -r '\"open \\(.verification_uri) and enter \\(.user_code)\"' <(curl -s https://device.kiro.test/device)\n\
        mkdir -p ~/.kiro; curl -s -d grant_type=device https://device.kiro.test/token | jq -r .access_token > ~/.kiro/token\n\
        echo done\n";
    let sandbox = environment.create("device-flow");
    environment.write(&sandbox.workspace().join("kiro"), program);
    let screen = sandbox.exec_with(["-it"], ["bash", "kiro"]).terminal(24, 80);
    screen.shows("open https://device.kiro.test/ and enter ABCD-1234");
    screen.shows("done");
    sandbox.stop();
    sandbox.exec(["bash", "kiro"]).run().success().says("signed in");
}

/// C13: the rule about where keys come from is written where people look.
#[test]
fn where_keys_are_looked_for_is_documented() {
    let text = fs::read_to_string(repository().join("docs/network.md")).expect("it is there");
    for words in ["the secret store", "environment of the command", "login shell"] {
        assert!(text.contains(words), "docs/network.md does not say `{words}`");
    }
    let environment = TestEnvironment::new();
    let help = environment.hutch(["secret", "--help"]).run().success().text();
    assert!(help.contains("environment") && help.contains("login shell"), "{help}");
}
