//! Certificates for any name, made when they are asked for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::crypto::ring::{default_provider, sign::any_ecdsa_type};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::Failure;

pub(crate) struct Certificates {
    ca: CertifiedIssuer<'static, KeyPair>,
}

/// What certificate a server shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// One for the name that the client asks for.
    Right,
    /// One that no CA signed.
    SelfSigned,
    /// One for another name.
    WrongName,
}

impl Certificates {
    pub(crate) fn new() -> Result<Self, Failure> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.distinguished_name.push(DnType::CommonName, "CA of the tests' internet");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Python refuses a CA that does not say what it is for.
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { ca: CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)? })
    }

    pub(crate) fn ca_pem(&self) -> String {
        self.ca.pem()
    }

    fn make(&self, name: &str, shown: Shown) -> Result<CertifiedKey, Failure> {
        let name = if shown == Shown::WrongName { "other.test" } else { name };
        let mut parameters = CertificateParams::new([name.to_owned()])?;
        parameters.distinguished_name.push(DnType::CommonName, "a server of the tests' internet");
        // Python refuses certificates that do not say who signed them.
        parameters.use_authority_key_identifier_extension = shown != Shown::SelfSigned;
        let key = KeyPair::generate()?;
        let certificate = match shown {
            Shown::SelfSigned => parameters.self_signed(&key)?,
            Shown::Right | Shown::WrongName => parameters.signed_by(&key, &self.ca)?,
        };
        let private = PrivateKeyDer::try_from(key.serialize_der())?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], any_ecdsa_type(&private)?))
    }
}

/// The TLS of a server that shows such a certificate.
pub(crate) fn server(
    certificates: &Arc<Certificates>,
    shown: Shown,
) -> Result<ServerConfig, Failure> {
    let resolver =
        Resolver { certificates: Arc::clone(certificates), shown, made: Mutex::default() };
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

struct Resolver {
    certificates: Arc<Certificates>,
    shown: Shown,
    made: Mutex<HashMap<String, Arc<CertifiedKey>>>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().unwrap_or(hutch_testkit::internet::SERVER);
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = made.get(name) {
            return Some(Arc::clone(key));
        }
        let key = Arc::new(self.certificates.make(name, self.shown).ok()?);
        made.insert(name.to_owned(), Arc::clone(&key));
        Some(key)
    }
}
