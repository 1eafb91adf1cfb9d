//! Being a Docker CLI plugin.
//!
//! The same program answers under two names. As `docker-sandbox` it is called by the Docker CLI in these ways:
//!
//! ```text
//!   docker-sandbox docker-cli-plugin-metadata          what are you
//!   docker-sandbox [docker's flags] sandbox ARGS…      docker sandbox ARGS…
//!   docker-sandbox help sandbox ARGS…                  docker help sandbox ARGS…
//!   docker-sandbox __complete sandbox ARGS…            completion in a shell
//! ```
//!
//! Docker stays our parent in the same process group: Ctrl-C on a terminal reaches both. When Docker itself is asked to end
//! it closes a socket that it told us about; [`wait_for_end`] turns that into something to wait for.

use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;

use serde::Serialize;
use tokio::io::AsyncReadExt as _;

/// The name under which Docker finds us.
const PLUGIN_FILE: &str = "docker-sandbox";
/// The word after `docker`.
const COMMAND: &str = "sandbox";
/// What Docker asks each plugin.
const METADATA: &str = "docker-cli-plugin-metadata";

/// Flags of the Docker CLI that take a value and may stand before our command.
const DOCKER_FLAGS_WITH_VALUE: &[&str] = &[
    "--config",
    "--context",
    "-c",
    "--host",
    "-H",
    "--log-level",
    "-l",
    "--tlscacert",
    "--tlscert",
    "--tlskey",
];

/// Which of our two faces a person sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Face {
    /// `hutch …`
    Hutch,
    /// `docker sandbox …`
    Docker,
}

impl Face {
    /// How a person starts a command line.
    pub(crate) fn program(self) -> &'static str {
        match self {
            Self::Hutch => "hutch",
            Self::Docker => "docker sandbox",
        }
    }
}

/// What is asked of us.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// A command: the words after the program's name.
    Command { face: Face, words: Vec<OsString> },
    /// The plugin's description.
    Metadata,
    /// Completion of a command line of Docker's; we offer nothing of our own.
    Completion,
}

/// Decides from the command line, the program's name included, what is asked.
pub(crate) fn request(arguments: impl IntoIterator<Item = OsString>) -> Request {
    let mut arguments = arguments.into_iter();
    let program = arguments.next().unwrap_or_default();
    let words: Vec<OsString> = arguments.collect();
    if Path::new(&program).file_name() != Some(OsStr::new(PLUGIN_FILE)) {
        return Request::Command { face: Face::Hutch, words };
    }
    match words.first().and_then(|word| word.to_str()) {
        Some(METADATA) => return Request::Metadata,
        Some("__complete" | "__completeNoDesc") => return Request::Completion,
        _ => {}
    }
    Request::Command { face: Face::Docker, words: own_words(words) }
}

/// What remains when Docker's own flags and the word `sandbox` are taken away.
fn own_words(words: Vec<OsString>) -> Vec<OsString> {
    let is = |word: &OsString, text: &str| word == OsStr::new(text);
    if words.len() >= 2 && is(&words[0], "help") && is(&words[1], COMMAND) {
        return std::iter::once(OsString::from("help")).chain(words.into_iter().skip(2)).collect();
    }
    let mut debug = false;
    let mut at = 0;
    while let Some(word) = words.get(at) {
        if is(word, COMMAND) {
            let debug = debug.then(|| OsString::from("--debug"));
            return debug.into_iter().chain(words.into_iter().skip(at + 1)).collect();
        }
        if !word.as_bytes().starts_with(b"-") {
            break;
        }
        debug |= is(word, "--debug") || is(word, "-D");
        at += if DOCKER_FLAGS_WITH_VALUE.iter().any(|flag| is(word, flag)) { 2 } else { 1 };
    }
    // Called by hand, without Docker.
    words
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    schema_version: &'static str,
    vendor: &'static str,
    version: &'static str,
    short_description: &'static str,
}

/// The description of the plugin, in JSON.
pub(crate) fn metadata() -> String {
    let metadata = Metadata {
        schema_version: "0.1.0",
        vendor: "Hutch",
        version: env!("CARGO_PKG_VERSION"),
        short_description: "Run coding agents in microVM sandboxes",
    };
    // Nothing in it can fail to be JSON.
    serde_json::to_string(&metadata).unwrap_or_default()
}

/// Resolves when the Docker CLI asks us to end; never without it.
pub(crate) async fn wait_for_end(socket: Option<&OsStr>) {
    if let Some(stream) = socket.and_then(connect) {
        let mut stream = stream;
        let mut byte = [0];
        // Docker says nothing: the end of the stream is the message.
        while matches!(stream.read(&mut byte).await, Ok(1..)) {}
        return;
    }
    std::future::pending::<()>().await;
}

/// The name is abstract and written with `@`, or (where there are no abstract names) a path.
fn connect(socket: &OsStr) -> Option<tokio::net::UnixStream> {
    let bytes = socket.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(socket),
    }
    .ok()?;
    let stream = UnixStream::connect_addr(&address).ok()?;
    stream.set_nonblocking(true).ok()?;
    tokio::net::UnixStream::from_std(stream).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Request {
        request(line.split(' ').map(OsString::from))
    }

    fn command(face: Face, line: &str) -> Request {
        let words = line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect();
        Request::Command { face, words }
    }

    #[test]
    fn the_name_of_the_program_decides() {
        assert_eq!(asked("hutch run shell"), command(Face::Hutch, "run shell"));
        assert_eq!(asked("/usr/bin/hutch sandbox"), command(Face::Hutch, "sandbox"));
        assert_eq!(
            asked("/h/docker-sandbox sandbox run shell"),
            command(Face::Docker, "run shell")
        );
        assert_eq!(asked("docker-sandbox run shell"), command(Face::Docker, "run shell"));
    }

    #[test]
    fn dockers_own_flags_are_skipped() {
        assert_eq!(asked("docker-sandbox -D sandbox ls"), command(Face::Docker, "--debug ls"));
        assert_eq!(
            asked("docker-sandbox --context sandbox --host=tcp://x --tls -l debug sandbox ls -q"),
            command(Face::Docker, "ls -q")
        );
        assert_eq!(asked("docker-sandbox sandbox"), command(Face::Docker, ""));
        assert_eq!(
            asked("docker-sandbox sandbox run sandbox"),
            command(Face::Docker, "run sandbox")
        );
    }

    #[test]
    fn help_and_the_questions_of_docker_are_known() {
        assert_eq!(asked("docker-sandbox help sandbox"), command(Face::Docker, "help"));
        assert_eq!(asked("docker-sandbox help sandbox run"), command(Face::Docker, "help run"));
        assert_eq!(asked("docker-sandbox docker-cli-plugin-metadata"), Request::Metadata);
        assert_eq!(asked("docker-sandbox __complete sandbox ls"), Request::Completion);
    }

    #[test]
    fn the_description_has_what_docker_wants() {
        let value: serde_json::Value = serde_json::from_str(&metadata()).unwrap();
        assert_eq!(value["SchemaVersion"], "0.1.0");
        for key in ["Vendor", "Version", "ShortDescription"] {
            assert!(value[key].as_str().is_some_and(|text| !text.is_empty()), "{key}");
        }
    }

    #[tokio::test]
    async fn the_end_of_dockers_socket_is_noticed() {
        let name = format!("hutch-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let listener = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
        let docker = std::thread::spawn(move || drop(listener.accept().unwrap()));
        wait_for_end(Some(OsStr::new(&format!("@{name}")))).await;
        docker.join().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn without_docker_nothing_is_noticed() {
        let forever = wait_for_end(None);
        assert!(tokio::time::timeout(std::time::Duration::from_secs(3600), forever).await.is_err());
    }
}
