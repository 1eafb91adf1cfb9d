//! The ways to the server: none but TCP, a proxy that listens, or our worker.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hutch_policy::settings::{Inspect, NetworkSettings, Upstream};
use hutch_proxy::control::{PolicyState, Reply, Start};
use hutch_proxy::{BrokerSpec, Proxy, Spawn};
use hutch_wire::message::{self, MESSAGE_MAX};
use hutch_wire::network::Open;
use hutch_wire::{Connection, Incoming, Limits, Role};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::Failure;

/// The policy of the measurement: everything is open.
const POLICY: &str = r#"{
  "policy": { "default": "allow", "logBlocked": false, "logAllowed": false },
  "network": { "allowedDomains": [], "blockedDomains": [], "blockedCIDRs": [], "bypassDomains": [], "bypassCIDRs": [] }
}"#;

/// Any byte stream.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// What a request is sent over.
pub(crate) type Secure = TlsStream<Box<dyn Io>>;

/// Whether the proxy reads the requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminated {
    No,
    Yes,
}

/// How the server is reached.
pub(crate) struct Way {
    kind: Kind,
    /// What `CONNECT` names.
    authority: String,
    name: ServerName<'static>,
    connector: TlsConnector,
    /// The proxy's process.
    pub(crate) pid: Option<u32>,
}

enum Kind {
    Direct(u16),
    Tcp(String),
    Hutch(Box<Worker>),
}

/// Our worker with the connection that a guest's init would hold.
struct Worker {
    connection: Connection,
    open: Vec<u8>,
    /// Kept, because the worker ends without them.
    _kept: (Proxy, tokio::net::UnixStream, Incoming),
}

impl Way {
    pub(crate) fn direct(port: u16) -> Result<Self, Failure> {
        Self::new(Kind::Direct(port), "localhost", port, None)
    }

    pub(crate) fn tcp(address: &str, pid: u32, port: u16) -> Result<Self, Failure> {
        Self::new(Kind::Tcp(address.to_owned()), "localhost", port, Some(pid))
    }

    pub(crate) async fn hutch(
        program: &str,
        directory: &str,
        ca: &str,
        port: u16,
        terminated: Terminated,
    ) -> Result<Self, Failure> {
        let (worker, pid) =
            worker(Path::new(program), Path::new(directory), Path::new(ca), port, terminated)
                .await?;
        Self::new(Kind::Hutch(Box::new(worker)), "bench.test", 443, Some(pid))
    }

    fn new(kind: Kind, host: &str, port: u16, pid: Option<u32>) -> Result<Self, Failure> {
        let mut config = ClientConfig::builder()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self {
            kind,
            authority: format!("{host}:{port}"),
            name: ServerName::try_from(host.to_owned())?,
            connector: TlsConnector::from(Arc::new(config)),
            pid,
        })
    }

    /// A new connection, up to the end of its TLS handshake.
    pub(crate) async fn connect(&self) -> Result<Secure, Failure> {
        let mut stream: Box<dyn Io> = match &self.kind {
            Kind::Direct(port) => tcp(&format!("127.0.0.1:{port}")).await?,
            Kind::Tcp(address) => tcp(address).await?,
            Kind::Hutch(worker) => Box::new(worker.connection.open(&worker.open).await?),
        };
        if !matches!(self.kind, Kind::Direct(_)) {
            let authority = &self.authority;
            let request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await?);
            }
            if !head.starts_with(b"HTTP/1.1 200") && !head.starts_with(b"HTTP/1.0 200") {
                return Err(String::from_utf8_lossy(&head).into_owned().into());
            }
        }
        Ok(self.connector.connect(self.name.clone(), stream).await?)
    }

    /// The request for so many bytes.
    pub(crate) fn request(&self, bytes: usize) -> String {
        format!(
            "GET /bytes/{bytes} HTTP/1.1\r\nHost: {}\r\n\r\n",
            self.authority.trim_end_matches(":443")
        )
    }
}

async fn tcp(address: &str) -> Result<Box<dyn Io>, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(Box::new(stream))
}

async fn worker(
    program: &Path,
    directory: &Path,
    ca: &Path,
    port: u16,
    terminated: Terminated,
) -> Result<(Worker, u32), Failure> {
    let (ours, theirs) = UnixStream::pair()?;
    let log = File::create(directory.join("worker.log"))?;
    let network = directory.join("network");
    fs::create_dir(&network)?;
    let broker = BrokerSpec { store: directory.join("secrets"), ..BrokerSpec::default() };
    let spawn = Spawn { port: theirs.into(), directory: network, log, broker };
    let proxy = hutch_proxy::spawn(program, spawn)?;
    let inspect = if terminated == Terminated::Yes { Inspect::All } else { Inspect::Credentials };
    let upstream = Upstream {
        host: "bench.test".to_owned(),
        address: ([127, 0, 0, 1], port).into(),
        roots_pem: Some(fs::read_to_string(ca)?),
    };
    let start = Start {
        sandbox: "bench".to_owned(),
        settings: NetworkSettings {
            inspect,
            upstreams: vec![upstream],
            ..NetworkSettings::default()
        },
        policy: PolicyState { proxy_config: POLICY.to_owned(), inspect },
    };
    let control = proxy.control.try_clone()?;
    control.set_nonblocking(true)?;
    let mut control = tokio::net::UnixStream::from_std(control)?;
    message::write(&mut control, &start).await?;
    match message::read(&mut control, MESSAGE_MAX).await? {
        Reply::Ready { .. } => {}
        other => return Err(format!("the worker says {other:?}").into()),
    }
    ours.set_nonblocking(true)?;
    let transport = tokio::net::UnixStream::from_std(ours)?;
    let established = Connection::establish(transport, Role::Server, Limits::default());
    let (connection, incoming) =
        tokio::time::timeout(Duration::from_secs(10), established).await??;
    let mut open = Vec::new();
    message::write(&mut open, &Open::Proxy).await?;
    // Without the length that stands before a message on a stream.
    let open = open.split_off(4);
    let pid = proxy.pid();
    Ok((Worker { connection, open, _kept: (proxy, control, incoming) }, pid))
}

/// Trusts anyone: the load is not about verification, which the proxies do towards the server.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}
