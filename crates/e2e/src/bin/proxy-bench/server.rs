//! A server that costs as little as it can: `GET /bytes/N` over TLS, kept alive.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::Failure;

/// Names that its certificate is for.
const NAMES: [&str; 2] = ["bench.test", "localhost"];

/// Serves until it is killed.
pub(crate) async fn serve(directory: &Path) -> Result<(), Failure> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    // Two different names: the same subject and issuer would be a certificate that signed itself.
    parameters.distinguished_name.push(DnType::CommonName, "CA of the benchmark");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(parameters, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(NAMES.map(str::to_owned))?;
    parameters.distinguished_name.push(DnType::CommonName, "server of the benchmark");
    let certificate = parameters.signed_by(&key, &ca)?;
    tokio::fs::write(directory.join("ca.pem"), ca.pem()).await?;
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(
        vec![certificate.der().clone()],
        PrivateKeyDer::try_from(key.serialize_der())?,
    )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A client that goes away is none of our business.
            let _ended = talk(stream, acceptor).await;
        });
    }
}

async fn talk(stream: TcpStream, acceptor: TlsAcceptor) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut stream = acceptor.accept(stream).await?;
    let piece = vec![b'x'; 64 * 1024];
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        head.extend(&buffer[..length]);
        while let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head[..end]).into_owned();
            head.drain(..end + 4);
            let target = text.split(' ').nth(1).unwrap_or("/");
            let mut left: usize =
                target.rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n");
            let mut first = answer.into_bytes();
            let with_head = left.min(16 * 1024);
            first.extend(&piece[..with_head]);
            stream.write_all(&first).await?;
            left -= with_head;
            while left > 0 {
                let some = left.min(piece.len());
                stream.write_all(&piece[..some]).await?;
                left -= some;
            }
            stream.flush().await?;
        }
    }
}
