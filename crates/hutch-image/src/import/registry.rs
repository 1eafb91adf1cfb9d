//! Images of a registry, by the OCI distribution protocol.
//!
//! The protocol's four requests are written out over `ureq`: the client crates there are bring a second HTTP stack and an
//! asynchronous runtime into what blocks anyway, and read layers whole or unverified. TLS is the workspace's own
//! (rustls with ring). Logins are those of the Docker CLI ([`login`]).

mod login;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::Progress;
use crate::import::document::{DOCUMENT_MAX, Descriptor, Manifest};
use crate::import::registry::login::{Challenge, Login};
use crate::import::{Blobs, Image, ImportError, Importer, LayerBlob, verify};
use crate::template::{Origin, Reference, Template, TemplateOptions, TemplateStore};

/// How registries are reached.
#[derive(Debug, Clone, Default)]
pub struct RegistryOptions {
    /// Addresses that are asked before a registry, by its host.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Certificates beside the system's.
    pub ca_files: Vec<PathBuf>,
    /// The Docker CLI's `config.json`, which has logins.
    pub docker_config: Option<PathBuf>,
    /// Variables for the programs that know passwords.
    pub helpers: Vec<(OsString, OsString)>,
    /// Variables that say which proxy leads out.
    pub network: Vec<(OsString, OsString)>,
}

/// What the default registry's host really is.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// How long a registry may be silent before it answers.
const CONNECT: Duration = Duration::from_secs(30);
const ANSWER: Duration = Duration::from_secs(60);
const REDIRECTS: u32 = 5;
/// What may come for a manifest.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Indexes in indexes.
const DEPTH_MAX: usize = 4;
/// What is shown of a registry's own words.
const WORDS_MAX: u64 = 1024;

/// Fetches an image and makes the template of it.
pub(crate) fn fetch_from_registry(
    options: &TemplateOptions,
    name: &Reference,
    progress: &dyn Progress,
) -> Result<Template, ImportError> {
    let registries = &options.registries;
    let agent = agent(registries, name.registry())?;
    progress.step(&format!("asking for {name}"));
    let mut last = None;
    for base in bases(registries, name.registry()) {
        let mut registry = Registry {
            agent: agent.clone(),
            base,
            host: name.registry().to_owned(),
            repository: name.repository().to_owned(),
            login: Login::new(registries, name.registry()),
            authorization: None,
        };
        match registry.image(name) {
            Ok(image) => return registry.import(options, name, &image, progress),
            // A mirror need not have everything; what the registry itself says counts.
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(ImportError::NoImage))
}

/// The addresses of a registry, mirrors first.
fn bases(options: &RegistryOptions, host: &str) -> Vec<String> {
    let mirrors = options.mirrors.get(host).into_iter().flatten();
    let mut bases: Vec<String> =
        mirrors.map(|mirror| mirror.trim_end_matches('/').to_owned()).collect();
    let real = if host == DOCKER_HUB.0 { DOCKER_HUB.1 } else { host };
    bases.push(format!("https://{real}"));
    let name = real.split(':').next().unwrap_or_default();
    // As Docker does: what never leaves this machine needs no TLS.
    if name == "localhost" || name.starts_with("127.") {
        bases.push(format!("http://{real}"));
    }
    bases
}

fn agent(options: &RegistryOptions, host: &str) -> Result<ureq::Agent, ImportError> {
    let mut roots: Vec<Certificate<'static>> = rustls_native_certs::load_native_certs()
        .certs
        .iter()
        .map(|certificate| Certificate::from_der(certificate).to_owned())
        .collect();
    for path in &options.ca_files {
        let read = |source| ImportError::Read { path: path.clone(), source };
        let text = std::fs::read(path).map_err(read)?;
        for item in ureq::tls::parse_pem(&text).flatten() {
            if let ureq::tls::PemItem::Certificate(certificate) = item {
                roots.push(certificate);
            }
        }
    }
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::new(roots)))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .proxy(proxy(options, host))
        .http_status_as_error(false)
        .max_redirects(REDIRECTS)
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .user_agent(concat!("hutch/", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(config.into())
}

/// The proxy that leads to a host, as the environment says.
fn proxy(options: &RegistryOptions, host: &str) -> Option<ureq::Proxy> {
    let value = |names: [&str; 2]| {
        let mut found =
            options.network.iter().filter(|(name, _)| names.iter().any(|of| name == of));
        found.next().and_then(|(_, value)| value.to_str())
    };
    let host = host.split(':').next().unwrap_or_default();
    let direct = |entry: &str| {
        let entry = entry.trim().trim_start_matches('.');
        entry == "*" || !entry.is_empty() && (host == entry || host.ends_with(&format!(".{entry}")))
    };
    if value(["no_proxy", "NO_PROXY"]).unwrap_or_default().split(',').any(direct) {
        return None;
    }
    value(["https_proxy", "HTTPS_PROXY"]).and_then(|address| ureq::Proxy::new(address).ok())
}

/// One repository of a registry or mirror.
#[derive(Debug)]
struct Registry {
    agent: ureq::Agent,
    base: String,
    host: String,
    repository: String,
    login: Login,
    /// Header that it let us in with; never shown.
    authorization: Option<login::Secret>,
}

impl Registry {
    fn failed(&self, reason: impl Into<String>) -> ImportError {
        ImportError::Registry { registry: self.host.clone(), reason: reason.into() }
    }

    /// The image's documents, each checked.
    fn image(&mut self, name: &Reference) -> Result<Image, ImportError> {
        let text = self.document("manifests", name.tag_or_digest())?;
        if let Some(digest) = name.digest() {
            verify(&text, digest)?;
        }
        let mut manifest = Manifest::read(&text)?;
        for _ in 0..DEPTH_MAX {
            let Some(config) = manifest.config.clone() else {
                let chosen: Descriptor = manifest.for_this_machine()?.clone();
                let text = self.document("manifests", &chosen.digest)?;
                verify(&text, &chosen.digest)?;
                manifest = Manifest::read(&text)?;
                continue;
            };
            let text = self.document("blobs", &config.digest)?;
            verify(&text, &config.digest)?;
            let layers = manifest.layers.iter().map(|layer| LayerBlob {
                name: layer.digest.clone(),
                digest: Some(layer.digest.clone()),
                size: layer.size,
            });
            return Image::new(Vec::new(), &text, layers.collect());
        }
        Err(ImportError::TooLarge { what: "the depth of its indexes" })
    }

    fn import(
        &mut self,
        options: &TemplateOptions,
        name: &Reference,
        image: &Image,
        progress: &dyn Progress,
    ) -> Result<Template, ImportError> {
        let store = TemplateStore::new(&options.images);
        let locked = store.lock(progress)?;
        if let Err(error) = locked.clean() {
            tracing::info!(%error, "not removed");
        }
        let draft = locked.begin("registry")?;
        let importer = Importer { store: &store, progress, origin: Origin::Registry };
        importer
            .import(image, std::slice::from_ref(name), self, draft)
            .map_err(|error| ImportError::Template(Box::new(error)))
    }

    fn document(&mut self, kind: &str, which: &str) -> Result<Vec<u8>, ImportError> {
        let body = self.get(kind, which)?.into_body();
        let mut text = Vec::new();
        let read = body.into_reader().take(DOCUMENT_MAX + 1).read_to_end(&mut text);
        read.map_err(|error| self.failed(error.to_string()))?;
        if text.len() as u64 > DOCUMENT_MAX {
            return Err(ImportError::TooLarge { what: "a document of it" });
        }
        Ok(text)
    }

    /// Asks, and asks again with a login when the registry wants one.
    fn get(
        &mut self,
        kind: &str,
        which: &str,
    ) -> Result<ureq::http::Response<ureq::Body>, ImportError> {
        let url = format!("{}/v2/{}/{kind}/{which}", self.base, self.repository);
        let mut answer = self.ask(&url)?;
        if answer.status() == 401 {
            let header = answer.headers().get("www-authenticate");
            let challenge = header.and_then(|value| value.to_str().ok()).and_then(Challenge::parse);
            let challenge =
                challenge.ok_or_else(|| self.failed("it wants a login of an unknown kind"))?;
            let answered = self.login.answer(&self.agent, &self.base, &challenge, &self.repository);
            self.authorization = Some(answered.map_err(|reason| self.failed(reason))?);
            answer = self.ask(&url)?;
        }
        match answer.status().as_u16() {
            200 => Ok(answer),
            401 | 403 => Err(self.failed(format!(
                "it asks for a login that may read `{}`: run `docker login {}`",
                self.repository, self.host
            ))),
            404 => Err(self.failed(format!("it has no `{}` of `{}`", which, self.repository))),
            429 => Err(self.failed("it was asked too often: try again later, or log in")),
            status => {
                let mut words = Vec::new();
                let body = answer.into_body().into_reader();
                let _what_there_is = body.take(WORDS_MAX).read_to_end(&mut words);
                let words = String::from_utf8_lossy(&words).escape_debug().to_string();
                Err(self.failed(format!("it answers {status} {words}")))
            }
        }
    }

    fn ask(&self, url: &str) -> Result<ureq::http::Response<ureq::Body>, ImportError> {
        let mut request = self.agent.get(url).header("accept", MANIFESTS);
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization.shown_to_the_registry());
        }
        request.call().map_err(|error| self.failed(error.to_string()))
    }
}

impl Blobs for Registry {
    fn open(&mut self, layer: &LayerBlob) -> Result<(Box<dyn Read>, u64), ImportError> {
        let answer = self.get("blobs", &layer.name)?;
        Ok((Box::new(answer.into_body().into_reader()), layer.size))
    }
}

#[cfg(test)]
mod tests;
