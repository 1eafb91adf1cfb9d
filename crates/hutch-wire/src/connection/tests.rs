use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, copy, duplex};
use tokio::net::UnixStream;

use super::*;
use crate::frame::{Frame, encode_data_header};

/// Longer than anything here takes; a test that waits for it fails.
const SOON: Duration = Duration::from_secs(20);

fn small() -> Limits {
    Limits { frame_payload: 1024, stream_window: 4096, streams: 16, open_payload: 256 }
}

struct Pair {
    client: Connection,
    from_server: Incoming,
    server: Connection,
    from_client: Incoming,
}

impl Pair {
    async fn over<T>(a: T, b: T, limits: Limits) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ((client, from_server), (server, from_client)) = tokio::try_join!(
            Connection::establish(a, Role::Client, limits),
            Connection::establish(b, Role::Server, limits),
        )
        .expect("both greet");
        Self { client, from_server, server, from_client }
    }

    async fn in_memory(limits: Limits) -> Self {
        // A transport that takes little at a time, so that writes are short.
        let (a, b) = duplex(100);
        Self::over(a, b, limits).await
    }

    async fn stream(&mut self, payload: &[u8]) -> (Stream, Stream) {
        let ours = self.client.open(payload).await.expect("a stream opens");
        let theirs = self.from_client.next().await.expect("it arrives");
        assert_eq!(theirs.payload(), payload);
        assert_eq!(theirs.id(), ours.id());
        (ours, theirs.accept())
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    })
    .take(length)
    .collect()
}

async fn to_end(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("it ends well");
    bytes
}

#[tokio::test]
async fn bytes_arrive_on_both_directions_and_ends_are_seen() {
    let mut pair = Pair::in_memory(Limits::default()).await;
    assert_eq!((pair.client.version(), pair.server.version()), (1, 1));
    let (mut ours, mut theirs) = pair.stream(b"request").await;
    ours.write_all(b"question").await.unwrap();
    ours.shutdown().await.unwrap();
    assert_eq!(to_end(&mut theirs).await, b"question");
    // Half-closed: the other direction goes on.
    theirs.write_all(b"answer").await.unwrap();
    theirs.shutdown().await.unwrap();
    assert_eq!(to_end(&mut ours).await, b"answer");
    assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn the_server_opens_even_streams() {
    let mut pair = Pair::in_memory(Limits::default()).await;
    let ours = pair.server.open(b"a").await.unwrap();
    let theirs = pair.from_server.next().await.unwrap();
    assert_eq!((ours.id(), theirs.id(), theirs.payload()), (2, 2, b"a".as_slice()));
}

#[tokio::test]
async fn megabytes_pass_both_ways_through_split_halves_over_a_socket() {
    let (a, b) = UnixStream::pair().unwrap();
    let mut pair = Pair::over(a, b, Limits::default()).await;
    let (ours, theirs) = pair.stream(b"").await;
    let (mut echo_from, mut echo_to) = tokio::io::split(theirs);
    let echo = tokio::spawn(async move {
        copy(&mut echo_from, &mut echo_to).await?;
        echo_to.shutdown().await
    });
    let bytes = noise(3_000_000);
    let (mut reader, mut writer) = tokio::io::split(ours);
    let sent = bytes.clone();
    let write = tokio::spawn(async move {
        writer.write_all(&sent).await?;
        writer.shutdown().await
    });
    assert!(to_end(&mut reader).await == bytes);
    write.await.unwrap().unwrap();
    echo.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_stall_another() {
    let mut pair = Pair::in_memory(small()).await;
    let (mut stuck, _unread) = pair.stream(b"stuck").await;
    let writer = tokio::spawn(async move { stuck.write_all(&noise(1_000_000)).await });
    let (mut ours, mut theirs) = pair.stream(b"lively").await;
    let bytes = noise(200_000);
    let sent = bytes.clone();
    let lively = tokio::spawn(async move {
        ours.write_all(&sent).await.unwrap();
        ours.shutdown().await.unwrap();
        ours
    });
    let got = tokio::time::timeout(SOON, to_end(&mut theirs)).await.expect("it is not stalled");
    assert!(got == bytes);
    drop(lively.await.unwrap());
    assert!(!writer.is_finished(), "the stuck writer waits for its reader");
    writer.abort();
}

#[tokio::test]
async fn streams_that_all_have_much_to_send_take_turns() {
    let limits = Limits { stream_window: 1 << 20, ..Limits::default() };
    let mut pair = Pair::in_memory(limits).await;
    let mut readers = Vec::new();
    for _ in 0..4 {
        let (mut ours, theirs) = pair.stream(b"").await;
        tokio::spawn(async move {
            let bytes = noise(1 << 20);
            ours.write_all(&bytes).await.unwrap();
            ours.shutdown().await.unwrap();
            to_end(&mut ours).await;
        });
        readers.push(theirs);
    }
    // When the first stream has half of its bytes, no other is far behind.
    let mut half = vec![0; 1 << 19];
    readers[0].read_exact(&mut half).await.unwrap();
    for reader in &mut readers[1..] {
        let mut third = vec![0; 1 << 18];
        let read = tokio::time::timeout(SOON, reader.read_exact(&mut third)).await;
        read.expect("it had its turns").unwrap();
    }
}

#[tokio::test]
async fn a_refusal_reaches_the_opener_with_its_reason() {
    let mut pair = Pair::in_memory(Limits::default()).await;
    let mut ours = pair.client.open(b"something").await.unwrap();
    pair.from_client.next().await.unwrap().refuse("not today");
    let error = ours.read_u8().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (io::ErrorKind::ConnectionReset, "not today")
    );
    assert_eq!(ours.reset_reason().as_deref(), Some("not today"));
    assert_eq!(ours.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn dropping_a_stream_resets_it() {
    let mut pair = Pair::in_memory(Limits::default()).await;
    let (mut ours, theirs) = pair.stream(b"").await;
    drop(theirs);
    assert_eq!(ours.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let dropped = pair.client.open(b"").await.unwrap();
    let waiting = pair.from_client.next().await.unwrap();
    drop(dropped);
    let mut theirs = waiting.accept();
    assert_eq!(theirs.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_was_written_before_the_drop_is_read_before_the_reset() {
    let mut pair = Pair::in_memory(small()).await;
    let (mut ours, mut theirs) = pair.stream(b"").await;
    ours.write_all(b"last words").await.unwrap();
    drop(ours);
    let mut words = [0; 10];
    theirs.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"last words");
    assert_eq!(theirs.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // Beyond the window nothing is waited for.
    let (mut ours, mut theirs) = pair.stream(b"").await;
    ours.write_all(&[7; 60_000]).await.unwrap();
    drop(ours);
    let mut got = Vec::new();
    assert!(theirs.read_to_end(&mut got).await.is_err());
    assert!(got.len() <= 2 * 4096, "{}", got.len());
}

#[tokio::test]
async fn what_was_ended_before_the_drop_still_arrives() {
    let mut pair = Pair::in_memory(small()).await;
    let (mut ours, mut theirs) = pair.stream(b"").await;
    // More than the window, so that much of it waits when the stream is dropped.
    let bytes = noise(60_000);
    theirs.write_all(&bytes).await.unwrap();
    theirs.shutdown().await.unwrap();
    drop(theirs);
    assert!(to_end(&mut ours).await == bytes);
    // The other side no longer reads.
    let error = loop {
        match ours.write(b"x").await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn streams_are_forgotten_when_they_are_over() {
    let mut pair = Pair::in_memory(small()).await;
    for round in 0..500 {
        let (mut ours, mut theirs) = pair.stream(b"").await;
        match round % 4 {
            0 => drop(ours),
            1 => drop(theirs),
            2 => {
                ours.shutdown().await.unwrap();
                assert_eq!(to_end(&mut theirs).await, b"");
                theirs.shutdown().await.unwrap();
                assert_eq!(to_end(&mut ours).await, b"");
            }
            _ => theirs.reset("enough"),
        }
    }
    // The last answers are on their way; a request there and back is behind them.
    let (mut ours, mut theirs) = pair.stream(b"").await;
    ours.write_all(b"x").await.unwrap();
    theirs.read_u8().await.unwrap();
    theirs.write_all(b"x").await.unwrap();
    ours.read_u8().await.unwrap();
    assert_eq!(pair.client.user.0.streams_in_use(), 1);
    assert_eq!(pair.server.user.0.streams_in_use(), 1);
}

#[tokio::test]
async fn limits_on_streams_and_requests_are_said_to_the_opener() {
    let pair = Pair::in_memory(small()).await;
    let mut kept = Vec::new();
    for _ in 0..16 {
        kept.push(pair.client.open(b"").await.unwrap());
    }
    assert!(matches!(pair.client.open(b"").await, Err(OpenError::Limit(_))));
    kept.clear();
    assert!(matches!(pair.client.open(&[0; 257]).await, Err(OpenError::Limit(_))));
}

#[tokio::test]
async fn closing_hands_over_what_was_written() {
    let mut pair = Pair::in_memory(Limits::default()).await;
    let (mut ours, mut theirs) = pair.stream(b"").await;
    let bytes = noise(50_000);
    ours.write_all(&bytes).await.unwrap();
    pair.client.close();
    assert!(matches!(pair.client.open(b"").await, Err(OpenError::Closed(_))));
    let mut got = vec![0; bytes.len()];
    theirs.read_exact(&mut got).await.unwrap();
    assert!(got == bytes);
    assert!(matches!(pair.client.closed().await, ConnectionError::Lost(_)));
    assert_eq!(
        pair.server.closed().await.to_string(),
        "the connection was lost: the other side ended it"
    );
    assert_eq!(theirs.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    assert!(pair.from_client.next().await.is_none());
}

#[tokio::test]
async fn the_connection_ends_when_the_last_user_is_gone() {
    let Pair { client, from_server, server, from_client } = Pair::in_memory(small()).await;
    let stream = client.open(b"").await.unwrap();
    drop((client.clone(), client, from_server));
    assert!(
        tokio::time::timeout(Duration::from_millis(20), server.closed()).await.is_err(),
        "a stream keeps it"
    );
    drop(stream);
    assert!(matches!(server.closed().await, ConnectionError::Lost(_)));
    drop(from_client);
}

#[tokio::test]
async fn streams_for_nobody_are_refused() {
    let Pair { client, from_server, server, from_client } = Pair::in_memory(small()).await;
    drop(from_client);
    let mut stream = client.open(b"").await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(error.to_string(), "nobody takes streams here");
    drop((from_server, server));
}

async fn greet_by_hand(
    hello: Hello,
) -> (DuplexStream, Result<(Connection, Incoming), ConnectionError>) {
    let (mut raw, ours) = duplex(1 << 20);
    raw.write_all(&hello.encode()).await.unwrap();
    let made = Connection::establish(ours, Role::Server, small()).await;
    let mut greeting = vec![0; Hello::ours(small()).encode().len()];
    raw.read_exact(&mut greeting).await.unwrap();
    (raw, made)
}

#[tokio::test]
async fn a_server_says_nothing_before_its_client() {
    let (mut client, server) = duplex(1000);
    let served = tokio::spawn(Connection::establish(server, Role::Server, small()));
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(50), client.read(&mut byte)).await;
    assert!(early.is_err(), "it speaks only when spoken to");
    let greeted = Connection::establish(client, Role::Client, small()).await;
    greeted.expect("the client greets");
    served.await.unwrap().expect("and is answered");
}

#[tokio::test]
async fn a_peer_of_other_versions_is_named() {
    let hello = Hello { version_min: 7, version_max: 9, ..Hello::ours(small()) };
    let (_raw, made) = greet_by_hand(hello).await;
    assert_eq!(
        made.unwrap_err().to_string(),
        "the other side speaks protocol versions 7 to 9, this one 1 to 1"
    );
}

#[tokio::test]
async fn a_newer_peer_that_still_speaks_ours_is_welcome() {
    let hello = Hello { version_min: 1, version_max: 9, ..Hello::ours(small()) };
    let (_raw, made) = greet_by_hand(hello).await;
    assert_eq!(made.unwrap().0.version(), 1);
}

#[tokio::test]
async fn something_else_than_a_greeting_is_refused() {
    let (mut raw, ours) = duplex(1024);
    raw.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await.unwrap();
    let error = Connection::establish(ours, Role::Client, small()).await.unwrap_err();
    assert!(matches!(error, ConnectionError::Protocol(_)), "{error}");
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_told_and_loses_the_connection() {
    let (mut raw, made) = greet_by_hand(Hello::ours(small())).await;
    let (connection, mut incoming) = made.unwrap();
    let mut bytes = Vec::new();
    Frame::Open { stream: 1, payload: b"" }.encode(&mut bytes);
    for _ in 0..5 {
        encode_data_header(&mut bytes, 1, 1024);
        bytes.extend_from_slice(&[0; 1024]);
    }
    raw.write_all(&bytes).await.unwrap();
    let ConnectionError::Protocol(why) = connection.closed().await else {
        panic!("it broke the protocol");
    };
    assert_eq!(why, "it sent 1024 bytes on stream 1 where 0 were allowed");
    assert!(incoming.next().await.is_none());
    drop((connection, incoming));
    let rest = to_end(&mut raw).await;
    assert!(String::from_utf8_lossy(&rest).ends_with(&why));
}

#[tokio::test]
async fn a_transport_that_ends_ends_the_connection_and_wakes_everyone() {
    let (raw, made) = greet_by_hand(Hello::ours(small())).await;
    let (connection, mut incoming) = made.unwrap();
    let mut stream = connection.open(b"").await.unwrap();
    let reader = tokio::spawn(async move { stream.read_u8().await.unwrap_err().kind() });
    let taker = tokio::spawn(async move { incoming.next().await.is_none() });
    drop(raw);
    assert_eq!(reader.await.unwrap(), io::ErrorKind::ConnectionAborted);
    assert!(taker.await.unwrap());
    assert!(matches!(connection.closed().await, ConnectionError::Lost(_)));
}

/// A transport that counts writes.
struct Counting {
    inner: DuplexStream,
    writes: Arc<std::sync::atomic::AtomicUsize>,
}

impl AsyncRead for Counting {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counting {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[tokio::test]
async fn a_small_request_leaves_in_one_write_and_much_data_in_few() {
    let (a, b) = duplex(1 << 20);
    let writes = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = Counting { inner: a, writes: Arc::clone(&writes) };
    let ((client, _a), (_server, mut incoming)) = tokio::try_join!(
        Connection::establish(counting, Role::Client, Limits::default()),
        Connection::establish(b, Role::Server, Limits::default()),
    )
    .unwrap();
    let count = || writes.load(std::sync::atomic::Ordering::Relaxed);
    let before = count();
    let mut ours = client.open(b"request").await.unwrap();
    ours.write_all(b"message").await.unwrap();
    let mut theirs = incoming.next().await.unwrap().accept();
    theirs.read_exact(&mut [0; 7]).await.unwrap();
    assert_eq!(count() - before, 1);
    ours.write_all(&[7; 128 * 1024]).await.unwrap();
    theirs.read_exact(&mut vec![0; 128 * 1024]).await.unwrap();
    assert!(count() - before <= 5, "{} writes", count() - before);
}
