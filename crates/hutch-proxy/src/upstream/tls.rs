//! TLS as a client: the trust store, ALPN, session resumption.

use std::sync::Arc;

use hutch_policy::host::Host;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Unreachable, UpstreamsError};
use crate::stream::Io;

/// The certificates that the host trusts. Reads files: before the jail.
pub(crate) fn native_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a part of the host's trust store cannot be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!(
            "the host trusts no certificate: servers can be verified with configured ones only"
        );
    }
    tracing::debug!(usable = roots.len(), ignored, "trust store");
    roots
}

/// The store with more certificates in it.
pub(super) fn with_extra(
    roots: Arc<RootCertStore>,
    pem: &str,
) -> Result<Arc<RootCertStore>, UpstreamsError> {
    if pem.trim().is_empty() {
        return Ok(roots);
    }
    let mut all = RootCertStore::clone(&roots);
    add(&mut all, "the configuration", pem)?;
    Ok(Arc::new(all))
}

/// A store of these certificates alone.
pub(super) fn only(host: &str, pem: &str) -> Result<Arc<RootCertStore>, UpstreamsError> {
    let mut roots = RootCertStore::empty();
    add(&mut roots, host, pem)?;
    Ok(Arc::new(roots))
}

/// Never silently less than what was asked for: a file without a usable certificate is an error.
fn add(roots: &mut RootCertStore, what: &str, pem: &str) -> Result<(), UpstreamsError> {
    let refused = || UpstreamsError::Roots { what: what.to_owned() };
    let before = roots.len();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|_| refused())?).map_err(|_| refused())?;
    }
    if roots.len() == before { Err(refused()) } else { Ok(()) }
}

/// TLS towards servers that are verified with the same certificates.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    both: TlsConnectorDebug,
    http1: TlsConnectorDebug,
    plain: TlsConnectorDebug,
}

#[derive(Clone)]
struct TlsConnectorDebug(TlsConnector);

impl std::fmt::Debug for TlsConnectorDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsConnector")
    }
}

/// What is spoken inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Protocols {
    /// HTTP/2 or HTTP/1.1, as the server likes.
    Http,
    /// HTTP/1.1.
    Http1,
    /// Something else: no ALPN.
    Other,
}

impl Tls {
    pub(super) fn new(roots: Arc<RootCertStore>) -> Result<Self, UpstreamsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let base = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let with = |protocols: &[&[u8]]| {
            let mut config = base.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            // Sessions remember their protocol: each kind has sessions of its own.
            config.resumption = rustls::client::Resumption::in_memory_sessions(256);
            TlsConnectorDebug(TlsConnector::from(Arc::new(config)))
        };
        Ok(Self {
            both: with(&[b"h2", b"http/1.1"]),
            http1: with(&[b"http/1.1"]),
            plain: with(&[]),
        })
    }

    /// Shakes hands as a client of this host; the server must prove that it is the host.
    pub(super) async fn connect(
        &self,
        io: Box<dyn Io>,
        host: &Host,
        protocols: Protocols,
    ) -> Result<TlsStream<Box<dyn Io>>, Unreachable> {
        let connector = match protocols {
            Protocols::Http => &self.both,
            Protocols::Http1 => &self.http1,
            Protocols::Other => &self.plain,
        };
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned())
                .map_err(|_| Unreachable::failed(format!("{host} is no name for TLS")))?,
            Host::Address(address) => ServerName::IpAddress((*address).into()),
        };
        let handshake = connector.0.connect(name, io);
        match tokio::time::timeout(super::CONNECT, handshake).await {
            Err(_) => {
                Err(Unreachable::late(format!("the TLS handshake with {host} took too long")))
            }
            Ok(Err(error)) => Err(Unreachable::failed(sentence(host, &error))),
            Ok(Ok(stream)) => Ok(stream),
        }
    }
}

/// What went wrong, for the client: nothing of it is what the server said.
fn sentence(host: &Host, error: &std::io::Error) -> String {
    use rustls::{CertificateError, Error};
    let known = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let why = match known {
        Some(Error::InvalidCertificate(problem)) => match problem {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired"
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not valid yet"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name"
            }
            CertificateError::UnknownIssuer => {
                "its certificate is signed by nobody whom the host trusts"
            }
            CertificateError::Revoked => "its certificate was revoked",
            _ => "its certificate is not valid",
        },
        Some(Error::AlertReceived(_)) => "it refuses the handshake",
        Some(Error::PeerIncompatible(_)) => "it speaks no version of TLS that is safe",
        Some(_) => "it does not speak proper TLS",
        None => "the connection broke off",
    };
    format!("TLS with {host} failed: {why}")
}
