//! The sandbox's certificate authority, and the server certificates that it makes on the fly.
//!
//! The key is made once and stays in the sandbox's network directory (`ca-key.pem`, mode 0600) and in the worker's
//! memory. The certificate says for which names it may be used, when not all are inspected: a guest that trusts it does
//! not trust it for anything else. When more names are needed, the same key gets a new certificate; whoever trusts the
//! old one still can, for the old names.
//!
//! | file | |
//! | --- | --- |
//! | `ca-key.pem` | the key |
//! | `ca.pem` | the certificate, which the guest is given |
//! | `ca.json` | the names that the certificate is limited to |

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hutch_policy::host::Host;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::ServerSessionMemoryCache;
use serde::{Deserialize, Serialize};

/// Who the certificate says it is, as `docker sandbox` names its own.
const COMMON_NAME: &str = "Docker Sandboxes Proxy CA";
/// How far certificates reach back: a guest's clock may be wrong until it was set.
const BACKDATED: Duration = Duration::from_hours(30 * 24);
const CA_LIFE: Duration = Duration::from_hours(10 * 365 * 24);
/// Together with what it reaches back below the 398 days that clients accept.
const LEAF_LIFE: Duration = Duration::from_hours(360 * 24);
/// Hosts whose certificate and TLS state are kept.
const LEAVES: usize = 1024;
/// TLS sessions that can be resumed, for each host.
const SESSIONS: usize = 32;
const FORMAT_VERSION: u32 = 1;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error("{} cannot be used", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A key or certificate could not be made.
    #[error("a certificate could not be made")]
    Make(#[from] rcgen::Error),
    /// The TLS library does not take it.
    #[error("the TLS library does not take a certificate")]
    Tls(#[from] rustls::Error),
    /// No randomness.
    #[error("the system has no random numbers")]
    Random,
}

/// Which hosts a certificate authority may be used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// All.
    Any,
    /// These.
    Only(BTreeSet<Host>),
}

impl Scope {
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, Self::Any) => true,
            (Self::Only(ours), Self::Only(theirs)) => ours.is_superset(theirs),
            // What is limited again deserves a limited certificate.
            (Self::Any, Self::Only(_)) | (Self::Only(_), Self::Any) => false,
        }
    }
}

/// The file `ca.json`.
#[derive(Debug, Serialize, Deserialize)]
struct ScopeFile {
    format_version: u32,
    /// Null for all names.
    names: Option<Vec<String>>,
}

/// The sandbox's certificate authority.
pub struct Ca {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    leaf_key: KeyPair,
    scope: Scope,
    pem: String,
    certificate: CertificateDer<'static>,
    leaves: Mutex<Leaves>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("directory", &self.directory).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Leaves {
    by_host: HashMap<Host, (u64, Arc<ServerConfig>)>,
    uses: u64,
}

impl Ca {
    /// Takes what the directory holds, if it is whole and its scope is the one that is needed; else makes it.
    pub fn open(directory: &Path, scope: &Scope) -> Result<Self, CaError> {
        let key = match read_key(directory) {
            Some(key) => key,
            None => make_key(directory)?,
        };
        let kept = read_certificate(directory)
            .filter(|(kept, pem)| kept.covers(scope) && belongs(pem, &key));
        let (scope, pem) = match kept {
            Some(kept) => kept,
            None => (scope.clone(), make_certificate(directory, scope, &key)?),
        };
        Self::new(directory, key, scope, pem)
    }

    /// The same authority for this scope: none if it is the one that there is.
    pub fn widened(&self, scope: &Scope) -> Result<Option<Self>, CaError> {
        if self.scope.covers(scope) {
            return Ok(None);
        }
        let scope = match (&self.scope, scope) {
            // What was terminated before still is, until the sandbox is gone: less change for the guest.
            (Scope::Only(ours), Scope::Only(more)) => Scope::Only(ours | more),
            _ => scope.clone(),
        };
        let key = KeyPair::from_pem(&self.issuer.key().serialize_pem())?;
        let pem = make_certificate(&self.directory, &scope, &key)?;
        Self::new(&self.directory, key, scope, pem).map(Some)
    }

    fn new(directory: &Path, key: KeyPair, scope: Scope, pem: String) -> Result<Self, CaError> {
        use rustls::pki_types::pem::PemObject as _;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| rcgen::Error::CouldNotParseCertificate)?;
        Ok(Self {
            directory: directory.to_owned(),
            issuer: Issuer::new(ca_params(&scope)?, key),
            leaf_key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            scope,
            pem,
            certificate,
            leaves: Mutex::default(),
        })
    }

    /// The certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// TLS as the server of this host.
    pub fn server(&self, host: &Host) -> Result<Arc<ServerConfig>, CaError> {
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        leaves.uses += 1;
        let now = leaves.uses;
        if let Some((used, config)) = leaves.by_host.get_mut(host) {
            *used = now;
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(self.make_server(host)?);
        if leaves.by_host.len() >= LEAVES {
            let oldest = leaves.by_host.iter().min_by_key(|(_, (used, _))| *used);
            let oldest = oldest.map(|(host, _)| host.clone());
            oldest.map(|host| leaves.by_host.remove(&host));
        }
        leaves.by_host.insert(host.clone(), (now, Arc::clone(&config)));
        Ok(config)
    }

    fn make_server(&self, host: &Host) -> Result<ServerConfig, CaError> {
        let leaf = self.leaf(host)?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.leaf_key.serialize_der()));
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(vec![leaf, self.certificate.clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
        config.send_tls13_tickets = 1;
        Ok(config)
    }

    fn leaf(&self, host: &Host) -> Result<CertificateDer<'static>, CaError> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(address) => SanType::IpAddress(*address),
        }];
        params.distinguished_name = DistinguishedName::new();
        let name = host.to_string();
        // Longer names than this have no place in the subject; the alternative name above is what counts.
        if name.len() <= 64 {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        // One key for all: each certificate needs a number of its own.
        params.serial_number = Some(serial()?);
        set_life(&mut params, LEAF_LIFE);
        Ok(params.signed_by(&self.leaf_key, &self.issuer)?.der().clone())
    }
}

fn make_key(directory: &Path) -> Result<KeyPair, CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    write(&directory.join("ca-key.pem"), key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

fn read_key(directory: &Path) -> Option<KeyPair> {
    let pem = std::fs::read_to_string(directory.join("ca-key.pem")).ok()?;
    KeyPair::from_pem(&pem).ok()
}

fn read_certificate(directory: &Path) -> Option<(Scope, String)> {
    let scope = std::fs::read(directory.join("ca.json")).ok()?;
    let scope: ScopeFile = serde_json::from_slice(&scope).ok()?;
    if scope.format_version != FORMAT_VERSION {
        return None;
    }
    let scope = match scope.names {
        None => Scope::Any,
        Some(names) => {
            Scope::Only(names.iter().map(|name| Host::parse(name)).collect::<Result<_, _>>().ok()?)
        }
    };
    Some((scope, std::fs::read_to_string(directory.join("ca.pem")).ok()?))
}

/// Whether the certificate is of this key: the files may be of two different times.
fn belongs(pem: &str, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData as _;
    use rustls::pki_types::pem::PemObject as _;
    let Ok(certificate) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return false };
    let spki = key.subject_public_key_info();
    certificate.windows(spki.len()).any(|part| part == spki)
}

fn make_certificate(directory: &Path, scope: &Scope, key: &KeyPair) -> Result<String, CaError> {
    let pem = ca_params(scope)?.self_signed(key)?.pem();
    let names = match scope {
        Scope::Any => None,
        Scope::Only(hosts) => Some(hosts.iter().map(Host::to_string).collect()),
    };
    let file = ScopeFile { format_version: FORMAT_VERSION, names };
    let file = serde_json::to_vec(&file).unwrap_or_default();
    // The certificate is last: one that does not fit its scope file would be narrower than it says, never wider.
    write(&directory.join("ca.json"), &file, 0o644)?;
    write(&directory.join("ca.pem"), pem.as_bytes(), 0o644)?;
    Ok(pem)
}

fn ca_params(scope: &Scope) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, COMMON_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    set_life(&mut params, CA_LIFE);
    if let Scope::Only(hosts) = scope {
        params.name_constraints = Some(constraints(hosts));
    }
    Ok(params)
}

fn constraints(hosts: &BTreeSet<Host>) -> NameConstraints {
    // A kind of name that no subtree mentions is not limited at all (RFC 5280, 4.2.1.10): each kind must be there.
    let mut permitted = vec![GeneralSubtree::DnsName("invalid".to_owned())];
    let mut addresses = false;
    for host in hosts {
        permitted.push(match host {
            Host::Name(name) => GeneralSubtree::DnsName(name.as_str().to_owned()),
            Host::Address(address) => {
                addresses = true;
                let prefix = if address.is_ipv4() { 32 } else { 128 };
                GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(*address, prefix))
            }
        });
    }
    let everywhere = || {
        vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ]
    };
    let excluded = if addresses { Vec::new() } else { everywhere() };
    NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded }
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now.saturating_add(life);
}

fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| CaError::Random)?;
    // Positive, and never empty when leading zeros are dropped.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Writes a file whole or not at all.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), CaError> {
    let temporary = path.with_extension("new");
    let write = || {
        // Left over from a crash: it may have another mode.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().map_err(|source| CaError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests;
