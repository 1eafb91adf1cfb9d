//! Answers what command lines ask about the network: one task, so that changes of the policy follow each other.
//!
//! A change is on disk first, then in force in the worker, then the guest trusts the certificates that it needs, then it
//! is answered. What the worker refuses is taken back from the disk. What the *guest* refuses is not: a guest has no say
//! in its policy.

use std::collections::BTreeMap;
use std::time::Duration;

use hutch_api::{
    NetworkChecked, NetworkEdit, NetworkPolicy, NetworkRequest, NetworkService, Response,
};
use hutch_policy::settings::NetworkSettings;
use hutch_proxy::control::{CallerEnvironment, Checked, Reply, Request};
use hutch_wire::message;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::environment::{certificate_variable, trusted};
use super::policy::{PolicyFile, word};
use super::worker::{Refusal, WorkerLink};
use crate::control::Asker;

/// Requests that wait for their turn; more than that wait to wait.
const ASKED_AHEAD: usize = 16;
/// How long the guest may take to trust other certificates.
const TRUST: Duration = Duration::from_secs(30);
/// How long the broker may take to read the caller's variables.
const CREDENTIALS: Duration = Duration::from_secs(5);

/// Asks the network's task; clones ask the same one.
#[derive(Debug, Clone)]
pub(crate) struct Network(mpsc::Sender<Ask>);

#[derive(Debug)]
struct Ask {
    request: NetworkRequest,
    answer: oneshot::Sender<Response>,
}

impl Network {
    /// Has a request answered. It is carried out even when this future is dropped.
    pub(crate) async fn answer(&self, request: NetworkRequest) -> Response {
        let (answer, answered) = oneshot::channel();
        let ask = Ask { request, answer };
        let response = match self.0.send(ask).await {
            Ok(()) => answered.await.ok(),
            Err(_) => None,
        };
        response.unwrap_or_else(|| failed("the network of the sandbox has ended"))
    }
}

/// What the task owns. Its streams end with it.
#[derive(Debug)]
pub(crate) struct NetworkTask {
    pub(crate) policy: PolicyFile,
    pub(crate) worker: WorkerLink,
    /// To the broker.
    pub(crate) credentials: UnixStream,
    /// The certificate that the guest trusts.
    pub(crate) ca_pem: String,
    pub(crate) settings: NetworkSettings,
    pub(crate) guest: Asker,
}

impl NetworkTask {
    /// Runs until nobody can ask any more. The receiver is told when the worker or the broker cannot be asked any more.
    pub(crate) fn start(self) -> (Network, oneshot::Receiver<String>) {
        let (sender, asks) = mpsc::channel(ASKED_AHEAD);
        let (fail, lost) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(reason) = self.run(asks).await {
                // Nobody listens once the driver is on its way down.
                let _unheard = fail.send(reason);
            }
        });
        (Network(sender), lost)
    }

    async fn run(mut self, mut asks: mpsc::Receiver<Ask>) -> Result<(), String> {
        while let Some(Ask { request, answer }) = asks.recv().await {
            let (response, lost) = match self.carry_out(request).await {
                Ok(response) => (response, None),
                Err(Refusal::Refused(reason)) => (Response::Failed { reason }, None),
                Err(Refusal::Lost(reason)) => (failed(&reason), Some(reason)),
            };
            // Whoever asked may have gone.
            let _unheard = answer.send(response);
            if let Some(reason) = lost {
                return Err(reason);
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, request: NetworkRequest) -> Result<Response, Refusal> {
        match request {
            NetworkRequest::Policy => Ok(self.describe(0, Vec::new())),
            NetworkRequest::Edit(edit) => self.edit(&edit).await,
            NetworkRequest::Check { host, port } => {
                match self.worker.ask(&Request::Check { host, port }).await? {
                    Reply::Checked(checked) => Ok(Response::NetworkChecked(told(checked))),
                    _ => Err(other()),
                }
            }
            NetworkRequest::Credentials { variables } => self.credentials(variables).await,
            NetworkRequest::Services => match self.worker.ask(&Request::Services).await? {
                Reply::Services(services) => {
                    let one = |(name, found)| NetworkService { name, found };
                    Ok(Response::NetworkServices(services.into_iter().map(one).collect()))
                }
                _ => Err(other()),
            },
        }
    }

    fn describe(&self, cut: u32, notes: Vec<String>) -> Response {
        let state = self.policy.state();
        Response::NetworkPolicy(NetworkPolicy {
            proxy_config: state.proxy_config,
            inspect: word(state.inspect).to_owned(),
            cut,
            notes,
        })
    }

    async fn edit(&mut self, edit: &NetworkEdit) -> Result<Response, Refusal> {
        let (changed, mut notes) = self.policy.changed(edit).map_err(Refusal::Refused)?;
        write(changed.clone(), self.policy.clone()).await.map_err(Refusal::Refused)?;
        let reply = match self.worker.ask(&Request::Configure(changed.state())).await {
            Ok(Reply::Configured { ca_pem, cut }) => Ok((ca_pem, cut)),
            Ok(_) => Err(other()),
            Err(refusal) => Err(refusal),
        };
        let (ca_pem, cut) = match reply {
            Ok(reply) => reply,
            Err(refusal) => {
                if let Err(error) = write(self.policy.clone(), changed).await {
                    tracing::error!(error, "the policy before a change cannot be put back");
                }
                return Err(refusal);
            }
        };
        self.policy = changed;
        tracing::info!(cut, "the network's policy was changed");
        if ca_pem != self.ca_pem {
            let certificates = trusted(&ca_pem, &self.settings.extra_roots_pem);
            let environment = vec![certificate_variable(&ca_pem)];
            let trusted = timeout(TRUST, self.guest.trust(certificates, environment)).await;
            match trusted.unwrap_or_else(|_| Err("it does not answer".to_owned())) {
                Ok(()) => self.ca_pem = ca_pem,
                Err(reason) => notes.push(format!(
                    "the sandbox does not trust the proxy's new certificate until it is started again: {reason}"
                )),
            }
        }
        Ok(self.describe(cut, notes))
    }

    /// Hands the broker those of the caller's variables that services of the sandbox name.
    async fn credentials(&mut self, variables: Vec<(String, String)>) -> Result<Response, Refusal> {
        let named = |name: &String| {
            self.settings.services.iter().any(|service| service.variables.contains(name))
        };
        let variables: BTreeMap<String, String> =
            variables.into_iter().filter(|(name, _)| named(name)).collect();
        let environment = CallerEnvironment { variables };
        match timeout(CREDENTIALS, message::write(&mut self.credentials, &environment)).await {
            Ok(Ok(())) => Ok(Response::Done),
            // The message may have been cut in its middle: another one would not be understood.
            Ok(Err(_)) | Err(_) => {
                Err(Refusal::Lost("the credential broker takes no credentials".to_owned()))
            }
        }
    }
}

/// Writes a policy down, where waiting for a disk holds nobody up.
async fn write(policy: PolicyFile, before: PolicyFile) -> Result<(), String> {
    tokio::task::spawn_blocking(move || policy.write(&before))
        .await
        .unwrap_or_else(|_| Err("writing the policy was broken off".to_owned()))
}

fn failed(reason: &str) -> Response {
    Response::Failed { reason: reason.to_owned() }
}

fn other() -> Refusal {
    Refusal::Lost("the proxy answered something else than was asked".to_owned())
}

fn told(checked: Checked) -> NetworkChecked {
    let Checked { allowed, rule, reason, inspected, credential, addresses } = checked;
    NetworkChecked { allowed, rule, reason, inspected, credential, addresses }
}
