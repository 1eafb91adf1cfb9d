//! What a refused client is told: for a person, for a program and for an agent that would otherwise try other ways.

use serde::Serialize;

use crate::host::{Authority, Host};
use crate::policy::{Cause, Verdict};

/// The status of a refusal.
pub const STATUS: u16 = 403;
/// The content type of [`Refusal::text`].
pub const TEXT_TYPE: &str = "text/plain; charset=utf-8";
/// The content type of [`Refusal::json`].
pub const JSON_TYPE: &str = "application/json";

/// A refusal, as it is put into words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Always `blocked_by_network_policy`.
    pub error: &'static str,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The pattern or range that decided, or `<default policy>`.
    pub rule: String,
    /// Why, as a phrase.
    pub reason: String,
    /// Whether the same request may pass later without anything being changed: never.
    pub retry: bool,
    /// What to do, and what not.
    pub advice: String,
    /// What the user can run on the host to allow it, where anything can.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    #[serde(skip)]
    is_address: bool,
}

impl Refusal {
    /// The refusal of a connection of a sandbox.
    pub fn new(sandbox: &str, place: &Authority, verdict: &Verdict) -> Self {
        let command = match verdict.cause {
            Cause::Never | Cause::Request => None,
            // The same pattern is then taken from the blocked ones; a more specific one decides before a wildcard.
            Cause::Rule if place_is(place, &verdict.rule) => Some(verdict.rule.clone()),
            Cause::Rule | Cause::Default | Cause::Range | Cause::Special => {
                Some(place.clone().rewritten().to_string())
            }
        }
        .map(|pattern| format!("hutch network proxy {sandbox} --allow-host {}", quoted(&pattern)));
        let advice = match (&command, verdict.cause) {
            (Some(_), _) => {
                "The sandbox's network policy decides this on the host: another way, address or tool from inside \
                 the sandbox is refused too. The user can allow it on the host."
            }
            (None, Cause::Request) => {
                "The proxy does not forward such a request. Repeating it does not help; sending an unambiguous one does."
            }
            (None, _) => "No policy allows this destination. Repeating it does not help.",
        };
        Self {
            error: "blocked_by_network_policy",
            host: place.host.to_string(),
            port: place.port.get(),
            rule: verdict.rule.clone(),
            reason: verdict.reason.clone(),
            retry: false,
            advice: advice.to_owned(),
            command,
            is_address: matches!(place.host, Host::Address(_)),
        }
    }

    /// The body for people: what was blocked, why, and what to do.
    pub fn text(&self) -> String {
        let kind = if self.is_address { "address" } else { "domain" };
        let mut text = format!(
            "Blocked by network policy: {kind} {}:{}\ndetail: {}\nrule: {}\n\n{}\n",
            self.host, self.port, self.reason, self.rule, self.advice
        );
        if let Some(command) = &self.command {
            text.push_str("  ");
            text.push_str(command);
            text.push('\n');
        }
        text
    }

    /// The body for programs.
    pub fn json(&self) -> String {
        // Strings, a number and a truth value: nothing here that JSON cannot say.
        let mut json = serde_json::to_string(self).unwrap_or_default();
        json.push('\n');
        json
    }

    /// Content type and body for a client with this `Accept` header.
    pub fn body(&self, accept: Option<&str>) -> (&'static str, String) {
        if accept.is_some_and(wants_json) {
            (JSON_TYPE, self.json())
        } else {
            (TEXT_TYPE, self.text())
        }
    }
}

/// Whether JSON is named before any text, or alone; `*/*` asks for nothing in particular.
fn wants_json(accept: &str) -> bool {
    let mut types = accept
        .split(',')
        .map(|range| range.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    types.find_map(|kind| match kind.as_str() {
        kind if kind == "application/json" || kind.ends_with("+json") => Some(true),
        kind if kind.starts_with("text/") => Some(false),
        _ => None,
    }) == Some(true)
}

fn place_is(place: &Authority, rule: &str) -> bool {
    let place = place.clone().rewritten();
    let host = match place.host {
        Host::Address(address) => address.to_string(),
        Host::Name(_) => place.host.to_string(),
    };
    rule == host || rule == place.to_string()
}

/// The pattern as a shell takes it: brackets and asterisks are signs of its own.
fn quoted(pattern: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
    if pattern.chars().all(plain) { pattern.to_owned() } else { format!("'{pattern}'") }
}

#[cfg(test)]
mod tests;
