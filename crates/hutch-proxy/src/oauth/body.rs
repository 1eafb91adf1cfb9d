//! Bodies of token requests and answers: JSON or a form, read, changed and written again. Pure.

use http::header::{AUTHORIZATION, InvalidHeaderValue};
use http::{HeaderMap, HeaderValue};
use hutch_secrets::Secret;
use serde_json::Value;
use zeroize::Zeroizing;

/// How deep an answer is looked through: those that exist are one or two deep.
const DEPTH_MAX: usize = 16;

/// What takes the place of what.
#[derive(Debug, Default)]
pub(super) struct Swap(Vec<(String, Secret)>);

impl Swap {
    pub(super) fn put(&mut self, sentinel: &str, token: &Secret) {
        self.0.push((sentinel.to_owned(), token.clone()));
    }

    fn of(&self, value: &str) -> Option<&Secret> {
        self.0.iter().find(|(sentinel, _)| sentinel == value).map(|(_, token)| token)
    }
}

/// What stands for tokens in the answer.
#[derive(Debug)]
pub(super) struct Masks<'a> {
    pub(super) access: &'a str,
    pub(super) refresh: &'a str,
}

/// The tokens of an answer.
#[derive(Default)]
pub(super) struct Issued {
    pub(super) access: Option<String>,
    pub(super) refresh: Option<String>,
    pub(super) id: Option<String>,
    pub(super) expires_in: Option<u64>,
    pub(super) scopes: Vec<String>,
}

/// A body by its fields.
pub(super) enum Fields {
    Json(Value),
    Form(Vec<(String, String)>),
    /// Neither.
    Other,
}

impl Fields {
    /// Reads a body. A kind that was not said right is found out: whatever begins like JSON is read as that.
    pub(super) fn parse(bytes: &[u8], json: bool) -> Self {
        let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
        if json || matches!(first, Some(b'{' | b'[')) {
            return serde_json::from_slice(bytes).map_or(Self::Other, Self::Json);
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return Self::Other };
        let pairs: Option<Vec<_>> = text
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=')?;
                Some((decoded(name)?, decoded(value)?))
            })
            .collect();
        pairs.map_or(Self::Other, Self::Form)
    }

    /// What kind of grant a request asks for.
    pub(super) fn grant(&self) -> Option<&str> {
        match self {
            Self::Json(value) => value.get("grant_type")?.as_str(),
            Self::Form(pairs) => {
                pairs.iter().find(|(name, _)| name == "grant_type").map(|(_, grant)| grant.as_str())
            }
            Self::Other => None,
        }
    }

    /// The body with tokens for sentinels; none when it has no sentinel and can go as it is.
    pub(super) fn swapped(mut self, swap: &Swap) -> Option<Vec<u8>> {
        let mut changed = false;
        match &mut self {
            Self::Json(value) => strings(value, 0, &mut |text| {
                if let Some(token) = swap.of(text) {
                    token.expose().clone_into(text);
                    changed = true;
                }
            }),
            Self::Form(pairs) => {
                for (_, value) in pairs {
                    if let Some(token) = swap.of(value) {
                        token.expose().clone_into(value);
                        changed = true;
                    }
                }
            }
            Self::Other => {}
        }
        if changed { self.into_bytes() } else { None }
    }

    /// Takes the tokens out and puts their masks in; false if the body was not understood.
    pub(super) fn take_tokens(&mut self, masks: &Masks<'_>, issued: &mut Issued) -> bool {
        match self {
            Self::Json(value) => take_json(value, 0, masks, issued),
            Self::Form(pairs) => {
                for (name, value) in &mut *pairs {
                    take(name, value, masks, issued);
                    note(name, &Value::String(value.clone()), issued);
                }
                // Text of another kind reads as a form too, but has no token then: it must not pass for one without.
                issued.access.is_some()
            }
            Self::Other => false,
        }
    }

    /// The body as text.
    pub(super) fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Json(value) => serde_json::to_vec(&value).ok(),
            Self::Form(pairs) => {
                let pair = |(name, value): &(String, String)| {
                    format!("{}={}", encoded(name), encoded(value))
                };
                Some(pairs.iter().map(pair).collect::<Vec<_>>().join("&").into_bytes())
            }
            Self::Other => None,
        }
    }
}

/// Every string of a value.
fn strings(value: &mut Value, depth: usize, visit: &mut impl FnMut(&mut String)) {
    if depth > DEPTH_MAX {
        return;
    }
    match value {
        Value::String(text) => visit(text),
        Value::Array(values) => values.iter_mut().for_each(|v| strings(v, depth + 1, visit)),
        Value::Object(members) => {
            members.values_mut().for_each(|v| strings(v, depth + 1, visit));
        }
        _ => {}
    }
}

/// Looks through a JSON answer; false if it is too deep to be sure.
fn take_json(value: &mut Value, depth: usize, masks: &Masks<'_>, issued: &mut Issued) -> bool {
    if depth > DEPTH_MAX {
        return false;
    }
    match value {
        Value::Object(members) => members.iter_mut().all(|(name, value)| {
            note(name, value, issued);
            match value {
                Value::String(text) => {
                    take(name, text, masks, issued);
                    true
                }
                other => take_json(other, depth + 1, masks, issued),
            }
        }),
        Value::Array(values) => {
            values.iter_mut().all(|value| take_json(value, depth + 1, masks, issued))
        }
        _ => true,
    }
}

/// Takes one field, if it is a token: names are written in two ways.
fn take(name: &str, text: &mut String, masks: &Masks<'_>, issued: &mut Issued) {
    if text.is_empty() {
        return;
    }
    match name {
        "access_token" | "accessToken" => {
            issued.access = Some(std::mem::replace(text, masks.access.to_owned()));
        }
        "refresh_token" | "refreshToken" => {
            issued.refresh = Some(std::mem::replace(text, masks.refresh.to_owned()));
        }
        "id_token" | "idToken" => {
            let masked = without_signature(text);
            issued.id = Some(std::mem::replace(text, masked));
        }
        _ => {}
    }
}

/// Notes what is told beside the tokens.
fn note(name: &str, value: &Value, issued: &mut Issued) {
    match (name, value) {
        ("expires_in" | "expiresIn", Value::Number(seconds)) => {
            issued.expires_in = seconds.as_u64();
        }
        ("expires_in" | "expiresIn", Value::String(seconds)) => {
            issued.expires_in = seconds.parse().ok();
        }
        ("scope", Value::String(scopes)) => {
            issued.scopes = scopes.split_whitespace().map(str::to_owned).collect();
        }
        _ => {}
    }
}

/// A signed token of the form `header.claims.signature` with letters that sign nothing. Another token has no claims to
/// keep: nothing of it is left.
pub(super) fn without_signature(token: &str) -> String {
    let filler = "proxy-managed-";
    match token.rsplit_once('.') {
        Some((signed, signature)) if signed.contains('.') => {
            let letters: String = filler.chars().cycle().take(signature.len()).collect();
            format!("{signed}.{letters}")
        }
        _ => "proxy-managed".to_owned(),
    }
}

/// Replaces a bearer that is the sentinel.
pub(super) fn swap_bearer(
    headers: &mut HeaderMap,
    sentinel: &str,
    access: &Secret,
) -> Result<(), InvalidHeaderValue> {
    let text = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if text.and_then(|text| text.strip_prefix("Bearer ")) == Some(sentinel) {
        let value = Zeroizing::new(format!("Bearer {}", access.expose()));
        let mut value = HeaderValue::from_str(&value)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(())
}

/// Decodes a name or value of a form; none for what is no UTF-8 or ends inside an escape.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        match first {
            b'+' => bytes.push(b' '),
            b'%' => {
                let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
                bytes.push(u8::from_str_radix(digits, 16).ok()?);
                rest = tail.get(2..)?;
                continue;
            }
            byte => bytes.push(*byte),
        }
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

/// Encodes a name or value of a form.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            b' ' => "+".to_owned(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_read_and_written() {
        let fields = Fields::parse(b"a=b+c&d%26=%2B%C3%A4&e=", false);
        let Fields::Form(pairs) = &fields else { panic!("no form") };
        let expected = [("a", "b c"), ("d&", "+ä"), ("e", "")];
        assert!(pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).eq(expected));
        assert_eq!(fields.into_bytes().unwrap(), b"a=b+c&d%26=%2B%C3%A4&e=");
        for broken in [&b"a=%"[..], b"a=%4", b"a=%zz", b"a=\xff", b"a=%ff", b"plain text"] {
            assert!(matches!(Fields::parse(broken, false), Fields::Other), "{broken:?}");
        }
    }

    #[test]
    fn what_begins_like_json_is_json_whatever_its_kind() {
        assert!(matches!(Fields::parse(b" {\"a\":1}", false), Fields::Json(_)));
        assert!(matches!(Fields::parse(b"{\"a\":", false), Fields::Other));
        assert!(matches!(Fields::parse(b"a=b", true), Fields::Other));
    }

    #[test]
    fn tokens_are_found_by_both_spellings_and_below() {
        let masks = Masks { access: "A", refresh: "R" };
        let text = br#"{"data":[{"accessToken":"one"}],"refresh_token":"two","id_token":"x.y.zzz","expires_in":3600,"scope":"a b","n":null}"#;
        let mut fields = Fields::parse(text, true);
        let mut issued = Issued::default();
        assert!(fields.take_tokens(&masks, &mut issued));
        assert_eq!(issued.access.as_deref(), Some("one"));
        assert_eq!(issued.refresh.as_deref(), Some("two"));
        assert_eq!(issued.id.as_deref(), Some("x.y.zzz"));
        assert_eq!(issued.expires_in, Some(3600));
        assert_eq!(issued.scopes, ["a", "b"]);
        let text = String::from_utf8(fields.into_bytes().unwrap()).unwrap();
        for secret in ["one", "two", "zzz"] {
            assert!(!text.contains(secret), "{text}");
        }
        assert!(text.contains("3600") && text.contains("x.y.pro"), "{text}");
    }

    #[test]
    fn an_answer_that_is_too_deep_is_not_understood() {
        let text = format!("{}{}", "[".repeat(60), "]".repeat(60));
        let mut fields = Fields::parse(text.as_bytes(), true);
        let masks = Masks { access: "A", refresh: "R" };
        assert!(!fields.take_tokens(&masks, &mut Issued::default()));
    }

    #[test]
    fn an_identity_token_keeps_its_claims_alone() {
        assert_eq!(
            without_signature("head.claims.0123456789abcdefghij"),
            "head.claims.proxy-managed-proxy-"
        );
        assert_eq!(without_signature("opaque"), "proxy-managed");
        assert_eq!(without_signature("a.b"), "proxy-managed");
    }
}
