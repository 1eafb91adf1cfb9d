//! `hutch network check`

use std::fmt::Write as _;

use clap::Args;
use hutch_api::{NetworkChecked, NetworkRequest, Response};
use hutch_policy::host::{Authority, Port};
use serde::Serialize;

use super::{ask, keeper, unexpected};
use crate::context::{Context, block_on};
use crate::exit_codes;
use crate::failure::Failure;
use crate::printer::{self, escaped_line};

/// Say whether a sandbox may connect to a host, and by which rule
///
/// Nothing is sent to the host; its name is looked up. The exit code is 0 when it is allowed, 1 when it is denied, and 2
/// when that cannot be said.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Sandbox, which must run
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Host name or address; the port is 443 when none is given
    #[arg(value_name = "HOST[:PORT]")]
    destination: String,
}

/// The answer in JSON.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    format_version: u32,
    sandbox: &'a str,
    host: &'a str,
    port: u16,
    allowed: bool,
    rule: &'a str,
    reason: &'a str,
    /// Whether TLS would be terminated.
    inspected: bool,
    /// The service whose credential a request would be given.
    credential: Option<&'a str>,
    addresses: &'a [String],
}

/// Version of the JSON form.
const FORMAT_VERSION: u32 = 1;

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    // A script must be able to tell "denied" from "not known".
    check(context, arguments).map_err(|failure| failure.with_code(exit_codes::UNCHECKED))
}

fn check(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let place = Authority::parse_or(&arguments.destination, Port::HTTPS)
        .map_err(|error| Failure::user(format!("that cannot be checked: {error}")))?;
    let (host, port) = (place.host.to_string(), place.port.get());
    let sandboxes = context.sandboxes()?;
    let name = sandboxes.name(&arguments.sandbox)?;
    let checked = block_on(async {
        let keeper = keeper(context, &sandboxes, &name).await?;
        let request = NetworkRequest::Check { host: host.clone(), port };
        match ask(context, &name, &keeper, request).await? {
            Response::NetworkChecked(checked) => Ok(checked),
            _ => Err(unexpected(context, &name)),
        }
    })?;
    let text = if arguments.json {
        printer::json(&Answer {
            format_version: FORMAT_VERSION,
            sandbox: name.as_str(),
            host: &host,
            port,
            allowed: checked.allowed,
            rule: &checked.rule,
            reason: &checked.reason,
            inspected: checked.inspected,
            credential: checked.credential.as_deref(),
            addresses: &checked.addresses,
        })
    } else {
        sentence(&place, &checked)
    };
    context.printer.text(&text)?;
    Ok(if checked.allowed { exit_codes::SUCCESS } else { exit_codes::DENIED })
}

/// The answer for people.
fn sentence(place: &Authority, checked: &NetworkChecked) -> String {
    let verdict = if checked.allowed { "allowed" } else { "denied" };
    let addresses = match (checked.addresses.is_empty(), checked.allowed) {
        (true, true) => Some("none found".to_owned()),
        // A rule decided before anything was looked up.
        (true, false) => None,
        (false, _) => Some(checked.addresses.join(", ")),
    };
    let tls = match (checked.allowed, checked.inspected, &checked.credential) {
        (false, ..) => None,
        (true, true, Some(service)) => {
            Some(format!("terminated here; requests get the credential of {service}"))
        }
        (true, true, None) => Some("terminated here".to_owned()),
        (true, false, _) => Some("passed through".to_owned()),
    };
    let mut text = String::new();
    // Infallible: a String can always grow.
    let _: std::fmt::Result = writeln!(text, "{place} is {verdict}");
    for (label, value) in [
        ("reason", Some(checked.reason.clone())),
        ("rule", Some(checked.rule.clone())),
        ("addresses", addresses),
        ("TLS", tls),
    ] {
        if let Some(value) = value {
            let _: std::fmt::Result = writeln!(text, "  {label:<10} {}", escaped_line(&value));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Authority {
        Authority::parse_or(text, Port::HTTPS).unwrap()
    }

    #[test]
    fn the_answer_is_a_sentence_and_its_grounds() {
        let mut checked = NetworkChecked {
            allowed: true,
            rule: "api.example.com".to_owned(),
            reason: "the rule allows it\u{1b}[2J".to_owned(),
            inspected: true,
            credential: Some("example".to_owned()),
            addresses: vec!["192.0.2.1".to_owned(), "2001:db8::1".to_owned()],
        };
        insta::assert_snapshot!(sentence(&place("api.example.com"), &checked), @r"
        api.example.com:443 is allowed
          reason     the rule allows it\x1b[2J
          rule       api.example.com
          addresses  192.0.2.1, 2001:db8::1
          TLS        terminated here; requests get the credential of example
        ");
        checked.allowed = false;
        checked.addresses.clear();
        insta::assert_snapshot!(sentence(&place("[::1]:80"), &checked), @r"
        [::1]:80 is denied
          reason     the rule allows it\x1b[2J
          rule       api.example.com
        ");
    }
}
