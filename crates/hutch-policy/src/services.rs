//! Services: which credential belongs to which hosts, and how it is sent. All of it is data ([`Service`]).
//!
//! Which of them an agent is given is said in the agent's own file; a user's own services come from the configuration file
//! ([`validate`], [`with_custom`]). [`ServiceTable`] answers for one sandbox which service a
//! request belongs to.
//!
//! Not here: AWS. Bedrock wants requests signed with the secret key, body included, which putting a header in place
//! cannot do; its keys are not taken from the host, and a sandbox that needs it gets keys of its own
//! ([`NOT_INJECTED`]).

use std::collections::{BTreeSet, HashMap};

use crate::host::{Authority, Host, HostError, Port};
use crate::settings::Service;

mod builtin;
mod validate;

pub use builtin::{PLACEHOLDER, all, service};
pub use validate::{ServiceError, validate};

/// Services that agents are documented to take from the host and that no credential is put in for, with the reason.
pub const NOT_INJECTED: [(&str, &str); 1] = [(
    "aws",
    "Bedrock wants every request signed with the secret key, which putting a header in place cannot do",
)];

/// The built-in services and the user's own, which replace built-in ones of the same name.
pub fn with_custom(builtin: Vec<Service>, custom: Vec<Service>) -> Vec<Service> {
    let mut services = builtin;
    services.retain(|service| custom.iter().all(|own| own.name != service.name));
    services.extend(custom);
    services
}

/// What a host and port mean to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Requests are given the credential.
    Api,
    /// The OAuth token endpoint is here.
    Token,
    /// The OAuth access token alone is sent here.
    Resource,
}

/// The services of one sandbox, by the hosts and ports that they are reached at.
#[derive(Debug, Clone, Default)]
pub struct ServiceTable {
    services: Vec<Service>,
    places: HashMap<Authority, Vec<(usize, Role)>>,
}

impl ServiceTable {
    /// Makes the table; every service is validated.
    pub fn new(services: Vec<Service>) -> Result<Self, ServiceError> {
        let mut table = Self::default();
        for (index, service) in services.iter().enumerate() {
            validate(service)?;
            for (authority, role) in places(service)
                .map_err(|problem| ServiceError::Host { service: service.name.clone(), problem })?
            {
                let there = table.places.entry(authority).or_default();
                if !there.contains(&(index, role)) {
                    there.push((index, role));
                }
            }
        }
        table.services = services;
        Ok(table)
    }

    /// All of them.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// The service of this name.
    pub fn named(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The services whose credential a request to this host and port may be given, in the order of the list: the first
    /// one that has a credential is meant.
    pub fn matching(&self, host: &Host, port: Port) -> Vec<&Service> {
        self.at(host, port)
            .filter(|(_, role)| *role == Role::Api)
            .map(|(service, _)| service)
            .collect()
    }

    /// Every service that has to do with this host and port, and how.
    pub fn at(&self, host: &Host, port: Port) -> impl Iterator<Item = (&Service, Role)> {
        let here = self.places.get(&Authority { host: host.clone(), port });
        here.into_iter().flatten().map(|(index, role)| (&self.services[*index], *role))
    }

    /// Whether TLS to this host and port is terminated when only credentials are inspected.
    pub fn terminates(&self, host: &Host, port: Port) -> bool {
        self.places.contains_key(&Authority { host: host.clone(), port })
    }

    /// Hosts and ports to which TLS is terminated when only credentials are inspected, each once, in order.
    pub fn terminated(&self) -> BTreeSet<Authority> {
        self.places.keys().cloned().collect()
    }
}

/// Everything that a service is reached at.
fn places(service: &Service) -> Result<Vec<(Authority, Role)>, HostError> {
    let place = |host: &String| Authority::parse_or(host, Port::HTTPS);
    let mut places = Vec::new();
    for host in &service.hosts {
        places.push((place(host)?, Role::Api));
    }
    if let Some(oauth) = &service.oauth {
        places.push((place(&oauth.token_host)?, Role::Token));
        for host in &oauth.resource_hosts {
            places.push((place(host)?, Role::Resource));
        }
    }
    Ok(places)
}

#[cfg(test)]
mod tests;
