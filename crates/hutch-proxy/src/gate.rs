//! What every connection asks: the policy of the moment, and everything that is the same for all of them.
//!
//! The policy is replaced as a whole ([`Gate::configure`]); whoever decides takes one [`State`] and uses it for all of a
//! decision. A connection is entered among the live ones and then judged again by the state of then: so none that was
//! decided under the old policy slips through while the new one is put in place.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use hutch_policy::config::{ConfigError, ProxyConfig};
use hutch_policy::host::{Authority, Host};
use hutch_policy::log::{How, Record};
use hutch_policy::policy::{Decision, HostVerdict, Policy, Verdict};
use hutch_policy::services::{ServiceError, ServiceTable};
use hutch_policy::settings::{Inspect, NetworkSettings};
use tokio::sync::Semaphore;

use crate::ca::{Ca, CaError, Scope};
use crate::control::PolicyState;
use crate::exchange::{Credentials, Recorder};
use crate::live::{Admitted, Guard, Live, MOST};
use crate::upstream::{Upstreams, UpstreamsError};

/// HTTP/2 connections of the guest at a time; more are served as HTTP/1.1.
const MOST_HTTP2: usize = 256;

/// Why the policy cannot be put in place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GateError {
    /// The policy file is not one.
    #[error(transparent)]
    Policy(#[from] ConfigError),
    /// A service is not one.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// No certificate authority.
    #[error("the sandbox's certificate authority could not be made")]
    Ca(#[from] CaError),
    /// The settings of what is reached otherwise than directly.
    #[error(transparent)]
    Upstreams(#[from] UpstreamsError),
}

/// The policy of the moment.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) generation: u64,
    pub(crate) policy: Policy,
    inspect: Inspect,
    pub(crate) ca: Arc<Ca>,
}

/// Everything that connections share.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) sandbox: String,
    pub(crate) services: ServiceTable,
    pub(crate) upstreams: Upstreams,
    pub(crate) credentials: Arc<dyn Credentials>,
    recorder: Arc<dyn Recorder>,
    live: Arc<Live>,
    /// HTTP/2 connections that the guest may still have: each may hold many requests and large windows.
    pub(crate) http2: Arc<Semaphore>,
    state: ArcSwap<State>,
}

/// What is done with a connection whose place was judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// Passed on without being looked at.
    Bypass,
    /// Its TLS is passed on, after its first message was read.
    Tunnel,
    /// Its TLS ends here.
    Terminate,
}

/// What a gate is made of.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) sandbox: String,
    pub(crate) settings: NetworkSettings,
    pub(crate) policy: &'a PolicyState,
    pub(crate) directory: &'a std::path::Path,
    pub(crate) credentials: Arc<dyn Credentials>,
    pub(crate) recorder: Arc<dyn Recorder>,
    pub(crate) roots: Arc<rustls::RootCertStore>,
}

impl Gate {
    pub(crate) fn new(parts: Parts<'_>) -> Result<Self, GateError> {
        let Parts { sandbox, settings, policy, directory, credentials, recorder, roots } = parts;
        let upstreams = Upstreams::new(&settings, roots)?;
        let services = ServiceTable::new(settings.services)?;
        let ca = Ca::open(directory, &scope(policy.inspect, &services))?;
        let state = State {
            generation: 0,
            policy: parse(policy)?,
            inspect: policy.inspect,
            ca: Arc::new(ca),
        };
        Ok(Self {
            sandbox,
            services,
            upstreams,
            credentials,
            recorder,
            live: Arc::default(),
            http2: Arc::new(Semaphore::new(MOST_HTTP2)),
            state: ArcSwap::from_pointee(state),
        })
    }

    /// Puts a policy in place and cuts what no longer passes; gives the CA's certificate and how many were cut.
    pub(crate) fn configure(&self, policy: &PolicyState) -> Result<(String, u32), GateError> {
        let parsed = parse(policy)?;
        let before = self.state.load();
        let ca = before.ca.widened(&scope(policy.inspect, &self.services))?;
        let ca = ca.map_or_else(|| Arc::clone(&before.ca), Arc::new);
        let pem = ca.pem().to_owned();
        let generation = before.generation + 1;
        let state = State { generation, policy: parsed, inspect: policy.inspect, ca };
        let state = Arc::new(state);
        self.state.store(Arc::clone(&state));
        let cut = self.live.judge(|admitted| self.passes(&state, admitted).is_ok());
        self.upstreams.pool.retain(|place, address| {
            let host = state.policy.judge_host(&place.host, place.port);
            self.judge_address(&state, &host, place, address).is_ok()
        });
        Ok((pem, cut))
    }

    /// The policy of the moment.
    pub(crate) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// Judges a host before anything is resolved.
    pub(crate) fn judge_host(
        &self,
        state: &State,
        place: &Authority,
    ) -> Result<HostVerdict, Verdict> {
        let verdict = state.policy.judge_host(&place.host, place.port);
        if verdict.is_denied() { Err(verdict.into_verdict()) } else { Ok(verdict) }
    }

    /// Judges an address of a host; none when the user said where the host really is, or a proxy resolves it.
    pub(crate) fn judge_address(
        &self,
        state: &State,
        host: &HostVerdict,
        place: &Authority,
        address: Option<IpAddr>,
    ) -> Result<(), Verdict> {
        if host.is_denied() {
            return Err(host.verdict().clone());
        }
        let Some(address) = address else { return Ok(()) };
        let verdict = state.policy.judge_address(host, address, place.port);
        if verdict.is_allowed() { Ok(()) } else { Err(verdict) }
    }

    /// Judges a name that a connection to an address gives itself: what the user blocked by name is not reached by
    /// address. That the default policy knows no such name does not matter where a rule allows the address.
    pub(crate) fn judge_also(
        &self,
        state: &State,
        place: &HostVerdict,
        also: &Authority,
    ) -> Result<(), Verdict> {
        use hutch_policy::policy::Cause;
        let verdict = state.policy.judge_host(&also.host, also.port);
        let explicit = matches!(place, HostVerdict::Explicit(_));
        match verdict {
            HostVerdict::Denied(verdict) if !(explicit && verdict.cause == Cause::Default) => {
                Err(verdict)
            }
            _ => Ok(()),
        }
    }

    fn passes(&self, state: &State, admitted: &Admitted) -> Result<(), Verdict> {
        let host = self.judge_host(state, &admitted.place)?;
        self.judge_address(state, &host, &admitted.place, admitted.address)?;
        if let Some(also) = &admitted.also {
            self.judge_also(state, &host, also)?;
        }
        if admitted.bypassed && self.bypass(state, &admitted.place, admitted.address).is_none() {
            return Err(Verdict::refused("<no longer bypassed>", "no rule bypasses it any more"));
        }
        Ok(())
    }

    /// Enters a connection among the live ones, unless the policy of now refuses it.
    pub(crate) fn admit(&self, admitted: &Admitted) -> Result<Guard, Verdict> {
        let Some(guard) = self.live.add(admitted.clone()) else {
            let reason = format!("the sandbox has {MOST} connections and requests already");
            return Err(Verdict::refused("<too many connections>", reason));
        };
        // After it was added: a policy that is put in place now either finds it there or is this one.
        self.passes(&self.state.load(), admitted)?;
        Ok(guard)
    }

    /// The rule that keeps a connection from being looked at.
    pub(crate) fn bypass(
        &self,
        state: &State,
        place: &Authority,
        address: Option<IpAddr>,
    ) -> Option<String> {
        state.policy.bypass(&place.host, place.port, address)
    }

    /// What is done with TLS to a place.
    pub(crate) fn treatment(
        &self,
        state: &State,
        place: &Authority,
        address: Option<IpAddr>,
    ) -> Treatment {
        if self.bypass(state, place, address).is_some() {
            return Treatment::Bypass;
        }
        match state.inspect {
            Inspect::All => Treatment::Terminate,
            Inspect::Credentials if self.services.terminates(&place.host, place.port) => {
                Treatment::Terminate
            }
            Inspect::Credentials => Treatment::Tunnel,
        }
    }

    /// A record of something that begins now.
    pub(crate) fn record(&self, how: How, decision: Decision) -> Record {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        Record::new(now, &self.sandbox, how, decision)
    }

    /// A record of a place that was judged.
    pub(crate) fn record_of(&self, how: How, place: &Authority, verdict: &Verdict) -> Record {
        let mut record = self.record(how, verdict.decision);
        record.host = place.host.to_string();
        record.port = place.port.get();
        record.rule.clone_from(&verdict.rule);
        record.reason.clone_from(&verdict.reason);
        record
    }

    /// Adds it to the log.
    pub(crate) fn log(&self, record: Record) {
        self.recorder.append(record);
    }
}

fn parse(policy: &PolicyState) -> Result<Policy, ConfigError> {
    Policy::new(&ProxyConfig::parse(&policy.proxy_config)?)
}

fn scope(inspect: Inspect, services: &ServiceTable) -> Scope {
    match inspect {
        Inspect::All => Scope::Any,
        Inspect::Credentials => Scope::Only(
            services
                .terminated()
                .into_iter()
                .map(|place| place.host)
                .collect::<std::collections::BTreeSet<Host>>(),
        ),
    }
}
