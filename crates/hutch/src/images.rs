//! What a sandbox boots from: made once, with progress, and found again afterwards.

use std::ffi::OsString;
use std::path::PathBuf;

use hutch_image::{
    GuestImage, GuestImageError, GuestImageOptions, GuestImageSource, Refresh, Template,
};
use hutch_store::{Program, TemplateReference};

use crate::failure::{Blame, Failure};
use crate::printer::Printer;
use crate::progress::Shown;
use crate::settings::{OF_THE_NETWORK, Settings};

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

/// Makes or finds images. A copy can be given to a thread.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    images: PathBuf,
    init: PathBuf,
    kernel: Option<PathBuf>,
    kernel_modules: Option<PathBuf>,
    template: Option<PathBuf>,
    network: Vec<(OsString, OsString)>,
    printer: Printer,
}

impl Images {
    /// What the settings say about images.
    pub(crate) fn new(settings: &Settings, printer: Printer) -> Result<Self, Failure> {
        let init = settings.programs.find(Program::Init).map_err(|error| {
            Failure::from_error(Blame::Host, &error)
                .hint("install hutch again with all its programs")
        })?;
        Ok(Self {
            images: settings.layout.images.clone(),
            init,
            kernel: settings.kernel.clone(),
            kernel_modules: settings.kernel_modules.clone(),
            template: settings.template.clone(),
            network: settings.environment.some(OF_THE_NETWORK),
            printer,
        })
    }

    /// The kernel and initramfs. Blocks, for minutes the first time.
    pub(crate) fn guest(&self, pull: Pull) -> Result<GuestImage, Failure> {
        let refresh = if pull == Pull::Always { Refresh::Always } else { Refresh::Missing };
        let source = match &self.kernel {
            Some(kernel) => GuestImageSource::Files {
                kernel: kernel.clone(),
                modules: self.kernel_modules.clone(),
            },
            None => GuestImageSource::Distribution { mirror: None, refresh },
        };
        let options = GuestImageOptions {
            images: self.images.clone(),
            init: self.init.clone(),
            source,
            environment: self.network.clone(),
        };
        let shown = Shown::new(self.printer);
        hutch_image::guest_image(&options, &shown).map_err(|error| guest_failure(&error))
    }

    /// The template of this name for a new sandbox. Blocks, for minutes the first time.
    pub(crate) fn template(&self, name: &str, pull: Pull) -> Result<Template, Failure> {
        let _later = pull;
        let Some(image) = &self.template else {
            return Err(Failure::user(format!("there is no template `{name}`")));
        };
        Ok(Template { image: image.clone(), digest: String::new(), name: name.to_owned() })
    }

    /// The template that a sandbox was made with.
    pub(crate) fn template_of(&self, reference: &TemplateReference) -> Result<Template, Failure> {
        self.template(&reference.name, Pull::Missing)
    }
}

fn guest_failure(error: &GuestImageError) -> Failure {
    let failure = Failure::from_error(Blame::Host, error);
    match error {
        GuestImageError::InitNotStatic { .. } => {
            failure.hint("build it for a named target with static linking: make build")
        }
        _ => failure,
    }
}
