//! The Docker engine of a sandbox: there when it is used, with the sandbox's network, and nobody else's.
//!
//! Images are made in the sandbox from its own programs, so that no registry is needed.

use std::time::Duration;

use hutch_testkit::{Invocation, TestEnvironment, TestSandbox};

/// Makes the image `base` of the sandbox's own shell, curl and a few more.
const BASE: &str = r#"
programs="sh cat env ls sleep curl nc head id mount touch rm getent"
libraries=$(cd /usr/bin && ldd $programs | grep -o '/lib[^ ]*' | sed 's,^/,,' | sort -u)
tar -C /usr -ch $(printf 'bin/%s ' $programs) $libraries -C / etc/passwd | docker import -c 'ENV PATH=/bin' - base >/dev/null
"#;

/// Several programs of the engine's have to start, on an emulated processor.
const LONG: Duration = Duration::from_secs(280);

fn docker(sandbox: &TestSandbox<'_>, script: &str) -> Invocation {
    sandbox.exec(["bash", "-c", script]).limit(LONG)
}

#[track_caller]
fn with_base(sandbox: &TestSandbox<'_>) {
    docker(sandbox, BASE).run().success();
}

#[test]
fn containers_and_builds_have_proxy_and_certificates() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("contained");
    environment.hutch(["network", "proxy", sandbox.name(), "--inspect", "all"]).run().success();
    with_base(&sandbox);
    let variables = docker(&sandbox, "docker run --rm base env").run().success().text();
    for wanted in [
        "HTTP_PROXY=http://host.docker.internal:3128",
        "https_proxy=http://host.docker.internal:3128",
        "NO_PROXY=localhost,127.0.0.1,::1",
        "SSL_CERT_FILE=/dev/hutch/ca-certificates.crt",
        "NODE_EXTRA_CA_CERTS=/dev/hutch/proxy-ca.crt",
    ] {
        assert!(variables.lines().any(|line| line.starts_with(wanted)), "{wanted} in {variables}");
    }
    // By the explicit proxy, and captured; TLS is terminated, so the certificate is trusted.
    for way in ["curl -sSf", "curl -sSf --noproxy '*'"] {
        for network in ["bridge", "host"] {
            docker(
                &sandbox,
                &format!("docker run --rm --network {network} base {way} https://web.test/"),
            )
            .run()
            .success()
            .says("hello from web.test");
        }
    }
    docker(
        &sandbox,
        "docker run -d --name long base sleep 600 >/dev/null && docker exec long curl -sSf https://exec.test/",
    )
    .run()
    .success()
    .says("hello from exec.test");
    // Nothing of it is in an image, and a step that downloads works as it is.
    let build = "mkdir -p image && cd image && printf 'FROM base\\nRUN curl -sSf https://step.test/ > /got && cat /got\\n' > Dockerfile \
         && docker build -q -t built . >/dev/null && docker run --rm built cat /got && docker save built | tar -xO | grep -ac dev/hutch || true";
    docker(&sandbox, build).run().success().says("hello from step.test\n0");
    let asked = environment.internet().report();
    for host in ["web.test", "exec.test", "step.test"] {
        assert!(!asked.of(host).is_empty(), "{host} in {asked:?}");
    }
}
