//! The policy of one sandbox on disk: `proxy-config.json`, and `inspect` in its record.

use std::io;
use std::path::{Path, PathBuf};

use hutch_api::NetworkEdit;
use hutch_policy::config::{Edit, ProxyConfig};
use hutch_policy::settings::Inspect;
use hutch_proxy::control::PolicyState;
use hutch_store::{FileError, SandboxRecord, Store, atomic};

use crate::driver::chain;

/// No policy file is longer: it has to fit a message to the worker.
const POLICY_MAX: u64 = 2 * 1024 * 1024;

/// The policy that holds, and where it is written.
#[derive(Debug, Clone)]
pub(crate) struct PolicyFile {
    store: Store,
    name: hutch_store::SandboxName,
    path: PathBuf,
    config: ProxyConfig,
    /// As it is on disk.
    text: String,
    /// What was said of this sandbox.
    inspect: Option<Inspect>,
    /// What holds when nothing was.
    inspect_default: Inspect,
}

impl PolicyFile {
    /// Reads the sandbox's policy; a sandbox that has none yet is given the `default` file's, or the built-in one. One
    /// that cannot be understood is an error, a sentence: a sandbox whose policy is not known does not start.
    pub(crate) fn open(
        store: &Store,
        record: &SandboxRecord,
        default: Option<&Path>,
        inspect_default: Inspect,
    ) -> Result<Self, String> {
        let path = store.paths(&record.name).proxy_config();
        let (text, config) = match read(&path)? {
            Some(known) => known,
            None => {
                let first = default.map(read).transpose()?.flatten().unwrap_or_else(|| {
                    let config = ProxyConfig::default();
                    (config.to_text(), config)
                });
                atomic::write(&path, first.0.as_bytes()).map_err(|error| chain(&error))?;
                first
            }
        };
        Ok(Self {
            store: store.clone(),
            name: record.name.clone(),
            path,
            config,
            text,
            inspect: record.inspect,
            inspect_default,
        })
    }

    /// As the worker is told it.
    pub(crate) fn state(&self) -> PolicyState {
        PolicyState { proxy_config: self.text.clone(), inspect: self.inspect() }
    }

    /// Which connections have their TLS terminated.
    pub(crate) fn inspect(&self) -> Inspect {
        self.inspect.unwrap_or(self.inspect_default)
    }

    /// The policy with a change, which is written nowhere yet; and what of it has no effect.
    pub(crate) fn changed(&self, edit: &NetworkEdit) -> Result<(Self, Vec<String>), String> {
        let mut changed = self.clone();
        let notes = changed.config.apply(&flags(edit)).map_err(|error| error.to_string())?;
        if let Some(inspect) = &edit.inspect {
            changed.inspect = Some(match inspect.as_str() {
                "credentials" => Inspect::Credentials,
                "all" => Inspect::All,
                _ => {
                    return Err(format!(
                        "`--inspect`: {inspect:?} is not known: `credentials` and `all` are"
                    ));
                }
            });
        }
        changed.text = changed.config.to_text();
        if changed.text.len() as u64 > POLICY_MAX {
            return Err(format!("the policy would be longer than {POLICY_MAX} bytes"));
        }
        Ok((changed, notes))
    }

    /// Writes it down in place of `before`; on an error that is what stays.
    pub(crate) fn write(&self, before: &Self) -> Result<(), String> {
        atomic::write(&self.path, self.text.as_bytes()).map_err(|error| chain(&error))?;
        if self.inspect == before.inspect {
            return Ok(());
        }
        let inspect = self.inspect;
        let written = self.store.update(&self.name, |record| record.inspect = inspect);
        written.map(drop).map_err(|error| {
            if let Err(error) = atomic::write(&before.path, before.text.as_bytes()) {
                tracing::error!(error = chain(&error), "the policy file cannot be put back");
            }
            chain(&error)
        })
    }
}

/// `credentials` or `all`.
pub(crate) fn word(inspect: Inspect) -> &'static str {
    match inspect {
        Inspect::Credentials => "credentials",
        Inspect::All => "all",
    }
}

fn flags(edit: &NetworkEdit) -> Edit {
    Edit {
        policy: edit.policy.clone(),
        allow_hosts: edit.allow_hosts.clone(),
        block_hosts: edit.block_hosts.clone(),
        bypass_hosts: edit.bypass_hosts.clone(),
        allow_cidrs: edit.allow_cidrs.clone(),
        block_cidrs: edit.block_cidrs.clone(),
        bypass_cidrs: edit.bypass_cidrs.clone(),
    }
}

/// Reads a policy file; none where there is none.
fn read(path: &Path) -> Result<Option<(String, ProxyConfig)>, String> {
    let unusable = |why: &str| {
        format!(
            "the network policy {} cannot be used, so the network stays shut: {why}",
            path.display()
        )
    };
    let content = match atomic::read(path, POLICY_MAX) {
        Ok(content) => content,
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(unusable(&chain(&error))),
    };
    let text = String::from_utf8(content).map_err(|_| unusable("it is not text"))?;
    let config = ProxyConfig::parse(&text).map_err(|error| unusable(&error.to_string()))?;
    Ok(Some((text, config)))
}

#[cfg(test)]
mod tests;
