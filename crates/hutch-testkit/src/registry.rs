//! The distribution's registry server, in the internet's place of a world.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::environment::TestEnvironment;
use crate::internet::SERVER;
use crate::invocation::{Outcome, Running};

/// Name and port that it is reached by.
pub const REGISTRY: &str = "registry.test:5000";
/// Who may use one that wants a login, and the password.
pub const REGISTRY_LOGIN: (&str, &str) = ("reader", "open sesame");
/// The line of `htpasswd -B` for that.
const HTPASSWD: &str = "reader:$2b$04$dMRK7t7fIVzELcSpZ5VbOeZPIw0RF4Tjhqde0DRpXzF/GNqzlGw/K\n";
/// How long its end may take.
const END: Duration = Duration::from_secs(20);

/// Who may use a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryAccess {
    /// Everybody.
    Open,
    /// Who knows [`REGISTRY_LOGIN`].
    Login,
}

/// A running registry with TLS.
#[derive(Debug)]
pub struct Registry {
    server: Running,
    certificate: PathBuf,
}

impl Registry {
    /// Starts one in a world that has an internet.
    #[track_caller]
    #[must_use]
    pub fn start(environment: &TestEnvironment, access: RegistryAccess) -> Self {
        let certified = rcgen::generate_simple_self_signed(["registry.test".to_owned()])
            .expect("a certificate can be made");
        let directory = environment.path("registry");
        environment.make_directory(&directory);
        let place = |name: &str| directory.join(name);
        // The clients of some tools take all files of a directory that end in this.
        let certificate = place("ca.crt");
        environment.write(&certificate, certified.cert.pem());
        environment.write(&place("key.pem"), certified.signing_key.serialize_pem());
        let mut settings = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {data}\nhttp:\n  addr: {SERVER}:5000\n  \
             tls:\n    certificate: {certificate}\n    key: {key}\n",
            data = place("data").display(),
            certificate = certificate.display(),
            key = place("key.pem").display(),
        );
        if access == RegistryAccess::Login {
            environment.write(&place("htpasswd"), HTPASSWD);
            let _infallible = write!(
                settings,
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                place("htpasswd").display()
            );
        }
        environment.write(&place("config.yml"), settings);
        let server = environment
            .program(environment.stage().registry())
            .args(["serve"])
            .args([place("config.yml")])
            .start();
        Self { server, certificate }
    }

    /// Its certificate, which is its own authority.
    #[must_use]
    pub fn certificate(&self) -> &PathBuf {
        &self.certificate
    }

    /// Ends it.
    #[track_caller]
    pub fn stop(self) -> Outcome {
        self.server.signal(Signal::TERM);
        self.server.wait(END)
    }
}
