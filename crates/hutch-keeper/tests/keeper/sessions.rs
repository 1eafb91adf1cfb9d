//! Sessions through the keeper: bytes, ends, resets, back-pressure.

use std::time::Duration;

use hutch_api::Open;
use hutch_wire::guest::{ExecEvent, ExecRequest, ExecSpec};
use hutch_wire::message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::fake::{FakeWorkspace, Told};
use crate::setup::{Guest, Sandbox, event, spec};

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn the_exit_code_comes_through() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    for code in [0, 1, 125, 255] {
        let mut exec = client.start(&spec(&["exit", &code.to_string()])).await;
        assert_eq!(event(&mut exec).await, ExecEvent::Exited { code });
        assert_eq!(exec.read(&mut [0]).await.unwrap(), 0, "then the stream ends");
    }
    client.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn ten_mebibytes_pass_both_ways_unchanged() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let mut exec = client.exec(&ExecSpec { stdin: true, ..spec(&["cat", "7"]) }).await;
    let mut stdin = client.stdio(&exec, 0).await;
    let mut stdout = client.stdio(&exec, 1).await;
    let sent: Vec<u8> =
        (0..10_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let send = async {
        stdin.write_all(&sent).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let receive = stdout.read_to_end(&mut received);
    let ((), got) = tokio::join!(send, receive);
    got.unwrap();
    assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
    assert_eq!(event(&mut exec).await, ExecEvent::Started { pid: 7 });
    assert_eq!(event(&mut exec).await, ExecEvent::Exited { code: 7 });
    client.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn a_slow_reader_stalls_neither_another_session_nor_its_own_connection() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let flood = client.exec(&spec(&["flood"])).await;
    let mut unread = client.stdio(&flood, 1).await;
    // It has begun, and fills every window on the way while nobody reads on.
    unread.read_exact(&mut [0]).await.unwrap();
    for _ in 0..20 {
        let mut exec = client.exec(&ExecSpec { stdin: true, ..spec(&["cat"]) }).await;
        let mut stdin = client.stdio(&exec, 0).await;
        let mut stdout = client.stdio(&exec, 1).await;
        stdin.write_all(b"through").await.unwrap();
        stdin.shutdown().await.unwrap();
        let mut received = Vec::new();
        timeout(LONG, stdout.read_to_end(&mut received)).await.unwrap().unwrap();
        assert_eq!(received, b"through");
        event(&mut exec).await;
        assert_eq!(event(&mut exec).await, ExecEvent::Exited { code: 0 });
    }
    client.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn a_client_that_vanishes_takes_its_session_with_it() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let looking = keeper.ready().await;
    for half_closed in [false, true] {
        let client = keeper.client().await;
        let mut exec = client.start(&spec(&["wait"])).await;
        assert_eq!(looking.status().await.sessions, 1);
        if half_closed {
            exec.shutdown().await.unwrap();
            let told = guest.wait_for(|told| matches!(told, Told::ExecEnded(..))).await;
            assert_eq!(told, Told::ExecEnded("wait".to_owned(), false));
        }
        client.0.close();
        if !half_closed {
            let told = guest.wait_for(|told| matches!(told, Told::ExecEnded(..))).await;
            assert_eq!(told, Told::ExecEnded("wait".to_owned(), true));
        }
        drop((exec, client));
    }
    while looking.status().await.sessions != 0 {
        tokio::task::yield_now().await;
    }
    looking.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn a_stream_that_is_dropped_resets_its_session() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    drop(client.start(&spec(&["wait"])).await);
    let told = guest.wait_for(|told| matches!(told, Told::ExecEnded(..))).await;
    assert_eq!(told, Told::ExecEnded("wait".to_owned(), true));
    client.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn detached_sessions_outlive_their_clients_and_are_counted() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let looking = keeper.ready().await;
    // From the start, and later on.
    let client = keeper.client().await;
    drop(client.start(&ExecSpec { detached: true, ..spec(&["wait"]) }).await);
    let mut exec = client.start(&spec(&["wait"])).await;
    message::write(&mut exec, &ExecRequest::Detach).await.unwrap();
    message::write(&mut exec, &ExecRequest::Signal(10)).await.unwrap();
    let mut guest = guest;
    // What came after `Detach` arrived, so that did too.
    guest.wait_for(|told| *told == Told::Signal(10)).await;
    client.0.close();
    drop((exec, client));
    for _ in 0..50 {
        assert_eq!(looking.status().await.sessions, 2);
    }
    guest.release.send_replace(true);
    while looking.status().await.sessions != 0 {
        tokio::task::yield_now().await;
    }
    looking.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn requests_of_a_running_session_reach_the_guest() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let mut exec = client.start(&spec(&["wait"])).await;
    for signal in [2, 15] {
        message::write(&mut exec, &ExecRequest::Signal(signal)).await.unwrap();
        assert_eq!(
            guest.wait_for(|told| matches!(told, Told::Signal(_))).await,
            Told::Signal(signal)
        );
    }
    guest.release.send_replace(true);
    assert_eq!(event(&mut exec).await, ExecEvent::Exited { code: 0 });
    client.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn a_session_is_refused_with_a_reason_before_and_after_ready() {
    let sandbox = Sandbox::new();
    let silent = crate::fake::FakeVmm::new(|side| async move {
        std::future::pending::<()>().await;
        drop(side);
    });
    let keeper = sandbox.keep(silent, FakeWorkspace::new()).await;
    let client = keeper.client().await;
    let mut exec = client.open(Open::Exec).await;
    assert!(exec.read(&mut [0]).await.is_err());
    assert_eq!(exec.reset_reason().as_deref(), Some("the sandbox is still starting"));
    client.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn a_stop_ends_the_sessions_of_clients() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let mut exec = client.start(&spec(&["wait"])).await;
    client.stop(LONG).await;
    message::read::<ExecEvent, _>(&mut exec, 1024).await.unwrap_err();
    drop(keeper.end().await);
}

#[tokio::test]
async fn a_thousand_sessions_leave_nothing() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    for _ in 0..1000 {
        let one = keeper.client().await;
        let mut exec = one.start(&spec(&["exit", "0"])).await;
        assert_eq!(event(&mut exec).await, ExecEvent::Exited { code: 0 });
    }
    while client.status().await.sessions != 0 {
        tokio::task::yield_now().await;
    }
    // The last few may be on their way out.
    let settled = async {
        while descriptors() > before + 4 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, settled).await.expect("descriptors are left open");
    client.stop(LONG).await;
    drop(keeper.end().await);
}
