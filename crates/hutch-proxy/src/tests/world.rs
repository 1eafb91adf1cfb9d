//! What the tests stand on: a gate whose port is served, servers of several kinds, and what a guest can do.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hutch_policy::log::Record;
use hutch_policy::settings::{Inspect, NetworkSettings, Service, Upstream};
use hutch_wire::network::{Destination, Open};
use hutch_wire::{Connection, Limits, Role, Stream};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::control::PolicyState;
use crate::exchange::{
    Answer, Body, Credentials, Destination as To, Pending, Prepared, Recorder, Withheld, full,
};
use crate::gate::{Gate, Parts};
use crate::worker;

/// What the fake credentials put in.
pub(super) const KEY: &str = "Bearer real-key";

/// Records in memory.
#[derive(Debug, Default)]
pub(super) struct Memory(Mutex<Vec<Record>>);

impl Recorder for Memory {
    fn append(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

/// Puts a key into requests over TLS to `api.test`, and says so in the response.
#[derive(Debug)]
struct Keys;

struct Mark;

impl Credentials for Keys {
    fn prepare<'a>(
        &'a self,
        destination: &'a To,
        mut request: Request<Body>,
    ) -> Pending<'a, Result<Prepared, Withheld>> {
        let ours = destination.secure && destination.authority.to_string() == "api.test:443";
        Box::pin(async move {
            if !ours {
                return Ok(Prepared { request, credential: None, answer: None });
            }
            request.headers_mut().insert("authorization", HeaderValue::from_static(KEY));
            Ok(Prepared {
                request,
                credential: Some("api".to_owned()),
                answer: Some(Box::new(Mark)),
            })
        })
    }

    fn sources(&self) -> Pending<'_, Vec<(String, Option<String>)>> {
        Box::pin(async { vec![("api".to_owned(), Some("a test".to_owned()))] })
    }
}

impl Answer for Mark {
    fn receive(
        self: Box<Self>,
        mut response: Response<Body>,
    ) -> Pending<'static, Result<Response<Body>, Withheld>> {
        response.headers_mut().insert("x-scrubbed", HeaderValue::from_static("yes"));
        Box::pin(async { Ok(response) })
    }
}

pub(super) struct World {
    pub(super) gate: Arc<Gate>,
    pub(super) memory: Arc<Memory>,
    guest: Connection,
    pub(super) server: Arc<Server>,
    _directory: TempDir,
}

/// The servers: every name ends in `.test` and leads to one of these.
pub(super) struct Server {
    pub(super) plain: SocketAddr,
    /// Offers HTTP/2 and HTTP/1.1.
    pub(super) tls: SocketAddr,
    /// Offers HTTP/1.1 alone.
    pub(super) tls1: SocketAddr,
    /// Answers bytes with the same bytes, and an end with an end.
    pub(super) echo: SocketAddr,
    pub(super) ca_pem: String,
    /// Connections that were made to any of them.
    pub(super) connections: Arc<Mutex<usize>>,
}

pub(super) fn policy(rules: &str) -> PolicyState {
    let inspect = Inspect::Credentials;
    PolicyState { proxy_config: format!("{{\"network\":{{{rules}}}}}"), inspect }
}

fn service() -> Service {
    Service {
        name: "api".to_owned(),
        hosts: vec!["api.test".to_owned()],
        header: "authorization".to_owned(),
        format: "Bearer %s".to_owned(),
        variables: vec!["API_KEY".to_owned()],
        placeholder_variables: vec![],
        placeholder: "proxy-managed".to_owned(),
        replaces: vec![],
        git_basic: false,
        oauth: None,
    }
}

impl World {
    /// With a policy of these rules.
    pub(super) async fn new(rules: &str) -> Self {
        Self::with(policy(rules)).await
    }

    pub(super) async fn inspecting_all(rules: &str) -> Self {
        Self::with(PolicyState { inspect: Inspect::All, ..policy(rules) }).await
    }

    async fn with(policy: PolicyState) -> Self {
        let server = Arc::new(Server::start().await);
        let upstream =
            |host: &str, address| Upstream { host: host.to_owned(), address, roots_pem: None };
        let settings = NetworkSettings {
            services: vec![service()],
            upstreams: vec![
                upstream("plain.test", server.plain),
                upstream("other.test", server.plain),
                upstream("blocked.test", server.plain),
                upstream("tls.test", server.tls),
                upstream("api.test", server.tls),
                upstream("tls1.test", server.tls1),
                upstream("echo.test", server.echo),
            ],
            extra_roots_pem: server.ca_pem.clone(),
            ..NetworkSettings::default()
        };
        let directory = tempfile::tempdir().unwrap();
        let memory = Arc::new(Memory::default());
        let parts = Parts {
            sandbox: "box".to_owned(),
            settings,
            policy: &policy,
            directory: directory.path(),
            credentials: Arc::new(Keys),
            recorder: Arc::clone(&memory) as Arc<dyn Recorder>,
            roots: Arc::new(RootCertStore::empty()),
        };
        let gate = Arc::new(Gate::new(parts).unwrap());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = Arc::clone(&gate);
        tokio::spawn(async move { worker::serve(&serving, theirs).await });
        let (guest, _) =
            Connection::establish(ours, Role::Server, Limits::default()).await.unwrap();
        Self { gate, memory, guest, server, _directory: directory }
    }

    pub(super) async fn open(&self, open: &Open) -> Stream {
        self.guest.open(&postcard::to_stdvec(open).unwrap()).await.unwrap()
    }

    /// A connection to the explicit proxy.
    pub(super) async fn proxy(&self) -> Stream {
        self.open(&Open::Proxy).await
    }

    /// A captured connection.
    pub(super) async fn captured(&self, name: &str, port: u16) -> Stream {
        let destination = match name.parse() {
            Ok(address) => Destination::Address(address),
            Err(_) => Destination::Name(name.to_owned()),
        };
        self.open(&Open::Captured { destination, port }).await
    }

    /// Says this to the explicit proxy, and gives all of the answer.
    pub(super) async fn ask(&self, request: &str) -> String {
        say(self.proxy().await, request).await
    }

    /// A tunnel through the explicit proxy.
    pub(super) async fn tunnel(&self, place: &str) -> Stream {
        let mut stream = self.proxy().await;
        let head = format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stream
    }

    /// TLS in a tunnel, verified with the sandbox's CA and the servers' own.
    pub(super) async fn tls(
        &self,
        place: &str,
        name: &str,
        protocols: &[&str],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<Stream>> {
        let stream = self.tunnel(place).await;
        self.handshake(stream, name, protocols).await
    }

    pub(super) async fn handshake(
        &self,
        stream: Stream,
        name: &str,
        protocols: &[&str],
    ) -> std::io::Result<tokio_rustls::client::TlsStream<Stream>> {
        let mut roots = RootCertStore::empty();
        for pem in [self.gate.state().ca.pem(), &self.server.ca_pem] {
            roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.enable_sni = name != "-";
        let name = if name == "-" { "tls.test" } else { name };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// The first record that passes, once there is one.
    pub(super) async fn record(&self, wanted: impl Fn(&Record) -> bool) -> Record {
        within(async {
            loop {
                if let Some(record) = self.memory.0.lock().unwrap().iter().find(|r| wanted(r)) {
                    return record.clone();
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.memory.0.lock().unwrap().clone()
    }
}

/// Fails the test instead of waiting for ever.
pub(super) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

/// Writes, ends, and reads to the end; what came before a reset is given too.
pub(super) async fn say(mut stream: Stream, bytes: &str) -> String {
    within(async {
        stream.write_all(bytes.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok();
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}

pub(super) async fn read_head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    within(async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(error) => panic!("{error} after {:?}", String::from_utf8_lossy(&head)),
            }
        }
        String::from_utf8(head).unwrap()
    })
    .await
}

impl Server {
    async fn start() -> Self {
        let (ca_pem, with_h2, without) = certificates();
        let connections = Arc::new(Mutex::new(0));
        let plain = listen(None, &connections).await;
        let tls = listen(Some(with_h2), &connections).await;
        let tls1 = listen(Some(without), &connections).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let echo = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut reader, mut writer) = stream.split();
                    tokio::io::copy(&mut reader, &mut writer).await.ok();
                    writer.shutdown().await.ok();
                });
            }
        });
        Self { plain, tls, tls1, echo, ca_pem, connections }
    }

    pub(super) fn connections(&self) -> usize {
        *self.connections.lock().unwrap()
    }
}

/// A CA's certificate, and servers with a certificate of it.
fn certificates() -> (String, Arc<ServerConfig>, Arc<ServerConfig>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let names = [
        "tls.test",
        "api.test",
        "tls1.test",
        "other.test",
        "blocked.test",
        "fine.test",
        "127.0.0.1",
    ];
    let names = names.map(str::to_owned);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
    let config = |protocols: &[&[u8]]| {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    };
    (ca.pem(), config(&[b"h2", b"http/1.1"]), config(&[b"http/1.1"]))
}

async fn listen(tls: Option<Arc<ServerConfig>>, connections: &Arc<Mutex<usize>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::clone(connections);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            *connections.lock().unwrap() += 1;
            tokio::spawn(serve(stream, tls.clone()));
        }
    });
    address
}

async fn serve(stream: TcpStream, tls: Option<Arc<ServerConfig>>) {
    let http1 = hyper::server::conn::http1::Builder::new();
    let service = service_fn(answer);
    let Some(config) = tls else {
        http1.serve_connection(TokioIo::new(stream), service).with_upgrades().await.ok();
        return;
    };
    let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        http2.serve_connection(TokioIo::new(stream), service).await.ok();
    } else {
        http1.serve_connection(TokioIo::new(stream), service).with_upgrades().await.ok();
    }
}

/// The server's behaviour, by path.
async fn answer(mut request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let response = match path.as_str() {
        // The request as it came, a line for each field.
        "/seen" => {
            let mut text =
                format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
            for (name, value) in request.headers() {
                writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes())).unwrap();
            }
            let body = request.into_body().collect().await;
            let Ok(body) = body else { return Ok(Response::new(full("the body broke off"))) };
            if let Some(trailers) = body.trailers() {
                writeln!(text, "trailers: {trailers:?}").unwrap();
            }
            writeln!(text, "body: {}", String::from_utf8_lossy(&body.to_bytes())).unwrap();
            Response::new(full(text))
        }
        // The body again, chunk by chunk, as it comes, with trailers.
        "/echo" => {
            let body = request.into_body().map_err(Into::into).boxed_unsync();
            Response::new(body)
        }
        "/trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [Frame::trailers(trailers), Frame::data(Bytes::from_static(b"data"))];
            let body = Frames(frames.into()).map_err(|never| match never {}).boxed_unsync();
            let mut response = Response::new(body);
            response.headers_mut().insert("trailer", HeaderValue::from_static("grpc-status"));
            response
        }
        "/nothing" => {
            let mut response = Response::new(crate::exchange::empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        "/close" => {
            let mut response = Response::new(full("closed"));
            if request.version() != http::Version::HTTP_2 {
                response.headers_mut().insert("connection", HeaderValue::from_static("close"));
            }
            response
        }
        "/upgrade" => {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut stream = TokioIo::new(upgrade.await.unwrap());
                let mut bytes = [0; 4];
                while stream.read_exact(&mut bytes).await.is_ok() {
                    stream.write_all(&bytes).await.unwrap();
                }
            });
            let mut response = Response::new(crate::exchange::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
            response.headers_mut().insert("upgrade", HeaderValue::from_static("websocket"));
            response
        }
        // Never ends.
        "/events" => {
            let body = Endless(0).map_err(|never: Infallible| match never {}).boxed_unsync();
            Response::new(body)
        }
        _ => Response::new(full(format!("{path}\n"))),
    };
    Ok(response)
}

/// One event, then silence.
struct Endless(u8);

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 = self.0.saturating_add(1);
        if self.0 == 1 {
            let event = Bytes::from_static(b"data: first\n\n");
            return std::task::Poll::Ready(Some(Ok(Frame::data(event))));
        }
        std::task::Poll::Pending
    }
}

/// These frames, the last one first, of a length that nobody knows.
struct Frames(Vec<Frame<Bytes>>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.pop().map(Ok))
    }
}
