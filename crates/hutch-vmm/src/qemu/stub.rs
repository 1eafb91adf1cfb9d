//! Runs the probe's guest: the smallest thing that fails where a real kernel would fail.

use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as BlockingStream;
use std::process::ExitStatus;
use std::time::Duration;

use hutch_sys::jail::FileAccess;
use hutch_sys::process::Process;
use hutch_sys::spawn::{Launch, LaunchError, Resource};
use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::json;

use super::confine::Reopened;
use super::process::{Guard, describe, to_async};
use super::qmp::{Client, ControlError};
use super::{Qemu, confine};
use crate::arch::{self, Stub};
use crate::{Accelerator, logs};

/// Until QEMU can be talked to. Long, because the host itself may be emulated; nothing of the guest runs in that time.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// From the guest's first instruction to its last. It needs 10 ms on hardware.
const GUEST_WITHIN: Duration = Duration::from_secs(1);
/// A killed process is gone after that, or it never will be.
const DEAD_WITHIN: Duration = Duration::from_secs(10);
/// How much of QEMU's words we read.
const SAID_MAX: u64 = 64 * 1024;

/// Why the stub did not run to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StubError {
    /// The accelerator or the guest on it failed: a verdict.
    #[error("{reason}")]
    Guest {
        /// What happened, as a phrase.
        reason: String,
    },
    /// The guest ran into its time limit: a verdict if it happens again.
    #[error("a guest did not finish within {} s", GUEST_WITHIN.as_secs())]
    Hung,
    /// The system has no resources for it.
    #[error("no resources to try it")]
    Resources(#[source] io::Error),
    /// The process could not be started.
    #[error("QEMU cannot be started to try it")]
    Launch(#[source] LaunchError),
    /// The process does not end.
    #[error("the QEMU that tried it (process {pid}) cannot be killed")]
    Immortal {
        /// Its number.
        pid: u32,
    },
}

impl Qemu {
    /// Runs this machine's stub. On an architecture without one, QEMU only has to make a VM and its virtual CPU.
    pub(crate) async fn run_stub(&self, accelerator: Accelerator) -> Result<(), StubError> {
        let stub = arch::native().stub.as_ref();
        match run(self, accelerator, stub).await {
            // A busy machine, or a nested host that is itself emulated, may be late once.
            Err(StubError::Hung) => run(self, accelerator, stub).await,
            verdict => verdict,
        }
    }
}

/// A started QEMU with the stub in it, not running yet.
struct Prepared {
    guard: Guard,
    process: Process,
    control: tokio::net::UnixStream,
    errors: io::PipeReader,
}

pub(super) async fn run(
    qemu: &Qemu,
    accelerator: Accelerator,
    stub: Option<&Stub>,
) -> Result<(), StubError> {
    let (qemu, stub) = (qemu.clone(), stub.cloned());
    let expected = stub.as_ref().map(|stub| stub.status);
    let prepared =
        tokio::task::spawn_blocking(move || launch(&qemu, accelerator, stub.as_ref())).await;
    let Prepared { guard, process, control, errors } =
        prepared.map_err(|error| StubError::Resources(error.into()))??;
    let running = tokio::time::timeout(READY_WITHIN, async {
        let mut client = Client::connect(control).await?;
        // Without a stub there is nothing to run: the virtual CPU exists, and that is all we can know.
        let command = if expected.is_some() { "cont" } else { "quit" };
        client.execute(command, json!({})).await?;
        Ok::<_, ControlError>(client)
    })
    .await;
    let mut broken = None;
    let within = match &running {
        Ok(Ok(_client)) => GUEST_WITHIN,
        // It most likely has ended, and its last words say more than this.
        Ok(Err(error)) => {
            broken = Some(error.to_string());
            Duration::from_secs(1)
        }
        Err(_) => Duration::ZERO,
    };
    let end = tokio::task::spawn_blocking(move || end(guard, &process, within, errors)).await;
    let End { by_itself, status, said } =
        end.map_err(|error| StubError::Resources(error.into()))??;
    if by_itself && status.code() == Some(expected.unwrap_or(0)) {
        return Ok(());
    }
    let what = match (by_itself, running) {
        (true, _) => describe(status),
        (false, Ok(Ok(_))) if said.is_empty() => return Err(StubError::Hung),
        (false, Ok(Ok(_))) => StubError::Hung.to_string(),
        (false, _) => broken
            .unwrap_or_else(|| format!("QEMU was not ready within {} s", READY_WITHIN.as_secs())),
    };
    let reason = if said.is_empty() { what } else { format!("{what}: {said}") };
    Err(StubError::Guest { reason })
}

fn launch(
    qemu: &Qemu,
    accelerator: Accelerator,
    stub: Option<&Stub>,
) -> Result<Prepared, StubError> {
    let mut launch = Launch::new(&qemu.program);
    let (control, control_theirs) = BlockingStream::pair().map_err(StubError::Resources)?;
    let control_fd = launch.inherit(control_theirs);
    let architecture = arch::native();
    let cpu = super::arguments::cpu(accelerator, architecture, qemu.version);
    let machine = architecture.machine;
    launch.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-S",
        "-m",
        "64M",
        "-smp",
        "1",
    ]);
    launch.args(["-sandbox", super::arguments::SANDBOX, "-machine", machine, "-cpu", &cpu]);
    launch.args(["-accel", if accelerator == Accelerator::Kvm { "kvm" } else { "tcg" }]);
    launch.args([
        "-chardev",
        &format!("socket,id=control,fd={control_fd}"),
        "-mon",
        "chardev=control,mode=control",
    ]);
    let mut reopened = Vec::new();
    if let Some(stub) = stub {
        let firmware = firmware(&stub.firmware).map_err(StubError::Resources)?;
        let file = firmware.try_clone().map_err(StubError::Resources)?;
        reopened.push(Reopened { file, access: FileAccess::Read });
        launch.args(stub.arguments);
        let descriptor = launch.inherit(firmware);
        launch.args(["-bios", &format!("/proc/self/fd/{descriptor}")]);
    }
    let (errors, errors_theirs) = io::pipe().map_err(StubError::Resources)?;
    let identity = confine::identity(accelerator);
    launch
        .stderr(errors_theirs)
        .limit(Resource::Core, 0)
        .new_session()
        .die_with_parent()
        .jail(confine::jail(&qemu.program, accelerator, identity, reopened));
    let control = to_async(control).map_err(StubError::Resources)?;
    let guard = Guard::new(launch.start().map_err(StubError::Launch)?.child);
    // Not reaped, so that it can be opened even if it has ended.
    let process = guard.open().map_err(StubError::Resources)?;
    Ok(Prepared { guard, process, control, errors })
}

fn firmware(image: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create("firmware", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(image)?;
    Ok(file.into())
}

struct End {
    by_itself: bool,
    status: ExitStatus,
    said: String,
}

/// Waits so long, then kills, and returns only when the process is gone for certain. Blocks.
fn end(
    mut guard: Guard,
    process: &Process,
    within: Duration,
    errors: io::PipeReader,
) -> Result<End, StubError> {
    let by_itself = process.wait_ended(within).map_err(StubError::Resources)?;
    if !by_itself {
        guard.kill();
        if !process.wait_ended(DEAD_WITHIN).map_err(StubError::Resources)? {
            return Err(StubError::Immortal { pid: guard.pid() });
        }
    }
    let status = guard.reap().map_err(StubError::Resources)?;
    let mut said = Vec::new();
    errors.take(SAID_MAX).read_to_end(&mut said).map_err(StubError::Resources)?;
    Ok(End { by_itself, status, said: logs::first_line(&said) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stub_that(first_bytes: &[u8]) -> Stub {
        let mut firmware = vec![0xf4; 0x10000];
        firmware[0xfff0..0xfff0 + first_bytes.len()].copy_from_slice(first_bytes);
        Stub {
            firmware: firmware.into(),
            ..arch::native().stub.clone().expect("this architecture has a stub")
        }
    }

    async fn run_emulated(stub: &Stub) -> Result<(), StubError> {
        run(&Qemu::discover(None).unwrap(), Accelerator::Tcg, Some(stub)).await
    }

    #[tokio::test]
    async fn the_stub_runs_to_its_end_on_a_processor_that_works() {
        Qemu::discover(None).unwrap().run_stub(Accelerator::Tcg).await.unwrap();
    }

    #[tokio::test]
    async fn a_guest_that_hangs_is_a_verdict_in_time_and_its_process_is_gone() {
        // jmp to itself: all of a processor's time, as the known broken hosts do.
        let started = std::time::Instant::now();
        let error = run_emulated(&stub_that(&[0xeb, 0xfe])).await.unwrap_err();
        assert_eq!(error.to_string(), "a guest did not finish within 1 s");
        assert!(started.elapsed() < GUEST_WITHIN + Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_guest_that_ends_in_another_way_is_a_verdict() {
        // mov al, 1; out 0xf4, al: the stub's own way to say that something is wrong.
        let error = run_emulated(&stub_that(&[0xb0, 0x01, 0xe6, 0xf4])).await.unwrap_err();
        assert_eq!(error.to_string(), "it ended with status 3");
    }

    #[test]
    fn the_stub_is_what_its_source_says() {
        let directory = tempfile::tempdir().unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let status = hutch_sys::spawn::command(program)
                .current_dir(&directory)
                .args(arguments)
                .status()
                .unwrap();
            assert!(status.success(), "{program}");
        };
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/qemu/stub/x86_64.S");
        run("as", &["--64", source, "-o", "stub.o"]);
        run("objcopy", &["-O", "binary", "-j", ".text", "stub.o", "stub.bin"]);
        let assembled = std::fs::read(directory.path().join("stub.bin")).unwrap();
        assert!(
            assembled == arch::native().stub.as_ref().unwrap().firmware.as_ref(),
            "assemble it again"
        );
    }
}
