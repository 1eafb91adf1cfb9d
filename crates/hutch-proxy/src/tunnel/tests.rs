use std::sync::Arc;
use std::time::Duration;

use hutch_policy::host::Authority;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::live::{Admitted, Guard, Live};

fn guard() -> (Arc<Live>, Guard) {
    let live = Arc::new(Live::default());
    let place = Authority::parse("a.test:443").unwrap();
    let admitted = Admitted { place, also: None, address: None, bypassed: false };
    let guard = live.add(admitted).unwrap();
    (live, guard)
}

struct Running {
    client: DuplexStream,
    server: DuplexStream,
    live: Arc<Live>,
    ended: tokio::task::JoinHandle<(End, u64, u64)>,
}

fn start(size: usize) -> Running {
    let (client, mut ours) = duplex(size);
    let (server, mut theirs) = duplex(size);
    let (live, guard) = guard();
    let ended = tokio::spawn(async move {
        let moved = Moved::default();
        let end = relay(&mut ours, &mut theirs, &guard.cut, &moved, None).await;
        (end, moved.sent.into_inner(), moved.received.into_inner())
    });
    Running { client, server, live, ended }
}

#[tokio::test]
async fn the_end_of_one_direction_is_not_that_of_the_other() {
    let Running { mut client, mut server, live: _live, ended } = start(1024);
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    server.read_to_end(&mut question).await.unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"a long answer").await.unwrap();
    server.shutdown().await.unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"a long answer");
    let (end, sent, received) = ended.await.unwrap();
    assert!(matches!(end, End::Closed), "{end:?}");
    assert_eq!((sent, received), (8, 13));
}

#[tokio::test(start_paused = true)]
async fn a_side_that_does_not_read_stops_the_other_from_writing() {
    let Running { mut client, mut server, live: _live, ended: _ended } = start(16 << 10);
    let mut written = 0;
    let chunk = vec![0; 16 << 10];
    while let Ok(count) = tokio::time::timeout(Duration::from_secs(1), client.write(&chunk)).await {
        written += count.unwrap();
        assert!(written < 1 << 20);
    }
    // Both pipes and the one buffer between them.
    assert!(written <= (64 << 10) + (48 << 10), "{written}");
    let mut bytes = vec![0; written];
    server.read_exact(&mut bytes).await.unwrap();
}

#[tokio::test]
async fn a_cut_ends_both_sides() {
    let Running { mut client, mut server, live, ended } = start(1024);
    client.write_all(b"x").await.unwrap();
    server.read_u8().await.unwrap();
    assert_eq!(live.judge(|_| false), 1);
    let (end, ..) = ended.await.unwrap();
    assert!(matches!(end, End::Cut), "{end:?}");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    assert!(server.write_all(b"more").await.is_err());
}
