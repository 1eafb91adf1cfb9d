//! `hutch save`

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hutch_api::Open;
use hutch_image::{LayerFiles, NewLayer, Origin, Progress as _, Reference, Template, add_layer};
use hutch_store::SandboxName;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::exec::OpenedSession;
use super::template::write_archive;
use crate::context::{Context, block_on};
use crate::exit_codes;
use crate::failure::{Blame, Failure};
use crate::images::{Images, template_failure};
use crate::keeper_client::{self, Keeper};
use crate::printer::{Printer, guest_sentence};
use crate::progress::Shown;
use crate::settings::MachineFlags;

/// How long the sandbox may be silent while it reads its files.
const SILENCE: Duration = Duration::from_secs(120);
/// Bytes that are read at once.
const PIECE: usize = 128 << 10;
/// Largest archive of changes; what a layer may have is checked when it is made.
const CHANGES_MAX: u64 = 65 << 30;

/// Save what a sandbox has become as a template
///
/// What the sandbox has changed becomes a layer on its template. Workspaces, keys, certificates of the proxy, log files,
/// /tmp, /run and the data of the sandbox's Docker engine are not in it. A sandbox that does not run is started for it and
/// stopped again. `run -t TAG` makes new sandboxes from it.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Also write it to this file, for `docker load`, skopeo or `template load` elsewhere
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print only the name of the template
    #[arg(short, long)]
    quiet: bool,
    /// Sandbox to save
    #[arg(value_name = "SANDBOX")]
    sandbox: String,
    /// Name of the template, like `my-template:v1`
    #[arg(value_name = "TAG")]
    tag: String,
}

pub(crate) fn execute(context: &Context, arguments: &Arguments) -> Result<u8, Failure> {
    let printer = context.printer.quiet_if(arguments.quiet);
    let tag = Reference::parse(&arguments.tag)
        .map_err(|error| Failure::from_error(Blame::User, &error))?;
    if tag.digest().is_some() {
        return Err(Failure::user("a template is saved under a name, which a digest is not"));
    }
    let sandboxes = context.sandboxes()?;
    let record = sandboxes.load(&arguments.sandbox)?;
    let images = Images::new(&context.settings, printer)?;
    let base = images.template_of(&record.template)?;
    let name = record.name.clone();
    let was_running = keeper_client::is_running(sandboxes.store(), &name)?;
    let machine = MachineFlags::default();
    let session = OpenedSession { context, printer, store: sandboxes.store(), record, machine };
    let changes = block_on(async {
        let keeper = session.keeper().await?;
        let changes = changes(context, printer, &keeper, &name).await;
        drop(keeper);
        if !was_running {
            keeper_client::stop(sandboxes.store(), &name, context.face).await?;
        }
        changes
    })?;
    let template = template(context, printer, &base, &tag, changes)?;
    if let Some(path) = &arguments.output {
        write_archive(printer, &template, &[tag], path)?;
    }
    context.printer.data(&template.name)?;
    Ok(exit_codes::SUCCESS)
}

/// Everything that the sandbox has changed, in a file without a name: nobody else waits for it while it comes.
async fn changes(
    context: &Context,
    printer: Printer,
    keeper: &Keeper,
    name: &SandboxName,
) -> Result<File, Failure> {
    let failed = |reason: &str| {
        Failure::host(format!("the sandbox `{name}` cannot be saved: {}", guest_sentence(reason)))
    };
    let unwritten = |error: std::io::Error| {
        Failure::host(format!("what the sandbox `{name}` has changed cannot be written: {error}"))
    };
    let mut file = scratch(&context.settings.layout.images).map_err(unwritten)?;
    let shown = Shown::new(printer);
    shown.step("reading what the sandbox has changed");
    let payload =
        postcard::to_stdvec(&Open::Changes).map_err(|error| failed(&error.to_string()))?;
    let opened = keeper.connection().open(&payload).await;
    let mut stream = opened.map_err(|error| failed(&error.to_string()))?;
    let mut piece = vec![0; PIECE];
    let mut bytes = 0;
    loop {
        let count = match timeout(SILENCE, stream.read(&mut piece)).await {
            Ok(Ok(0)) => break,
            Ok(Ok(count)) => count,
            Ok(Err(error)) => {
                let reason = stream.reset_reason().unwrap_or_else(|| error.to_string());
                return Err(failed(&reason));
            }
            Err(_) => {
                return Err(failed(&format!("it says nothing for {} seconds", SILENCE.as_secs())));
            }
        };
        bytes += count as u64;
        if bytes > CHANGES_MAX {
            return Err(failed(&format!("it has changed more than {} GiB", CHANGES_MAX >> 30)));
        }
        file.write_all(&piece[..count]).map_err(unwritten)?;
        shown.advance(bytes, None, "bytes");
    }
    file.seek(SeekFrom::Start(0)).map_err(unwritten)?;
    Ok(file)
}

fn scratch(images: &Path) -> std::io::Result<File> {
    std::fs::create_dir_all(images)?;
    let path = images.join(format!(".saved-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn template(
    context: &Context,
    printer: Printer,
    base: &Template,
    tag: &Reference,
    changes: File,
) -> Result<Template, Failure> {
    let shown = Shown::new(printer);
    let environment = context.settings.environment.of_fetching();
    let new = NewLayer {
        images: &context.settings.layout.images,
        base,
        files: LayerFiles::Archive(Box::new(std::io::BufReader::with_capacity(PIECE, changes))),
        name: &tag.to_string(),
        config: base.config.clone(),
        source: &base.digest,
        origin: Origin::Sandbox,
        environment: &environment,
    };
    add_layer(new, &shown).map_err(|error| template_failure(&error))
}
