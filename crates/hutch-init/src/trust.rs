//! Makes the proxy's certificates trusted: puts them where each tool looks.
//!
//! ```text
//!   /usr/local/share/ca-certificates/proxy-ca.crt   the certificates alone; the system's own tools pick them up here
//!   /etc/ssl/certs/ca-certificates.crt, …           the system's bundle: what was there, then ours
//!   /etc/ssl/certs/proxy-ca.pem, HASH.0             for OpenSSL and for tools that build bundles
//!   /etc/ssl/certs/java/cacerts                     Java's own bundle
//! ```
//!
//! Certificates of the proxy that were there before are taken out. Files are rewritten in place, never replaced: a
//! container may have one mounted. What a former run of the sandbox left in the root is hostile, so everything goes
//! through [`Root`].

mod java;
mod pem;
mod sha1;
mod subject;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::log;
use crate::root::{Kind, Root, RootError};
use pem::Certificate;

/// The proxy's certificates alone.
pub(crate) const PROXY_CA: &str = "/usr/local/share/ca-certificates/proxy-ca.crt";
/// The system's bundle in Debian and its like; made where there is none.
pub(crate) const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
/// The same elsewhere; left alone where it is not.
const OTHER_BUNDLES: [&str; 4] = [
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const HASHED: &str = "/etc/ssl/certs";
const JAVA: &str = "/etc/ssl/certs/java/cacerts";
/// A bundle has a quarter of a megabyte.
const BUNDLE_MAX: u64 = 16 << 20;
/// The proxy has a certificate, or two while it changes.
const CERTIFICATES_MAX: usize = 16;
/// Links that can have one hash: different subjects, or the same one at other times.
const SAME_HASH_MAX: usize = 10;

/// Why the certificates are not trusted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    /// What the host sent has no certificate, or too many.
    #[error("the host sent {0} certificates")]
    Count(usize),
    /// A file that most tools need could not be written.
    #[error(transparent)]
    Root(#[from] RootError),
}

/// Trusts the certificates in `text` and none of the proxy's before.
pub(crate) fn install(root: &Root, text: &str) -> Result<(), TrustError> {
    let ours = pem::certificates(text.as_bytes());
    if ours.is_empty() || ours.len() > CERTIFICATES_MAX {
        return Err(TrustError::Count(ours.len()));
    }
    let before = root.content(Path::new(PROXY_CA), BUNDLE_MAX).unwrap_or_else(|error| {
        log::warn(format!("certificates of before are not known: {error}"));
        None
    });
    let before = before.map(|text| pem::certificates(&text)).unwrap_or_default();
    // As it was left at the last start: reading all certificates of the bundle would find nothing to do.
    let settled = before == ours && ends_with(root, Path::new(BUNDLE), &pem::write(&ours));
    if !settled {
        make_parent(root, BUNDLE)?;
        bundle(root, Path::new(BUNDLE), &ours, &before)?;
        said(Path::new(HASHED), hashed(root, &ours, &before));
    }
    for path in OTHER_BUNDLES {
        let path = Path::new(path);
        if root.has_file(path) {
            said(path, bundle(root, path, &ours, &before));
        }
    }
    said(Path::new(JAVA), java_bundle(root, &ours));
    // Last: until here the certificates of before are still known to whoever tries again.
    make_parent(root, PROXY_CA)?;
    root.overwrite(Path::new(PROXY_CA), pem::write(&ours).as_bytes())?;
    Ok(())
}

fn ends_with(root: &Root, path: &Path, text: &str) -> bool {
    let now = root.content(path, BUNDLE_MAX).ok().flatten();
    now.is_some_and(|now| now.ends_with(text.as_bytes()))
}

/// A tool's own place that could not be written is a line in the log.
fn said(path: &Path, result: Result<(), RootError>) {
    if let Err(error) = result {
        log::warn(format!("{}: certificates not trusted there: {error}", path.display()));
    }
}

fn make_parent(root: &Root, path: &str) -> Result<(), RootError> {
    match Path::new(path).parent() {
        // One that is reached through a link is there already.
        Some(parent) if !root.has_file(parent) => root.make(parent, Kind::Directory).map(drop),
        _ => Ok(()),
    }
}

fn bundle(
    root: &Root,
    path: &Path,
    ours: &[Certificate],
    before: &[Certificate],
) -> Result<(), RootError> {
    let now = root.content(path, BUNDLE_MAX)?.unwrap_or_default();
    let gone: Vec<&Certificate> = before.iter().chain(ours).collect();
    let mut new = pem::without(&now, &gone);
    new.extend_from_slice(pem::write(ours).as_bytes());
    root.overwrite(path, &new)
}

/// Names the certificates by the hashes of their subjects, as `c_rehash` does.
fn hashed(root: &Root, ours: &[Certificate], before: &[Certificate]) -> Result<(), RootError> {
    root.link(&Path::new(HASHED).join("proxy-ca.pem"), Path::new(PROXY_CA))?;
    for certificate in ours {
        let Some(hash) = certificate.der().and_then(|der| subject::hash(&der)) else { continue };
        for number in 0..SAME_HASH_MAX {
            let path = PathBuf::from(HASHED).join(format!("{hash:08x}.{number}"));
            let now = root.content(&path, BUNDLE_MAX).unwrap_or_default();
            // A place of another certificate with the same hash is not ours.
            let free = now.is_none_or(|now| {
                let known = pem::certificates(&now);
                known.iter().all(|one| before.contains(one) || ours.contains(one))
            });
            if free {
                root.link(&path, Path::new(PROXY_CA))?;
                break;
            }
        }
    }
    Ok(())
}

fn java_bundle(root: &Root, ours: &[Certificate]) -> Result<(), RootError> {
    let path = Path::new(JAVA);
    if !root.has_file(path) {
        return Ok(());
    }
    let Some(now) = root.content(path, BUNDLE_MAX)? else { return Ok(()) };
    let certificates: Vec<Vec<u8>> = ours.iter().filter_map(Certificate::der).collect();
    match java::with_certificates(&now, &certificates) {
        Some(new) => root.overwrite(path, &new),
        None => {
            log::info("Java's bundle has another format than JKS and was left alone");
            Ok(())
        }
    }
}

/// Says whether a file is one that holds our certificates beside others.
pub(crate) fn is_bundle(path: &str) -> bool {
    path == BUNDLE || path == JAVA || OTHER_BUNDLES.contains(&path)
}

/// What such a file holds without our certificates.
pub(crate) fn without_proxy(root: &Root, path: &str, file: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(BUNDLE_MAX + 1).read_to_end(&mut content)?;
    if content.len() as u64 > BUNDLE_MAX {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    if path == JAVA {
        // One of another format was left alone.
        return Ok(java::with_certificates(&content, &[]).unwrap_or(content));
    }
    let ours = root.content(Path::new(PROXY_CA), BUNDLE_MAX).map_err(io::Error::other)?;
    let ours = ours.map(|text| pem::certificates(&text)).unwrap_or_default();
    Ok(pem::without(&content, &ours.iter().collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests;
