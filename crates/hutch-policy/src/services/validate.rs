//! What a service must be like: a mistake in a user's own one is told, not found out by a key that goes astray.

use crate::host::{Authority, HostError, Port};
use crate::settings::Service;

/// What is wrong with a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// Not a name of a service.
    #[error("{service:?} is not a service's name: 1 to 64 lower-case letters, digits and `-` are")]
    Name {
        /// As it was written.
        service: String,
    },
    /// A host is none; a wildcard is none, because a key must go where it was meant to go.
    #[error("service {service:?}: {problem}")]
    Host {
        /// Which service.
        service: String,
        /// What is wrong with the host.
        problem: HostError,
    },
    /// Nothing is there.
    #[error("service {service:?} has no `{key}`")]
    Missing {
        /// Which service.
        service: String,
        /// Which key.
        key: &'static str,
    },
    /// Not a header that carries a credential.
    #[error("service {service:?}: {header:?} is not a header that a credential can be sent in")]
    Header {
        /// Which service.
        service: String,
        /// As it was written.
        header: String,
    },
    /// The format has not exactly one place for the credential, or is no header value.
    #[error("service {service:?}: the format {format:?} must be printable and have `%s` once")]
    Format {
        /// Which service.
        service: String,
        /// As it was written.
        format: String,
    },
    /// Not a variable's name.
    #[error("service {service:?}: {variable:?} is not a variable that can hold a credential")]
    Variable {
        /// Which service.
        service: String,
        /// As it was written.
        variable: String,
    },
    /// Not something that can stand for a credential.
    #[error(
        "service {service:?}: {placeholder:?} must be printable and without spaces to stand for a credential"
    )]
    Placeholder {
        /// Which service.
        service: String,
        /// As it was written.
        placeholder: String,
    },
    /// Not a path.
    #[error("service {service:?}: {path:?} is not the path of a token endpoint")]
    Path {
        /// Which service.
        service: String,
        /// As it was written.
        path: String,
    },
}

/// Headers that make a request what it is, or belong to one connection: a credential in one of them would break the
/// request or split it.
const NOT_FOR_CREDENTIALS: [&str; 14] = [
    "host",
    "connection",
    "content-length",
    "content-type",
    "content-encoding",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
];

/// Variables that a sandbox needs to hold something else than a placeholder.
const NOT_PLACEHOLDERS: [&str; 8] =
    ["PATH", "HOME", "USER", "SHELL", "PWD", "IFS", "ENV", "BASH_ENV"];

/// Checks a service; every part must be in the form that [`Service`] says.
pub fn validate(service: &Service) -> Result<(), ServiceError> {
    let name = || service.name.clone();
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !(1..=64).contains(&service.name.len()) || !service.name.bytes().all(plain) {
        return Err(ServiceError::Name { service: service.name.chars().take(64).collect() });
    }
    if service.hosts.is_empty() {
        return Err(ServiceError::Missing { service: name(), key: "hosts" });
    }
    let oauth = service.oauth.as_ref();
    let oauth_hosts = oauth
        .iter()
        .flat_map(|oauth| std::iter::once(&oauth.token_host).chain(&oauth.resource_hosts));
    for host in service.hosts.iter().chain(oauth_hosts) {
        Authority::parse_or(host, Port::HTTPS)
            .map_err(|problem| ServiceError::Host { service: name(), problem })?;
    }
    for header in std::iter::once(&service.header).chain(&service.replaces) {
        if !is_credential_header(header) {
            return Err(ServiceError::Header { service: name(), header: header.clone() });
        }
    }
    let printable = |text: &str| text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if service.format.matches("%s").count() != 1 || !printable(&service.format) {
        return Err(ServiceError::Format { service: name(), format: service.format.clone() });
    }
    for variable in &service.variables {
        if !is_variable(variable) {
            return Err(ServiceError::Variable { service: name(), variable: variable.clone() });
        }
    }
    for variable in &service.placeholder_variables {
        let reserved = NOT_PLACEHOLDERS.contains(&variable.as_str())
            || variable.starts_with("LD_")
            || variable.to_ascii_lowercase().ends_with("_proxy");
        if !is_variable(variable) || reserved {
            return Err(ServiceError::Variable { service: name(), variable: variable.clone() });
        }
    }
    let sentinels =
        oauth.iter().flat_map(|oauth| [&oauth.access_sentinel, &oauth.refresh_sentinel]);
    for placeholder in std::iter::once(&service.placeholder).chain(sentinels) {
        let fits = (1..=256).contains(&placeholder.len())
            && placeholder.bytes().all(|byte| byte.is_ascii_graphic());
        if !fits {
            return Err(ServiceError::Placeholder {
                service: name(),
                placeholder: placeholder.clone(),
            });
        }
    }
    match oauth {
        Some(oauth) if !is_path(&oauth.token_path) => {
            Err(ServiceError::Path { service: name(), path: oauth.token_path.clone() })
        }
        _ => Ok(()),
    }
}

/// A token in lower case (RFC 9110, 5.6.2).
fn is_credential_header(header: &str) -> bool {
    let token = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
    };
    (1..=64).contains(&header.len())
        && header.bytes().all(token)
        && !NOT_FOR_CREDENTIALS.contains(&header)
}

fn is_variable(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    (1..=128).contains(&name.len())
        && name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
}

fn is_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 1024
        && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#')
}
