//! A sandbox of an environment.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::environment::TestEnvironment;
use crate::invocation::{Invocation, Outcome};
use crate::wait::eventually;

/// A sandbox; its environment removes it.
#[derive(Debug)]
pub struct TestSandbox<'e> {
    environment: &'e TestEnvironment,
    name: String,
    workspace: PathBuf,
}

impl<'e> TestSandbox<'e> {
    pub(crate) fn new(environment: &'e TestEnvironment, name: &str, workspace: &Path) -> Self {
        Self { environment, name: name.to_owned(), workspace: workspace.to_owned() }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its workspace on the host, which has the same path inside.
    #[must_use]
    pub fn workspace(&self) -> &Path {
        &self.workspace
    }

    /// Its directory in the state.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.environment.state().join("sandboxes").join(&self.name)
    }

    /// `hutch exec NAME ARGUMENTS`.
    #[must_use]
    pub fn exec(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Invocation {
        self.environment.hutch(["exec", &self.name]).args(arguments)
    }

    /// `hutch exec OPTIONS NAME ARGUMENTS`.
    #[must_use]
    pub fn exec_with<'a>(
        &self,
        options: impl IntoIterator<Item = &'a str>,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Invocation {
        self.environment.hutch(["exec"]).args(options).args([&self.name]).args(arguments)
    }

    /// Runs a shell script as the agent.
    #[must_use]
    pub fn shell(&self, script: &str) -> Invocation {
        self.exec(["sh", "-c", script])
    }

    /// Runs a shell script as root.
    #[must_use]
    pub fn root_shell(&self, script: &str) -> Invocation {
        self.exec_with(["-u", "root"], ["sh", "-c", script])
    }

    /// Starts it.
    #[track_caller]
    pub fn start(&self) {
        self.exec(["true"]).run().success();
    }

    /// Stops it.
    #[track_caller]
    pub fn stop(&self) -> Outcome {
        self.environment.hutch(["stop", &self.name]).run().success()
    }

    /// Its entry of `hutch ls --json`.
    #[track_caller]
    #[must_use]
    pub fn listed(&self) -> Option<Value> {
        let list = self.environment.hutch(["ls", "--json"]).run().success().json();
        let entries = list["vms"].as_array().or_else(|| list["sandboxes"].as_array()).cloned();
        entries.unwrap_or_default().into_iter().find(|entry| entry["name"] == self.name.as_str())
    }

    /// Its status as `hutch ls` tells it.
    #[track_caller]
    #[must_use]
    pub fn status(&self) -> String {
        let entry = self.listed().unwrap_or_else(|| panic!("{} is not listed", self.name));
        entry["status"].as_str().expect("a status is text").to_owned()
    }

    /// Waits until `hutch ls` tells this status.
    #[track_caller]
    pub fn becomes(&self, status: &str, limit: Duration) {
        eventually(&format!("{} is {status}", self.name), limit, || {
            (self.status() == status).then_some(())
        });
    }

    /// Its entry of `hutch inspect`.
    #[track_caller]
    #[must_use]
    pub fn inspect(&self) -> Value {
        self.environment.hutch(["inspect", &self.name]).run().success().json()[0].take()
    }
}
