//! Stands in for `runc`: gives each container, build step and `docker exec` the sandbox's proxy and certificates.
//!
//! The engine finds this program under that name before the distribution's. For `create`, `run` and `exec` it adds to
//! what the engine wrote for `runc`, then it becomes `runc`, as for everything else:
//!
//! ```text
//!   variables   those of the proxy, and where the certificates are; one that is set already stays
//!   a mount     the sandbox's certificates, read-only, below /dev
//! ```
//!
//! `/dev` of a container is in memory, so nothing of ours gets into an image or a layer, and a certificate that changes
//! in the sandbox changes in its containers too. What cannot be read or added is left to `runc` as it is.

mod neighbours;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use serde_json::{Value, json};

use super::{PROGRAMS, RUNTIME};
use crate::trust::{BUNDLE, PROXY_CA};

/// Where the certificates are in a container: the system's with the proxy's, and the proxy's alone.
const CONTAINER_BUNDLE: &str = "/dev/hutch/ca-certificates.crt";
const CONTAINER_CA: &str = "/dev/hutch/proxy-ca.crt";
/// Addresses that the engine gives to containers. What is not a container there is captured, and judged as ever.
const CONTAINER_NETWORKS: &str = "172.16.0.0/12,192.168.0.0/16";
/// Passed on as they are in the sandbox.
const PASSED: [&str; 10] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "NODE_USE_ENV_PROXY",
    "PROXY_CA_CERT_B64",
    "IS_SANDBOX",
    "SANDBOX_VM_ID",
];
/// A file of the engine's that is longer than this is not touched.
const FILE_MAX: u64 = 16 << 20;
/// Options of `runc` itself that take a value.
const VALUED: [&str; 5] = ["--log", "--log-format", "--root", "--criu", "--rootless"];

/// What is to be done before `runc` does its part.
#[derive(Debug, PartialEq, Eq)]
enum Task {
    /// A container, made from the bundle in this directory.
    Container(PathBuf),
    /// One more process, as this file describes it.
    Process(PathBuf),
    Nothing,
}

pub(super) fn main(arguments: &[OsString]) -> ExitCode {
    // A container without the variables is better than none.
    match task(arguments) {
        Task::Container(bundle) => {
            rewrite(&bundle.join("config.json"), |spec| container(spec, &sandbox())).ok();
        }
        Task::Process(file) => {
            rewrite(&file, |process| environment(process, &sandbox())).ok();
        }
        Task::Nothing => {}
    }
    become_runc(arguments)
}

fn become_runc(arguments: &[OsString]) -> ExitCode {
    let path = variable("PATH").unwrap_or_default();
    let runc = std::env::split_paths(&path)
        .filter(|directory| directory != Path::new(PROGRAMS))
        .map(|directory| directory.join(RUNTIME))
        .find(|program| program.is_file());
    let error = match runc {
        Some(program) => command(&program).args(arguments).exec(),
        None => io::ErrorKind::NotFound.into(),
    };
    // Descriptor 2 is what the engine passes on.
    writeln!(io::stderr(), "cannot run the sandbox's runc: {error}").ok();
    ExitCode::from(127)
}

#[expect(clippy::disallowed_methods, reason = "the engine's environment is what runc expects")]
fn command(program: &Path) -> Command {
    Command::new(program)
}

#[expect(clippy::disallowed_methods, reason = "the engine passes the sandbox's environment on")]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Reads the command line as `runc` does.
fn task(arguments: &[OsString]) -> Task {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if VALUED.iter().any(|option| word == option) {
            words.next();
            continue;
        }
        let rest = words.as_slice();
        return match word.to_str() {
            Some("create" | "run") => {
                Task::Container(value(rest, ["--bundle", "-b"]).unwrap_or_else(|| ".".into()))
            }
            Some("exec") => value(rest, ["--process", "-p"]).map_or(Task::Nothing, Task::Process),
            Some(option) if option.starts_with('-') => continue,
            _ => Task::Nothing,
        };
    }
    Task::Nothing
}

/// The value of an option: the word after it, or what follows `=`.
fn value(words: &[OsString], names: [&str; 2]) -> Option<PathBuf> {
    words.iter().enumerate().find_map(|(index, word)| {
        if names.iter().any(|name| word == name) {
            return words.get(index + 1).map(PathBuf::from);
        }
        let (name, value) = word.to_str()?.split_once('=')?;
        names.contains(&name).then(|| PathBuf::from(value))
    })
}

/// The variables that containers are given.
fn sandbox() -> Vec<(String, String)> {
    variables(|name| variable(name).and_then(|value| value.into_string().ok()))
}

fn variables(of_the_sandbox: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = PASSED
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), of_the_sandbox(name)?)))
        .collect();
    // Those that name a file of the sandbox's: the sandbox's tools are told the same way.
    for name in TOLD {
        match of_the_sandbox(name).as_deref() {
            Some(BUNDLE) => all.push((name.to_owned(), CONTAINER_BUNDLE.to_owned())),
            Some(PROXY_CA) => all.push((name.to_owned(), CONTAINER_CA.to_owned())),
            _ => {}
        }
    }
    all
}

/// Names by which tools are told where certificates are.
const TOLD: [&str; 12] = [
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
    "npm_config_cafile",
    "AWS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
];

/// Adds to a container's description (config.json of the OCI runtime specification).
fn container(spec: &mut Value, variables: &[(String, String)]) -> Option<()> {
    if !variables.iter().any(|(_, value)| value.starts_with("/dev/hutch/")) {
        // The sandbox has no network, and so no certificates.
        return None;
    }
    let names = neighbours::names(spec);
    let process = spec.get_mut("process")?;
    environment(process, variables)?;
    without_proxy(process, variables, &names)?;
    let mounts = spec.as_object_mut()?.entry("mounts").or_insert_with(|| json!([]));
    for (source, destination) in [(BUNDLE, CONTAINER_BUNDLE), (PROXY_CA, CONTAINER_CA)] {
        mounts.as_array_mut()?.push(json!({
            "destination": destination,
            "type": "bind",
            "source": source,
            "options": ["bind", "ro", "nosuid", "nodev", "noexec"],
        }));
    }
    Some(())
}

/// Names what is not to be asked of the proxy, where the container has the sandbox's own list and nobody else's.
fn without_proxy(
    process: &mut Value,
    variables: &[(String, String)],
    names: &BTreeSet<String>,
) -> Option<()> {
    let set = process.get_mut("env")?.as_array_mut()?;
    for name in ["NO_PROXY", "no_proxy"] {
        let Some((_, list)) = variables.iter().find(|(other, _)| other == name) else { continue };
        let untouched = format!("{name}={list}");
        let Some(variable) = set.iter_mut().find(|one| **one == untouched) else { continue };
        let mut longer = untouched + "," + CONTAINER_NETWORKS;
        for name in names {
            longer.push(',');
            longer.push_str(name);
        }
        *variable = json!(longer);
    }
    Some(())
}

/// Adds variables to a process's description.
fn environment(process: &mut Value, variables: &[(String, String)]) -> Option<()> {
    let set = process.as_object_mut()?.entry("env").or_insert_with(|| json!([])).as_array_mut()?;
    for (name, value) in variables {
        let is_set = set.iter().any(|one| {
            one.as_str()
                .and_then(|one| one.strip_prefix(name.as_str()))
                .is_some_and(|rest| rest.starts_with('='))
        });
        if !is_set {
            set.push(json!(format!("{name}={value}")));
        }
    }
    Some(())
}

/// Changes a file of JSON in its place.
fn rewrite(path: &Path, change: impl FnOnce(&mut Value) -> Option<()>) -> io::Result<()> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions();
    let mut text = Vec::new();
    file.take(FILE_MAX + 1).read_to_end(&mut text)?;
    if text.len() as u64 > FILE_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut value = serde_json::from_slice(&text)?;
    if change(&mut value).is_none() {
        return Ok(());
    }
    let mut new = path.as_os_str().to_owned();
    new.push(OsStr::new(".hutch"));
    write(new.as_ref(), &serde_json::to_vec(&value)?)?;
    fs::set_permissions(&new, mode)?;
    fs::rename(&new, path)
}

#[expect(clippy::disallowed_methods, reason = "a file of the engine's, in the sandbox")]
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn of_a_sandbox(name: &str) -> Option<String> {
        let value = match name {
            "HTTP_PROXY" | "https_proxy" => "http://host.docker.internal:3128",
            "NO_PROXY" => "localhost,127.0.0.1,::1",
            "SSL_CERT_FILE" => BUNDLE,
            "NODE_EXTRA_CA_CERTS" => PROXY_CA,
            "PIP_CERT" => "/home/agent/own.pem",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn the_command_line_is_read_as_runc_reads_it() {
        for (line, wanted) in [
            (
                "--root /r --log /l --log-format json create --bundle /b --pid-file /p id",
                Task::Container("/b".into()),
            ),
            ("--log create --systemd-cgroup run --keep -b /b id", Task::Container("/b".into())),
            ("run --bundle=/b id", Task::Container("/b".into())),
            ("create id", Task::Container(".".into())),
            ("exec --process /p --detach id", Task::Process("/p".into())),
            ("exec id sh create", Task::Nothing),
            ("--root=/r state run", Task::Nothing),
            ("delete --force create", Task::Nothing),
            ("--version", Task::Nothing),
            ("--root", Task::Nothing),
        ] {
            assert_eq!(task(&words(line)), wanted, "{line}");
        }
    }

    #[test]
    fn a_container_gets_variables_and_certificates() {
        let mut spec = json!({
            "process": { "env": ["PATH=/bin", "NO_PROXY=own", "HTTP_PROXY="], "args": ["sh"] },
            "mounts": [{ "destination": "/proc" }],
            "linux": { "maskedPaths": [] },
        });
        container(&mut spec, &variables(of_a_sandbox)).unwrap();
        let env: Vec<&str> =
            spec["process"]["env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(
            env,
            [
                "PATH=/bin",
                "NO_PROXY=own",
                "HTTP_PROXY=",
                "https_proxy=http://host.docker.internal:3128",
                "SSL_CERT_FILE=/dev/hutch/ca-certificates.crt",
                "NODE_EXTRA_CA_CERTS=/dev/hutch/proxy-ca.crt",
            ]
        );
        let mounts = spec["mounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[1]["source"], BUNDLE);
        assert_eq!(mounts[1]["destination"], CONTAINER_BUNDLE);
        assert_eq!(spec["linux"], json!({ "maskedPaths": [] }));
    }

    #[test]
    fn without_a_network_nothing_is_added() {
        let mut spec = json!({ "process": {} });
        assert_eq!(container(&mut spec, &variables(|_| None)), None);
        assert_eq!(spec, json!({ "process": {} }));
    }

    #[test]
    fn a_description_that_makes_no_sense_is_left_alone() {
        let variables = variables(of_a_sandbox);
        for text in [
            "[]",
            "7",
            r#"{"process":7}"#,
            r#"{"process":{"env":{}}}"#,
            r#"{"process":{},"mounts":1}"#,
        ] {
            let mut spec = serde_json::from_str(text).unwrap();
            assert_eq!(container(&mut spec, &variables), None, "{text}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        write(&path, b"{").unwrap();
        rewrite(&path, |_| Some(())).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"{");
    }

    #[test]
    fn a_file_is_rewritten_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("process");
        write(&path, br#"{"args":["sh"],"big":18446744073709551615}"#).unwrap();
        rewrite(&path, |process| environment(process, &variables(of_a_sandbox))).unwrap();
        let now: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(now["big"], u64::MAX);
        assert_eq!(now["env"].as_array().unwrap().len(), 5);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
