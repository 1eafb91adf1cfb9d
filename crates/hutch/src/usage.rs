//! Texts around the command line: examples, and what is said when the words make no sense.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::agents;

/// Adds examples, and usage lines that cannot be derived, to the help of a command.
pub(crate) fn with_examples(command: clap::Command, program: &str) -> clap::Command {
    let command = command.mut_subcommands(|below| with_examples(below, program));
    let usages: &[&str] = match command.get_name() {
        "run" => &[
            "run [OPTIONS] SANDBOX [-- AGENT_ARGS...]",
            "run [OPTIONS] AGENT [WORKSPACE...] [-- AGENT_ARGS...]",
        ],
        "exec" => &["exec [OPTIONS] SANDBOX COMMAND [ARG...]"],
        _ => &[],
    };
    let command = if usages.is_empty() {
        command
    } else {
        let lines: Vec<_> = usages.iter().map(|usage| [program, " ", usage].concat()).collect();
        command.override_usage(lines.join("\n       "))
    };
    let examples: &[&str] = match command.get_name() {
        "run" => &[
            "run claude                         Claude Code on the current directory",
            "run claude ~/project ~/docs:ro     with one more directory, read-only",
            "run claude-project                 the same sandbox again",
            "run claude . -- -p 'Fix the tests' one question",
            "run shell . -- -c 'make test'      one command, without an agent",
        ],
        "create" => &["create claude ~/project", "create --name tests --memory 8g shell ~/project"],
        "exec" => &[
            "exec -it shell-project bash",
            "exec shell-project git status",
            "exec -u root shell-project apt-get update",
        ],
        "rm" => &["rm shell-project"],
        "build" if command.get_arguments().any(|argument| argument.get_id() == "tags") => &[
            "build -t my-template:v1 .                  then: run -t my-template:v1 claude",
            "build -t tools:2 -f ci/Dockerfile --build-arg VERSION=2 .",
        ],
        "save" => &[
            "save claude-project my-template:v1",
            "save claude-project my-template:v1 -o my-template.tar",
        ],
        "proxy" => &[
            "network proxy shell-project                  the policy that holds",
            "network proxy shell-project --policy deny --allow-host '*.npmjs.org'",
            "network proxy shell-project --block-cidr 203.0.113.0/24",
            "network proxy shell-project --allow-host localhost:5432",
        ],
        "log" => &["network log", "network log --requests --limit 20 shell-project"],
        "agent" => &["agent ls", "agent inspect claude"],
        "secret" => &["secret set openai", "secret set openai < file-with-the-key", "secret ls"],
        "check" => &["network check shell-project api.example.com:443"],
        _ => &[],
    };
    let mut text = String::new();
    if matches!(command.get_name(), "run" | "create") {
        text.push_str(&agents::help());
        text.push_str("\n\n");
    }
    if !examples.is_empty() {
        text.push_str("Examples:");
        for example in examples {
            text.push_str(&["\n  ", program, " ", example].concat());
        }
    }
    if text.is_empty() { command } else { command.after_help(text) }
}

/// What is said about words that make no sense: what is wrong, the usage line, where there is more.
pub(crate) fn explain(error: &clap::Error, program: &str) -> String {
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && flag.starts_with('-')
        && let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage)
    {
        let usage = usage.to_string();
        let flag_name = if flag.starts_with("--") { "flag" } else { "shorthand flag" };
        let suggestion = match error.get(ContextKind::SuggestedArg) {
            Some(ContextValue::String(near)) => format!("hint: did you mean `{near}`?\n"),
            _ => String::new(),
        };
        return format!(
            "unknown {flag_name}: {flag}\n{suggestion}\n{}\n\nRun '{} --help' for more information",
            usage.trim_end(),
            command_of(&usage, program)
        );
    }
    error.render().to_string()
}

/// The command that a usage line is about: its words up to the first that stands for something.
fn command_of(usage: &str, program: &str) -> String {
    let line = usage.trim_start_matches("Usage:").trim();
    let words: Vec<_> = line
        .split(' ')
        .take_while(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
        .filter(|word| !word.is_empty() && !word.starts_with('-'))
        .collect();
    if words.is_empty() { program.to_owned() } else { words.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_found_in_its_usage() {
        assert_eq!(command_of("Usage: docker sandbox run [OPTIONS] X", "x"), "docker sandbox run");
        assert_eq!(command_of("Usage: hutch ls [OPTIONS]", "x"), "hutch ls");
        assert_eq!(command_of("", "hutch"), "hutch");
    }
}
