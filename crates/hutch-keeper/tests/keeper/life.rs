//! From the start to every kind of end.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use hutch_api::{Open, Phase, Request, Response};
use hutch_keeper::{Command, KeeperError, Parts};
use hutch_vmm::VmEnd;
use hutch_wire::message::{self, MESSAGE_MAX};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::fake::{FakeVmm, FakeWorkspace, Told, crashing};
use crate::fake_proxy::FakeNetwork;
use crate::setup::{Guest, Sandbox, event, spec};

const LONG: Duration = Duration::from_secs(30);

#[tokio::test]
async fn a_sandbox_becomes_ready_and_stops_cleanly() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    assert!(sandbox.store.is_running(&sandbox.record.name).unwrap());
    let client = keeper.ready().await;
    let killed_now = sandbox.store.last_end(&sandbox.record.name).unwrap().unwrap();
    assert_eq!(killed_now.reason, "it was killed, or the machine stopped, while it ran");
    let status = client.status().await;
    assert_eq!((status.vmm_pid, status.workspace_pid), (Some(4242), Some(4343)));
    assert_eq!((status.sessions, status.accelerator.as_str()), (0, "tcg"));
    assert!(status.ready_ms.is_some());

    let Told::Attached(spec, booted) = guest.told.recv().await.unwrap() else {
        panic!("not attached")
    };
    assert_eq!(spec.hostname, "my-box-1");
    assert_eq!(spec.machine_id, sandbox.record.machine_id);
    assert_eq!(spec.entropy.len(), 64);
    // Not the time at which the boot began: the guest's clock would be late by all of it.
    let booted = booted.duration_since(UNIX_EPOCH).unwrap().as_nanos();
    assert!(u128::from(spec.realtime_ns) >= booted, "{} {booted}", spec.realtime_ns);
    assert_eq!(spec.user, "agent");
    assert_eq!(spec.workspaces.len(), 1);
    assert!(spec.workspaces[0].directory && !spec.workspaces[0].read_only);
    let variable = |name: &str| {
        let found = spec.environment.iter().find(|(key, _)| key.as_slice() == name.as_bytes());
        found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
    };
    assert_eq!(variable("IS_SANDBOX").as_deref(), Some("1"));
    assert_eq!(variable("SANDBOX_VM_ID").as_deref(), Some(sandbox.record.id.as_str()));
    assert_eq!(variable("WORKSPACE_DIR").as_deref(), sandbox.work().to_str());
    assert_eq!(variable("MINE").as_deref(), Some("yes"));

    client.stop(LONG).await;
    let end = keeper.end().await;
    assert!(end.clean, "{end:?}");
    assert_eq!(end.reason, "stopped");
    let name = &sandbox.record.name;
    assert_eq!(sandbox.store.last_end(name).unwrap(), Some(end));
    assert!(!sandbox.store.is_running(name).unwrap());
    let left: Vec<_> = std::fs::read_dir(&sandbox.store.layout().runtime).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let log = std::fs::read_to_string(sandbox.store.paths(name).log("init")).unwrap();
    assert_eq!(log, "init says \\x1b[31mhello\n");
}

#[tokio::test]
async fn waiting_clients_are_told_why_it_failed() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    guest.init.refuse_attach = true;
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let (one, two) = (keeper.client().await, keeper.client().await);
    let (one, two) = tokio::join!(one.wait_ready(), two.wait_ready());
    let reason = "the guest could not be set up: no  [2Jdisk".to_owned();
    for status in [one, two] {
        assert_eq!(status.phase, Phase::Failed { reason: reason.clone() });
    }
    let end = keeper.end().await;
    assert_eq!((end.clean, end.reason), (false, reason));
}

#[tokio::test]
async fn a_vm_that_cannot_start_is_a_failure_with_a_reason() {
    let sandbox = Sandbox::new();
    let keeper = sandbox.keep(FakeVmm::refusing(), FakeWorkspace::new()).await;
    let end = keeper.end().await;
    assert_eq!(end.reason, "the virtual machine cannot have a shape");
}

#[tokio::test]
async fn a_worker_that_cannot_start_ends_the_vm() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let vmm = guest.vmm();
    let workspace = FakeWorkspace { refuse: true, ..FakeWorkspace::new() };
    let keeper = sandbox.keep(Arc::clone(&vmm), workspace).await;
    let end = keeper.end().await;
    assert_eq!(end.reason, "the workspaces cannot be served: no workers today");
}

#[tokio::test]
async fn a_missing_workspace_is_named() {
    let sandbox = Sandbox::new();
    std::fs::remove_dir(sandbox.work()).unwrap();
    let keeper = sandbox.keep(Guest::new().vmm(), FakeWorkspace::new()).await;
    let end = keeper.end().await;
    assert!(end.reason.contains(sandbox.work().to_str().unwrap()), "{}", end.reason);
}

#[tokio::test]
async fn a_panic_while_booting_is_told_at_once_with_the_console() {
    let sandbox = Sandbox::new();
    let console =
        "[ 0.1] Linux version 6\r\n[ 0.9] Kernel panic - not syncing: \x1b[31mno init\r\n";
    let keeper = sandbox.keep(crashing(console, VmEnd::GuestCrashed), FakeWorkspace::new()).await;
    let end = keeper.end().await;
    assert_eq!(end.reason, "the guest's kernel crashed: [31mno init");
    assert_eq!(
        end.console,
        ["[ 0.1] Linux version 6", "[ 0.9] Kernel panic - not syncing:  [31mno init"]
    );
}

#[tokio::test]
async fn a_kernel_that_crashes_before_it_is_up_gets_a_second_boot() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let (init, boots) = (guest.init.clone(), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&boots);
    let vmm = FakeVmm::new(move |side| {
        let (init, first) = (init.clone(), counted.fetch_add(1, Ordering::Relaxed) == 0);
        async move {
            if first {
                side.power.end(VmEnd::GuestCrashed);
            } else {
                init.run(side).await;
            }
        }
    });
    let keeper = sandbox.keep(vmm, FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    assert_eq!(boots.load(Ordering::Relaxed), 2);
    assert_eq!(client.status().await.vmm_pid, Some(4242));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers_is_given_up_after_the_boot_time() {
    let sandbox = Sandbox::new();
    let silent = FakeVmm::new(|side| async move {
        std::future::pending::<()>().await;
        drop(side);
    });
    let started = Instant::now();
    let keeper = sandbox.keep(silent, FakeWorkspace::new()).await;
    let end = keeper.end().await;
    assert_eq!(end.reason, "the guest was not ready within 60 s");
    assert!(started.elapsed() < Duration::from_secs(75), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_stop_while_booting_ends_everything() {
    let sandbox = Sandbox::new();
    let silent = FakeVmm::new(|side| async move {
        std::future::pending::<()>().await;
        drop(side);
    });
    let keeper = sandbox.keep(silent, FakeWorkspace::new()).await;
    let client = keeper.client().await;
    assert_eq!(client.status().await.phase, Phase::Booting);
    let (_, waited) = tokio::join!(client.stop(LONG), client.wait_ready());
    assert_eq!(waited.phase, Phase::Stopping);
    let end = keeper.end().await;
    assert_eq!((end.clean, end.reason.as_str()), (false, "stopped"));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_power_off_is_killed_in_time() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    guest.init.power_off = false;
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let started = Instant::now();
    client.stop(Duration::from_secs(7)).await;
    let took = started.elapsed();
    assert!((Duration::from_secs(7)..Duration::from_secs(9)).contains(&took), "{took:?}");
    let end = keeper.end().await;
    assert!(!end.clean);
}

#[tokio::test(start_paused = true)]
async fn a_second_stop_may_be_less_patient() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    guest.init.power_off = false;
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let started = Instant::now();
    let patient = client.stop(Duration::from_secs(3600));
    let second = async {
        guest.wait_for(|told| *told == Told::PowerOff).await;
        client.stop(Duration::from_secs(1)).await;
    };
    tokio::join!(patient, second);
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    drop(keeper.end().await);
}

#[tokio::test]
async fn a_vm_that_dies_ends_the_sandbox_with_the_reason() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let vmm = guest.vmm();
    let keeper = sandbox.keep(Arc::clone(&vmm), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let power = vmm.power.lock().unwrap().clone().unwrap();
    power.end(VmEnd::VmmFailed { reason: "signal 9".to_owned() });
    let end = keeper.end().await;
    assert_eq!((end.clean, end.reason.as_str()), (false, "the virtual machine ended: signal 9"));
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_badly_after_it_was_ready_did_start() {
    let sandbox = Sandbox::new();
    let workspace = FakeWorkspace::new();
    let mut guest = Guest::new();
    guest.init.power_off = false;
    let keeper = sandbox.keep(guest.vmm(), workspace.clone()).await;
    let client = keeper.ready().await;
    workspace.end.send_replace(Some("signal 9".to_owned()));
    guest.wait_for(|told| *told == Told::PowerOff).await;
    assert_eq!(client.wait_ready().await.phase, Phase::Stopping);
    let end = keeper.end().await;
    assert!(!end.clean);
}

#[tokio::test]
async fn without_workspaces_there_is_no_worker() {
    let mut sandbox = Sandbox::new();
    let change = |record: &mut hutch_store::SandboxRecord| record.workspaces.clear();
    sandbox.record = sandbox.store.update(&sandbox.record.name, change).unwrap();
    let guest = Guest::new();
    let workspace = FakeWorkspace { refuse: true, ..FakeWorkspace::new() };
    let keeper = sandbox.keep(guest.vmm(), workspace).await;
    let client = keeper.ready().await;
    assert_eq!(client.status().await.workspace_pid, None);
    client.stop(LONG).await;
    assert!(keeper.end().await.clean);
}

#[tokio::test]
async fn a_guest_that_powers_off_by_itself_is_a_clean_end() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let vmm = guest.vmm();
    let keeper = sandbox.keep(Arc::clone(&vmm), FakeWorkspace::new()).await;
    keeper.ready().await;
    vmm.power.lock().unwrap().clone().unwrap().end(VmEnd::PoweredOff);
    let end = keeper.end().await;
    assert_eq!((end.clean, end.reason.as_str()), (true, "the guest powered off"));
}

#[tokio::test]
async fn a_worker_that_dies_lets_the_guest_power_off() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    let workspace = FakeWorkspace::new();
    let keeper = sandbox.keep(guest.vmm(), workspace.clone()).await;
    keeper.ready().await;
    workspace.end.send_replace(Some("signal 9".to_owned()));
    let end = keeper.end().await;
    assert_eq!((end.clean, end.reason.as_str()), (true, "the workspace worker ended: signal 9"));
    guest.wait_for(|told| *told == Told::PowerOff).await;
}

#[tokio::test]
async fn a_signal_stops_cleanly() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    keeper.ready().await;
    let stop = Command::Stop { at_most: LONG, reason: "a signal" };
    keeper.commands.send(stop).await.unwrap();
    let end = keeper.end().await;
    assert_eq!((end.clean, end.reason.as_str()), (true, "a signal"));
}

#[tokio::test(start_paused = true)]
async fn without_activity_it_stops_by_itself() {
    let mut sandbox = Sandbox::new();
    let idle = Duration::from_secs(1800);
    sandbox.settings.idle_timeout = Some(idle);
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let started = Instant::now();
    let detached = hutch_wire::guest::ExecSpec { detached: true, ..spec(&["wait"]) };
    drop(client.start(&detached).await);
    // Clients that only look are no activity; the detached session is.
    drop(client);
    tokio::time::sleep(3 * idle).await;
    assert!(!keeper.kept.is_finished());
    guest.release.send_replace(true);
    let end = keeper.end().await;
    assert_eq!((end.clean, end.reason.as_str()), (true, "idle for too long"));
    let took = started.elapsed();
    assert!(took >= 4 * idle && took < 4 * idle + Duration::from_secs(60), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_answers_no_pings_is_reported_and_lives() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    guest.init.answer_pings = false;
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    guest.wait_for(|told| *told == Told::Pinged).await;
    assert_eq!(client.status().await.unanswered_pings, 0);
    tokio::time::sleep(Duration::from_secs(301)).await;
    let status = client.status().await;
    assert_eq!(status.phase, Phase::Ready);
    assert!((8..=11).contains(&status.unanswered_pings), "{}", status.unanswered_pings);
    client.stop(LONG).await;
    assert!(keeper.end().await.clean);
}

#[tokio::test(start_paused = true)]
async fn answered_pings_are_not_counted() {
    let sandbox = Sandbox::new();
    let mut guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    for _ in 0..5 {
        guest.wait_for(|told| *told == Told::Pinged).await;
    }
    assert_eq!(client.status().await.unanswered_pings, 0);
    client.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn a_second_keeper_says_that_it_runs_already() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let (commands, received) = mpsc::channel(1);
    let second = hutch_keeper::keep(
        sandbox.store.clone(),
        sandbox.settings.clone(),
        Parts {
            vmm: guest.vmm(),
            workspace: Arc::new(FakeWorkspace::new()),
            network: Arc::new(FakeNetwork::none()),
            give_up: || Ok(()),
        },
        || panic!("must not listen"),
        (commands, received),
    )
    .await;
    assert!(matches!(second, Err(KeeperError::Running { .. })), "{second:?}");
    // The first one has kept its socket.
    assert_eq!(keeper.client().await.status().await.phase, Phase::Ready);
    client.stop(LONG).await;
    drop(keeper.end().await);
}

#[tokio::test]
async fn what_a_dead_keeper_left_is_replaced() {
    let sandbox = Sandbox::new();
    drop(UnixListener::bind(sandbox.socket()).unwrap());
    let scratch = sandbox.store.layout().scratch(&sandbox.record.id);
    std::fs::create_dir_all(scratch.join("old")).unwrap();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    assert!(!scratch.join("old").exists());
    let record = sandbox.store.keeper(&sandbox.record.name).unwrap().unwrap();
    assert_eq!(record.pid, std::process::id());
    assert_eq!(record.socket.as_path(), sandbox.socket());
    client.stop(LONG).await;
    drop(keeper.end().await);
    assert!(!sandbox.socket().exists() && !scratch.exists());
}

#[tokio::test]
async fn a_sandbox_starts_again_after_its_end() {
    let sandbox = Sandbox::new();
    for _ in 0..3 {
        let guest = Guest::new();
        let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
        let client = keeper.ready().await;
        let mut exec = client.start(&spec(&["exit", "3"])).await;
        assert_eq!(event(&mut exec).await, hutch_wire::guest::ExecEvent::Exited { code: 3 });
        client.stop(LONG).await;
        assert!(keeper.end().await.clean);
    }
}

#[tokio::test]
async fn nonsense_of_a_client_is_answered_and_hurts_nobody() {
    let sandbox = Sandbox::new();
    let guest = Guest::new();
    let keeper = sandbox.keep(guest.vmm(), FakeWorkspace::new()).await;
    let client = keeper.ready().await;
    let mut stream = client.0.open(&[0xff; 20]).await.unwrap();
    message::read::<Response, _>(&mut stream, MESSAGE_MAX).await.unwrap_err();
    assert_eq!(stream.reset_reason().as_deref(), Some("this is no request that the keeper knows"));
    let mut stream = client.open(Open::Call).await;
    message::write(&mut stream, &[0xff_u8; 30]).await.unwrap();
    message::read::<Response, _>(&mut stream, MESSAGE_MAX).await.unwrap_err();
    let mut stream = client.open(Open::Stdio { exec: 77, which: 1 }).await;
    message::read::<Response, _>(&mut stream, MESSAGE_MAX).await.unwrap_err();
    assert_eq!(stream.reset_reason().as_deref(), Some("there is no such session"));

    let mut raw = tokio::net::UnixStream::connect(sandbox.socket()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut raw, &[b'G'; 4096]).await.unwrap();
    assert!(matches!(client.request(Request::Status).await, Response::Status(_)));
    client.stop(LONG).await;
    assert!(keeper.end().await.clean);
}
