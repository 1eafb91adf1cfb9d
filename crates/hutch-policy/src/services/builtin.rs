//! The built-in services.

use crate::settings::{OAuth, Service};

/// What stands for a credential in the sandbox, unless a tool looks at its shape.
pub const PLACEHOLDER: &str = "proxy-managed";
/// Stands for a token of GitHub: its tools look at prefix and length.
const GITHUB_PLACEHOLDER: &str = "gho_sbxproxymanaged000000000000000000000";

/// One row of the table below.
struct Row {
    name: &'static str,
    hosts: &'static [&'static str],
    how: How,
    variables: &'static [&'static str],
    /// Where an agent does not say otherwise.
    placeholder_variables: &'static [&'static str],
    oauth: Option<OAuthRow>,
}

/// Which header carries the credential.
#[derive(Clone, Copy)]
enum How {
    Bearer,
    /// Bearer, and HTTP Basic for Git.
    GitHub,
    Header(&'static str),
}

struct OAuthRow {
    token: (&'static str, &'static str),
    resource_hosts: &'static [&'static str],
    access_sentinel: &'static str,
    refresh_sentinel: &'static str,
}

const COPILOT_HOSTS: &[&str] = &[
    "api.githubcopilot.com",
    "api.business.githubcopilot.com",
    "api.enterprise.githubcopilot.com",
    "api.individual.githubcopilot.com",
    "copilot.github.com",
];

/// The table, in the order in which services are shown. A host may belong to two services: the first one with a
/// credential is meant.
const ROWS: &[Row] = &[
    Row {
        name: "anthropic",
        hosts: &[
            "api.anthropic.com",
            "console.anthropic.com",
            "claude.ai",
            "mcp-proxy.anthropic.com",
        ],
        how: How::Header("x-api-key"),
        variables: &["ANTHROPIC_API_KEY"],
        placeholder_variables: &["ANTHROPIC_API_KEY"],
        oauth: Some(OAuthRow {
            token: ("platform.claude.com", "/v1/oauth/token"),
            // The access token goes to the hosts above.
            resource_hosts: &[],
            access_sentinel: "sk-ant-oat01-proxy-managed",
            refresh_sentinel: "sk-ant-ort01-proxy-managed",
        }),
    },
    Row {
        name: "openai",
        hosts: &["api.openai.com", "openai.com"],
        how: How::Bearer,
        variables: &["OPENAI_API_KEY"],
        placeholder_variables: &["OPENAI_API_KEY"],
        oauth: Some(OAuthRow {
            token: ("auth.openai.com", "/oauth/token"),
            resource_hosts: &["chatgpt.com"],
            access_sentinel: "oai-oat01-proxy-managed",
            refresh_sentinel: "oai-ort01-proxy-managed",
        }),
    },
    Row {
        name: "github",
        hosts: &["api.github.com", "github.com", "raw.githubusercontent.com", "gist.github.com"],
        how: How::GitHub,
        variables: &["GH_TOKEN", "GITHUB_TOKEN"],
        placeholder_variables: &["GH_TOKEN"],
        oauth: None,
    },
    Row {
        name: "copilot",
        hosts: COPILOT_HOSTS,
        how: How::Bearer,
        // A token of GitHub is one for its assistant too.
        variables: &["COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN"],
        // `GH_TOKEN` is what its program reads, and the service above sets that.
        placeholder_variables: &[],
        oauth: None,
    },
    Row {
        name: "google",
        hosts: &[
            "generativelanguage.googleapis.com",
            "aiplatform.googleapis.com",
            "oauth2.googleapis.com",
            "vertexai.googleapis.com",
        ],
        how: How::Header("x-goog-api-key"),
        variables: &["GEMINI_API_KEY", "GOOGLE_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"],
        placeholder_variables: &["GEMINI_API_KEY"],
        oauth: None,
    },
    bearer("groq", &["api.groq.com"], &["GROQ_API_KEY"]),
    bearer("xai", &["api.x.ai"], &["XAI_API_KEY"]),
    bearer("openrouter", &["openrouter.ai"], &["OPENROUTER_API_KEY"]),
    bearer("mistral", &["api.mistral.ai"], &["MISTRAL_API_KEY"]),
    bearer(
        "nebius",
        &["api.studio.nebius.com", "api.tokenfactory.nebius.com", "api.studio.nebius.ai"],
        &["NEBIUS_API_KEY"],
    ),
    Row {
        name: "cursor",
        hosts: &["api2.cursor.sh", "api3.cursor.sh", "repo42.cursor.sh", "cursor.com"],
        how: How::Bearer,
        variables: &["CURSOR_API_KEY"],
        // Its program takes a key that it is given for a real one, and then asks for no sign-in.
        placeholder_variables: &[],
        oauth: Some(OAuthRow {
            token: ("api2.cursor.sh", "/auth/poll"),
            resource_hosts: &[],
            access_sentinel: "cursor-oat-proxy-managed",
            refresh_sentinel: "cursor-ort-proxy-managed",
        }),
    },
    Row {
        name: "droid",
        hosts: &["api.factory.ai", "app.factory.ai", "relay.factory.ai"],
        how: How::Bearer,
        variables: &["FACTORY_API_KEY"],
        placeholder_variables: &["FACTORY_API_KEY"],
        oauth: Some(OAuthRow {
            token: ("api.workos.com", "/user_management/authenticate"),
            resource_hosts: &[],
            access_sentinel: "droid-oat-proxy-managed",
            refresh_sentinel: "droid-ort-proxy-managed",
        }),
    },
];

const fn bearer(
    name: &'static str,
    hosts: &'static [&'static str],
    variables: &'static [&'static str],
) -> Row {
    Row { name, hosts, how: How::Bearer, variables, placeholder_variables: variables, oauth: None }
}

impl Row {
    fn service(&self) -> Service {
        let (header, format) = match self.how {
            How::Bearer | How::GitHub => ("authorization", "Bearer %s"),
            How::Header(header) => (header, "%s"),
        };
        // Whatever of these a client sends, the server would read beside our header or before it.
        let others = ["authorization", "x-api-key", "api-key", "x-goog-api-key"];
        Service {
            name: self.name.to_owned(),
            hosts: strings(self.hosts),
            header: header.to_owned(),
            format: format.to_owned(),
            variables: strings(self.variables),
            placeholder_variables: strings(self.placeholder_variables),
            placeholder: match self.how {
                How::GitHub => GITHUB_PLACEHOLDER,
                How::Bearer | How::Header(_) => PLACEHOLDER,
            }
            .to_owned(),
            replaces: others
                .iter()
                .filter(|other| **other != header)
                .map(ToString::to_string)
                .collect(),
            git_basic: matches!(self.how, How::GitHub),
            oauth: self.oauth.as_ref().map(|oauth| OAuth {
                token_host: oauth.token.0.to_owned(),
                token_path: oauth.token.1.to_owned(),
                resource_hosts: strings(oauth.resource_hosts),
                access_sentinel: oauth.access_sentinel.to_owned(),
                refresh_sentinel: oauth.refresh_sentinel.to_owned(),
            }),
        }
    }
}

/// Every built-in service.
pub fn all() -> Vec<Service> {
    ROWS.iter().map(Row::service).collect()
}

/// The built-in service of this name.
pub fn service(name: &str) -> Option<Service> {
    ROWS.iter().find(|row| row.name == name).map(Row::service)
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}
