//! The variables that make programs in the guest use the proxy and trust its certificates.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hutch_policy::settings::Service;
use hutch_wire::guest::Bytes;
use hutch_wire::network::{PROXY_NAMES, PROXY_PORT};

/// Where init puts the proxy's certificate alone.
const CA_FILE: &str = "/usr/local/share/ca-certificates/proxy-ca.crt";
/// Where init keeps all certificates that the system trusts, the proxy's among them.
const CA_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Read by every shell of the agent before a command.
const PERSISTENT: &str = "/etc/sandbox-persistent.sh";
/// What is in the guest itself.
const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// Variables that hold the proxy's address. Programs disagree about the case.
const PROXY_VARIABLES: [&str; 4] = ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"];
/// Variables of tools that look for certificates elsewhere than in the system's bundle.
const BUNDLE_VARIABLES: [&str; 9] = [
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CURL_CA_BUNDLE",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "NIX_SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];

/// More certificates than these are not sent to a guest.
const CERTIFICATES_MAX: usize = 16;

/// What the guest is to trust: the proxy, and the certificates that the user named, which sign for servers whose TLS is
/// passed through as well. A whole bundle among them is left out: what everybody trusts is in the guest already.
pub(crate) fn trusted(ca_pem: &str, extra_roots_pem: &str) -> String {
    let count = |pem: &str| pem.matches("-----BEGIN CERTIFICATE-----").count();
    let extra = count(extra_roots_pem);
    if extra == 0 {
        return ca_pem.to_owned();
    }
    if count(ca_pem) + extra > CERTIFICATES_MAX {
        tracing::warn!(extra, "too many certificates to have the guest trust them too");
        return ca_pem.to_owned();
    }
    format!("{}\n{extra_roots_pem}", ca_pem.trim_end())
}

/// The variable that holds the proxy's certificate itself.
fn certificate(ca_pem: &str) -> (String, String) {
    ("PROXY_CA_CERT_B64".to_owned(), STANDARD.encode(ca_pem))
}

/// The same as bytes, for a guest that is told of another certificate.
pub(crate) fn certificate_variable(ca_pem: &str) -> (Bytes, Bytes) {
    let (name, value) = certificate(ca_pem);
    (Bytes::from(name.into_bytes()), Bytes::from(value.into_bytes()))
}

/// All of them, with the placeholders of the services' credentials.
pub(crate) fn variables(ca_pem: &str, services: &[Service]) -> Vec<(String, String)> {
    let [name, _] = PROXY_NAMES;
    let proxy = format!("http://{name}:{PROXY_PORT}");
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));
    for name in PROXY_VARIABLES {
        set(name, &proxy);
    }
    for name in ["NO_PROXY", "no_proxy"] {
        set(name, NO_PROXY);
    }
    for name in BUNDLE_VARIABLES {
        set(name, CA_BUNDLE);
    }
    // Added to those that Node brings along, where the others replace theirs.
    set("NODE_EXTRA_CA_CERTS", CA_FILE);
    // Node's `fetch` looks at the variables above only then.
    set("NODE_USE_ENV_PROXY", "1");
    all.push(certificate(ca_pem));
    let mut set = |name: &str, value: &str| all.push((name.to_owned(), value.to_owned()));
    for name in ["BASH_ENV", "CLAUDE_ENV_FILE"] {
        set(name, PERSISTENT);
    }
    // Of two services with the same variable the first one is meant, as with hosts.
    for service in services.iter().rev() {
        for name in &service.placeholder_variables {
            set(name, &service.placeholder);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, variables: &[&str], placeholder: &str) -> Service {
        Service {
            name: name.to_owned(),
            hosts: Vec::new(),
            header: "authorization".to_owned(),
            format: "Bearer %s".to_owned(),
            variables: vec!["REAL".to_owned()],
            placeholder_variables: variables.iter().map(|&name| name.to_owned()).collect(),
            placeholder: placeholder.to_owned(),
            replaces: Vec::new(),
            git_basic: false,
            oauth: None,
        }
    }

    #[test]
    fn every_tool_is_told_its_variable() {
        let all = variables("PEM\n", &[]);
        let value = |name: &str| {
            let mut found = all.iter().filter(|(other, _)| other == name);
            let (_, value) = found.next().unwrap_or_else(|| panic!("{name} is missing"));
            assert!(found.next().is_none(), "{name} is there twice");
            value.as_str()
        };
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            assert_eq!(value(name), "http://host.docker.internal:3128");
        }
        for name in ["NO_PROXY", "no_proxy"] {
            assert_eq!(value(name), "localhost,127.0.0.1,::1");
        }
        assert_eq!(value("PROXY_CA_CERT_B64"), "UEVNCg==");
        assert_eq!(value("NODE_EXTRA_CA_CERTS"), CA_FILE);
        assert_eq!(value("SSL_CERT_FILE"), CA_BUNDLE);
        assert_eq!(value("BASH_ENV"), "/etc/sandbox-persistent.sh");
        assert_eq!(value("CLAUDE_ENV_FILE"), "/etc/sandbox-persistent.sh");
    }

    #[test]
    fn certificates_that_the_user_named_are_trusted_too_unless_there_are_very_many() {
        let one = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
        assert_eq!(trusted(one, ""), one);
        assert_eq!(trusted(one, &one.repeat(2)), one.repeat(3));
        assert_eq!(trusted(one, &one.repeat(15)), one.repeat(16));
        assert_eq!(trusted(one, &one.repeat(16)), one);
    }

    #[test]
    fn placeholders_stand_for_credentials_and_the_first_service_wins() {
        let services = [
            service("one", &["ONE_KEY", "SHARED"], "proxy-managed"),
            service("two", &["SHARED"], "gho_other"),
            service("silent", &[], "never"),
        ];
        let all = variables("PEM\n", &services);
        let last =
            |name: &str| all.iter().rev().find(|(other, _)| other == name).unwrap().1.clone();
        assert_eq!(last("ONE_KEY"), "proxy-managed");
        assert_eq!(last("SHARED"), "proxy-managed");
        assert!(all.iter().all(|(name, value)| name != "REAL" && value != "never"));
    }
}
