//! The program `hutch-keeper`: arguments, signals, and the rest is the library's.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use hutch_keeper::{Command, HutchWorkspace, KeeperError, Parts, Settings};
use hutch_store::{Layout, Programs, SandboxName, Store};
use hutch_vmm::Accelerator;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Keep one sandbox running; started by `hutch`, not by people
#[derive(Debug, Parser)]
#[command(name = "hutch-keeper", version)]
struct Arguments {
    /// State directory
    #[arg(long)]
    state: PathBuf,
    /// Directory for sockets
    #[arg(long)]
    runtime: PathBuf,
    /// Directory of guest images and templates
    #[arg(long)]
    images: PathBuf,
    /// Name of the sandbox
    #[arg(long)]
    sandbox: SandboxName,
    /// Kernel image
    #[arg(long)]
    kernel: PathBuf,
    /// Initramfs
    #[arg(long)]
    initramfs: PathBuf,
    /// Disk image of the template
    #[arg(long)]
    template_image: PathBuf,
    /// What runs the guest
    #[arg(long)]
    accelerator: AcceleratorArgument,
    /// The VMM, where it is not to be looked for
    #[arg(long)]
    qemu: Option<PathBuf>,
    /// Seconds without activity until the sandbox stops by itself; 0 = never
    #[arg(long)]
    idle_timeout: u64,
    /// Seconds until init must be ready
    #[arg(long, default_value_t = 60)]
    boot_timeout: u64,
    /// Open pipe that gets one line: `listening`, `running` (another keeper has the sandbox) or `failed: REASON`
    #[arg(long)]
    ready_fd: Option<u32>,
    /// Log details
    #[arg(long)]
    debug: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AcceleratorArgument {
    Kvm,
    Tcg,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut ready = Ready::open(arguments.ready_fd);
    let error = match run(arguments, &mut ready) {
        Ok(()) => return ExitCode::SUCCESS,
        Err(error) => error,
    };
    let line = match error.downcast_ref::<KeeperError>() {
        Some(KeeperError::Running { .. }) => "running".to_owned(),
        _ => format!("failed: {}", sentence(error.as_ref())),
    };
    tracing::error!(line, "not started");
    ready.say(&line);
    ExitCode::FAILURE
}

fn run(
    arguments: Arguments,
    ready: &mut Ready,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    hutch_keeper::give_up_at_start()?;
    let layout = Layout {
        config: arguments.state.join("config"),
        state: arguments.state,
        runtime: arguments.runtime,
        images: arguments.images,
    };
    let store = Store::open(layout)?;
    let paths = store.paths(&arguments.sandbox);
    // Before the lock is taken: a log of a keeper that was refused is worth having. Not before the sandbox exists.
    store.load(&arguments.sandbox)?;
    hutch_keeper::start_log(&paths.log("keeper"), arguments.debug)?;
    // Standard error leads nowhere.
    std::panic::set_hook(Box::new(|panicked| tracing::error!(%panicked, "bug")));
    let programs = Programs::new(None, &std::env::current_exe()?);
    let parts = Parts {
        vmm: Arc::new(hutch_vmm::qemu::Qemu::discover(arguments.qemu.as_deref())?),
        workspace: Arc::new(HutchWorkspace { programs }),
    };
    let settings = Settings {
        sandbox: arguments.sandbox,
        kernel: arguments.kernel,
        initramfs: arguments.initramfs,
        template_image: arguments.template_image,
        accelerator: match arguments.accelerator {
            AcceleratorArgument::Kvm => Accelerator::Kvm,
            AcceleratorArgument::Tcg => Accelerator::Tcg,
        },
        idle_timeout: (arguments.idle_timeout > 0)
            .then(|| Duration::from_secs(arguments.idle_timeout)),
        boot_timeout: Duration::from_secs(arguments.boot_timeout),
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let kept = runtime.block_on(async {
        let (sender, receiver) = mpsc::channel(8);
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            stop_on(kind, sender.clone())?;
        }
        // The terminal of the command that started us goes away; that is no reason to end.
        let _ignored = signal(SignalKind::hangup())?;
        let listening = || ready.say("listening");
        Ok::<_, io::Error>(
            hutch_keeper::keep(store, settings, parts, listening, (sender, receiver)).await,
        )
    });
    runtime.shutdown_background();
    kept??;
    Ok(())
}

/// Turns a signal into a command.
fn stop_on(kind: SignalKind, commands: mpsc::Sender<Command>) -> io::Result<()> {
    let mut signals = signal(kind)?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            let stop = Command::Stop {
                at_most: Duration::from_secs(20),
                reason: "the keeper was asked to end by a signal",
            };
            if commands.send(stop).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The pipe to the command that started us.
#[derive(Debug)]
struct Ready(Option<std::fs::File>);

impl Ready {
    /// Opens the pipe anew by its number: taking over a number that somebody else chose cannot be done safely.
    fn open(number: Option<u32>) -> Self {
        let open =
            |number| OpenOptions::new().write(true).open(format!("/proc/self/fd/{number}")).ok();
        Self(number.and_then(open))
    }

    /// Says one line; whoever does not listen has its reasons.
    fn say(&mut self, line: &str) {
        if let Some(mut pipe) = self.0.take() {
            let _unheard = writeln!(pipe, "{}", line.replace('\n', " "));
        }
    }
}

/// An error with all its sources in one line.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
