//! The keeper's socket: who may connect, and how many.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hutch_sys::peer::peer_credentials;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;

use crate::client::Client;
use crate::driver::Command;
use crate::state::{Sessions, State};

/// Command lines connected at once.
const CLIENTS_MAX: usize = 512;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Its path has no room in a socket address.
    #[error("the path {} is too long for a socket", path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A step failed.
    #[error("cannot {step} the socket {}", path.display())]
    Io {
        /// The step.
        step: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A bound socket. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl Listener {
    /// Binds the socket of a sandbox whose lock we hold: whoever left one there is dead.
    pub(crate) fn bind(path: &Path) -> Result<Self, ServerError> {
        let failed = |step| move |source| ServerError::Io { step, path: path.to_owned(), source };
        if !hutch_store::layout::fits_socket(path) {
            return Err(ServerError::Path { path: path.to_owned() });
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("replace")(error));
            }
            _ => {}
        }
        // The directory is ours alone, so nobody connects before the mode is set.
        let listener = UnixListener::bind(path).map_err(failed("bind"))?;
        let bound = Self { listener: Some(listener), path: path.to_owned() };
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
        Ok(bound)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the socket was left behind");
        }
    }
}

/// Takes connections until it is told to finish.
#[derive(Debug)]
pub(crate) struct Server {
    listener: Listener,
    accepting: JoinHandle<()>,
    call: mpsc::Sender<()>,
    /// Closed when `call` is gone and no call is being answered any more.
    calls: mpsc::Receiver<()>,
}

impl Server {
    pub(crate) fn start(
        mut listener: Listener,
        state: watch::Receiver<State>,
        commands: mpsc::Sender<Command>,
        sessions: Sessions,
    ) -> Self {
        let (call, calls) = mpsc::channel(1);
        let client = Client { state, commands, sessions, call: call.downgrade() };
        let accepting = match listener.listener.take() {
            Some(listener) => tokio::spawn(accept_all(listener, client)),
            None => tokio::spawn(async {}),
        };
        Self { listener, accepting, call, calls }
    }

    /// Takes no more connections, and lets calls that are being answered end.
    pub(crate) async fn finish(mut self, at_most: Duration) {
        drop((self.listener, self.call));
        self.accepting.abort();
        // Nothing is ever sent: the end comes when the last call has dropped its sender.
        if tokio::time::timeout(at_most, self.calls.recv()).await.is_err() {
            tracing::warn!("a client did not take its answer");
        }
    }
}

async fn accept_all(listener: UnixListener, client: Client) {
    let room = Arc::new(Semaphore::new(CLIENTS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection was not taken");
                // Descriptors may have run out; trying again at once would burn a CPU.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Err(reason) = check_peer(&stream, rustix::process::geteuid().as_raw()) {
            tracing::warn!(reason, "a connection was refused");
            continue;
        }
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!(limit = CLIENTS_MAX, "a connection was refused: there are too many");
            continue;
        };
        let client = client.clone();
        tokio::spawn(async move {
            client.serve(stream).await;
            drop(permit);
        });
    }
}

fn check_peer(stream: &UnixStream, own: u32) -> Result<(), String> {
    match peer_credentials(stream) {
        Ok(peer) if may_connect(peer.uid, own) => Ok(()),
        Ok(peer) => Err(format!("user {} is not user {own}", peer.uid)),
        Err(error) => Err(error.to_string()),
    }
}

/// Only the sandbox's own user, and root, who can do everything anyway.
fn may_connect(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_may_connect() {
        assert!(may_connect(1000, 1000));
        assert!(may_connect(0, 1000));
        assert!(!may_connect(1001, 1000));
        assert!(!may_connect(1000, 0));
    }

    #[tokio::test]
    async fn the_kernel_says_who_the_peer_is() {
        let (left, _right) = UnixStream::pair().unwrap();
        let own = rustix::process::geteuid().as_raw();
        check_peer(&left, own).unwrap();
        if own != 0 {
            check_peer(&left, own + 1).unwrap_err();
        }
    }

    #[tokio::test]
    async fn a_socket_is_private_replaces_a_stale_one_and_goes_away() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("x.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bound = Listener::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).await.unwrap();
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_long_path_is_refused() {
        let path = Path::new("/tmp").join("x".repeat(120));
        assert!(matches!(Listener::bind(&path), Err(ServerError::Path { .. })));
    }
}
