//! Templates from Dockerfiles: rows T1 to T3 of the reference's checklist.

use std::fs;
use std::time::Duration;

use hutch_testkit::{Account, Invocation, TestEnvironment, eventually};
use rustix::process::Signal;

/// The Dockerfile of the documentation of Docker's sandboxes, word for word.
const DOCUMENTED: &str = "\
FROM docker/sandbox-templates:claude-code
USER root
RUN apt-get update && apt-get install -y build-essential \\
&& rm -rf /var/lib/apt/lists/*
USER agent
";
/// The images directory is that of all tests, so what is built is called what nothing else is, and taken away again.
const BUILT: &str = "built-by-a-test:v1";
const DOCUMENTED_BUILT: &str = "documented-by-a-test:v1";
const NEVER_BUILT: &str = "never-by-a-test:v1";

/// What shows in the result where each part of it comes from.
const MORE: &str = "\
ARG WORD
COPY greeting /srv/
USER root
RUN curl -sSf https://step.test/ > /srv/fetched && rm /usr/bin/jq && echo $WORD > /srv/word \\
    && curl -s -H 'x-api-key: proxy-managed' https://api.anthropic.com/v1/models
USER agent
ENV FROM_THE_FILE=yes
";
/// The same as a stage that fails, and one that does not end.
const OTHERS: &str = "\
FROM docker/sandbox-templates:shell AS failing
RUN echo reason >&2; exit 3
FROM docker/sandbox-templates:shell AS endless
RUN echo begun; sleep 600
";
const KEY: &str = "key-of-the-host-9f31";

/// BuildKit and the programs that it runs, on an emulated processor.
const LONG: Duration = Duration::from_secs(280);

/// Whether the distribution's archive can be reached from here.
fn archive_is_reached() -> bool {
    let mut probe = Invocation::new("bash", Account::own())
        .args(["-c", "cd $(mktemp -d) && apt-get download -qq hello"]);
    for (name, value) in std::env::vars_os() {
        if let Some(name) = name.to_str() {
            probe = probe.variable(name, value);
        }
    }
    probe.limit(Duration::from_secs(60)).run().status.success()
}

#[test]
fn a_dockerfile_on_an_agents_template_is_a_template() {
    let environment = TestEnvironment::with_internet().variable("ANTHROPIC_API_KEY", KEY);
    let context = environment.project("context");
    environment.write(&context.join("greeting"), "hello\n");
    // The archive is not in the internet's stand-in.
    environment.write(&context.join("Dockerfile"), without_archive(DOCUMENTED) + MORE);
    environment
        .hutch(["build", "-t", BUILT, "-t", "built-by-a-test", "--build-arg", "WORD=word"])
        .args([&context])
        .limit(LONG)
        .run()
        .success()
        .says(&format!("{BUILT}\nbuilt-by-a-test:latest"));
    assert_eq!(environment.hutch(["ls", "-q"]).run().success().text(), "", "the builder is gone");
    let report = environment.internet().report();
    assert!(!report.of("step.test").is_empty(), "{report:?}");
    for request in report.of("api.anthropic.com") {
        assert_eq!(request.values("x-api-key"), ["proxy-managed"], "a build has nobody's key");
    }

    let project = environment.project("work");
    environment
        .hutch(["create", "-q", "-t", BUILT, "--pull-template", "never"])
        .args(["--name", "built", "claude"])
        .args([&project])
        .run()
        .success();
    let text = "cat /srv/greeting /srv/fetched /srv/word; id -un; echo $FROM_THE_FILE; which jq; claude --version";
    let run = environment.hutch(["exec", "built", "sh", "-lc", text]).limit(LONG).run().success();
    let lines = run.lines();
    assert_eq!(lines[..5], ["hello", "hello from step.test", "word", "agent", "yes"], "{run:?}");
    assert!(lines.len() == 6 && lines[5].contains("Claude Code"), "{run:?}");
    environment.hutch(["rm", "built"]).run().success();
    environment.hutch(["template", "rm", BUILT, "built-by-a-test"]).run().success();
}

/// Without the step that needs the distribution's archive.
fn without_archive(text: &str) -> String {
    text.replace("apt-get update && apt-get install -y build-essential", "true")
}

#[test]
fn the_documented_dockerfile_is_built_word_for_word_where_the_archive_is_reached() {
    if !archive_is_reached() {
        return;
    }
    let environment = TestEnvironment::new();
    let context = environment.project("context");
    environment.write(&context.join("Dockerfile"), DOCUMENTED);
    environment
        .hutch(["build", "-q", "-t", DOCUMENTED_BUILT])
        .args([&context])
        .limit(LONG)
        .run()
        .success();
    let project = environment.project("work");
    environment
        .hutch(["run", "-q", "-t", DOCUMENTED_BUILT, "claude"])
        .args([&project])
        .args(["--", "--version"])
        .limit(LONG)
        .run()
        .success();
    environment.hutch(["exec", "claude-work", "gcc", "--version"]).run().success();
    environment.hutch(["rm", "claude-work"]).run().success();
    environment.hutch(["template", "rm", DOCUMENTED_BUILT]).run().success();
}

#[test]
fn a_build_that_fails_or_is_broken_off_leaves_nothing() {
    let environment = TestEnvironment::new();
    let context = environment.project("context");
    let file = environment.path("elsewhere");
    environment.write(&file, OTHERS);
    let build = |stage: &str| {
        environment
            .hutch(["build", "--progress", "plain", "-t", NEVER_BUILT, "--target", stage, "-f"])
            .args([&file, &context])
            .limit(LONG)
    };
    let failed = build("failing").run().code(1);
    assert!(failed.talk().contains("reason"), "{failed:?}");
    let broken_off = |signal| {
        let running = build("endless").start();
        eventually("the build has begun", LONG, || {
            let listed = environment.hutch(["ls"]).run().text();
            (listed.contains("build-context") && listed.contains("running")).then_some(())
        });
        running.signal(signal);
        running.wait(LONG)
    };
    let list = || environment.hutch(["ls", "-q"]).run().success().text();
    broken_off(Signal::INT).code(130);
    assert_eq!(list(), "");
    // Killed, it cannot clean up; the next build does, before anything else.
    assert!(!broken_off(Signal::KILL).status.success());
    assert_eq!(list(), "build-context");
    build("none").run().code(1);
    assert_eq!(list(), "");
    let templates = environment.hutch(["template", "ls"]).run().success().text();
    assert!(!templates.contains(NEVER_BUILT), "{templates}");
    let left: Vec<_> = fs::read_dir(environment.images())
        .expect("there are images")
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with("build-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}
