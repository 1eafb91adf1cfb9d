//! The proxy that this machine must use to reach the network.

use hutch_policy::host::{Authority, Port};

use super::Environment;

/// Where the proxy is said, the first that is set.
const PROXY_VARIABLES: &[&str] = &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
/// Where its exceptions are said.
const EXCEPTION_VARIABLES: &[&str] = &["no_proxy", "NO_PROXY"];

/// Each scheme, what it is passed on as, and its port when none is written.
const SCHEMES: &[(&str, &str, u16)] = &[
    ("http", "http", 80),
    ("https", "https", 443),
    ("socks5", "socks5", 1080),
    // With the `h` names are resolved by the proxy; who resolves is decided elsewhere.
    ("socks5h", "socks5", 1080),
];

/// Something that is not the address of a proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProxyUrlError {
    /// It is of a kind that we do not speak.
    #[error("`{0}` proxies are not supported: `http`, `https` and `socks5` are")]
    Scheme(String),
    /// There is no host in it. What it holds may be a password, so it is not repeated.
    #[error("it is not the address of a proxy, like `http://proxy.example.com:3128`")]
    Address,
}

/// The address of a proxy in one form: with scheme and port, without a path.
pub(super) fn proxy_url(text: &str) -> Result<String, ProxyUrlError> {
    let text = text.trim();
    let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
    let scheme = scheme.to_ascii_lowercase();
    let Some((_, passed_on, usual)) = SCHEMES.iter().find(|(name, ..)| *name == scheme) else {
        let is_word = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
        return Err(if is_word { ProxyUrlError::Scheme(scheme) } else { ProxyUrlError::Address });
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (login, place) = match authority.rsplit_once('@') {
        Some((login, place)) => (format!("{login}@"), place),
        None => (String::new(), authority),
    };
    if !login.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ProxyUrlError::Address);
    }
    let usual = Port::new(*usual).unwrap_or(Port::HTTPS);
    let place = Authority::parse_or(place, usual).map_err(|_| ProxyUrlError::Address)?;
    Ok(format!("{passed_on}://{login}{place}"))
}

/// What the environment says: which variable, and what is in it.
pub(super) fn of_environment(
    environment: &Environment,
) -> Option<(&'static str, Result<String, ProxyUrlError>)> {
    let (name, value) = first(environment, PROXY_VARIABLES)?;
    Some((name, proxy_url(&value)))
}

/// What the environment says is reached without a proxy.
pub(super) fn exceptions_of_environment(environment: &Environment) -> Vec<String> {
    let Some((_, value)) = first(environment, EXCEPTION_VARIABLES) else { return Vec::new() };
    value.split([',', ' ', '\t']).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}

fn first(environment: &Environment, names: &[&'static str]) -> Option<(&'static str, String)> {
    names.iter().find_map(|&name| {
        environment.filled(name).map(|value| (name, value.to_string_lossy().into_owned()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_proxy_has_one_spelling() {
        for (written, read) in [
            ("proxy.example:3128", "http://proxy.example:3128"),
            ("http://Proxy.Example", "http://proxy.example:80"),
            ("https://p/", "https://p:443"),
            ("socks5h://u:p%40ss@10.0.0.1", "socks5://u:p%40ss@10.0.0.1:1080"),
            ("SOCKS5://[::1]:9050", "socks5://[::1]:9050"),
        ] {
            assert_eq!(proxy_url(written), Ok(read.to_owned()), "{written}");
        }
        assert_eq!(proxy_url("socks4://p"), Err(ProxyUrlError::Scheme("socks4".to_owned())));
        for wrong in [
            "",
            "http://",
            "http://:80",
            "http://u:secret@",
            "a b",
            "http://p:x",
            "secret word://p",
        ] {
            let error = proxy_url(wrong).unwrap_err();
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn lower_case_comes_first_and_an_empty_variable_is_none() {
        let environment = Environment::from([
            ("HTTPS_PROXY", "http://upper:1"),
            ("https_proxy", "http://lower:1"),
            ("no_proxy", "localhost, .corp.example\t10.0.0.0/8"),
        ]);
        assert_eq!(
            of_environment(&environment),
            Some(("https_proxy", Ok("http://lower:1".to_owned())))
        );
        assert_eq!(
            exceptions_of_environment(&environment),
            ["localhost", ".corp.example", "10.0.0.0/8"]
        );
        let environment = Environment::from([("https_proxy", ""), ("ALL_PROXY", "socks5://a:1")]);
        assert_eq!(
            of_environment(&environment),
            Some(("ALL_PROXY", Ok("socks5://a:1".to_owned())))
        );
        assert_eq!(of_environment(&Environment::default()), None);
        assert!(exceptions_of_environment(&Environment::default()).is_empty());
    }

    proptest! {
        #[test]
        fn what_is_read_once_reads_the_same_again(text in "[a-z0-9.:/@\\[\\]%-]{0,40}") {
            if let Ok(url) = proxy_url(&text) {
                prop_assert_eq!(proxy_url(&url), Ok(url.clone()));
            }
        }
    }
}
