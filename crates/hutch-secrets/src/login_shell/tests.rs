//! With the shells that the machine has, on start files of our making.

use std::fs;

use super::*;

/// The start of Debian's own `.bashrc`.
const DEBIAN: &str = "case $- in\n    *i*) ;;\n      *) return;;\nesac\n";

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    #[expect(clippy::disallowed_methods, reason = "a start file of a test, not one of ours")]
    fn with(self, file: &str, text: &str) -> Self {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn login(&self, shell: &str) -> Login {
        Login { home: self.0.path().to_owned(), user: "someone".to_owned(), shell: shell.into() }
    }

    fn ask(&self, shell: &str, names: &[&str]) -> Result<Vec<(String, String)>, LoginShellError> {
        let found = variables(&self.login(shell), names)?;
        Ok(found.into_iter().map(|(name, value)| (name, value.expose().to_owned())).collect())
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn a_key_of_bashrc_is_found_though_it_returns_early_elsewhere() {
    // As Debian does it: the profile reads .bashrc, which returns early unless the shell is interactive.
    let home =
        Home::new().with(".profile", "[ -n \"$BASH_VERSION\" ] && . \"$HOME/.bashrc\"\n").with(
            ".bashrc",
            &format!("{DEBIAN}echo Welcome\nexport OPENAI_API_KEY='sk-a b$c'\nexport EMPTY=\n"),
        );
    let found = home.ask("/bin/bash", &["OPENAI_API_KEY", "EMPTY", "UNSET"]).unwrap();
    assert_eq!(found, pairs(&[("OPENAI_API_KEY", "sk-a b$c")]));
}

#[test]
fn a_key_of_bashrc_is_found_without_any_profile() {
    let home = Home::new().with(".bashrc", &format!("{DEBIAN}export GH_TOKEN=gho_1\n"));
    assert_eq!(home.ask("/bin/bash", &["GH_TOKEN"]).unwrap(), pairs(&[("GH_TOKEN", "gho_1")]));
}

#[test]
fn keys_of_other_shells_are_found() {
    for (shell, file, text) in [
        ("/bin/dash", ".profile", "export A_KEY=one\n"),
        ("/bin/zsh", ".zshrc", "export A_KEY=one\n"),
        ("/usr/bin/fish", ".config/fish/config.fish", "set -gx A_KEY one\n"),
    ] {
        if Path::new(shell).exists() {
            let home = Home::new().with(file, text);
            assert_eq!(home.ask(shell, &["A_KEY"]).unwrap(), pairs(&[("A_KEY", "one")]), "{shell}");
        }
    }
}

#[test]
fn what_start_files_print_or_redefine_is_not_taken_for_a_value() {
    let home = Home::new().with(
        ".bashrc",
        "set -u\nprintf 'A_KEY=evil\\0evil\\0'\nprintf() { echo evil; }\nalias printf='echo evil'\nexport A_KEY=good\n",
    );
    assert_eq!(home.ask("/bin/bash", &["A_KEY", "B"]).unwrap(), pairs(&[("A_KEY", "good")]));
}

#[test]
fn our_environment_is_not_the_shells() {
    // The test runner has HOME, PATH and CARGO_… of its own.
    let home =
        Home::new().with(".bashrc", "export SEEN=\"$HOME:$USER:$TERM:${CARGO_PKG_NAME-none}\"\n");
    let expected = format!("{}:someone:dumb:none", home.0.path().display());
    assert_eq!(home.ask("/bin/bash", &["SEEN"]).unwrap(), pairs(&[("SEEN", &expected)]));
}

#[test]
fn a_value_with_a_line_end_is_no_credential() {
    let home =
        Home::new().with(".bashrc", "export A_KEY=$'one\\r\\nX-Other: two'\nexport B=fine\n");
    assert_eq!(home.ask("/bin/bash", &["A_KEY", "B"]).unwrap(), pairs(&[("B", "fine")]));
}

#[test]
fn start_files_that_wait_are_ended_with_all_they_started() {
    let home = Home::new().with(".bashrc", "echo $$ > \"$HOME/pid\"\nsleep 1000 & sleep 1000\n");
    let started = Instant::now();
    let error = home.ask("/bin/bash", &["A_KEY"]).unwrap_err();
    assert!(matches!(error, LoginShellError::Time { .. }), "{error}");
    assert!(started.elapsed() < TIME_MAX + Duration::from_secs(3));
    let pid = fs::read_to_string(home.0.path().join("pid")).unwrap();
    let group = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    // Its last members may still be zombies that nobody has reaped, which no signal tells from the living.
    let running = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        let state = fields.next().unwrap_or_default().to_owned();
        state != "Z" && fields.nth(1) == Some(&group.as_raw_nonzero().to_string())
    };
    // The kernel takes a moment; the time-out of the test is the limit.
    while fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(running) {
        std::thread::yield_now();
    }
}

#[test]
fn a_shell_that_ends_or_floods_is_told() {
    for text in ["exit 0\n", "exec true\n", "head -c 3000000 /dev/zero\n"] {
        let home = Home::new().with(".bashrc", text);
        let error = home.ask("/bin/bash", &["A_KEY"]).unwrap_err();
        assert!(matches!(error, LoginShellError::Answer { .. }), "{text}: {error}");
    }
    let home = Home::new();
    let unknown = home.ask("/bin/true", &["A_KEY"]).unwrap_err();
    assert!(matches!(unknown, LoginShellError::Unsupported { .. }));
    assert!(matches!(home.ask("/nowhere/bash", &["A"]).unwrap_err(), LoginShellError::Start(_)));
}

#[test]
fn no_name_becomes_a_command() {
    let home = Home::new();
    let found =
        home.ask("/bin/bash", &["A}\"; touch \"$HOME/x\"; \"${B", "", "1A", "A-B"]).unwrap();
    assert_eq!(found, []);
    assert!(!home.0.path().join("x").exists());
    assert!(is_variable("_A9") && !is_variable(&"A".repeat(129)));
}

#[test]
fn a_changed_start_file_has_another_stamp() {
    let home = Home::new().with(".bashrc", "export A=1\n");
    let before = Stamps::of(home.0.path());
    assert_eq!(before, Stamps::of(home.0.path()));
    let home = home.with(".bashrc", "export A=22\n");
    let changed = Stamps::of(home.0.path());
    assert_ne!(before, changed);
    let home = home.with(".zshrc", "");
    assert_ne!(changed, Stamps::of(home.0.path()));
}

#[test]
fn an_answer_counts_only_when_it_is_whole() {
    assert!(parse(b"mark\0one\0two", "mark", 2).is_none());
    assert!(parse(b"one\0two\0", "mark", 2).is_none());
    let values = parse(b"x\0mark\0one\0\0rest", "mark", 2).unwrap();
    assert_eq!(
        values.iter().map(|value| value.to_vec()).collect::<Vec<_>>(),
        [b"one".to_vec(), vec![]]
    );
}
