//! Makes text of a guest or a server fit for the log: no credentials, no control characters, no endless length.
//!
//! Which part of a URL is a credential cannot be known, so what may be one goes: user information, fragments, values
//! whose key sounds like a credential, and values that look random. Rather too much than too little.

use super::LONGEST_URL;

/// Stands where something was taken out.
pub const REDACTED: &str = "REDACTED";

/// The most of a URL that is looked at; what a client sends in a request's head is shorter.
const LONGEST_INPUT: usize = 64 * 1024;

/// Parts of keys that say that the value is a credential, in lower case and without punctuation.
const SENSITIVE: [&str; 27] = [
    "key",
    "token",
    "secret",
    "sig",
    "pass",
    "pwd",
    "auth",
    "code",
    "access",
    "cred",
    "session",
    "sid",
    "jwt",
    "bearer",
    "assertion",
    "saml",
    "ticket",
    "otp",
    "hmac",
    "private",
    "cookie",
    "nonce",
    "state",
    "verifier",
    "challenge",
    "signature",
    "apikey",
];

/// Beginnings of what services give out as keys, whatever their length.
const TOKEN_PREFIXES: [&str; 22] = [
    "sk-",
    "sk_",
    "pk_",
    "rk_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xoxb-",
    "xoxp-",
    "xoxa-",
    "xapp-",
    "akia",
    "asia",
    "aiza",
    "eyj",
    "ya29.",
    "npm_",
    "pypi-",
];

/// A URL (absolute, or from the path on) without what may be a credential, fit to be logged.
pub fn redact_url(url: &str) -> String {
    // First, because the escapes have signs in them that are looked for below.
    let url = clean(url, LONGEST_INPUT);
    let cut = url.ends_with('…');
    let visible = url.split('#').next().unwrap_or_default();
    let (before_query, query) = match visible.split_once('?') {
        Some((before, query)) => (before, Some(query)),
        None => (visible, None),
    };
    let mut out = String::with_capacity(visible.len());
    let (scheme, rest) = scheme_and_rest(before_query);
    out.push_str(scheme);
    let end = if scheme.is_empty() { 0 } else { rest.find(['/', '\\']).unwrap_or(rest.len()) };
    let (authority, path) = rest.split_at(end);
    // Everything before the last sign is user information, as browsers read it.
    redact_query(authority.rsplit('@').next().unwrap_or_default(), &mut out);
    redact_path(path, &mut out);
    if let Some(query) = query {
        out.push('?');
        redact_query(query, &mut out);
    }
    if cut && !out.ends_with('…') {
        out.push('…');
    }
    clean(&out, LONGEST_URL)
}

/// `https://` and what follows; also `//` alone, which clients send by mistake; nothing and all of it for a path.
fn scheme_and_rest(text: &str) -> (&str, &str) {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let is_scheme = |scheme: &str| {
        scheme.is_empty() || scheme.strip_suffix(':').is_some_and(|name| name.chars().all(plain))
    };
    match text.find("//") {
        Some(slashes) if is_scheme(&text[..slashes]) => text.split_at(slashes + 2),
        _ => ("", text),
    }
}

fn redact_path(path: &str, out: &mut String) {
    for (index, segment) in path.split('/').enumerate() {
        if index > 0 {
            out.push('/');
        }
        // Parameters in a segment (`;token=…`) are like those of a query.
        let (name, parameters) = match segment.split_once(';') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (segment, None),
        };
        redact_pair(name, Place::Path, out);
        if let Some(parameters) = parameters {
            out.push(';');
            redact_query(parameters, out);
        }
    }
}

fn redact_query(query: &str, out: &mut String) {
    let mut rest = query;
    loop {
        let end = rest.find(['&', ';']).unwrap_or(rest.len());
        redact_pair(&rest[..end], Place::Query, out);
        let Some(separator) = rest[end..].chars().next() else { return };
        out.push(separator);
        rest = &rest[end + 1..];
    }
}

/// Where a value stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Path,
    Query,
}

/// Writes `key=value`, or a value alone, without what may be a credential.
fn redact_pair(pair: &str, place: Place, out: &mut String) {
    let (key, value) = match pair.split_once('=') {
        Some((key, value)) => (Some(key), value),
        None => (None, pair),
    };
    if let Some(key) = key {
        // The key may be where the value should be.
        out.push_str(if suspicious(key, place) { REDACTED } else { key });
        out.push('=');
    }
    let sensitive = key.is_some_and(|key| is_sensitive(&decode(key)));
    if !value.is_empty() && (sensitive || suspicious(value, place)) {
        out.push_str(REDACTED);
    } else {
        out.push_str(value);
    }
}

/// Whether a value may be a credential, or hold one with its key.
fn suspicious(value: &str, place: Place) -> bool {
    let decoded = decode(value);
    // In a path stand digests, which name what is fetched, and names of files: no secrets.
    let is_random = |part: &str| {
        is_random(part) && (place == Place::Query || (!is_hexadecimal(part) && is_mixed(part)))
    };
    if decoded
        .split(['?', '&', ';', ',', ' ', '"', '\'', '{', '/', ':'])
        .any(|part| is_random(part) || is_token(part))
    {
        return true;
    }
    // A URL, a header or JSON within: any sensitive word before a sign that assigns. And user information.
    let assigned = decoded
        .split(['?', '&', ';', ',', ' ', '{', '/'])
        .any(|part| part.rfind(['=', ':']).is_some_and(|sign| is_sensitive(&part[..sign])));
    assigned
        || decoded.rfind('@').is_some_and(|sign| {
            decoded[..sign].contains([':', '\\']) || decoded[..sign].contains("//")
        })
}

fn is_sensitive(key: &str) -> bool {
    let plain: String =
        key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    SENSITIVE.iter().any(|word| plain.contains(word))
}

fn is_token(text: &str) -> bool {
    // Short ones are words: `sk-1`. Compared without case, so that nothing hides behind it.
    text.len() >= 12
        && TOKEN_PREFIXES.iter().any(|prefix| {
            text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
        })
}

/// Whether a text looks like chance: long, of the characters of encodings, with digits, and with few repetitions.
fn is_random(text: &str) -> bool {
    let encoded = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_.~".contains(&byte);
    if text.len() < 20 || !text.bytes().all(encoded) {
        return false;
    }
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let upper = text.bytes().any(|byte| byte.is_ascii_uppercase());
    let lower = text.bytes().any(|byte| byte.is_ascii_lowercase());
    // Words joined by dashes have neither digits nor both cases in a row.
    (digits > 2 || (upper && lower && !text.contains(['-', '_', '.']))) && entropy(text) > 3.0
}

/// Whether letters of both cases and digits stand side by side as chance puts them, and not as in words with a version.
fn is_mixed(text: &str) -> bool {
    let class = |byte: u8| match byte {
        b'0'..=b'9' => Some(0),
        b'a'..=b'z' => Some(1),
        b'A'..=b'Z' => Some(2),
        _ => None,
    };
    let (mut pairs, mut changes) = (0_usize, 0_usize);
    for pair in text.as_bytes().windows(2) {
        if let (Some(one), Some(other)) = (class(pair[0]), class(pair[1])) {
            pairs += 1;
            changes += usize::from(one != other);
        }
    }
    // Of pairs of base 62, six in ten differ; of base 36, four.
    text.contains(|c: char| c.is_ascii_digit()) && changes * 10 >= pairs * 3
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Shannon's entropy of the text's bytes, in bits.
fn entropy(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let total = counts.iter().map(|count| f64::from(*count)).sum::<f64>();
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| f64::from(*count) / total)
        .map(|share| -share * share.log2())
        .sum()
}

/// Takes percent-encoding off, as often as it was put on, within reason.
fn decode(text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..4 {
        if !text.contains('%') {
            break;
        }
        text = decode_once(&text);
    }
    text
}

fn decode_once(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let digit =
            |offset: usize| bytes.get(at + offset).and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or_default());
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A text fit to be shown on a terminal and in one line: control characters, and those that turn the direction of
/// writing or cannot be seen, as escapes; at most `longest` bytes, with `…` for what was cut.
pub fn clean(text: &str, longest: usize) -> String {
    let mut out = String::with_capacity(text.len().min(longest));
    let room = longest.saturating_sub('…'.len_utf8());
    for c in text.chars() {
        let before = out.len();
        if is_unfit(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        if out.len() > room {
            out.truncate(before);
            // What was cut before stays cut once.
            if !out.ends_with('…') {
                out.push('…');
            }
            break;
        }
    }
    out
}

fn is_unfit(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}
