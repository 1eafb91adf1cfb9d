//! `[registries]` of `config.toml`, and how registries are reached.
//!
//! ```toml
//! [registries]
//! ca_files = ["/etc/ssl/company.pem"]
//!
//! [registries.mirrors]
//! "docker.io" = ["https://mirror.company.example"]
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

use hutch_image::RegistryOptions;
use toml::Value;

use super::fields::{Fields, Wrong};
use super::{OF_THE_NETWORK, Settings};

const KEYS: &[&str] = &["ca_files", "mirrors"];
/// Where the Docker CLI has its configuration.
const DOCKER_CONFIG: &str = "DOCKER_CONFIG";
/// Where the host's Docker daemon listens, as its own client is told.
const DOCKER_HOST: &str = "DOCKER_HOST";
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// What programs that know a registry's password need to find it.
const OF_HELPERS: &[&str] =
    &["PATH", "HOME", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "DISPLAY", "GNUPGHOME"];

/// What the file says about registries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RegistriesConfig {
    /// Certificates that registries may be verified with.
    pub(crate) ca_files: Vec<PathBuf>,
    /// Addresses that are asked before a registry, by its host.
    pub(crate) mirrors: BTreeMap<String, Vec<String>>,
}

impl RegistriesConfig {
    /// Reads the table.
    pub(super) fn parse(value: &Value) -> Result<Self, Wrong> {
        let fields = Fields::of("registries", value, KEYS)?;
        let mut mirrors = BTreeMap::new();
        if let Some(value) = fields.value("mirrors") {
            let at = fields.at("mirrors");
            let table =
                value.as_table().ok_or_else(|| (format!("`{at}` must be a table"), None))?;
            let hosts: Vec<&str> = table.keys().map(String::as_str).collect();
            let of = Fields::of(&at, value, &hosts)?;
            for host in hosts {
                let addresses = of.texts(host)?.unwrap_or_default();
                if let Some(wrong) = addresses.iter().find(|address| !is_address(address)) {
                    let what = format!("`{wrong}` is no address like `https://mirror.example`");
                    return Err(of.wrong(host, what));
                }
                mirrors.insert(host.to_owned(), addresses.into_iter().map(str::to_owned).collect());
            }
        }
        Ok(Self { ca_files: fields.paths("ca_files")?, mirrors })
    }
}

fn is_address(text: &str) -> bool {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && rest.bytes().all(|byte| byte.is_ascii_graphic() && !b"@?#".contains(&byte))
    })
}

impl Settings {
    /// How registries are reached.
    pub(crate) fn registries(&self) -> RegistryOptions {
        let docker = self.environment.path(DOCKER_CONFIG);
        let home = self.environment.path("HOME").map(|home| home.join(".docker"));
        RegistryOptions {
            mirrors: self.registries.mirrors.clone(),
            ca_files: self
                .registries
                .ca_files
                .iter()
                .chain(&self.network.ca_files)
                .cloned()
                .collect(),
            docker_config: docker.or(home).map(|directory| directory.join("config.json")),
            helpers: self.environment.some(OF_HELPERS),
            network: self.environment.some(OF_THE_NETWORK),
        }
    }

    /// Socket of the host's Docker daemon.
    pub(crate) fn docker_socket(&self) -> Option<PathBuf> {
        let host = self.environment.filled(DOCKER_HOST).and_then(std::ffi::OsStr::to_str);
        match host {
            Some(host) => host.strip_prefix("unix://").map(PathBuf::from),
            None => Some(PathBuf::from(DOCKER_SOCKET)),
        }
    }
}

#[cfg(test)]
mod tests {
    use hutch_agents::Agents;

    use super::super::file::FileConfig;
    use super::*;

    #[test]
    fn mirrors_are_addresses_by_host() {
        let text = "[registries]\nca_files = [\"/a.pem\"]\n[registries.mirrors]\n\"docker.io\" = [\"https://m.test\", \"http://[::1]:5000/x\"]";
        let config = FileConfig::parse(text, &Agents::built_in()).unwrap().registries;
        assert_eq!(config.mirrors["docker.io"], ["https://m.test", "http://[::1]:5000/x"]);
        assert_eq!(config.ca_files, [PathBuf::from("/a.pem")]);
        for address in ["m.test", "ftp://m.test", "https://", "https://a b", "https://u@m.test"] {
            let text = format!("[registries.mirrors]\n\"docker.io\" = [\"{address}\"]");
            let (what, _) = FileConfig::parse(&text, &Agents::built_in()).unwrap_err();
            assert!(what.contains("is no address"), "{what}");
        }
        assert!(FileConfig::parse("registries.mirror = 1", &Agents::built_in()).is_err());
    }
}
