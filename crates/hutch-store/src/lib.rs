//! Every file that Hutch keeps: where it is, who may write it, and in which format.
//!
//! The layout is described for people in `docs/state-layout.md`; this crate is the only code that knows it.

use std::path::PathBuf;

/// Where everything is, resolved once from the environment by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// `$HUTCH_HOME`, else `$XDG_STATE_HOME/hutch`: sandboxes, templates, guest images.
    pub state: PathBuf,
    /// `$XDG_RUNTIME_DIR/hutch`, else a private directory of the user: sockets.
    pub runtime: PathBuf,
    /// `$XDG_CONFIG_HOME/hutch`.
    pub config: PathBuf,
}
