//! What makes a prepared VM this sandbox.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use hutch_policy::settings::NetworkSettings;
use hutch_store::{DockerStart, SandboxRecord};
use hutch_wire::guest::{AttachSpec, Bytes, EngineStart, WorkspaceMount};

use crate::network;

/// The user that owns the sandbox's home.
const USER: &str = "agent";

/// Enough to seed the kernel's pool.
const ENTROPY: usize = 64;

/// Why it cannot be said.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    /// A workspace is not there.
    #[error("the workspace {} cannot be used: {source}", path.display())]
    Workspace {
        /// Its path.
        path: PathBuf,
        /// Why; part of the message because this sentence is all that a client gets.
        source: io::Error,
    },
    /// It is neither a file nor a directory.
    #[error("the workspace {} is neither a directory nor a file", path.display())]
    Kind {
        /// Its path.
        path: PathBuf,
    },
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Builds it afresh: the random bytes must never be used twice.
pub(crate) fn attach_spec(record: &SandboxRecord) -> Result<AttachSpec, AttachError> {
    let mut entropy = vec![0; ENTROPY];
    getrandom::fill(&mut entropy).map_err(|_| AttachError::Random)?;
    let mut workspaces = Vec::new();
    for workspace in &record.workspaces {
        let path = workspace.path.as_path();
        let metadata = fs::metadata(path)
            .map_err(|source| AttachError::Workspace { path: path.to_owned(), source })?;
        if !metadata.is_dir() && !metadata.is_file() {
            return Err(AttachError::Kind { path: path.to_owned() });
        }
        workspaces.push(WorkspaceMount {
            path: Bytes::from(workspace.path.as_bytes()),
            read_only: workspace.read_only,
            directory: metadata.is_dir(),
        });
    }
    Ok(AttachSpec {
        entropy: Bytes::from(entropy),
        realtime_ns: realtime_ns(),
        hostname: record.name.hostname(),
        machine_id: record.machine_id.clone(),
        time_zone: time_zone(),
        workspaces,
        environment: environment(record),
        user: USER.to_owned(),
        ca_pem: String::new(),
        engine: match record.docker {
            DockerStart::Lazy => EngineStart::FirstConnection,
            DockerStart::Eager => EngineStart::Attach,
        },
    })
}

/// Tells the sandbox of its network: the certificate to trust, and the variables that make programs use the proxy.
pub(crate) fn add_network(spec: &mut AttachSpec, ca_pem: &str, settings: &NetworkSettings) {
    let variables = network::variables(ca_pem, &settings.services);
    let pair = |(name, value): (String, String)| {
        (Bytes::from(name.into_bytes()), Bytes::from(value.into_bytes()))
    };
    // First, so that what a person said of the sandbox wins.
    spec.environment.splice(0..0, variables.into_iter().map(pair));
    spec.ca_pem = network::trusted(ca_pem, &settings.extra_roots_pem);
}

/// The environment of every session. `TERM` is the session's own.
fn environment(record: &SandboxRecord) -> Vec<(Bytes, Bytes)> {
    let pair = |name: &str, value: &[u8]| (Bytes::from(name.as_bytes()), Bytes::from(value));
    let mut environment = vec![
        pair("LANG", b"C.UTF-8"),
        pair("IS_SANDBOX", b"1"),
        pair("SANDBOX_VM_ID", record.id.as_str().as_bytes()),
    ];
    if let Some(first) = record.workspaces.first() {
        environment.push(pair("WORKSPACE_DIR", first.path.as_bytes()));
        environment.push(pair("WORKDIR", first.path.as_bytes()));
    }
    // Last, so that it wins.
    environment.extend(record.environment.iter().map(|(name, value)| pair(name, value.as_bytes())));
    environment
}

/// Nanoseconds since 1970.
pub(crate) fn realtime_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// The host's time zone by the link that `/etc/localtime` is (localtime(5)).
fn time_zone() -> Option<String> {
    zone_of_link(&fs::read_link("/etc/localtime").ok()?)
}

fn zone_of_link(link: &Path) -> Option<String> {
    let text = link.as_os_str().as_bytes();
    let marker = b"zoneinfo/";
    let at = text.windows(marker.len()).position(|part| part == marker)?;
    let zone = std::str::from_utf8(text.get(at + marker.len()..)?).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '+');
    (!zone.is_empty() && zone.len() <= 64 && zone.chars().all(plain)).then(|| zone.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zone_is_read_from_the_link() {
        let zone = |link: &str| zone_of_link(Path::new(link));
        assert_eq!(zone("/usr/share/zoneinfo/Europe/Berlin"), Some("Europe/Berlin".to_owned()));
        assert_eq!(zone("../usr/share/zoneinfo/Etc/GMT+3"), Some("Etc/GMT+3".to_owned()));
        for link in ["/etc/other", "/usr/share/zoneinfo/", "/usr/share/zoneinfo/a b"] {
            assert_eq!(zone(link), None, "{link}");
        }
    }
}
