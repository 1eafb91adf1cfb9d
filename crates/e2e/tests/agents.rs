//! The real agents do real work: rows A1 to A11 and T1 to T3 of the reference's checklist, as far as they are about agents.
//!
//! Each agent's program is the one from npm at its recipe's version; the provider's model is a stand-in
//! (`hutch_testkit::internet`), which has the agent write a file and then says that it is done.

use std::fs;
use std::time::Duration;

use hutch_testkit::TestEnvironment;
use hutch_testkit::internet::{MODEL_ANSWER, Report};

/// Under emulation a program of 400 MB needs its time, the more so beside another one.
const START: Duration = Duration::from_secs(170);

/// What is tried with an agent.
struct Case {
    agent: &'static str,
    /// Variable of the host with the key.
    variable: &'static str,
    /// What makes it work once and end.
    arguments: &'static [&'static str],
    /// Where it asks its model.
    host: &'static str,
    path: &'static str,
    header: &'static str,
    format: &'static str,
    /// What its first screen shows.
    screen: &'static str,
}

const CLAUDE: Case = Case {
    agent: "claude",
    variable: "ANTHROPIC_API_KEY",
    arguments: &["-p", "make the file"],
    host: "api.anthropic.com",
    path: "/v1/messages",
    header: "x-api-key",
    format: "%s",
    screen: "bypass permissions on",
};

const CODEX: Case = Case {
    agent: "codex",
    variable: "OPENAI_API_KEY",
    arguments: &["exec", "--skip-git-repo-check", "-m", "gpt-5", "make the file"],
    host: "api.openai.com",
    path: "/v1/responses",
    header: "authorization",
    format: "Bearer %s",
    screen: "OpenAI Codex",
};

const COPILOT: Case = Case {
    agent: "copilot",
    variable: "GH_TOKEN",
    arguments: &["--model", "claude-sonnet-4.5", "-p", "make the file"],
    host: "api.githubcopilot.com",
    path: "/chat/completions",
    header: "authorization",
    format: "Bearer %s",
    screen: "Copilot v",
};

const GEMINI: Case = Case {
    agent: "gemini",
    variable: "GEMINI_API_KEY",
    arguments: &["-p", "make the file"],
    host: "generativelanguage.googleapis.com",
    path: ":streamGenerateContent",
    header: "x-goog-api-key",
    format: "%s",
    screen: "Gemini CLI",
};

const OPENCODE: Case = Case {
    agent: "opencode",
    variable: "ANTHROPIC_API_KEY",
    arguments: &["run", "-m", "anthropic/claude-sonnet-4-5", "make the file"],
    host: "api.anthropic.com",
    path: "/v1/messages",
    header: "x-api-key",
    format: "%s",
    screen: "Ask anything",
};

impl Case {
    fn key(&self) -> String {
        format!("{}-of-the-host-5c1e77", self.agent)
    }

    fn world(&self) -> TestEnvironment {
        TestEnvironment::with_internet().variable(self.variable, self.key())
    }

    /// The provider was sent the real key by the agent's own requests, and the command's result.
    #[track_caller]
    fn check_requests(&self, report: &Report) {
        let requests: Vec<_> = report
            .of(self.host)
            .into_iter()
            .filter(|request| request.method == "POST" && request.path.contains(self.path))
            .collect();
        assert!(requests.len() >= 2, "{} requests: {report:?}", requests.len());
        let sent = self.format.replace("%s", &self.key());
        for request in &requests {
            assert_eq!(request.values(self.header), [sent.as_str()], "{}", request.path);
        }
        let told = requests.iter().any(|request| request.body.contains("Linux"));
        assert!(told, "the model was not told what the command printed");
    }
}

/// Works once, from the host's command to the file on the host; then the same sandbox interactively.
#[track_caller]
fn works(case: &Case) {
    let environment = case.world();
    let project = environment.project("work");
    let run = environment
        .hutch(["run", "-q", case.agent])
        .args([&project])
        .args(["--"])
        .args(case.arguments)
        .limit(START)
        .run()
        .success();
    assert!(run.text().contains(MODEL_ANSWER), "{run:?}");
    let read = |name: &str| fs::read_to_string(project.join(name)).unwrap_or_default();
    assert_eq!(read("made.txt"), "made by the agent\n", "{run:?}");
    assert_eq!(read("ran.txt"), "Linux\n");
    case.check_requests(&environment.internet().report());

    let name = format!("{}-work", case.agent);
    let inside = environment
        .hutch([
            "exec",
            &name,
            "sh",
            "-c",
            "env; grep -r . ~ --include=*.json --include=*.toml -h -s",
        ])
        .run()
        .success()
        .text();
    assert!(!inside.contains(&case.key()), "the key is inside");

    let mut terminal = environment.hutch(["run", &name]).terminal(30, 100);
    terminal.until(&format!("{} is there", case.agent), START, |screen| {
        screen.contents().contains(case.screen)
    });
    terminal.types("\x03\x03");
}

#[test]
fn claude_works() {
    works(&CLAUDE);
}

#[test]
fn codex_works() {
    works(&CODEX);
}

#[test]
fn copilot_works() {
    works(&COPILOT);
}

#[test]
fn gemini_works() {
    works(&GEMINI);
}

#[test]
fn opencode_works() {
    works(&OPENCODE);
}

/// Those that no package archive has, with a program that plays them.
#[test]
fn a_template_without_the_agent_says_so_and_one_with_it_starts_it() {
    let environment = TestEnvironment::new();
    let project = environment.project("work");
    for (word, program, started) in [
        ("kiro", "kiro", "chat --trust-all-tools --resume"),
        ("cagent", "docker-agent", "run --yolo --resume"),
    ] {
        let name = format!("mine-{program}");
        environment
            .hutch(["create", "-q", "-t", "shell", "--name", &name, word])
            .args([&project])
            .run()
            .success();
        environment.hutch(["run", "-q", &name]).limit(START).run().code(1).complains(&format!(
            "agent binary \"{program}\" not found in sandbox: verify this is the correct sandbox type"
        ));
        let install = format!(
            "printf '#!/bin/sh\\necho \"$@\"\\n' > /usr/local/bin/{program}; chmod 755 /usr/local/bin/{program}"
        );
        environment.hutch(["exec", "-u", "root", &name, "sh", "-c", &install]).run().success();
        environment
            .hutch(["run", "-q", &name, "--", "--resume"])
            .limit(START)
            .run()
            .success()
            .says(started);
        environment.hutch(["rm", &name]).run().success();
    }
}
