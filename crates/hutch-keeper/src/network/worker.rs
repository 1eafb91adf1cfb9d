//! The conversation with the proxy worker: one start, then one reply to each request, in order.

use std::time::Duration;

use hutch_proxy::control::{Reply, Request, Start};
use hutch_wire::message::{self, MESSAGE_MAX};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::driver::chain;
use crate::log::guest_text;

/// How long the worker may take for an answer. It may ask the host's resolver, and a login shell, which have limits of
/// their own.
const ANSWER: Duration = Duration::from_secs(30);

/// The keeper's end of the control stream.
#[derive(Debug)]
pub(crate) struct WorkerLink(UnixStream);

/// Why the worker did not do something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It says why, in a sentence; all is as before.
    Refused(String),
    /// It cannot be asked any more, for this reason.
    Lost(String),
}

impl WorkerLink {
    /// Has the worker begin, and gives the sandbox's CA certificate. An error is one sentence.
    pub(crate) async fn start(stream: UnixStream, start: &Start) -> Result<(Self, String), String> {
        let mut link = Self(stream);
        match link.exchange(start).await {
            Ok(Reply::Ready { ca_pem }) => Ok((link, ca_pem)),
            Ok(_) => Err("the proxy answered something else than was asked".to_owned()),
            Err(Refusal::Refused(reason) | Refusal::Lost(reason)) => Err(reason),
        }
    }

    /// Asks for something. After [`Refusal::Lost`] nothing more can be asked.
    pub(crate) async fn ask(&mut self, request: &Request) -> Result<Reply, Refusal> {
        self.exchange(request).await
    }

    async fn exchange(&mut self, message: &impl serde::Serialize) -> Result<Reply, Refusal> {
        let exchange = async {
            message::write(&mut self.0, message).await?;
            message::read(&mut self.0, MESSAGE_MAX).await
        };
        match timeout(ANSWER, exchange).await {
            Ok(Ok(Reply::Failed { reason })) => Err(Refusal::Refused(guest_text(&reason))),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(error)) => {
                Err(Refusal::Lost(format!("the proxy cannot be asked: {}", chain(&error))))
            }
            Err(_) => Err(Refusal::Lost("the proxy does not answer".to_owned())),
        }
    }
}
