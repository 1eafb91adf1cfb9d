//! What is changed in a request: pure functions on its head.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    ACCEPT_ENCODING, AUTHORIZATION, IF_RANGE, InvalidHeaderValue, RANGE, SEC_WEBSOCKET_EXTENSIONS,
    USER_AGENT,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use hutch_policy::settings::Service;
use hutch_secrets::Secret;
use zeroize::Zeroizing;

/// The user name that GitHub and its like take with a token.
const GIT_USER: &str = "x-access-token";

/// Whether the client sends this as its bearer.
pub(super) fn has_bearer(headers: &HeaderMap, token: &str) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| bearer_of(value) == Some(token))
}

fn bearer_of(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Sends the access token as the bearer and removes every other credential of the service.
pub(super) fn bearer(
    service: &Service,
    access: &Secret,
    headers: &mut HeaderMap,
) -> Result<(), InvalidHeaderValue> {
    remove_credentials(service, headers);
    let value = Zeroizing::new(format!("Bearer {}", access.expose()));
    headers.insert(AUTHORIZATION, sensitive(&value)?);
    Ok(())
}

/// Sends the key as the service wants it and removes every other credential of the service.
pub(super) fn key<B>(
    service: &Service,
    key: &Secret,
    request: &mut Request<B>,
) -> Result<(), InvalidHeaderValue> {
    let headers = request.headers_mut();
    let as_basic = service.git_basic && is_git(headers);
    remove_credentials(service, headers);
    let (name, value) = if as_basic {
        let pair = Zeroizing::new(format!("{GIT_USER}:{}", key.expose()));
        (AUTHORIZATION, Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes()))))
    } else {
        // A service's header was validated with its settings.
        let name = HeaderName::from_bytes(service.header.as_bytes()).unwrap_or(AUTHORIZATION);
        (name, Zeroizing::new(service.format.replacen("%s", key.expose(), 1)))
    };
    let value = sensitive(&value)?;
    request.headers_mut().insert(name, value);
    remove_from_query(request.uri_mut(), &service.placeholder);
    Ok(())
}

/// A value that HTTP/2 keeps out of its table of headers.
fn sensitive(value: &str) -> Result<HeaderValue, InvalidHeaderValue> {
    let mut value = HeaderValue::from_str(value)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Git and its large-file extension, or whoever uses HTTP Basic as they do.
fn is_git(headers: &HeaderMap) -> bool {
    let agent = headers.get(USER_AGENT).map_or(&b""[..], HeaderValue::as_bytes);
    let basic = |value: &HeaderValue| {
        value.as_bytes().get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic "))
    };
    agent.starts_with(b"git/")
        || agent.starts_with(b"git-lfs/")
        || headers.get_all(AUTHORIZATION).iter().any(basic)
}

/// Removes everything that a client may authenticate itself with to the service.
fn remove_credentials(service: &Service, headers: &mut HeaderMap) {
    for name in std::iter::once(&service.header).chain(&service.replaces) {
        // All values of the name go.
        headers.remove(name.as_str());
    }
    if service.git_basic || service.oauth.is_some() {
        headers.remove(AUTHORIZATION);
    }
}

/// Asks for an answer that can be looked through.
pub(crate) fn ask_readable(headers: &mut HeaderMap) {
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for name in [RANGE, IF_RANGE, SEC_WEBSOCKET_EXTENSIONS] {
        headers.remove(name);
    }
}

/// Takes query parameters out whose value is the placeholder.
fn remove_from_query(uri: &mut Uri, placeholder: &str) {
    let Some((path, query)) = uri.path_and_query().and_then(|both| both.as_str().split_once('?'))
    else {
        return;
    };
    let is_placeholder = |pair: &&str| {
        pair.split_once('=').is_some_and(|(_, value)| !value.is_empty() && value == placeholder)
    };
    if !query.split('&').any(|pair| is_placeholder(&pair)) {
        return;
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !is_placeholder(pair)).collect();
    let text = if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
    // A part of what was valid is valid; if it were not, the request would go as it was.
    let Ok(shorter) = text.parse::<PathAndQuery>() else { return };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(shorter);
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use hutch_policy::services::{self, PLACEHOLDER};

    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::parse(text).unwrap()
    }

    fn service(name: &str) -> Service {
        services::service(name).unwrap()
    }

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri("https://host/path");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    fn all(headers: &HeaderMap, name: &str) -> Vec<String> {
        let values = headers.get_all(name).iter();
        values.map(|value| value.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_key_replaces_whatever_the_client_sent() {
        let mut request = request(&[
            ("x-api-key", "wrong"),
            ("x-api-key", "proxy-managed"),
            ("authorization", "Bearer other"),
            ("accept", "*/*"),
        ]);
        key(&service("anthropic"), &secret("sk-ant-1"), &mut request).unwrap();
        assert_eq!(all(request.headers(), "x-api-key"), ["sk-ant-1"]);
        assert!(!request.headers().contains_key("authorization"));
        assert!(request.headers().contains_key("accept"));
        assert!(request.headers()["x-api-key"].is_sensitive());
    }

    #[test]
    fn the_key_is_written_in_the_services_format() {
        let mut request = request(&[("authorization", "Basic eDp5")]);
        key(&service("openai"), &secret("sk-%s"), &mut request).unwrap();
        assert_eq!(all(request.headers(), "authorization"), ["Bearer sk-%s"]);
    }

    #[test]
    fn git_is_given_basic() {
        let expected = format!("Basic {}", STANDARD.encode("x-access-token:gho_key"));
        for headers in [
            &[("user-agent", "git/2.47.0")][..],
            &[("user-agent", "git-lfs/3.0")],
            &[("authorization", "basic dXNlcjpwcm94eS1tYW5hZ2Vk")],
        ] {
            let mut request = request(headers);
            key(&service("github"), &secret("gho_key"), &mut request).unwrap();
            assert_eq!(all(request.headers(), "authorization"), [expected.as_str()]);
        }
        let mut other = request(&[("user-agent", "gh/2.0"), ("authorization", "token x")]);
        key(&service("github"), &secret("gho_key"), &mut other).unwrap();
        assert_eq!(all(other.headers(), "authorization"), ["Bearer gho_key"]);
    }

    #[test]
    fn only_exactly_the_sentinel_is_a_bearer_of_ours() {
        let has = |value: &str| has_bearer(request(&[("authorization", value)]).headers(), "sent");
        assert!(has("Bearer sent") && has("bearer  sent "));
        assert!(!has("Bearer sent2") && !has("Basic sent") && !has("sent"));
    }

    #[test]
    fn a_placeholder_in_the_query_goes_and_nothing_else() {
        for (before, after) in [
            ("/v1?key=proxy-managed", "/v1"),
            ("/v1?alt=sse&key=proxy-managed&x=%20y", "/v1?alt=sse&x=%20y"),
            ("/v1?key=proxy-managed2", "/v1?key=proxy-managed2"),
            ("/v1?q=a&&b", "/v1?q=a&&b"),
            ("/v1", "/v1"),
        ] {
            let mut uri: Uri = format!("https://host:8443{before}").parse().unwrap();
            remove_from_query(&mut uri, PLACEHOLDER);
            assert_eq!(uri.to_string(), format!("https://host:8443{after}"));
            let mut origin: Uri = before.parse().unwrap();
            remove_from_query(&mut origin, PLACEHOLDER);
            assert_eq!(origin.to_string(), after);
        }
        let mut uri: Uri = "/v1?key=".parse().unwrap();
        remove_from_query(&mut uri, "");
        assert_eq!(uri.to_string(), "/v1?key=");
    }

    #[test]
    fn the_answer_is_asked_to_be_readable() {
        let mut request = request(&[
            ("accept-encoding", "gzip"),
            ("accept-encoding", "br"),
            ("range", "bytes=0-3"),
            ("sec-websocket-extensions", "permessage-deflate"),
        ]);
        ask_readable(request.headers_mut());
        assert_eq!(all(request.headers(), "accept-encoding"), ["identity"]);
        assert_eq!(request.headers().len(), 1);
    }
}
