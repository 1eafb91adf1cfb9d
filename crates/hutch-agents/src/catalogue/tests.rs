use std::ffi::OsString;

use super::*;
use crate::seed::{SeedAction, SeedFormat};
use crate::spec::{CredentialState, Launch};

fn find(word: &str) -> AgentSpec {
    Agents::built_in().find(word).unwrap().clone()
}

fn launch(word: &str, state: CredentialState) -> Launch {
    find(word).launch(&[], &["/w"], |_| state)
}

fn words(argv: &[OsString]) -> Vec<&str> {
    argv.iter().map(|word| word.to_str().unwrap()).collect()
}

fn content<'l>(launch: &'l Launch, path: &str, action: SeedAction) -> Vec<&'l str> {
    launch
        .seeds
        .iter()
        .filter(|seed| seed.path == path && seed.action == action)
        .map(|seed| seed.content.as_str())
        .collect()
}

/// Writes agents and reads the catalogue.
fn with(files: &[(&str, &str)]) -> Result<Agents, AgentsError> {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::File::create(directory.path().join(name))
            .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
            .unwrap();
    }
    Agents::with_directory(directory.path())
}

/// Rows A1 to A8 of the reference's checklist.
#[test]
fn each_agent_is_started_as_the_reference_says() {
    let table: [(&str, &[&str], &str); 8] = [
        ("claude", &["claude", "--dangerously-skip-permissions"], "claude-code"),
        ("codex", &["codex", "--dangerously-bypass-approvals-and-sandbox"], "codex"),
        ("copilot", &["copilot", "--yolo"], "copilot"),
        ("docker-agent", &["docker-agent", "run", "--yolo"], "docker-agent"),
        ("gemini", &["gemini", "--yolo"], "gemini"),
        ("kiro", &["kiro", "chat", "--trust-all-tools"], "kiro"),
        ("opencode", &["opencode"], "opencode"),
        ("shell", &["bash", "-l"], "shell"),
    ];
    let agents = Agents::built_in();
    assert_eq!(agents.words().collect::<Vec<_>>(), table.map(|(word, ..)| word));
    for (word, argv, template) in table {
        let agent = agents.find(word).unwrap();
        assert_eq!(words(&agent.argv(&[])), argv);
        assert_eq!(agent.template, template);
    }
    assert_eq!(agents.find("cagent"), agents.find("docker-agent"));
    assert_eq!(agents.find("nonsense"), None);
}

#[test]
fn arguments_follow_the_flags_and_a_subcommand_takes_their_place() {
    let argv = |word: &str, arguments: &[&str]| {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        words(&find(word).argv(&arguments)).join(" ")
    };
    assert_eq!(argv("claude", &["-p", "hi"]), "claude --dangerously-skip-permissions -p hi");
    assert_eq!(argv("shell", &["-c", "echo hi"]), "bash -l -c echo hi");
    assert_eq!(argv("kiro", &["login", "--use-device-flow"]), "kiro login --use-device-flow");
    assert_eq!(argv("kiro", &["hello"]), "kiro chat --trust-all-tools hello");
}

/// The services of each agent, and the variables that hold placeholders.
#[test]
fn agents_are_given_what_they_work_with() {
    let table: [(&str, &[&str], &[&str]); 7] = [
        ("claude", &["anthropic"], &[]),
        ("codex", &["openai"], &[]),
        ("copilot", &["github", "copilot"], &["GH_TOKEN"]),
        ("gemini", &["google"], &["GEMINI_API_KEY"]),
        (
            "docker-agent",
            &[
                "openai",
                "anthropic",
                "google",
                "xai",
                "nebius",
                "mistral",
                "openrouter",
                "github",
                "copilot",
            ],
            &[
                "OPENAI_API_KEY",
                "ANTHROPIC_API_KEY",
                "GOOGLE_API_KEY",
                "XAI_API_KEY",
                "NEBIUS_API_KEY",
                "MISTRAL_API_KEY",
                "OPENROUTER_API_KEY",
            ],
        ),
        ("kiro", &[], &[]),
        (
            "opencode",
            &["openai", "anthropic", "google", "xai", "groq", "openrouter", "github", "copilot"],
            &[
                "OPENAI_API_KEY",
                "ANTHROPIC_API_KEY",
                "GOOGLE_GENERATIVE_AI_API_KEY",
                "XAI_API_KEY",
                "GROQ_API_KEY",
                "OPENROUTER_API_KEY",
            ],
        ),
    ];
    for (word, services, placeholders) in table {
        let given = find(word).services;
        let names: Vec<&str> = given.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, services, "{word}");
        let variables: Vec<&String> =
            given.iter().flat_map(|service| &service.placeholder_variables).collect();
        assert_eq!(variables, placeholders, "{word}");
        hutch_policy::services::ServiceTable::new(given).unwrap();
    }
    assert_eq!(find("shell").services, hutch_policy::services::all());
    let google = |word: &str| {
        let services = find(word).services;
        services.into_iter().find(|service| service.name == "google").unwrap().variables
    };
    assert_eq!(google("gemini")[0], "GEMINI_API_KEY");
    assert_eq!(google("docker-agent")[0], "GOOGLE_API_KEY");
}

#[test]
fn claude_sends_a_key_only_where_there_is_one() {
    let helper = r#"{"apiKeyHelper":"echo proxy-managed"}"#;
    let settings = ".claude/settings.json";
    let with_key = launch("claude", CredentialState::Key);
    assert!(content(&with_key, settings, SeedAction::Merge).contains(&helper));
    assert_eq!(content(&with_key, ".claude/.credentials.json", SeedAction::Merge), [""; 0]);
    for state in [CredentialState::Missing, CredentialState::SignedIn] {
        let without = launch("claude", state);
        assert_eq!(content(&without, settings, SeedAction::TakeBack), [helper], "{state:?}");
    }
    let signed_in = launch("claude", CredentialState::SignedIn);
    assert_eq!(content(&signed_in, ".claude/.credentials.json", SeedAction::Merge).len(), 1);
    // The workspace is trusted, and what to know about the sandbox stands outside of it.
    assert!(content(&with_key, ".claude.json", SeedAction::Merge)[0].contains(r#""/w":{"#));
    assert!(content(&with_key, ".claude/CLAUDE.md", SeedAction::Merge)[0].contains("`/w`"));
}

#[test]
fn a_placeholder_without_a_key_is_empty_so_that_the_agent_signs_in_itself() {
    let missing = launch("gemini", CredentialState::Missing);
    assert!(missing.environment.contains(&("GEMINI_API_KEY".to_owned(), String::new())));
    let found = launch("gemini", CredentialState::Key);
    assert!(!found.environment.iter().any(|(name, _)| name == "GEMINI_API_KEY"));
    // The shell asks nobody: each program in it finds out itself.
    assert!(launch("shell", CredentialState::Missing).environment.is_empty());
    assert!(!find("shell").asks_for_credentials());
}

#[test]
fn a_users_own_agent_is_added_and_takes_the_place_of_a_built_in_one() {
    let agents = with(&[
        ("aider.toml", "about = \"Aider\"\ncommand = [\"aider\", \"--yes\"]\ntemplate = \"shell\"\n[[seeds]]\npath = \"~/.aider.conf\"\nformat = \"text\"\ncontent = \"x\"\n"),
        ("codex.toml", "about = \"Mine\"\ncommand = [\"codex\"]\ntemplate = \"mine:v1\"\n"),
        ("notes.txt", "not an agent"),
    ])
    .unwrap();
    assert_eq!(agents.find("codex").unwrap().template, "mine:v1");
    let aider = agents.find("aider").unwrap();
    assert_eq!(words(&aider.argv(&[])), ["aider", "--yes"]);
    assert_eq!(aider.files(), ["~/.aider.conf"]);
    assert!(matches!(&aider.origin, Origin::File(path) if path.ends_with("aider.toml")));
    assert_eq!(agents.words().count(), 9);
    let seeds = aider.launch(&[], &[], |_| CredentialState::Missing).seeds;
    assert_eq!(seeds.len(), 1);
    assert_eq!(seeds[0].format, SeedFormat::Text);
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_place() {
    let says = |name: &str, text: &str| with(&[(name, text)]).unwrap_err().to_string();
    let start = "about = \"x\"\ncommand = [\"x\"]\ntemplate = \"shell\"\n";
    for (text, expected) in [
        ("comand = [\"x\"]", "there is no setting `comand` for an agent; did you mean `command`?"),
        ("about = ", "line 1: "),
        ("about = \"x\"", "missing field `command`"),
        (
            &format!("{start}[[seeds]]\npth = \"~/x\""),
            "there is no setting `seeds.pth` for an agent; did you mean `seeds.path`?",
        ),
        (
            &format!("{start}[[credentials]]\nservice = \"antropic\""),
            "there is no service `antropic`; did you mean `anthropic`?",
        ),
        (
            &format!("{start}[[seeds]]\npath = \"/etc/passwd\"\nformat = \"text\"\ncontent = \"\""),
            "`seeds.path`: `/etc/passwd` is not a path like",
        ),
        (
            &format!("{start}[[seeds]]\npath = \"~/../x\"\nformat = \"text\"\ncontent = \"\""),
            "is not a path like",
        ),
        (
            &format!("{start}[[seeds]]\npath = \"~/x\"\nformat = \"json\"\ncontent = \"{{\""),
            "`seeds.content`",
        ),
        (
            &format!(
                "{start}[[seeds]]\npath = \"~/x\"\nformat = \"text\"\ncontent = \"\"\nservice = \"xai\""
            ),
            "`xai` is not among the agent's credentials",
        ),
        (
            &format!("aliases = [\"claude\"]\n{start}"),
            "the agent `claude` has the word `claude` too",
        ),
        (&format!("{start}environment = {{ \"A B\" = \"\" }}"), "is not the name of a variable"),
    ] {
        let said = says("own.toml", text);
        assert!(said.contains(expected) && said.contains("own.toml"), "{text}: {said}");
    }
    assert!(says("Own.toml", start).contains("lower-case letters"));
}

#[test]
fn a_directory_that_is_not_there_has_no_agents() {
    let agents = Agents::with_directory(Path::new("/nonexistent/agents")).unwrap();
    assert_eq!(agents, Agents::built_in());
}
