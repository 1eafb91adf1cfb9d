//! The files in the sandbox's root that say which machine it is.

use std::fmt::Display;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use hutch_wire::network::PROXY_NAMES;

use crate::log;
use crate::root::{Root, RootError};

/// Without a network there is no name server: programs then get an answer at once instead of a delay.
const RESOLV_CONF: &str = "# Written by hutch at each start.\n";
const ZONES: &str = "/usr/share/zoneinfo";
const HOSTNAME_MAX: usize = 63;

/// A part of the identity that is not what it must be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    /// Not a host name.
    #[error("{0:?} is not a host name")]
    Hostname(String),
    /// Not a machine id.
    #[error("the machine id is not 32 lower-case hexadecimal digits")]
    MachineId,
}

/// Checks what the host sent before any of it reaches a file.
pub(crate) fn check(hostname: &str, machine_id: &str) -> Result<(), IdentityError> {
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if hostname.is_empty() || hostname.len() > HOSTNAME_MAX || !hostname.chars().all(name) {
        return Err(IdentityError::Hostname(hostname.to_owned()));
    }
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if machine_id.len() != 32 || !machine_id.bytes().all(digit) {
        return Err(IdentityError::MachineId);
    }
    Ok(())
}

/// What the files say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity<'a> {
    pub(crate) hostname: &'a str,
    pub(crate) machine_id: &'a str,
    pub(crate) time_zone: Option<&'a str>,
    /// Where the resolver and the user's machine are, if there is a network.
    pub(crate) network: Option<Ipv4Addr>,
}

/// The files, absolute.
pub(crate) const FILES: [&str; 6] = [
    "/etc/hostname",
    "/etc/hosts",
    "/etc/machine-id",
    "/etc/resolv.conf",
    "/etc/localtime",
    "/etc/timezone",
];

/// Writes the files. A root in which one cannot be written (no `/etc`, a link in its place) works without.
pub(crate) fn write(root: &Root, identity: Identity<'_>) {
    let Identity { hostname, machine_id, time_zone, network } = identity;
    for (path, content) in [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts(hostname, network)),
        ("/etc/machine-id", format!("{machine_id}\n")),
        ("/etc/resolv.conf", resolv_conf(network)),
    ] {
        said(path, root.write(Path::new(path), content.as_bytes()));
    }
    if let Some(zone) = time_zone.filter(|zone| is_zone_name(zone)) {
        let file = PathBuf::from(ZONES).join(zone);
        if root.has_file(&file) {
            said("/etc/localtime", root.link(Path::new("/etc/localtime"), &file));
            said(
                "/etc/timezone",
                root.write(Path::new("/etc/timezone"), format!("{zone}\n").as_bytes()),
            );
        }
    }
}

fn said(path: impl Display, result: Result<(), RootError>) {
    if let Err(error) = result {
        log::warn(format!("{path} not written: {error}"));
    }
}

fn hosts(hostname: &str, network: Option<Ipv4Addr>) -> String {
    let own = format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"
    );
    match network {
        Some(address) => format!("{own}{address}\t{}\n", PROXY_NAMES.join(" ")),
        None => own,
    }
}

/// The address is one that containers reach too, so that a container engine hands it on.
fn resolv_conf(network: Option<Ipv4Addr>) -> String {
    match network {
        Some(address) => format!("{RESOLV_CONF}nameserver {address}\n"),
        None => RESOLV_CONF.to_owned(),
    }
}

/// `Europe/Berlin`, `Etc/GMT+3`: never a path that leaves the directory of zones.
fn is_zone_name(zone: &str) -> bool {
    zone.len() <= 64
        && zone.split('/').all(|part| {
            !part.is_empty()
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+'))
        })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn names_that_would_break_a_file_are_refused() {
        assert!(check("shell-project_1.x", ID).is_ok());
        for name in ["", "a b", "a\nb", "ü", &"x".repeat(64)] {
            assert!(check(name, ID).is_err(), "{name:?}");
        }
        for id in ["", "0123", &ID.to_uppercase(), &format!("{ID}0"), &"g".repeat(32)] {
            assert!(check("box", id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn zones_are_names_and_not_paths() {
        for zone in ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+3"] {
            assert!(is_zone_name(zone), "{zone}");
        }
        for zone in ["", "../etc", "/etc/passwd", "a//b", "a/../b", "a\nb"] {
            assert!(!is_zone_name(zone), "{zone}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
    fn the_root_gets_its_identity() {
        let directory = tempfile::tempdir().unwrap();
        let etc = directory.path().join("etc");
        fs::create_dir(&etc).unwrap();
        fs::create_dir_all(directory.path().join("usr/share/zoneinfo/Europe")).unwrap();
        fs::write(directory.path().join("usr/share/zoneinfo/Europe/Berlin"), "").unwrap();
        let root = Root::open(directory.path()).unwrap();
        let mut identity = Identity {
            hostname: "box",
            machine_id: ID,
            time_zone: Some("Europe/Berlin"),
            network: Some(Ipv4Addr::new(198, 19, 255, 254)),
        };
        write(&root, identity);
        assert_eq!(fs::read_to_string(etc.join("hostname")).unwrap(), "box\n");
        assert!(fs::read_to_string(etc.join("hosts")).unwrap().contains("127.0.1.1\tbox\n"));
        assert_eq!(fs::read_to_string(etc.join("machine-id")).unwrap(), format!("{ID}\n"));
        assert_eq!(
            fs::read_link(etc.join("localtime")).unwrap(),
            Path::new("/usr/share/zoneinfo/Europe/Berlin")
        );
        let resolv = fs::read_to_string(etc.join("resolv.conf")).unwrap();
        assert!(resolv.ends_with("\nnameserver 198.19.255.254\n"), "{resolv}");
        let hosts = fs::read_to_string(etc.join("hosts")).unwrap();
        let machine = "198.19.255.254\thost.docker.internal gateway.docker.internal\n";
        assert!(hosts.ends_with(machine), "{hosts}");
        identity.time_zone = Some("Mars/Base");
        identity.network = None;
        write(&root, identity);
        assert_eq!(fs::read_to_string(etc.join("resolv.conf")).unwrap(), RESOLV_CONF);
        assert_eq!(fs::read_to_string(etc.join("timezone")).unwrap(), "Europe/Berlin\n");
    }
}
