//! What every command has at hand.

use crate::failure::Failure;
use crate::plugin::Face;
use crate::printer::Printer;
use crate::sandboxes::Sandboxes;
use crate::settings::Settings;

/// Settings, printer, and which program a person thinks that this is.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) face: Face,
    pub(crate) settings: Settings,
    pub(crate) printer: Printer,
    /// Log details.
    pub(crate) debug: bool,
}

impl Context {
    /// The sandboxes of this user.
    pub(crate) fn sandboxes(&self) -> Result<Sandboxes, Failure> {
        Sandboxes::open(&self.settings, self.face)
    }
}

/// Runs async work on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::host(format!("the system gives no event queue: {error}")))?;
    let result = runtime.block_on(work);
    // A thread that waits for a key must not keep us.
    runtime.shutdown_background();
    result
}
