//! A guest that does what it can.

use std::time::Duration;

use hutch_wire::guest::{ControlReply, ControlRequest, Open};
use hutch_wire::message::{self, MESSAGE_MAX};
use hutch_wire::{Connection, Limits, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::sync::watch;

use crate::fake::{FakeVmm, FakeWorkspace, GuestSide, postcard_from};
use crate::setup::{Guest, Sandbox, spec};

const LONG: Duration = Duration::from_secs(30);

/// Memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test]
async fn garbage_instead_of_a_greeting_ends_the_sandbox_with_a_reason() {
    for garbage in
        [vec![0xff; 64 * 1024], vec![0; 64 * 1024], b"GET / HTTP/1.1\r\n\r\n".repeat(100)]
    {
        let sandbox = Sandbox::new();
        let vmm = FakeVmm::new(move |mut side: GuestSide| {
            let garbage = garbage.clone();
            async move {
                let _closed = side.channel.write_all(&garbage).await;
                std::future::pending::<()>().await;
            }
        });
        let keeper = sandbox.keep(vmm, FakeWorkspace::new()).await;
        let end = keeper.end().await;
        assert!(end.reason.contains("broke the protocol"), "{}", end.reason);
        assert!(!end.clean);
    }
}

#[tokio::test]
async fn garbage_after_ready_ends_the_sandbox_with_a_reason() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let (go, going) = watch::channel(false);
    let init = guest.init.clone();
    let vmm = FakeVmm::new(move |side: GuestSide| {
        let (init, mut going) = (init.clone(), going.clone());
        async move {
            // Between init and the port, to say something that no connection would.
            let (inside, outside) = duplex(64 * 1024);
            tokio::spawn(init.serve(inside, side.power.clone()));
            let (mut from_host, mut to_host) = side.channel.into_split();
            let (mut from_init, mut to_init) = tokio::io::split(outside);
            tokio::spawn(async move { tokio::io::copy(&mut from_host, &mut to_init).await });
            tokio::select! {
                _ = tokio::io::copy(&mut from_init, &mut to_host) => {}
                _ = going.wait_for(|go| *go) => {}
            }
            let _closed = to_host.write_all(&[0xff; 100_000]).await;
            let _workspace = side.workspace;
            std::future::pending::<()>().await;
        }
    });
    let keeper = sandbox.keep(vmm, FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    go.send_replace(true);
    let end = keeper.end().await;
    assert!(end.reason.contains("broke the protocol"), "{}", end.reason);
    drop(client);
}

#[tokio::test]
async fn a_control_stream_that_chatters_ends_the_sandbox() {
    let sandbox = Sandbox::new();
    let vmm = FakeVmm::new(|side: GuestSide| async move {
        let _workspace = side.workspace;
        let (_connection, mut incoming) =
            Connection::establish(side.channel, Role::Server, Limits::default()).await.unwrap();
        let mut control = incoming.next().await.unwrap().accept();
        let _log = incoming.next().await.unwrap().accept();
        let _attach: ControlRequest = message::read(&mut control, MESSAGE_MAX).await.unwrap();
        for _ in 0..100_000 {
            if message::write(&mut control, &ControlReply::Attached).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    });
    let keeper = sandbox.keep(vmm, FakeWorkspace::new()).await;
    let end = keeper.end().await;
    assert_eq!(end.reason, "the guest replied without being asked");
}

#[tokio::test]
async fn a_long_reply_is_not_collected() {
    let sandbox = Sandbox::new();
    let vmm = FakeVmm::new(|side: GuestSide| async move {
        let _workspace = side.workspace;
        let (_connection, mut incoming) =
            Connection::establish(side.channel, Role::Server, Limits::default()).await.unwrap();
        let mut control = incoming.next().await.unwrap().accept();
        let _attach: ControlRequest = message::read(&mut control, MESSAGE_MAX).await.unwrap();
        control.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        while control.write_all(&[b'x'; 65536]).await.is_ok() {}
        std::future::pending::<()>().await;
    });
    let keeper = sandbox.keep(vmm, FakeWorkspace::new()).await;
    let end = keeper.end().await;
    assert!(end.reason.contains("over the limit"), "{}", end.reason);
}

#[tokio::test]
async fn a_flood_of_log_and_streams_leaves_memory_and_disk_bounded() {
    const FLOOD: usize = 256 << 20;
    let sandbox = Sandbox::new();
    let (done, mut flooded) = watch::channel(0_usize);
    let vmm = FakeVmm::new(move |side: GuestSide| {
        let done = done.clone();
        async move {
            let _workspace = side.workspace;
            let (connection, mut incoming) =
                Connection::establish(side.channel, Role::Server, Limits::default()).await.unwrap();
            let mut control = incoming.next().await.unwrap().accept();
            let log = incoming.next().await.unwrap();
            assert_eq!(postcard_from::<Open>(log.payload()), Open::Log);
            let mut log = log.accept();
            let _attach: ControlRequest = message::read(&mut control, MESSAGE_MAX).await.unwrap();
            message::write(&mut control, &ControlReply::Attached).await.unwrap();
            // Streams that nobody asked for, each one refused.
            for _ in 0..20_000 {
                if let Ok(mut stream) = connection.open(&[b'x'; 1024]).await {
                    assert!(stream.read(&mut [0]).await.is_err());
                }
            }
            let block = vec![b'x'; 1 << 20];
            for written in (0..=FLOOD).step_by(block.len()) {
                log.write_all(&block).await.unwrap();
                done.send_replace(written);
            }
            std::future::pending::<()>().await;
        }
    });
    let before = resident();
    let keeper = sandbox.keep(vmm, FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    flooded.wait_for(|written| *written == FLOOD).await.unwrap();
    let grown = resident().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more than before");
    let log = std::fs::metadata(sandbox.store.paths(&sandbox.record.name).log("init")).unwrap();
    assert!(log.len() < 4 << 20, "{} bytes of log", log.len());
    client.stop(Duration::ZERO).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn output_that_nobody_reads_is_not_collected() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let before = resident();
    let mut all = Vec::new();
    for _ in 0..50 {
        let exec = client.exec(&spec(&["flood"])).await;
        let mut output = client.stdio(&exec, 1).await;
        output.read_exact(&mut [0]).await.unwrap();
        all.push((exec, output));
    }
    // Everything that the windows allow has arrived when a whole conversation has gone through behind it.
    for _ in 0..200 {
        client.status().await;
    }
    let grown = resident().saturating_sub(before);
    // Two windows, two send buffers and one copy for each, on both sides of the keeper, which are in this process.
    assert!(grown < 50 * 2 * 1024, "{grown} KiB more than before");
    client.stop(LONG).await;
    drop(keeper.end().await);
}
