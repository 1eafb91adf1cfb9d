//! The servers: on every address the same ports.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use hutch_testkit::internet::protocol::Connection;
use hutch_testkit::internet::{
    ECHO, HTTP, HTTPS, PRIVATE, RAW_HTTP, SELF_SIGNED, SERVER, SERVER_6, WRONG_NAME,
};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::tls::{Certificates, Shown};
use crate::world::World;
use crate::{Failure, answers, tls};

/// What is spoken on a port.
#[derive(Clone)]
enum Speaks {
    Http,
    Https(TlsAcceptor),
    Echo,
    RawHttp,
}

/// Listens everywhere, until the program ends.
pub(crate) async fn serve(
    world: &Arc<World>,
    certificates: &Arc<Certificates>,
) -> Result<(), Failure> {
    let https = |shown| {
        tls::server(certificates, shown)
            .map(|config| Speaks::Https(TlsAcceptor::from(Arc::new(config))))
    };
    let right = https(Shown::Right)?;
    let mut ports = vec![
        (SELF_SIGNED, https(Shown::SelfSigned)?),
        (WRONG_NAME, https(Shown::WrongName)?),
        (ECHO, Speaks::Echo),
        (RAW_HTTP, Speaks::RawHttp),
    ];
    ports.extend(HTTP.map(|port| (port, Speaks::Http)));
    ports.extend(HTTPS.map(|port| (port, right.clone())));
    for address in [SERVER, SERVER_6].into_iter().chain(PRIVATE) {
        let address: IpAddr = address.parse()?;
        for (port, speaks) in &ports {
            let listener = TcpListener::bind((address, *port)).await?;
            tokio::spawn(accept(listener, Arc::clone(world), speaks.clone()));
        }
    }
    Ok(())
}

async fn accept(listener: TcpListener, world: Arc<World>, speaks: Speaks) {
    while let Ok((stream, _)) = listener.accept().await {
        let (world, speaks) = (Arc::clone(&world), speaks.clone());
        tokio::spawn(async move {
            // However a client goes away is its own affair; the test looks at what was seen.
            let _ended = talk(stream, world, speaks).await;
        });
    }
}

async fn talk(mut stream: TcpStream, world: Arc<World>, speaks: Speaks) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut connection =
        Connection { server: stream.local_addr()?.to_string(), sni: None, alpn: None };
    match speaks {
        Speaks::Http => {
            world.connected(connection.clone());
            http(stream, world, connection).await
        }
        Speaks::Https(acceptor) => {
            let tls = match acceptor.accept(stream).await {
                Ok(tls) => tls,
                Err(error) => {
                    world.connected(connection);
                    return Err(error.into());
                }
            };
            let session = tls.get_ref().1;
            connection.sni = session.server_name().map(str::to_owned);
            connection.alpn =
                session.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned());
            world.connected(connection.clone());
            http(tls, world, connection).await
        }
        Speaks::Echo => {
            world.connected(connection);
            Ok(echo(stream, &world).await?)
        }
        Speaks::RawHttp => {
            world.connected(connection);
            let head = head(&mut stream).await?;
            world.heard(&head);
            let text = String::from_utf8_lossy(&head).into_owned();
            Ok(stream.write_all(&answers::raw(&text)).await?)
        }
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    world: Arc<World>,
    connection: Connection,
) -> Result<(), Failure> {
    let service = service_fn(move |request| {
        let (world, connection) = (Arc::clone(&world), connection.clone());
        async move { Ok::<_, io::Error>(answers::answer(&world, connection, request).await) }
    });
    let mut server = Builder::new(TokioExecutor::new());
    server.http2().enable_connect_protocol();
    server.serve_connection_with_upgrades(TokioIo::new(stream), service).await
}

async fn echo(mut stream: TcpStream, world: &World) -> io::Result<()> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            break;
        }
        if all.len() < 4096 {
            all.extend(&buffer[..length]);
        }
        stream.write_all(&buffer[..length]).await?;
    }
    world.heard(&all);
    Ok(())
}

/// A request's head, or as much of it as came.
async fn head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut byte = [0];
    while head.len() < 64 * 1024
        && !head.ends_with(b"\r\n\r\n")
        && stream.read(&mut byte).await? > 0
    {
        head.push(byte[0]);
    }
    Ok(head)
}
