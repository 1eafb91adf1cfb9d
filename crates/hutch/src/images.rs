//! What a sandbox boots from: made once, with progress, and found again afterwards.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use hutch_agents::Recipe;
use hutch_image::{
    AptError, BuildError, DiskError, GuestImage, GuestImageError, GuestImageOptions,
    GuestImageSource, NamespaceError, NpmError, PullTemplate, Refresh, RegistryOptions, Template,
    TemplateError, TemplateOptions, ToolError,
};
use hutch_store::{Program, TemplateReference};

use crate::failure::{Blame, Failure, chain};
use crate::printer::Printer;
use crate::progress::Shown;
use crate::settings::Settings;

/// When to fetch or build a template although one is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Pull {
    /// Always
    Always,
    /// When it is not there
    #[default]
    Missing,
    /// Never: fail when it is not there
    Never,
}

impl From<Pull> for PullTemplate {
    fn from(pull: Pull) -> Self {
        match pull {
            Pull::Always => Self::Always,
            Pull::Missing => Self::Missing,
            Pull::Never => Self::Never,
        }
    }
}

/// Makes or finds images. A copy can be given to a thread.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    images: PathBuf,
    init: PathBuf,
    kernel: Option<PathBuf>,
    kernel_modules: Option<PathBuf>,
    network: Vec<(OsString, OsString)>,
    docker: Option<PathBuf>,
    registries: RegistryOptions,
    printer: Printer,
}

impl Images {
    /// What the settings say about images.
    pub(crate) fn new(settings: &Settings, printer: Printer) -> Result<Self, Failure> {
        let init = settings.programs.find(Program::Init).map_err(|error| {
            Failure::from_error(Blame::Host, &error)
                .hint("install hutch again with all its programs")
        })?;
        Ok(Self::with_init(settings, printer, init))
    }

    /// To look at what is there: without an init nothing says which guest image is current, and all of them stay.
    pub(crate) fn to_look_at(settings: &Settings, printer: Printer) -> Self {
        let init = settings.programs.find(Program::Init).unwrap_or_default();
        Self::with_init(settings, printer, init)
    }

    fn with_init(settings: &Settings, printer: Printer, init: PathBuf) -> Self {
        Self {
            images: settings.layout.images.clone(),
            init,
            kernel: settings.kernel.clone(),
            kernel_modules: settings.kernel_modules.clone(),
            network: settings.environment.of_fetching(),
            docker: settings.docker_socket(),
            registries: settings.registries(),
            printer,
        }
    }

    /// Where they are.
    pub(crate) fn directory(&self) -> &Path {
        &self.images
    }

    /// Who tells of them.
    pub(crate) fn printer(&self) -> Printer {
        self.printer
    }

    /// The kernel and initramfs. Blocks, for minutes the first time.
    pub(crate) fn guest(&self, pull: Pull) -> Result<GuestImage, Failure> {
        let refresh = if pull == Pull::Always { Refresh::Always } else { Refresh::Missing };
        let shown = Shown::new(self.printer);
        hutch_image::guest_image(&self.options(refresh), &shown)
            .map_err(|error| guest_failure(&error))
    }

    /// Where guest images are, and what decides which is current.
    pub(crate) fn guest_options(&self) -> GuestImageOptions {
        self.options(Refresh::Missing)
    }

    fn options(&self, refresh: Refresh) -> GuestImageOptions {
        let source = match &self.kernel {
            Some(kernel) => GuestImageSource::Files {
                kernel: kernel.clone(),
                modules: self.kernel_modules.clone(),
            },
            None => GuestImageSource::Distribution { mirror: None, refresh },
        };
        GuestImageOptions {
            images: self.images.clone(),
            init: self.init.clone(),
            source,
            environment: self.network.clone(),
        }
    }

    /// The template of this name for a new sandbox. Blocks, for minutes the first time.
    pub(crate) fn template(&self, name: &str, pull: Pull) -> Result<Template, Failure> {
        let image = match Recipe::of(name) {
            Some(Recipe::Image { reference }) => Some(reference),
            _ => None,
        };
        let options = TemplateOptions {
            images: self.images.clone(),
            name: image.map_or_else(|| absolute_if_file(name), str::to_owned),
            pull: pull.into(),
            mirror: None,
            docker: self.docker.clone(),
            registries: self.registries.clone(),
            environment: self.network.clone(),
        };
        let shown = Shown::new(self.printer);
        hutch_image::template(&options, &shown).map_err(|error| match image {
            Some(reference) => not_packaged(name, reference, &error),
            None => template_failure(&error),
        })
    }

    /// The very image that a sandbox was made with.
    pub(crate) fn template_of(&self, reference: &TemplateReference) -> Result<Template, Failure> {
        let shown = Shown::new(self.printer);
        hutch_image::template_image(&self.images, &reference.name, &reference.digest, &shown)
            .map_err(|error| template_failure(&error))
    }
}

/// The name is written down with the sandbox, and the current directory is not.
fn absolute_if_file(name: &str) -> String {
    let path = Path::new(name);
    let canonical = if path.is_file() { std::fs::canonicalize(path).ok() } else { None };
    canonical
        .and_then(|path| path.into_os_string().into_string().ok())
        .unwrap_or_else(|| name.to_owned())
}

/// An agent that no package archive has, and whose maker's image was not to be had.
fn not_packaged(template: &str, reference: &str, error: &TemplateError) -> Failure {
    Failure::host(format!(
        "the program of `{template}` is in no package archive, and its maker's image {reference} could not be fetched: {}",
        chain(error)
    ))
    .hint("bring an image that has the program with -t IMAGE")
}

pub(crate) fn template_failure(error: &TemplateError) -> Failure {
    match error {
        TemplateError::Unknown { .. } => Failure::from_error(Blame::User, error)
            .hint("a template is a flavor like `shell`, the name of an image, or the path of an archive or disk image"),
        TemplateError::Absent { .. } => {
            Failure::from_error(Blame::User, error).hint("`--pull-template missing` gets it")
        }
        TemplateError::Gone { .. } => Failure::from_error(Blame::Host, error)
            .hint("the sandbox cannot run without it: remove the sandbox and create it again"),
        _ => Failure::from_error(Blame::Host, error)
            .hint_if(missing_package(tool_of_template(error))),
    }
}

/// The tool of the host that a template failed on, if it was one.
fn tool_of_template(error: &TemplateError) -> Option<&ToolError> {
    match error {
        TemplateError::Build {
            source:
                BuildError::Tool(tool)
                | BuildError::Apt(AptError::Tool(tool))
                | BuildError::Namespace(NamespaceError::Tool(tool)),
            ..
        }
        | TemplateError::Disk {
            source: DiskError::Tool(tool) | DiskError::Namespace(NamespaceError::Tool(tool)),
            ..
        }
        | TemplateError::Agent { source: NpmError::Tool(tool), .. } => Some(tool),
        _ => None,
    }
}

/// What to install when a tool is missing.
fn missing_package(tool: Option<&ToolError>) -> Option<String> {
    match tool {
        Some(ToolError::Missing { package, .. }) => {
            Some(format!("install the package {package}: sudo apt install {package}"))
        }
        _ => None,
    }
}

fn guest_failure(error: &GuestImageError) -> Failure {
    let failure = Failure::from_error(Blame::Host, error);
    match error {
        GuestImageError::InitNotStatic { .. } => {
            failure.hint("build it for a named target with static linking: make build")
        }
        GuestImageError::Fetch(AptError::Tool(tool)) | GuestImageError::Unpack(tool) => {
            failure.hint_if(missing_package(Some(tool)))
        }
        _ => failure,
    }
}
