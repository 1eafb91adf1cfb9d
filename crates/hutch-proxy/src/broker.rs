//! The credential broker: a process that may read the user's files and has no network.
//!
//! ```text
//!   keeper ── CallerEnvironment ──▶ broker ◀── Call / Answered ── worker
//!                                     │
//!                     secret store · caller's environment · login shell
//! ```
//!
//! It answers the worker by service, and only for the services that it was started with. Calls are answered as their
//! answers come: one that waits for the login shell holds up no other. When the worker goes, the broker ends.

mod confine;
mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::sync::Arc;

use hutch_secrets::store::Tokens;
use hutch_secrets::{Secret, SecretError};
use hutch_wire::message::{self, MessageError};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use zeroize::{Zeroize, ZeroizeOnDrop};

pub(crate) use self::sources::Sources;
use crate::control::CallerEnvironment;
use crate::spawn::BrokerSpec;

/// Longest message between worker and broker: a few tokens.
pub(crate) const MESSAGE_MAX: u32 = 256 * 1024;
/// Longest message of the keeper.
const ENVIRONMENT_MAX: u32 = 1024 * 1024;
/// How many calls are worked on at a time; more wait in the socket.
const CALLS_MAX: usize = 64;

/// A secret on its way between the two processes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct SentSecret(String);

impl fmt::Debug for SentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SentSecret")
    }
}

impl From<&Secret> for SentSecret {
    fn from(secret: &Secret) -> Self {
        Self(secret.expose().to_owned())
    }
}

impl SentSecret {
    pub(crate) fn open(&self) -> Result<Secret, SecretError> {
        Secret::parse(self.0.as_str())
    }
}

/// Tokens on their way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SentTokens {
    pub(crate) access: SentSecret,
    pub(crate) refresh: Option<SentSecret>,
    pub(crate) id: Option<SentSecret>,
    pub(crate) expires_at: Option<u64>,
    pub(crate) scopes: Vec<String>,
}

impl From<&Tokens> for SentTokens {
    fn from(tokens: &Tokens) -> Self {
        Self {
            access: (&tokens.access).into(),
            refresh: tokens.refresh.as_ref().map(SentSecret::from),
            id: tokens.id.as_ref().map(SentSecret::from),
            expires_at: tokens.expires_at,
            scopes: tokens.scopes.clone(),
        }
    }
}

impl SentTokens {
    pub(crate) fn open(&self) -> Result<Tokens, SecretError> {
        Ok(Tokens {
            access: self.access.open()?,
            refresh: self.refresh.as_ref().map(SentSecret::open).transpose()?,
            id: self.id.as_ref().map(SentSecret::open).transpose()?,
            expires_at: self.expires_at,
            scopes: self.scopes.clone(),
        })
    }
}

/// What the worker asks, numbered so that answers may come in another order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) ask: Ask,
}

/// What the worker asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// The credential of a service.
    Find { service: String },
    /// Keep the tokens of a sign-in. What they lack is kept from before.
    KeepTokens { service: String, tokens: SentTokens },
    /// Keep a key that a sign-in made, unless there is one.
    KeepKey { service: String, key: SentSecret },
    /// Where the credential of each service is found.
    Places,
}

/// The answer to the call of this number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(crate) number: u64,
    pub(crate) reply: Reply,
}

/// What the broker answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Found(Found),
    Kept,
    Places(Vec<(String, Option<String>)>),
    /// It did not work: one sentence without any value.
    Failed(String),
}

/// What there is for a service.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Found {
    /// Its key.
    pub(crate) key: Option<SentSecret>,
    /// Its tokens.
    pub(crate) tokens: Option<SentTokens>,
    /// Where the key was looked for, when there is none, as a phrase.
    pub(crate) looked: String,
}

/// Why the broker ended.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// It was not started as the keeper does it.
    #[error("the broker's spec cannot be read")]
    Spec(#[source] io::Error),
    /// It could not be confined.
    #[error(transparent)]
    Confine(#[from] confine::ConfineError),
    /// Its sockets or its runtime failed.
    #[error("the broker's sockets failed")]
    Socket(#[source] io::Error),
    /// The worker sent something that is no call.
    #[error("the worker's call cannot be read")]
    Call(#[source] MessageError),
}

/// The broker's life, in a process of its own with a single thread: standard input is the keeper's socket.
///
/// Returns when the worker has gone.
pub fn main(spec: File, link: OwnedFd) -> Result<(), BrokerError> {
    let spec: BrokerSpec =
        serde_json::from_reader(spec).map_err(|error| BrokerError::Spec(error.into()))?;
    let keeper = io::stdin().as_fd().try_clone_to_owned().map_err(BrokerError::Socket)?;
    for weakness in confine::confine(&spec)?.weaknesses() {
        tracing::warn!("{weakness}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BrokerError::Socket)?;
    let stream = |socket: OwnedFd| {
        let socket = StdStream::from(socket);
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket)
    };
    runtime.block_on(async {
        let keeper = stream(keeper).map_err(BrokerError::Socket)?;
        let link = stream(link).map_err(BrokerError::Socket)?;
        let sources = Arc::new(Sources::new(&spec));
        sources.prefetch();
        tokio::select! {
            served = serve(Arc::clone(&sources), link) => served,
            never = listen(&sources, keeper) => never,
        }
    })
}

/// Takes the caller's variables from the keeper. Never returns: a keeper that goes takes everything with it.
async fn listen<T>(sources: &Sources, mut keeper: impl AsyncRead + Unpin) -> T {
    loop {
        match message::read::<CallerEnvironment, _>(&mut keeper, ENVIRONMENT_MAX).await {
            Ok(environment) => sources.caller(environment),
            Err(error) => {
                if !matches!(error, MessageError::End) {
                    tracing::warn!(%error, "the keeper's message cannot be read");
                }
                return std::future::pending().await;
            }
        }
    }
}

/// Answers calls until the worker closes the link.
pub(crate) async fn serve(
    sources: Arc<Sources>,
    link: impl AsyncRead + AsyncWrite + Send + 'static,
) -> Result<(), BrokerError> {
    let (mut calls, mut answers) = tokio::io::split(link);
    let (done, mut ready) = mpsc::channel::<Answered>(CALLS_MAX);
    let writer = tokio::spawn(async move {
        while let Some(answered) = ready.recv().await {
            if message::write(&mut answers, &answered).await.is_err() {
                return;
            }
        }
    });
    let read = async {
        loop {
            let call: Call = match message::read(&mut calls, MESSAGE_MAX).await {
                Ok(call) => call,
                Err(MessageError::End) => return Ok(()),
                Err(error) => return Err(BrokerError::Call(error)),
            };
            // Reserving room for the answer first bounds how many are worked on.
            let Ok(room) = done.clone().reserve_owned().await else { return Ok(()) };
            let sources = Arc::clone(&sources);
            tokio::spawn(async move {
                let reply = reply(&sources, call.ask).await;
                room.send(Answered { number: call.number, reply });
            });
        }
    };
    let ended = read.await;
    writer.abort();
    ended
}

async fn reply(sources: &Arc<Sources>, ask: Ask) -> Reply {
    match ask {
        Ask::Find { service } => match sources.find(&service).await {
            Some(found) => Reply::Found(found),
            None => Reply::Failed(format!("{service} is not a service of this sandbox")),
        },
        Ask::KeepTokens { service, tokens } => kept(sources.keep_tokens(service, tokens).await),
        Ask::KeepKey { service, key } => kept(sources.keep_key(service, key).await),
        Ask::Places => Reply::Places(sources.places().await),
    }
}

fn kept(outcome: Result<(), String>) -> Reply {
    outcome.map_or_else(Reply::Failed, |()| Reply::Kept)
}

/// Variables by name.
type Variables = BTreeMap<String, Secret>;

#[cfg(test)]
mod tests;
