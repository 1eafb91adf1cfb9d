//! Gives requests the credentials of their services, and keeps them out of what comes back.
//!
//! | request to | what happens |
//! | --- | --- |
//! | a service's host and port | its header is set to the key; whatever the client sent in any of its headers goes |
//! | the same, with the sign-in's sentinel as bearer | the sentinel becomes the access token |
//! | a resource host, with the sentinel | the same; never the key |
//! | the token endpoint | sentinels in the body become tokens, tokens in the answer become sentinels (`oauth`) |
//! | anywhere else | nothing |
//!
//! Host and port must be exactly those of the service; where no port is written that is 443, and then only over TLS: a
//! client may not choose to send the key in the clear. A host that several services name belongs to the first of the
//! sandbox's list that has a credential; the list begins with the most specific. Git (by its user agent, or by HTTP Basic)
//! is given the key as Basic where the service says so. Nothing is ever put into a URL; a query parameter that holds the
//! placeholder is taken out, because servers prefer it to the header.
//!
//! A request that is given a credential asks for an answer that can be looked through: no compression, no ranges (two
//! halves of a secret are no secret), no WebSocket extensions. Its answer, trailers and upgraded connection go through
//! [`crate::scrub`].
//!
//! Without a credential on the host a request goes as it is. If the server then says 401, the log says why ([`Note`]).

mod answer;
mod client;
mod inject;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use http::Request;
use hutch_policy::services::{Role, ServiceTable};
use hutch_policy::settings::{OAuth, Service};
use hutch_secrets::Secret;
use hutch_secrets::store::Tokens;
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use self::answer::scrub_response;
use self::answer::{NotedAnswer, ScrubbedAnswer};
pub(crate) use self::client::{Broker, Lost};
pub(crate) use self::inject::ask_readable;
use crate::exchange::{Body, Credentials, Destination, Pending, Prepared, Withheld};
use crate::oauth;
use crate::scrub::Needles;

/// What cannot be said to the client in more detail.
const INTERNAL: &str = "the credential could not be prepared";

/// The credentials of one sandbox's services, as the broker has them.
pub(crate) struct Injector {
    services: ServiceTable,
    broker: Broker,
    /// The needles of each service's secrets: making them takes longer than a request may.
    needles: Mutex<HashMap<String, NeedlesOf>>,
}

/// Secrets and their needles.
type NeedlesOf = (Vec<Secret>, Arc<Needles>);

impl fmt::Debug for Injector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Injector").field("services", &self.services).finish_non_exhaustive()
    }
}

/// What the broker has for a service, fit for use.
#[derive(Debug, Default)]
struct Held {
    key: Option<Secret>,
    tokens: Option<Tokens>,
    looked: String,
}

impl Held {
    /// Everything that must not come back.
    fn secrets(&self) -> Vec<Secret> {
        let mut secrets: Vec<Secret> = self.key.iter().cloned().collect();
        if let Some(tokens) = &self.tokens {
            secrets.push(tokens.access.clone());
            secrets.extend(tokens.refresh.clone());
            secrets.extend(tokens.id.clone());
        }
        secrets
    }
}

impl Injector {
    /// For these services, with a broker at the other end of the link. To be called in a runtime.
    pub(crate) fn new(
        services: ServiceTable,
        link: impl AsyncRead + AsyncWrite + Send + 'static,
    ) -> Self {
        Self { services, broker: Broker::new(link), needles: Mutex::default() }
    }

    /// The link to the broker.
    pub(crate) fn broker(&self) -> &Broker {
        &self.broker
    }

    async fn held(&self, service: &str) -> Held {
        match self.broker.find(service).await {
            Ok(found) => Held {
                key: found.key.as_ref().and_then(|key| key.open().ok()),
                tokens: found.tokens.as_ref().and_then(|tokens| tokens.open().ok()),
                looked: found.looked,
            },
            Err(Lost(reason)) => {
                tracing::warn!(service, reason, "the credential broker gave no answer");
                Held { looked: format!("nowhere: {reason}"), ..Held::default() }
            }
        }
    }

    fn needles(&self, service: &str, secrets: Vec<Secret>) -> Result<Arc<Needles>, Withheld> {
        let mut known = self.needles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((then, needles)) = known.get(service)
            && *then == secrets
        {
            return Ok(Arc::clone(needles));
        }
        let needles = Needles::new(&secrets).map(Arc::new).map_err(|error| {
            tracing::error!(%error, "no automaton for a secret");
            Withheld(INTERNAL.to_owned())
        })?;
        known.insert(service.to_owned(), (secrets, Arc::clone(&needles)));
        Ok(needles)
    }

    /// Gives the request the credential of the service, if there is one that it may have.
    fn give(
        &self,
        service: &Service,
        role: Role,
        held: &Held,
        request: &mut Request<Body>,
    ) -> Result<Option<Arc<Needles>>, Withheld> {
        let invalid = |_| Withheld(INTERNAL.to_owned());
        let sentinel = service.oauth.as_ref().map(|oauth| oauth.access_sentinel.as_str());
        let signed_in =
            sentinel.is_some_and(|sentinel| inject::has_bearer(request.headers(), sentinel));
        match (&held.key, &held.tokens) {
            (_, Some(tokens)) if signed_in => {
                inject::bearer(service, &tokens.access, request.headers_mut()).map_err(invalid)?;
            }
            (Some(key), _) if role == Role::Api => {
                inject::key(service, key, request).map_err(invalid)?;
            }
            _ => return Ok(None),
        }
        ask_readable(request.headers_mut());
        self.needles(&service.name, held.secrets()).map(Some)
    }

    async fn inject(
        &self,
        matching: &[(Service, Role)],
        mut request: Request<Body>,
    ) -> Result<Prepared, Withheld> {
        let mut missing = None;
        for (service, role) in matching {
            let held = self.held(&service.name).await;
            if let Some(needles) = self.give(service, *role, &held, &mut request)? {
                let answer = ScrubbedAnswer::to(&request, needles);
                let credential = Some(service.name.clone());
                return Ok(Prepared { request, credential, answer: Some(Box::new(answer)) });
            }
            if *role == Role::Api && missing.is_none() {
                missing = Some(format!(
                    "no credential for {} on the host; looked in {}",
                    service.name, held.looked
                ));
            }
        }
        let answer = missing.map(|note| Box::new(NotedAnswer { note }) as _);
        Ok(Prepared { request, credential: None, answer })
    }

    /// The token endpoint: tokens stay on the host in both directions.
    async fn sign_in(
        &self,
        service: &Service,
        oauth: &OAuth,
        request: Request<Body>,
    ) -> Result<Prepared, Withheld> {
        let held = self.held(&service.name).await;
        let needles = self.needles(&service.name, held.secrets())?;
        let (request, grant) = oauth::outward(oauth, held.tokens.as_ref(), request).await?;
        let answer = oauth::TokenAnswer {
            service: service.clone(),
            oauth: oauth.clone(),
            grant,
            needles,
            broker: self.broker.clone(),
            bodiless: request.method() == http::Method::HEAD,
        };
        let credential = held.tokens.is_some().then(|| service.name.clone());
        Ok(Prepared { request, credential, answer: Some(Box::new(answer)) })
    }
}

impl Credentials for Injector {
    fn prepare<'a>(
        &'a self,
        destination: &'a Destination,
        request: Request<Body>,
    ) -> Pending<'a, Result<Prepared, Withheld>> {
        Box::pin(async move {
            let authority = &destination.authority;
            let in_the_clear = !destination.secure && authority.port.get() == 443;
            let here: Vec<(Service, Role)> = if in_the_clear {
                Vec::new()
            } else {
                let at = self.services.at(&authority.host, authority.port);
                at.map(|(service, role)| (service.clone(), role)).collect()
            };
            let token = here.iter().find_map(|(service, role)| {
                let oauth = service.oauth.as_ref()?;
                let there = *role == Role::Token && oauth.token_path == request.uri().path();
                there.then_some((service, oauth))
            });
            if let Some((service, oauth)) = token {
                return self.sign_in(service, oauth, request).await;
            }
            let mut matching = here;
            matching.retain(|(_, role)| *role != Role::Token);
            self.inject(&matching, request).await
        })
    }

    fn sources(&self) -> Pending<'_, Vec<(String, Option<String>)>> {
        Box::pin(async move {
            match self.broker.places().await {
                Ok(places) => places,
                Err(Lost(reason)) => {
                    tracing::warn!(reason, "the credential broker gave no answer");
                    let services = self.services.services().iter();
                    services.map(|service| (service.name.clone(), None)).collect()
                }
            }
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
