//! What the servers answer, by the path.
//!
//! | path | answer |
//! | --- | --- |
//! | a file of the host | the file |
//! | `/reflect` | the request's head as a body, its `Authorization` and `X-Api-Key` also as header fields |
//! | `/reflect-error` | the same with status 500 |
//! | `/reflect-trailer` | the credentials as trailers |
//! | `/reflect-upgrade` | a `101`, then the request's head |
//! | `/reflect-chunks` | the head, byte by byte |
//! | `/reflect-gzip-label` | the head, labelled with a coding that it does not have |
//! | `/echo` | the body as it comes |
//! | `/bytes/N` | N bytes |
//! | `/events` | three server-sent events, 700 ms apart |
//! | `/forever` | a line ten times a second |
//! | `/trailers` | a body with trailers, also those that came |
//! | `/redirect/STATUS?to=URL` | a redirect |
//! | `/status/N` | that status |
//! | `/upgrade` | a `101`, then every byte back |
//! | `…/oauth/token`, `…/token` of a sign-in host | tokens that begin with `real-` |
//! | a provider's API | see `providers.rs` |
//! | anything else | one line that names the host |

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hutch_testkit::internet::protocol::{Connection, Request as Seen};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{
    CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION,
    TRAILER, UPGRADE,
};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::providers;
use crate::world::World;

type Body = BoxBody<Bytes, hyper::Error>;

/// Most bytes of a body that are kept.
const BODY_MAX: usize = 1 << 20;

pub(crate) async fn answer(
    world: &Arc<World>,
    connection: Connection,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let mut seen = seen(connection, &request);
    let path = seen.path.clone();
    let word = path.split('?').next().unwrap_or(&path);
    if word == "/echo" {
        world.requested(seen);
        return Response::new(request.into_body().boxed());
    }
    if request.headers().contains_key(UPGRADE) && word.contains("upgrade") {
        let text = if word == "/reflect-upgrade" { head_of(&seen) } else { String::new() };
        world.requested(seen);
        return upgrade(&mut request, text);
    }
    if !read_body(&mut seen, request).await {
        // A proxy that finds out in the middle that a request is wrong breaks it off.
        return text("broken off\n");
    }
    world.requested(seen.clone());
    if let Some((file, content)) = world.file(&seen.host, word) {
        let mut response = text(content);
        let kind = match file.extension().and_then(|extension| extension.to_str()) {
            Some("json") => "application/json",
            Some("html") => "text/html",
            _ => "application/octet-stream",
        };
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        return response;
    }
    if let Some(said) = providers::answer(&seen, word) {
        let mut response = text(said.body);
        *response.status_mut() = StatusCode::from_u16(said.status).unwrap_or_default();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(said.kind));
        return response;
    }
    by_path(&seen, word)
}

fn by_path(seen: &Seen, word: &str) -> Response<Body> {
    let inside = word.trim_start_matches('/');
    let (first, rest) = inside.split_once('/').unwrap_or((inside, ""));
    match first {
        _ if word.ends_with("/token") && seen.method == "POST" => tokens(seen),
        "reflect" | "reflect-error" => {
            let mut response = text(head_of(seen));
            response.headers_mut().extend(credentials(seen));
            if first == "reflect-error" {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            }
            response
        }
        "reflect-trailer" => with_trailers("body\n".into(), credentials(seen)),
        "reflect-chunks" => pieces(
            head_of(seen).into_bytes().into_iter().map(|byte| vec![byte]).collect(),
            Duration::ZERO,
        ),
        "reflect-gzip-label" => {
            let mut response = text(head_of(seen));
            response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        }
        "bytes" => text(vec![b'x'; rest.parse().unwrap_or(0)]),
        "events" => {
            let events = (0..3).map(|number| format!("data: event {number}\n\n").into_bytes());
            let mut response = pieces(events.collect(), Duration::from_millis(700));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            response
        }
        "forever" => forever(),
        "trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            with_trailers(format!("{:?}\n", seen.trailers), trailers)
        }
        "redirect" => {
            let to = seen.path.split_once("?to=").map_or("/", |(_, to)| to);
            let mut response = text("moved\n");
            *response.status_mut() =
                StatusCode::from_u16(rest.parse().unwrap_or(302)).unwrap_or(StatusCode::FOUND);
            if let Ok(to) = HeaderValue::from_str(to) {
                response.headers_mut().insert(LOCATION, to);
            }
            response
        }
        "status" => {
            let mut response = text("status\n");
            *response.status_mut() =
                StatusCode::from_u16(rest.parse().unwrap_or(200)).unwrap_or(StatusCode::OK);
            response
        }
        // What a repository of packages does not have, apt must be told.
        "debian" => {
            let mut response = text("not here\n");
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
        _ => text(format!("hello from {}\n", seen.host)),
    }
}

/// An answer in bytes that no HTTP library would write.
pub(crate) fn raw(head: &str) -> Vec<u8> {
    let path = head.split(' ').nth(1).unwrap_or("/");
    match path.rsplit('/').next().unwrap_or("") {
        "both-lengths" => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged".to_vec(),
        "two-lengths" => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 50\r\n\r\nfirst".to_vec(),
        "bare-lf" => b"HTTP/1.1 200 OK\nContent-Length: 5\n\nfirst".to_vec(),
        "two-answers" => b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged".to_vec(),
        "bad-chunks" => b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nfirst\r\n0\r\n\r\n".to_vec(),
        "huge-head" => {
            let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
            for number in 0..20_000 {
                answer.extend(format!("X-Filler-{number}: {}\r\n", "x".repeat(100)).bytes());
            }
            answer.extend(b"\r\n");
            answer
        }
        "garbage" => b"\x00\x01\x02 this is no HTTP \xff\xfe\r\n\r\n".to_vec(),
        "cut" => b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\ncut".to_vec(),
        _ => b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nraw\n".to_vec(),
    }
}

fn seen(connection: Connection, request: &Request<Incoming>) -> Seen {
    let fields = request.headers();
    let host = fields.get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    Seen {
        connection,
        version: format!("{:?}", request.version()),
        method: request.method().to_string(),
        host: request.uri().authority().map(ToString::to_string).or(host).unwrap_or_default(),
        path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: list(fields),
        body: String::new(),
        trailers: Vec::new(),
    }
}

fn list(fields: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    fields.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

/// Reads the body; whether it came to its end.
async fn read_body(seen: &mut Seen, request: Request<Incoming>) -> bool {
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        match frame.into_data() {
            Ok(data) if bytes.len() < BODY_MAX => bytes.extend(data),
            Ok(_) => {}
            Err(frame) => {
                if let Some(trailers) = frame.trailers_ref() {
                    seen.trailers = list(trailers);
                }
            }
        }
    }
    seen.body = String::from_utf8_lossy(&bytes).into_owned();
    true
}

/// The header fields that hold credentials, under other names.
fn credentials(seen: &Seen) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for name in ["authorization", "x-api-key", "x-goog-api-key"] {
        for value in seen.values(name) {
            let name = HeaderName::try_from(format!("reflected-{name}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) {
                fields.append(name, value);
            }
        }
    }
    fields
}

fn head_of(seen: &Seen) -> String {
    let mut text = format!("{} {} {}\n", seen.method, seen.path, seen.version);
    for (name, value) in &seen.headers {
        text.extend([name, ": ", value, "\n"]);
    }
    text
}

/// Tokens, each pair another one.
fn tokens(seen: &Seen) -> Response<Body> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static PAIR: AtomicU32 = AtomicU32::new(1);
    let pair = PAIR.fetch_add(1, Ordering::Relaxed);
    let tokens = serde_json::json!({
        "token_type": "Bearer",
        "access_token": format!("real-access-token-{pair}"),
        "refresh_token": format!("real-refresh-token-{pair}"),
        "expires_in": 3600,
        "scope": "all",
        "host": seen.host,
    });
    let mut response = text(tokens.to_string());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(text.into()).map_err(never).boxed())
}

fn with_trailers(body: String, trailers: HeaderMap) -> Response<Body> {
    // In HTTP/1 trailers are sent after a body without a known length, and only those that were announced.
    let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
    let announced =
        HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(""));
    let (sender, receiver) = mpsc::channel(1);
    drop(sender.try_send(Bytes::from(body)));
    let body = Pieces(receiver).with_trailers(async move { Some(Ok(trailers)) });
    let mut response = Response::new(body.boxed());
    response.headers_mut().insert(TRAILER, announced);
    response
}

/// A body that comes piece by piece.
fn pieces(pieces: Vec<Vec<u8>>, pause: Duration) -> Response<Body> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for (number, piece) in pieces.into_iter().enumerate() {
            if number > 0 && !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            if sender.send(Bytes::from(piece)).await.is_err() {
                return;
            }
        }
    });
    Response::new(Pieces(receiver).boxed())
}

fn forever() -> Response<Body> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        while sender.send(Bytes::from_static(b"piece\n")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    Response::new(Pieces(receiver).boxed())
}

/// A channel's receiver as a body.
struct Pieces(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Pieces {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

fn never(never: Infallible) -> hyper::Error {
    match never {}
}

fn upgrade(request: &mut Request<Incoming>, text: String) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut *request);
    let protocol = request.headers().get(UPGRADE).cloned();
    tokio::spawn(async move {
        let Ok(stream) = upgrade.await else { return };
        let mut stream = TokioIo::new(stream);
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            if stream.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    });
    let mut response = self::text("");
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    if let Some(protocol) = protocol {
        response.headers_mut().insert(UPGRADE, protocol);
    }
    response
}
