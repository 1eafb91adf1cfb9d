//! The worker's end of the link to the broker.
//!
//! Calls are numbered and answered in any order; each waits for its own answer, for a bounded time. Once the link is
//! lost every call fails at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hutch_wire::message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::broker::{Answered, Ask, Call, Found, MESSAGE_MAX, Reply, SentSecret, SentTokens};

/// Longest wait for an answer: a login shell's time, and the store's lock.
const ANSWER_WAIT: Duration = Duration::from_secs(12);
/// Calls that wait to be written.
const QUEUE: usize = 64;

/// Why there is no answer: one phrase without any value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lost(pub(crate) String);

/// Calls the broker. Clones share the link.
#[derive(Debug, Clone)]
pub(crate) struct Broker {
    calls: mpsc::Sender<(Ask, oneshot::Sender<Reply>)>,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>;

impl Broker {
    pub(crate) fn new(link: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (calls, mut asked) = mpsc::channel::<(Ask, oneshot::Sender<Reply>)>(QUEUE);
        let (mut answers, mut writer) = tokio::io::split(link);
        let waiting = Waiting::default();
        let answered = Arc::clone(&waiting);
        let read = async move {
            while let Ok(Answered { number, reply }) =
                message::read(&mut answers, MESSAGE_MAX).await
            {
                let caller =
                    answered.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
                if let Some(caller) = caller {
                    // It may have stopped waiting.
                    caller.send(reply).ok();
                }
            }
        };
        let write = async move {
            let mut number = 0_u64;
            while let Some((ask, caller)) = asked.recv().await {
                number += 1;
                {
                    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    waiting.retain(|_, caller| !caller.is_closed());
                    waiting.insert(number, caller);
                }
                if message::write(&mut writer, &Call { number, ask }).await.is_err() {
                    return;
                }
            }
        };
        // When one half ends the other goes too, and with both every caller's end.
        tokio::spawn(async move {
            tokio::select! {
                () = read => {}
                () = write => {}
            }
        });
        Self { calls }
    }

    /// Resolves when the link is lost.
    pub(crate) async fn lost(&self) {
        self.calls.closed().await;
    }

    async fn call(&self, ask: Ask) -> Result<Reply, Lost> {
        let gone = || Lost("the credential broker has ended".to_owned());
        let (caller, answer) = oneshot::channel();
        let answered = async {
            self.calls.send((ask, caller)).await.map_err(|_| gone())?;
            answer.await.map_err(|_| gone())
        };
        match tokio::time::timeout(ANSWER_WAIT, answered).await {
            Ok(Ok(Reply::Failed(reason))) => Err(Lost(reason)),
            Ok(reply) => reply,
            Err(_) => Err(Lost("the credential broker does not answer".to_owned())),
        }
    }

    /// What there is for a service.
    pub(crate) async fn find(&self, service: &str) -> Result<Found, Lost> {
        match self.call(Ask::Find { service: service.to_owned() }).await? {
            Reply::Found(found) => Ok(found),
            _ => Err(unexpected()),
        }
    }

    /// Where the credential of each service is found.
    pub(crate) async fn places(&self) -> Result<Vec<(String, Option<String>)>, Lost> {
        match self.call(Ask::Places).await? {
            Reply::Places(places) => Ok(places),
            _ => Err(unexpected()),
        }
    }

    /// Keeps the tokens of a sign-in.
    pub(crate) async fn keep_tokens(&self, service: &str, tokens: SentTokens) -> Result<(), Lost> {
        let service = service.to_owned();
        self.call(Ask::KeepTokens { service, tokens }).await.and_then(|reply| kept(&reply))
    }

    /// Keeps a key that a sign-in made.
    pub(crate) async fn keep_key(&self, service: &str, key: SentSecret) -> Result<(), Lost> {
        let service = service.to_owned();
        self.call(Ask::KeepKey { service, key }).await.and_then(|reply| kept(&reply))
    }
}

fn kept(reply: &Reply) -> Result<(), Lost> {
    match reply {
        Reply::Kept => Ok(()),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> Lost {
    Lost("the credential broker answered something else".to_owned())
}
