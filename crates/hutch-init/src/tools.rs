//! Files for tools that do not get, or do not read, the variables of a session's environment.
//!
//! ```text
//!   /etc/sudoers.d/hutch-network       `sudo` keeps the variables
//!   /etc/profile.d/hutch-network.sh    a login shell, `su -`, has them again
//!   ~/.docker/config.json              containers and builds get the proxy, for root and for the sandbox's user
//! ```
//!
//! What is there is kept: a file of the user's is only added to, and one that cannot be read is left alone.

use std::path::Path;

use hutch_wire::guest::Bytes;
use rustix::fs::{Gid, Uid};
use serde_json::{Map, Value, json};

use crate::home::Home;
use crate::log;
use crate::root::{Kind, Root, RootError};

const SUDOERS: &str = "/etc/sudoers.d/hutch-network";
const PROFILE: &str = "/etc/profile.d/hutch-network.sh";
/// `sudo` refuses a file that others may write.
const SUDOERS_MODE: u32 = 0o440;
/// A user's file that is longer than this is not ours to change.
const READ_MAX: u64 = 1 << 20;
/// What a login sets itself.
const OWN_TO_EACH_USER: [&str; 7] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "MAIL"];
/// Docker's names for the proxy's settings, with the variable that has the value.
const DOCKER: [(&str, &str); 3] =
    [("httpProxy", "HTTP_PROXY"), ("httpsProxy", "HTTPS_PROXY"), ("noProxy", "NO_PROXY")];

/// The files that are ours alone, absolute.
pub(crate) const FILES: [&str; 2] = [SUDOERS, PROFILE];

/// Writes the files. One that cannot be written is a line in the log.
pub(crate) fn write(root: &Root, environment: &[(Bytes, Bytes)], user: &str) {
    let variables = variables(environment);
    if root.has_file(Path::new("/etc/sudoers.d")) {
        let path = Path::new(SUDOERS);
        let written = root
            .write(path, sudoers(&variables).as_bytes())
            .and_then(|()| root.set_mode(path, SUDOERS_MODE));
        said(path, written);
    }
    if root.has_file(Path::new("/etc/profile.d")) {
        let path = Path::new(PROFILE);
        said(path, root.write(path, profile(&variables).as_bytes()));
    }
    for user in ["root", user] {
        if let Some(home) = Home::of(root, user) {
            let path = home.path.join(".docker/config.json");
            said(&path, docker(root, &home, &path, &variables));
        }
    }
}

fn said(path: &Path, result: Result<(), RootError>) {
    if let Err(error) = result {
        log::warn(format!("{} not written: {error}", path.display()));
    }
}

/// The variables that a shell can have and that are for every user.
fn variables(environment: &[(Bytes, Bytes)]) -> Vec<(&str, &str)> {
    environment
        .iter()
        .filter_map(|(name, value)| {
            Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
        })
        .filter(|(name, value)| {
            is_name(name) && !OWN_TO_EACH_USER.contains(name) && !value.contains(['\n', '\0'])
        })
        .collect()
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn sudoers(variables: &[(&str, &str)]) -> String {
    let mut out = String::from("# Written by hutch at each start.\n");
    for (name, _) in variables {
        out.extend(["Defaults env_keep += \"", name, "\"\n"]);
    }
    out
}

/// What is set already stays.
fn profile(variables: &[(&str, &str)]) -> String {
    let mut out = String::from("# Written by hutch at each start.\n");
    for (name, value) in variables {
        let quoted = value.replace('\'', "'\\''");
        out.extend(["[ -n \"${", name, "+x}\" ] || export ", name, "='", &quoted, "'\n"]);
    }
    out
}

fn docker(
    root: &Root,
    home: &Home,
    path: &Path,
    variables: &[(&str, &str)],
) -> Result<(), RootError> {
    let directory = home.path.join(".docker");
    if !root.has_file(&home.path) {
        return Ok(());
    }
    let now = root.content(path, READ_MAX)?;
    let Some(new) = with_proxies(now.as_deref(), variables) else { return Ok(()) };
    let owner = (Uid::from_raw(home.owner.0), Gid::from_raw(home.owner.1));
    if !root.has_file(&directory) {
        root.make(&directory, Kind::Directory)?;
        root.set_owner(&directory, owner)?;
    }
    root.overwrite(path, new.as_bytes())?;
    if now.is_none() {
        root.set_owner(path, owner)?;
    }
    Ok(())
}

/// Docker's settings with the proxy's where none are. `None` when there is nothing to change, or nothing that may be.
fn with_proxies(now: Option<&[u8]>, variables: &[(&str, &str)]) -> Option<String> {
    let mut settings = match now.map(<[u8]>::trim_ascii) {
        None | Some([]) => Map::new(),
        Some(text) => match serde_json::from_slice(text) {
            Ok(Value::Object(settings)) => settings,
            _ => return None,
        },
    };
    let proxies = settings.entry("proxies").or_insert_with(|| json!({})).as_object_mut()?;
    let default = proxies.entry("default").or_insert_with(|| json!({})).as_object_mut()?;
    let mut changed = false;
    for (key, variable) in DOCKER {
        let value = variables.iter().find(|(name, _)| *name == variable).map(|(_, value)| *value);
        if let Some(value) = value
            && !default.contains_key(key)
        {
            default.insert(key.to_owned(), json!(value));
            changed = true;
        }
    }
    let text = changed.then(|| serde_json::to_string_pretty(&settings).ok()).flatten()?;
    Some(text + "\n")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const VARIABLES: [(&str, &str); 3] = [
        ("HTTP_PROXY", "http://host.docker.internal:3128"),
        ("HTTPS_PROXY", "http://host.docker.internal:3128"),
        ("NO_PROXY", "localhost,127.0.0.1,::1"),
    ];

    fn pair(name: &str, value: &str) -> (Bytes, Bytes) {
        (Bytes::from(name.as_bytes().to_vec()), Bytes::from(value.as_bytes().to_vec()))
    }

    #[test]
    fn only_what_a_shell_and_every_user_can_have_is_taken() {
        let environment = [
            pair("HTTP_PROXY", "x"),
            pair("PATH", "/bin"),
            pair("1X", "x"),
            pair("A B", "x"),
            pair("TWO", "a\nb"),
            pair("Q", "it's"),
        ];
        let found = variables(&environment);
        assert_eq!(found, [("HTTP_PROXY", "x"), ("Q", "it's")]);
        assert!(
            sudoers(&found)
                .ends_with("Defaults env_keep += \"HTTP_PROXY\"\nDefaults env_keep += \"Q\"\n")
        );
        assert!(profile(&found).ends_with("\n[ -n \"${Q+x}\" ] || export Q='it'\\''s'\n"));
    }

    #[test]
    fn dockers_settings_are_added_to() {
        let new = with_proxies(None, &VARIABLES).unwrap();
        let value: Value = serde_json::from_str(&new).unwrap();
        assert_eq!(value["proxies"]["default"]["httpsProxy"], VARIABLES[1].1);
        assert_eq!(with_proxies(Some(new.as_bytes()), &VARIABLES), None);
        let own = br#"{"auths":{"x":{"auth":"secret"}},"proxies":{"default":{"httpProxy":"own"}}}"#;
        let merged: Value =
            serde_json::from_str(&with_proxies(Some(own), &VARIABLES).unwrap()).unwrap();
        assert_eq!(merged["auths"]["x"]["auth"], "secret");
        assert_eq!(merged["proxies"]["default"]["httpProxy"], "own");
        assert_eq!(merged["proxies"]["default"]["noProxy"], VARIABLES[2].1);
    }

    #[test]
    fn settings_that_make_no_sense_are_left_alone() {
        for text in ["[]", "{", "\"x\"", r#"{"proxies":1}"#, r#"{"proxies":{"default":[]}}"#] {
            assert_eq!(with_proxies(Some(text.as_bytes()), &VARIABLES), None, "{text}");
        }
        assert_eq!(with_proxies(Some(b"{}"), &[]), None);
        assert!(with_proxies(Some(b" \n"), &VARIABLES).is_some());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
    fn files_get_their_owner_and_mode() {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test needs root, as the guest's init has"
        );
        let directory = tempfile::tempdir().unwrap();
        for name in ["etc/sudoers.d", "etc/profile.d", "home/agent"] {
            fs::create_dir_all(directory.path().join(name)).unwrap();
        }
        let passwd = "agent:x:1000:1001::/home/agent:/bin/sh\nroot:x:0:0::/root:/bin/sh\n";
        fs::write(directory.path().join("etc/passwd"), passwd).unwrap();
        let environment: Vec<_> = VARIABLES.iter().map(|(name, value)| pair(name, value)).collect();
        let root = Root::open(directory.path()).unwrap();
        write(&root, &environment, "agent");
        let facts = |path: &str| {
            let found = fs::symlink_metadata(directory.path().join(path)).unwrap();
            (found.mode() & 0o7777, found.uid(), found.gid())
        };
        assert_eq!(facts("etc/sudoers.d/hutch-network"), (0o440, 0, 0));
        assert_eq!(facts("etc/profile.d/hutch-network.sh"), (0o644, 0, 0));
        assert_eq!(facts("home/agent/.docker"), (0o755, 1000, 1001));
        assert_eq!(facts("home/agent/.docker/config.json"), (0o644, 1000, 1001));
        assert!(!directory.path().join("root").exists());
    }
}
