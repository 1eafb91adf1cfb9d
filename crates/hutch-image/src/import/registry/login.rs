//! Logins of registries: what `docker login` wrote down, or the program that it was given to.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::import::document::DOCUMENT_MAX;
use crate::import::registry::RegistryOptions;

/// Name of the default registry in the Docker CLI's configuration.
const DOCKER_HUB: (&str, &str) = ("docker.io", "https://index.docker.io/v1/");
/// Longest answer of a program or a server of tokens.
const ANSWER_MAX: u64 = 256 << 10;

/// Something that is not shown.
#[derive(Clone)]
pub(super) struct Secret(String);

impl Secret {
    /// The header itself.
    pub(super) fn shown_to_the_registry(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// What a registry wants to see.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password.
    Basic,
    /// A token, and where to get it.
    Bearer { realm: String, service: Option<String> },
}

impl Challenge {
    /// Reads the header `WWW-Authenticate` (RFC 9110, section 11.6.1).
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or_else(|| (header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let fields = fields(rest);
        let realm = fields.get("realm")?.clone();
        Some(Self::Bearer { realm, service: fields.get("service").cloned() })
    }
}

/// `name="value"` and `name=value`, between commas.
fn fields(mut text: &str) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while let Some((name, rest)) = text.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let (value, rest) = match rest.strip_prefix('"') {
            Some(rest) => rest.split_once('"').unwrap_or((rest, "")),
            None => rest.split_once(',').unwrap_or((rest, "")),
        };
        fields.insert(name, value.trim().to_owned());
        text = rest;
    }
    fields
}

/// Who we are for one registry.
#[derive(Debug)]
pub(super) struct Login {
    user: Option<(String, Secret)>,
    /// In place of a password.
    identity_token: Option<Secret>,
}

/// `config.json` of the Docker CLI, as far as it is about logins.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    auth: String,
    identitytoken: String,
}

/// What a program says that knows passwords.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// What a server of tokens says.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl Login {
    /// Looks for the login of a registry. Without one, what is public can still be read.
    pub(super) fn new(options: &RegistryOptions, host: &str) -> Self {
        let nobody = Self { user: None, identity_token: None };
        let Some(path) = &options.docker_config else { return nobody };
        let config = read(path);
        let server = if host == DOCKER_HUB.0 { DOCKER_HUB.1 } else { host };
        let helper = config.cred_helpers.get(server).or(config.creds_store.as_ref());
        if let Some(answer) = helper.and_then(|name| ask_helper(name, server, &options.helpers)) {
            // How a program says that it is no password.
            if answer.username == "<token>" {
                return Self { user: None, identity_token: Some(Secret(answer.secret)) };
            }
            return Self { user: Some((answer.username, Secret(answer.secret))), ..nobody };
        }
        let keys =
            [server.to_owned(), format!("https://{server}"), format!("https://{server}/v1/")];
        let Some(auth) = keys.iter().find_map(|key| config.auths.get(key)) else { return nobody };
        let decoded =
            STANDARD.decode(&auth.auth).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let user = decoded.as_deref().and_then(|text| text.split_once(':'));
        Self {
            user: user
                .filter(|(_, password)| !password.is_empty())
                .map(|(user, password)| (user.to_owned(), Secret(password.to_owned()))),
            identity_token: Some(&auth.identitytoken)
                .filter(|token| !token.is_empty())
                .map(|token| Secret(token.clone())),
        }
    }

    /// The header that satisfies a challenge; an error is a phrase.
    pub(super) fn answer(
        &self,
        agent: &ureq::Agent,
        base: &str,
        challenge: &Challenge,
        repository: &str,
    ) -> Result<Secret, String> {
        match challenge {
            Challenge::Basic => self.basic().ok_or_else(|| {
                let host = base.split("://").last().unwrap_or_default();
                format!("it asks for a login: run `docker login {host}`")
            }),
            Challenge::Bearer { realm, service } => {
                self.token(agent, base, realm, service.as_deref(), repository)
            }
        }
    }

    fn basic(&self) -> Option<Secret> {
        let (user, password) = self.user.as_ref()?;
        Some(Secret(format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.0)))))
    }

    fn token(
        &self,
        agent: &ureq::Agent,
        base: &str,
        realm: &str,
        service: Option<&str>,
        repository: &str,
    ) -> Result<Secret, String> {
        // A registry that is reached by TLS must not make us send the password without it.
        if !realm.starts_with("https://") && base.starts_with("https://") {
            return Err("it wants the login to be sent without TLS".to_owned());
        }
        let scope = format!("repository:{repository}:pull");
        let failed = |error: ureq::Error| format!("its server of tokens: {error}");
        let answer = if let Some(token) = &self.identity_token {
            agent.post(realm).send_form([
                ("grant_type", "refresh_token"),
                ("refresh_token", token.0.as_str()),
                ("client_id", "hutch"),
                ("service", service.unwrap_or_default()),
                ("scope", scope.as_str()),
            ])
        } else {
            let mut request = agent.get(realm).query("scope", &scope);
            if let Some(service) = service {
                request = request.query("service", service);
            }
            if let Some(basic) = self.basic() {
                request = request.header("authorization", &basic.0);
            }
            request.call()
        };
        let answer = answer.map_err(failed)?;
        if answer.status() != 200 {
            return Err(match self.user.is_some() || self.identity_token.is_some() {
                true => {
                    "its server of tokens refuses the login: run `docker login` again".to_owned()
                }
                false => format!("its server of tokens answers {}", answer.status().as_u16()),
            });
        }
        let mut text = Vec::new();
        let body = answer.into_body().into_reader();
        body.take(ANSWER_MAX).read_to_end(&mut text).map_err(|error| error.to_string())?;
        let unreadable = "its server of tokens says something that is no token";
        let answer: TokenAnswer =
            serde_json::from_slice(&text).map_err(|_| unreadable.to_owned())?;
        let token = answer.token.or(answer.access_token).ok_or_else(|| unreadable.to_owned())?;
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(unreadable.to_owned());
        }
        Ok(Secret(format!("Bearer {token}")))
    }
}

fn read(path: &Path) -> DockerConfig {
    let small = std::fs::metadata(path).is_ok_and(|of| of.len() <= DOCUMENT_MAX);
    let text = if small { std::fs::read(path).ok() } else { None };
    text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
}

/// Asks `docker-credential-NAME` (Docker's protocol of credential helpers).
fn ask_helper(
    name: &str,
    server: &str,
    environment: &[(OsString, OsString)],
) -> Option<HelperAnswer> {
    // It becomes a part of a program's name.
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_plain) {
        return None;
    }
    let mut command = hutch_sys::spawn::command(format!("docker-credential-{name}"));
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let written = child.stdin.take()?.write_all(server.as_bytes());
    let mut text = Vec::new();
    let read = child.stdout.take()?.take(ANSWER_MAX).read_to_end(&mut text);
    let ended = child.wait().ok()?;
    (written.is_ok() && read.is_ok() && ended.success())
        .then(|| serde_json::from_slice(&text).ok())
        .flatten()
}
