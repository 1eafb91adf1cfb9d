//! The sandbox that a build runs in: made for it, and removed with it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;

use hutch_image::{Offer, Reference, Template};
use hutch_store::{DockerStart, Draft, SandboxName, SandboxRecord, TemplateReference, Workspace};
use hutch_wire::guest::{ExecSpec, TemplateDisk};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use tokio::sync::oneshot;

use crate::commands::exec::{spec, terminal_variables};
use crate::context::Context;
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::images::{Images, Pull, template_failure};
use crate::keeper_client::{self, Keeper};
use crate::progress::Shown;
use crate::sandboxes::{Sandboxes, not_created};
use crate::session::{self, Plan, Standard};
use crate::settings::MachineFlags;
use crate::start;
use crate::terminal;

/// The label that names the process which a builder is for.
const OWNER_LABEL: &str = "hutch.build";
/// What an image is called in the builder when nobody named it.
const UNNAMED: &str = "hutch-build:latest";
/// Gives the engine the base images: placeholders by the archive on standard input, and the disks in their places.
const OFFER: &str = include_str!("offer.sh");

/// What the result is called in the builder.
pub(super) fn result(names: &[Reference]) -> String {
    names.first().map_or_else(|| UNNAMED.to_owned(), Reference::to_string)
}

/// Everything that takes long before there is a sandbox.
pub(super) async fn prepare(
    context: &Context,
    bases: Vec<String>,
    machine: MachineFlags,
) -> Result<Offer, Failure> {
    context.settings.machine(&machine)?;
    keeper_client::program(&context.settings.programs)?;
    let images = Images::new(&context.settings, context.printer)?;
    start::blocking(move || {
        let offer = super::offer(&images, &bases)?;
        images.guest(Pull::Missing)?;
        Ok(offer)
    })
    .await
}

/// Removes builders whose command was killed, those that still run too: nobody waits for them.
pub(super) async fn remove_leftovers(
    context: &Context,
    sandboxes: &Sandboxes,
) -> Result<(), Failure> {
    for record in sandboxes.list()?.into_iter().filter_map(|listed| listed.record.ok()) {
        let Some(owner) = record.labels.get(OWNER_LABEL) else { continue };
        let owner = owner.parse().ok().and_then(Pid::from_raw);
        // Alive, or its number is another process's now: then it goes another time.
        if owner.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH)) {
            continue;
        }
        let _stopped = keeper_client::stop(sandboxes.store(), &record.name, context.face).await;
        if let Err(error) = sandboxes.remove(record.name.as_ref()) {
            context.printer.debug(&format!("the builder {} was not removed: {error}", record.name));
        }
    }
    Ok(())
}

/// A builder.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    context: &'a Context,
    sandboxes: &'a Sandboxes,
    record: SandboxRecord,
    offer: Offer,
    machine: MachineFlags,
    archive_max: u64,
}

impl<'a> Builder<'a> {
    /// Writes it down.
    pub(super) fn create(
        context: &'a Context,
        sandboxes: &'a Sandboxes,
        offer: Offer,
        workspace: Workspace,
        flags: MachineFlags,
    ) -> Result<Self, Failure> {
        let machine = context.settings.machine(&flags)?;
        let name = SandboxName::suggest("build", workspace.path.as_path());
        let template = &offer.builder;
        let draft = Draft {
            agent: "build".to_owned(),
            template: TemplateReference {
                name: template.name.clone(),
                digest: template.digest.clone(),
            },
            workspaces: vec![workspace],
            cpus: machine.cpus,
            memory_mib: machine.memory_mib,
            disk_bytes: machine.disk_bytes,
            idle_timeout_s: context.settings.idle_timeout.seconds(),
            labels: [(OWNER_LABEL.to_owned(), std::process::id().to_string())].into(),
            environment: template.config.environment.clone(),
            docker: DockerStart::Eager,
        };
        let record = sandboxes
            .store()
            .create(&draft, name.and_numbered())
            .map_err(|error| not_created(&error))?;
        Ok(Self {
            context,
            sandboxes,
            record,
            offer,
            machine: flags,
            archive_max: machine.disk_bytes,
        })
    }

    /// Stops and removes it. What cannot be removed is said; the build is what it is.
    pub(super) async fn remove(&self) {
        let (store, name) = (self.sandboxes.store(), &self.record.name);
        if self.sandboxes.name(name.as_str()).is_err() {
            return;
        }
        let _stopped = keeper_client::stop(store, name, self.context.face).await;
        if let Err(error) = self.sandboxes.remove(name.as_ref()) {
            self.context
                .printer
                .warning(&format!("the sandbox `{name}` of this build is still there: {error}"));
        }
    }

    /// Builds, and takes the result into the store.
    pub(super) async fn run(
        &self,
        docker: Vec<OsString>,
        dockerfile: Option<&str>,
        names: &[Reference],
    ) -> Result<Template, Failure> {
        let context = self.context;
        let shown = Shown::new(context.printer);
        hutch_image::Progress::step(&shown, "starting a sandbox for the build");
        let store = self.sandboxes.store();
        let keeper =
            start::ready(context, context.printer, store, &self.record, &self.machine).await?;
        hutch_image::Progress::step(&shown, "starting its Docker engine");
        self.offer_bases(&keeper).await?;
        drop(shown);
        self.build(&keeper, docker, dockerfile).await?;
        let shown = Shown::new(context.printer);
        hutch_image::Progress::step(&shown, "taking the image out of the sandbox");
        let archive = self.save(&keeper, &result(names)).await?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", archive.as_raw_fd()));
        let images = &context.settings.layout.images;
        self.offer.take(images, &path, names, &shown).map_err(|error| template_failure(&error))
    }

    async fn offer_bases(&self, keeper: &Keeper) -> Result<(), Failure> {
        if self.offer.archive.is_empty() {
            return Ok(());
        }
        let layers = u8::try_from(self.offer.builder.layers.len()).unwrap_or(u8::MAX);
        let mut words: Vec<OsString> = ["sh", "-c", OFFER, "hutch"].map(OsString::from).into();
        for mount in &self.offer.mounts {
            let layer = u8::try_from(mount.layer).unwrap_or(u8::MAX);
            let disk = TemplateDisk { layer, layers }.serial();
            words.extend([mount.chain.clone().into(), disk.into()]);
        }
        let mut spec = of_root(words);
        spec.privileged = true;
        spec.stdin = true;
        let standard = standard(feed(self.offer.archive.clone())?, null()?)?;
        self.session(keeper, spec, standard)
            .await?
            .then_some(())
            .ok_or_else(|| Failure::host("the base images could not be given to the build"))
    }

    async fn build(
        &self,
        keeper: &Keeper,
        docker: Vec<OsString>,
        dockerfile: Option<&str>,
    ) -> Result<(), Failure> {
        let mut spec = of_root(docker);
        let errors = io::stderr();
        let input = match dockerfile {
            Some(text) => {
                spec.stdin = true;
                feed(text.as_bytes().to_vec())?
            }
            None => null()?,
        };
        let mut standard = standard(input, null()?)?;
        // A terminal has one stream, which is where the steps go.
        if dockerfile.is_none() && terminal::is_terminal(&errors) {
            standard.stdout = standard.stderr.try_clone().map_err(|error| streams(&error))?;
            spec.tty = Some(terminal::size(standard.descriptors()));
            spec.environment = terminal_variables(&self.context.settings);
        }
        if self.session(keeper, spec, standard).await? {
            return Ok(());
        }
        // BuildKit has said why.
        Err(Failure::user("the Dockerfile could not be built").with_code(exit_codes::FAILURE))
    }

    /// The image as `docker save` writes it, in a file without a name.
    async fn save(&self, keeper: &Keeper, image: &str) -> Result<File, Failure> {
        let failed = |error: io::Error| {
            Failure::host(format!(
                "the built image cannot be written to the images directory: {error}"
            ))
        };
        let path =
            self.context.settings.layout.images.join(format!("build-{}.tar", std::process::id()));
        let _old = std::fs::remove_file(&path);
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path).map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        let (reader, writer) = io::pipe().map_err(failed)?;
        let mut output = file.try_clone().map_err(failed)?;
        let limit = self.archive_max;
        let (sender, copied) = oneshot::channel();
        std::thread::spawn(move || {
            let copied = io::copy(&mut reader.take(limit), &mut output);
            drop(sender.send(copied));
        });
        let standard = standard(null()?, writer.into())?;
        let words = ["docker", "save", "--", image].map(OsString::from).into();
        let saved = self.session(keeper, of_root(words), standard).await;
        let copied = copied.await.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        let too_large = copied.map_err(failed)? >= limit;
        if too_large {
            return Err(Failure::user(format!(
                "the built image is refused: its archive is larger than the disk of the build, {limit} bytes"
            )));
        }
        if !saved? {
            return Err(Failure::host("the engine of the build did not give the built image"));
        }
        Ok(file)
    }

    /// Runs a session to its end; whether its process succeeded.
    async fn session(
        &self,
        keeper: &Keeper,
        spec: ExecSpec,
        standard: Standard,
    ) -> Result<bool, Failure> {
        let plan = Plan {
            spec,
            input: false,
            detach_keys: Vec::new(),
            plugin_socket: self.context.settings.plugin_socket.clone(),
        };
        let code = session::run(keeper, plan, standard).await?.code().map_err(|failure| {
            if failure.code(true) == exit_codes::NOT_FOUND {
                Failure::host("the template of the build has no Docker engine")
            } else {
                failure
            }
        })?;
        Ok(code == exit_codes::SUCCESS)
    }
}

fn of_root(words: Vec<OsString>) -> ExecSpec {
    ExecSpec { user: Some("root".to_owned()), ..spec(words) }
}

fn streams(error: &io::Error) -> Failure {
    Failure::from_error(Blame::Host, error)
}

/// These two with our standard error.
fn standard(stdin: OwnedFd, stdout: OwnedFd) -> Result<Standard, Failure> {
    let own = Standard::of_this_process().map_err(|error| streams(&error))?;
    Ok(Standard { stdin, stdout, stderr: own.stderr })
}

fn null() -> Result<OwnedFd, Failure> {
    let mut options = File::options();
    let file = options.read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(|error| streams(&error))
}

/// A stream of these bytes.
fn feed(bytes: Vec<u8>) -> Result<OwnedFd, Failure> {
    let (reader, mut writer) = io::pipe().map_err(|error| streams(&error))?;
    // Ends when nobody reads any more.
    std::thread::spawn(move || writer.write_all(&bytes));
    Ok(reader.into())
}
