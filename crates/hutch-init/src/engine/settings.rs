//! The engine's settings: what a person wrote in `/etc/docker/daemon.json`, and ours where nothing was written.

use serde_json::{Map, Value, json};

use crate::network;

/// The socket that the engine is given.
const GIVEN: &str = "fd://";

/// Settings that make the engine quick to start and right for a machine without a network device.
///
/// Packet rules are not needed: what containers send outside is captured by init's rules whatever the engine does, and
/// published ports are served by the engine's own proxy, on `localhost` of both families. Making the rules takes several
/// dozen programs at each start, and some more for each container.
fn ours(containerd: Option<&str>) -> Map<String, Value> {
    let mut ours = Map::new();
    let mut set = |name: &str, value: Value| ours.insert(name.to_owned(), value);
    set("storage-driver", json!("overlay2"));
    set("iptables", json!(false));
    set("ip6tables", json!(false));
    // `--add-host NAME:host-gateway` means the same host as `host.docker.internal` does.
    set("host-gateway-ip", json!(network::ADDRESS.to_string()));
    if let Some(containerd) = containerd {
        set("containerd", json!(containerd));
    }
    ours
}

/// Whether the settings name a containerd that somebody else starts.
pub(super) fn names_containerd(written: &[u8]) -> bool {
    parse(written).is_some_and(|written| written.contains_key("containerd"))
}

/// The settings as one text. `None` when what was written is no object: the engine says best itself what is wrong.
pub(super) fn merged(written: &[u8], containerd: Option<&str>) -> Option<String> {
    let mut settings = parse(written)?;
    for (name, value) in ours(containerd) {
        settings.entry(name).or_insert(value);
    }
    let hosts = settings.entry("hosts").or_insert_with(|| json!([])).as_array_mut()?;
    if !hosts.iter().any(|host| host == GIVEN) {
        hosts.push(json!(GIVEN));
    }
    serde_json::to_string_pretty(&settings).ok()
}

fn parse(written: &[u8]) -> Option<Map<String, Value>> {
    match written.trim_ascii() {
        [] => Some(Map::new()),
        text => serde_json::from_slice(text).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_a_person_wrote_wins() {
        let written = br#"{"iptables":true,"debug":true,"hosts":["tcp://127.0.0.1:2375"]}"#;
        let merged = value(&merged(written, Some("/run/c.sock")).unwrap());
        assert_eq!(merged["iptables"], true);
        assert_eq!(merged["debug"], true);
        assert_eq!(merged["storage-driver"], "overlay2");
        assert_eq!(merged["host-gateway-ip"], "198.19.255.254");
        assert_eq!(merged["containerd"], "/run/c.sock");
        assert_eq!(merged["hosts"], json!(["tcp://127.0.0.1:2375", "fd://"]));
    }

    #[test]
    fn without_a_file_the_settings_are_ours() {
        for written in [&b""[..], b" \n", b"{}"] {
            let merged = value(&merged(written, None).unwrap());
            assert_eq!(merged["hosts"], json!(["fd://"]));
            assert_eq!(merged.get("containerd"), None);
        }
    }

    #[test]
    fn a_file_that_makes_no_sense_is_left_to_the_engine() {
        for written in ["{", "[]", "7", r#"{"hosts":7}"#] {
            assert_eq!(merged(written.as_bytes(), None), None, "{written}");
        }
        assert!(names_containerd(br#"{"containerd":"/x"}"#));
        assert!(!names_containerd(b"{}"));
    }
}
