//! The program `hutch-keeper`: arguments, signals, and the rest is the library's.

mod make_snapshot;

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use hutch_keeper::{
    Command, HutchProxy, HutchWorkspace, KeeperError, NetworkSpec, Parts, Settings, Start,
};
use hutch_policy::settings::{NetworkSettings, Service};
use hutch_proxy::BrokerSpec;
use hutch_store::{Layout, Programs, SandboxName, Store};
use hutch_vmm::Accelerator;
use hutch_vmm::qemu::{DiscoverError, Qemu, Version};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use zeroizing_alloc::ZeroAlloc;

/// The variables of callers pass through here on their way to the broker. What is freed is overwritten, so that nothing
/// of them stays.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<std::alloc::System> = ZeroAlloc(std::alloc::System);

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
    /// Disk image of a layer of the template, the lowest first
    #[arg(long = "template-layer", required = true)]
    template_layers: Vec<PathBuf>,
    /// What runs the guest
    #[arg(long)]
    accelerator: AcceleratorArgument,
    #[command(flatten)]
    qemu: QemuArguments,
    /// Seconds without activity until the sandbox stops by itself; 0 = never
    #[arg(long)]
    idle_timeout: u64,
    /// Seconds until init must be ready
    #[arg(long, default_value_t = 60)]
    boot_timeout: u64,
    /// Open pipe that gets one line: `listening`, `running` (another keeper has the sandbox) or `failed: REASON`
    #[arg(long)]
    ready_fd: Option<u32>,
    /// Open file with what the network is started with: `hutch_policy::settings::NetworkSettings` in JSON. Without it there
    /// is no network
    #[arg(long)]
    network_fd: Option<u32>,
    #[command(flatten)]
    user: UserArguments,
    /// Boot the kernel even where a snapshot could be resumed
    #[arg(long)]
    cold: bool,
    /// Log details
    #[arg(long)]
    debug: bool,
}

/// Which VMM.
#[derive(Debug, clap::Args)]
struct QemuArguments {
    /// The VMM, where it is not to be looked for
    #[arg(long)]
    qemu: Option<PathBuf>,
    /// Its version, where it is not to be asked
    #[arg(long, requires = "qemu")]
    qemu_version: Option<Version>,
}

impl QemuArguments {
    fn discover(self) -> Result<Qemu, DiscoverError> {
        match (self.qemu, self.qemu_version) {
            (Some(program), Some(version)) => Qemu::known(program, version),
            (program, _) => Qemu::discover(program.as_deref()),
        }
    }
}

/// Whose sandbox it is; for its network.
#[derive(Debug, clap::Args)]
struct UserArguments {
    /// Policy file that a sandbox without one begins with
    #[arg(long)]
    default_policy: Option<PathBuf>,
    /// Configuration directory, which holds the secret store
    #[arg(long)]
    config: Option<PathBuf>,
    /// The user's home directory
    #[arg(long)]
    home: Option<PathBuf>,
    /// The user's login shell
    #[arg(long)]
    shell: Option<PathBuf>,
    /// The user's name
    #[arg(long)]
    user: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AcceleratorArgument {
    Kvm,
    Tcg,
}

impl From<AcceleratorArgument> for Accelerator {
    fn from(argument: AcceleratorArgument) -> Self {
        match argument {
            AcceleratorArgument::Kvm => Self::Kvm,
            AcceleratorArgument::Tcg => Self::Tcg,
        }
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == "snapshot") {
        return snapshot(make_snapshot::Arguments::parse_from(std::env::args_os().skip(1)));
    }
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

/// Makes a snapshot: one word on standard output, or one sentence on standard error.
fn snapshot(arguments: make_snapshot::Arguments) -> ExitCode {
    match make_snapshot::run(arguments) {
        Ok(outcome) => {
            let _unheard = writeln!(io::stdout(), "{}", outcome.word());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _unheard = writeln!(io::stderr(), "{}", sentence(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(
    arguments: Arguments,
    ready: &mut Ready,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let network = arguments.network_fd.map(network_settings).transpose()?;
    hutch_keeper::give_up_at_start()?;
    let user = arguments.user;
    let layout = Layout {
        config: user.config.unwrap_or_else(|| arguments.state.join("config")),
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
    let broker = BrokerSpec {
        store: store.layout().config.clone(),
        // Without a home a shell has no files to read either.
        shell: user.shell.filter(|_| user.home.is_some()),
        home: user.home.unwrap_or_default(),
        user: user.user.unwrap_or_default(),
        services: network.iter().flat_map(|settings| &settings.services).map(named).collect(),
    };
    let parts = Parts {
        vmm: Arc::new(arguments.qemu.discover()?),
        workspace: Arc::new(HutchWorkspace { programs: programs.clone() }),
        network: Arc::new(HutchProxy { programs, broker }),
        give_up: hutch_keeper::give_up_when_running,
    };
    let settings = Settings {
        sandbox: arguments.sandbox,
        kernel: arguments.kernel,
        initramfs: arguments.initramfs,
        template_layers: arguments.template_layers,
        accelerator: arguments.accelerator.into(),
        start: if arguments.cold { Start::Cold } else { Start::Warm },
        network: network
            .map(|settings| NetworkSpec { settings, default_policy: user.default_policy }),
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

/// A service and the variables that hold its credential.
fn named(service: &Service) -> (String, Vec<String>) {
    (service.name.clone(), service.variables.clone())
}

/// Reads what the network is started with. Opened anew by its number, as [`Ready`] is.
fn network_settings(number: u32) -> io::Result<NetworkSettings> {
    const LONGEST: u64 = 16 * 1024 * 1024;
    let file = File::open(format!("/proc/self/fd/{number}"))?;
    // The text of the error could quote the proxy's password.
    serde_json::from_reader(BufReader::new(file.take(LONGEST)))
        .map_err(|_| io::Error::other("the settings of the network are not understood"))
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
struct Ready(Option<File>);

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
