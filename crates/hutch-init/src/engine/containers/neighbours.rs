//! The names by which a container reaches others on its networks: what it must not ask the proxy for.
//!
//! The engine keeps a `config.v2.json` for each container, and `compose up` makes all of a project's before it starts the
//! first. So at a container's start the names of those beside it are known.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A file that is longer than this is not looked at; the engine's have a few thousand bytes.
const FILE_MAX: u64 = 1 << 20;
/// Containers that are looked at.
const CONTAINERS_MAX: usize = 256;
/// Names that are told.
const NAMES_MAX: usize = 128;
const FILE: &str = "config.v2.json";
/// The label in which compose writes the name of the service, which is a name on the network too.
const SERVICE: &str = "com.docker.compose.service";

/// The names, from a container's description. Empty for what is not one of the engine's containers.
pub(super) fn names(spec: &Value) -> BTreeSet<String> {
    of_container(spec).map(|own| beside(&own)).unwrap_or_default()
}

/// The engine's directory of the container: files of it are mounted into each.
fn of_container(spec: &Value) -> Option<PathBuf> {
    let mounts = spec.get("mounts")?.as_array()?;
    let hostname = mounts.iter().find(|mount| mount["destination"] == "/etc/hostname")?;
    let directory = Path::new(hostname.get("source")?.as_str()?).parent()?;
    directory.join(FILE).is_file().then(|| directory.to_owned())
}

fn beside(own: &Path) -> BTreeSet<String> {
    let mine = read(own).map(|config| networks(&config)).unwrap_or_default();
    let others =
        own.parent().and_then(|all| fs::read_dir(all).ok()).into_iter().flatten().flatten();
    let mut names = BTreeSet::new();
    for other in others.take(CONTAINERS_MAX) {
        let Some(config) = read(&other.path()) else { continue };
        if networks(&config).is_disjoint(&mine) {
            continue;
        }
        for name in names_of(&config) {
            if names.len() < NAMES_MAX && is_plain(&name) {
                names.insert(name);
            }
        }
    }
    names
}

fn read(container: &Path) -> Option<Value> {
    let mut text = Vec::new();
    File::open(container.join(FILE)).ok()?.take(FILE_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn networks(config: &Value) -> BTreeSet<String> {
    let networks = config["NetworkSettings"]["Networks"].as_object();
    networks.into_iter().flatten().map(|(name, _)| name.clone()).collect()
}

fn names_of(config: &Value) -> Vec<String> {
    let mut names = Vec::new();
    let mut add = |name: &Value| names.extend(name.as_str().map(str::to_owned));
    add(&config["Config"]["Hostname"]);
    add(&config["Config"]["Labels"][SERVICE]);
    for network in config["NetworkSettings"]["Networks"].as_object().into_iter().flatten() {
        for list in ["Aliases", "DNSNames"] {
            network.1[list].as_array().into_iter().flatten().for_each(&mut add);
        }
    }
    names.extend(config["Name"].as_str().map(|name| name.trim_start_matches('/').to_owned()));
    names
}

/// Whether a list of names can hold it.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !name.is_empty() && name.len() <= 128 && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
    fn container(all: &Path, id: &str, config: &Value) -> PathBuf {
        let directory = all.join(id);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join(FILE), config.to_string()).unwrap();
        directory
    }

    #[test]
    fn the_names_of_a_network_are_those_of_all_on_it() {
        let all = tempfile::tempdir().unwrap();
        let on = |network: &str, aliases: &[&str]| json!({ network: { "Aliases": aliases } });
        let own = container(
            all.path(),
            "a",
            &json!({ "Name": "/app-web-1", "NetworkSettings": { "Networks": on("app_default", &["web"]) } }),
        );
        container(
            all.path(),
            "b",
            &json!({
                "Name": "/app-db-1",
                "Config": { "Hostname": "b1", "Labels": { SERVICE: "db" } },
                "NetworkSettings": { "Networks": on("app_default", &["data,base", "store"]) },
            }),
        );
        container(
            all.path(),
            "c",
            &json!({ "Name": "/other", "NetworkSettings": { "Networks": on("elsewhere", &["x"]) } }),
        );
        fs::create_dir(all.path().join("empty")).unwrap();
        let hostname = own.join("hostname");
        let spec = json!({ "mounts": [{ "destination": "/etc/hostname", "source": hostname }] });
        let names = names(&spec).into_iter().collect::<Vec<_>>();
        assert_eq!(names, ["app-db-1", "app-web-1", "b1", "db", "store", "web"]);
    }

    #[test]
    fn a_build_step_has_no_neighbours() {
        for spec in
            [json!({}), json!({ "mounts": [{ "destination": "/etc/hostname", "source": "/x/y" }] })]
        {
            assert!(names(&spec).is_empty());
        }
    }
}
