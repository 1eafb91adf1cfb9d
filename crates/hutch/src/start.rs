//! From a sandbox's record to a keeper that is ready, and from a wish to a new record.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hutch_agents::AgentSpec;
use hutch_api::{NetworkRequest, Request, Response};
use hutch_image::Template;
use hutch_policy::config::ProxyConfig;
use hutch_store::{Draft, SandboxName, SandboxRecord, Store, TemplateReference, Workspace};
use hutch_vmm::Accelerator;
use hutch_vmm::probe::choose;
use hutch_vmm::qemu::{DiscoverError, Qemu};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::agents;
use crate::context::Context;
use crate::env_file::Variables;
use crate::exit_codes;
use crate::failure::{Blame, Failure, chain};
use crate::images::{Images, Pull};
use crate::keeper_client::{self, Keeper, KeeperArguments, KeeperPlan, another_question};
use crate::printer::{Printer, guest_sentence};
use crate::sandboxes::{Sandboxes, not_created};
use crate::settings::{Accel, Machine, MachineFlags, Settings};
use crate::warm::{Made, SnapshotCommand, SnapshotPlan, StartMode};
use crate::workspaces;

/// How long another command may be making a sandbox, images included.
pub(crate) const OTHER_CREATION: Duration = Duration::from_secs(30 * 60);

/// The label that keeps what `--accel` said when the sandbox was created.
const ACCEL_LABEL: &str = "hutch.accel";

/// What a new sandbox is to be.
#[derive(Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) agent: &'a AgentSpec,
    /// The name that somebody chose.
    pub(crate) name: Option<SandboxName>,
    pub(crate) template: &'a str,
    pub(crate) pull: Pull,
    pub(crate) workspaces: Vec<Workspace>,
    pub(crate) machine: MachineFlags,
    /// Variables that stay with it.
    pub(crate) environment: Variables,
}

/// Everything that takes long, before a sandbox is made: afterwards only the record and its disk are to be written.
pub(crate) async fn prepare(
    context: &Context,
    printer: Printer,
    wish: &Wish<'_>,
) -> Result<Template, Failure> {
    // Cheap, and better known before a download than after it.
    let _found = qemu(context)?;
    keeper_client::program(&context.settings.programs)?;
    context.settings.network(wish.agent)?;
    let images = Images::new(&context.settings, printer)?;
    let (name, pull) = (wish.template.to_owned(), wish.pull);
    // Who asks for an image anew asks its registry, and not the distribution for another kernel.
    let of_guest = if wish.template == wish.agent.template { pull } else { Pull::Missing };
    blocking(move || {
        // The template first: it is what a person names, and may get wrong.
        let template = images.template(&name, pull)?;
        images.guest(of_guest)?;
        Ok(template)
    })
    .await
}

/// Writes the sandbox down, with its disk.
pub(crate) fn create(
    context: &Context,
    sandboxes: &Sandboxes,
    wish: Wish<'_>,
    template: Template,
) -> Result<SandboxRecord, Failure> {
    // Between its making and now, when nobody removes one any more, somebody may have.
    if template.layers.iter().any(|layer| !layer.is_file()) {
        let name = template.name.escape_debug();
        return Err(Failure::host(format!("the template `{name}` was removed by another command"))
            .hint("try again: it is fetched or made again where it can be"));
    }
    let machine = context.settings.machine(&wish.machine)?;
    let environment = environment(template.config.environment, &wish.environment)?;
    let draft = Draft {
        agent: wish.agent.word.clone(),
        template: TemplateReference { name: template.name, digest: template.digest },
        workspaces: wish.workspaces,
        cpus: machine.cpus,
        memory_mib: machine.memory_mib,
        disk_bytes: machine.disk_bytes,
        idle_timeout_s: context.settings.idle_timeout.seconds(),
        labels: wish
            .machine
            .accel
            .map(|accel| (ACCEL_LABEL.to_owned(), accel.to_string()))
            .into_iter()
            .collect(),
        environment,
        docker: wish.machine.docker.map(Into::into).unwrap_or_default(),
    };
    let created = match wish.name {
        Some(name) => sandboxes.store().create(&draft, [name]),
        None => {
            let first = primary(&draft.workspaces);
            sandboxes
                .store()
                .create(&draft, SandboxName::suggest(&wish.agent.word, first).and_numbered())
        }
    };
    created.map_err(|error| not_created(&error))
}

/// The template's variables, and those that a person wants to stay.
fn environment(
    template: BTreeMap<String, String>,
    wanted: &Variables,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = template;
    for (name, value) in wanted {
        let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
            return Err(Failure::user(format!(
                "the variable {} is not text, and only text is written down with a sandbox",
                name.display()
            )));
        };
        all.insert(name.to_owned(), value.to_owned());
    }
    Ok(all)
}

/// Warns of keys in workspaces, which the sandbox can read whatever the proxy does.
pub(crate) fn warn_of_keys(printer: Printer, workspaces: &[Workspace]) {
    for path in workspaces::files_with_keys(workspaces) {
        printer.warning(&format!(
            "{} holds an API key (`primaryApiKey`) that everything in the sandbox can read; credentials that hutch adds to requests are used before it",
            path.display()
        ));
    }
}

/// Where the agent works.
fn primary(workspaces: &[Workspace]) -> &Path {
    workspaces.first().map_or_else(|| Path::new("/"), |workspace| workspace.path.as_path())
}

/// The name that a new sandbox will most likely get; only for talk.
pub(crate) fn expected_name(sandboxes: &Sandboxes, wish: &Wish<'_>) -> SandboxName {
    let suggested = || {
        let first = primary(&wish.workspaces);
        let taken = sandboxes.names();
        let name = SandboxName::suggest(&wish.agent.word, first);
        let free = |name: &SandboxName| !taken.iter().any(|taken| taken == name.as_str());
        name.clone().and_numbered().find(free).unwrap_or(name)
    };
    wish.name.clone().unwrap_or_else(suggested)
}

/// The keeper of a sandbox, ready for sessions.
pub(crate) async fn ready(
    context: &Context,
    printer: Printer,
    store: &Store,
    record: &SandboxRecord,
    flags: &MachineFlags,
) -> Result<Keeper, Failure> {
    let started = RefCell::new(None);
    let arguments = async || {
        workspaces::still_there(&record.workspaces, record.name.as_str())?;
        let (keeper, snapshot) = keeper_arguments(context, printer, store, record, flags).await?;
        started.replace(Some(snapshot));
        Ok(keeper)
    };
    let keeper = keeper_client::ready(store, &record.name, context.face, arguments).await?;
    match started.take() {
        Some(snapshot) => warm_next(context, printer, &keeper, &snapshot).await,
        None if flags.accel.is_some() => {
            printer.warning("--accel is ignored: the sandbox runs already");
        }
        None => {}
    }
    pass_credentials(context, printer, &keeper, &record.agent).await;
    Ok(keeper)
}

/// After a start without a snapshot: has one made for the next.
async fn warm_next(
    context: &Context,
    printer: Printer,
    keeper: &Keeper,
    snapshot: &SnapshotCommand,
) {
    if context.settings.start == StartMode::Cold {
        return;
    }
    match keeper.status(&Request::Status).await {
        Ok(status) if status.resumed => {}
        Ok(_) => {
            if let Err(failure) = snapshot.in_background() {
                printer.debug(&format!("no snapshot is made: {failure:?}"));
            }
        }
        // Whoever uses the keeper next says it better.
        Err(error) => printer.debug(&format!("it is not known how the sandbox started: {error}")),
    }
}

/// Tells the keeper those of our variables that hold credentials of the sandbox's services.
async fn pass_credentials(context: &Context, printer: Printer, keeper: &Keeper, agent: &str) {
    let settings = &context.settings;
    let Some(agent) = settings.agents.find(agent) else { return };
    let variables = settings.credentials(&settings.services(agent));
    if variables.is_empty() {
        return;
    }
    // Without them a request to a provider fails, and everything else works.
    let why = match keeper.network(NetworkRequest::Credentials { variables }).await {
        Ok(Response::Done) => return,
        Ok(Response::Failed { reason }) => guest_sentence(&reason),
        Ok(_) => another_question().to_string(),
        Err(error) => error.to_string(),
    };
    printer.warning(&format!("the credentials of this shell are not used: {why}"));
}

async fn keeper_arguments(
    context: &Context,
    printer: Printer,
    store: &Store,
    record: &SandboxRecord,
    flags: &MachineFlags,
) -> Result<(KeeperArguments, SnapshotCommand), Failure> {
    let settings = &context.settings;
    let program = keeper_client::program(&settings.programs)?;
    let qemu = qemu(context)?;
    let network = settings.network(agents::require(&settings.agents, &record.agent)?)?;
    let images = Images::new(settings, printer)?;
    let reference = record.template.clone();
    let (guest, template) = blocking(move || {
        let guest = images.guest(Pull::Missing)?;
        Ok((guest, images.template_of(&reference)?))
    })
    .await?;
    let created_with = record.labels.get(ACCEL_LABEL).and_then(|text| text.parse().ok());
    let accelerator = accelerator(context, printer, &qemu, flags.accel.or(created_with)).await?;
    let default_policy = default_policy(settings, printer, store);
    let plan = KeeperPlan {
        store,
        name: &record.name,
        kernel: &guest.kernel,
        initramfs: &guest.initramfs,
        template: &template,
        accelerator,
        qemu: &qemu,
        idle_timeout_s: record.idle_timeout_s,
        boot_timeout_s: settings.boot_timeout.map(|time| time.duration().as_secs()),
        network: &network,
        default_policy: default_policy.as_deref(),
        user: &settings.user,
        start: settings.start,
        debug: context.debug,
    };
    let snapshot = SnapshotPlan {
        layout: &settings.layout,
        kernel: &guest.kernel,
        initramfs: &guest.initramfs,
        template: &template,
        accelerator,
        qemu: &qemu,
        machine: Machine {
            cpus: record.cpus,
            memory_mib: record.memory_mib,
            disk_bytes: record.disk_bytes,
        },
        limit: settings.snapshot_limit(),
    };
    Ok((plan.arguments(program.clone()), snapshot.command(program)))
}

/// Makes the snapshot of a template and a shape, unless it is there. Blocks for as long as a start without one takes, and
/// for what has to be fetched or built before.
pub(crate) async fn warm(
    context: &Context,
    printer: Printer,
    template: &str,
    flags: &MachineFlags,
) -> Result<Made, Failure> {
    let settings = &context.settings;
    let program = keeper_client::program(&settings.programs)?;
    let machine = settings.machine(flags)?;
    let qemu = qemu(context)?;
    let images = Images::new(settings, printer)?;
    let name = template.to_owned();
    let (guest, template) = blocking(move || {
        let template = images.template(&name, Pull::Missing)?;
        Ok((images.guest(Pull::Missing)?, template))
    })
    .await?;
    let choice = accelerator(context, printer, &qemu, flags.accel).await?;
    let plan = SnapshotPlan {
        layout: &settings.layout,
        kernel: &guest.kernel,
        initramfs: &guest.initramfs,
        template: &template,
        accelerator: choice,
        qemu: &qemu,
        machine,
        limit: settings.snapshot_limit(),
    };
    let command = plan.command(program);
    blocking(move || command.now()).await
}

/// What runs the machine; said when it is not what one would wish for.
async fn accelerator(
    context: &Context,
    printer: Printer,
    qemu: &Qemu,
    wanted: Option<Accel>,
) -> Result<Accelerator, Failure> {
    let settings = &context.settings;
    let cache = settings.layout.accelerator();
    let choice = choose(settings.accelerator(wanted), qemu, &cache).await.map_err(|error| {
        Failure::from_error(Blame::Host, &error)
            .hint("`--accel auto` or `--accel tcg` runs without it, slower")
    })?;
    if let Some(notice) = choice.notice {
        printer.status(notice);
    }
    Ok(choice.accelerator)
}

/// The file with the policy that new sandboxes begin with; it is made the first time.
fn default_policy(settings: &Settings, printer: Printer, store: &Store) -> Option<PathBuf> {
    let docker = settings.user.policy_of_docker();
    let content = ProxyConfig::default().to_text();
    match store.default_proxy_config(docker.as_deref(), &content) {
        Ok(path) => Some(path),
        Err(error) => {
            // There is none, so what it would say holds anyway.
            printer.debug(&format!("no default policy was written down: {}", chain(&error)));
            None
        }
    }
}

fn qemu(context: &Context) -> Result<Qemu, Failure> {
    let settings = &context.settings;
    let found = Qemu::discover_once(settings.qemu.as_deref(), &settings.layout.qemu());
    found.map_err(|error: DiscoverError| {
        let failure = Failure::from_error(Blame::Host, &error);
        match error {
            DiscoverError::Missing { debian_package, .. } => failure.hint(format!(
                "install the Debian package {debian_package}: sudo apt install {debian_package}"
            )),
            _ => failure,
        }
    })
}

/// Runs work that blocks on a thread of its own, so that a signal can end us meanwhile.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let (sender, done) = oneshot::channel();
    std::thread::spawn(move || drop(sender.send(work())));
    done.await.unwrap_or_else(|_| {
        Err(Failure::bug("the images could not be made: the work was broken off"))
    })
}

/// Work that a signal breaks off: then `undo` runs, and the exit code says which signal it was.
pub(crate) async fn unless_interrupted<T>(
    work: impl Future<Output = Result<T, Failure>>,
    undo: impl AsyncFnOnce(),
) -> Result<T, Failure> {
    let failed =
        |error: std::io::Error| Failure::host(format!("signals cannot be waited for: {error}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    let number = tokio::select! {
        result = work => return result,
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
        _ = hangup.recv() => 1,
    };
    undo().await;
    Err(Failure::silent(exit_codes::of_signal(number)))
}
