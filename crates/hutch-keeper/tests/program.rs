//! The program itself: what it says to the command that starts it.
#![expect(clippy::unwrap_used, reason = "all of this is a test, its helpers too")]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use hutch_store::{Draft, Layout, SandboxName, Store, TemplateReference};
use hutch_sys::spawn::Launch;
use tempfile::TempDir;

struct Setup {
    base: TempDir,
    store: Store,
    name: SandboxName,
}

impl Setup {
    /// A sandbox, and a QEMU that says its version and does `then` for every other request.
    fn new(then: &str) -> Self {
        let base = tempfile::tempdir().unwrap();
        let at = |text: &str| base.path().join(text);
        let layout = Layout {
            state: at("state"),
            runtime: at("run"),
            config: at("config"),
            images: at("images"),
        };
        let store = Store::open(layout).unwrap();
        let draft = Draft {
            agent: "shell".to_owned(),
            template: TemplateReference { name: "shell".to_owned(), digest: String::new() },
            workspaces: Vec::new(),
            cpus: 1,
            memory_mib: 256,
            disk_bytes: 64 << 20,
            idle_timeout_s: 0,
            docker: hutch_store::DockerStart::default(),
            labels: std::collections::BTreeMap::new(),
            environment: std::collections::BTreeMap::new(),
        };
        let name = SandboxName::parse("one").unwrap();
        store.create(&draft, [name.clone()]).unwrap();
        for file in ["kernel", "initramfs", "template"] {
            std::fs::File::create(at(file)).unwrap();
        }
        let mut qemu = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(at("qemu"))
            .unwrap();
        let script = "#!/bin/sh\ncase \"$*\" in --version) echo 'QEMU emulator version 7.2.0';;";
        writeln!(qemu, "{script} *) {then};; esac").unwrap();
        std::fs::set_permissions(base.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { base, store, name }
    }

    /// Starts a keeper; gives it and the end of what it says to its starter.
    fn start(&self, sandbox: &str) -> (Child, std::io::PipeReader) {
        let (said, ready) = std::io::pipe().unwrap();
        let mut launch = Launch::new(env!("CARGO_BIN_EXE_hutch-keeper"));
        let layout = self.store.layout();
        let mut path = |flag: &str, path: &Path| {
            launch.arg(flag).arg(path);
        };
        path("--state", &layout.state);
        path("--runtime", &layout.runtime);
        path("--images", &layout.images);
        path("--kernel", &self.base.path().join("kernel"));
        path("--initramfs", &self.base.path().join("initramfs"));
        path("--template-layer", &self.base.path().join("template"));
        path("--qemu", &self.base.path().join("qemu"));
        launch.args(["--sandbox", sandbox, "--accelerator", "tcg", "--idle-timeout", "0"]);
        let number = launch.inherit(ready);
        launch.args(["--ready-fd", &number.to_string()]);
        (launch.start().unwrap().child, said)
    }

    /// Starts a keeper and waits for its end; gives all that it said.
    fn run(&self, sandbox: &str) -> (bool, String) {
        let (mut child, mut said) = self.start(sandbox);
        let mut text = String::new();
        said.read_to_string(&mut text).unwrap();
        (child.wait().unwrap().success(), text)
    }
}

#[test]
fn an_unknown_sandbox_is_a_failure_in_one_line() {
    let setup = Setup::new("exit 1");
    let (ok, said) = setup.run("two");
    assert_eq!((ok, said.as_str()), (false, "failed: there is no sandbox named `two`\n"));
}

#[test]
fn a_damaged_record_is_a_failure_in_one_line() {
    let setup = Setup::new("exit 1");
    hutch_store::atomic::write(&setup.store.paths(&setup.name).record(), b"{").unwrap();
    let (ok, said) = setup.run("one");
    assert!(!ok && said.starts_with("failed: ") && said.contains("damaged"), "{said}");
    assert_eq!(said.lines().count(), 1);
}

#[test]
fn a_held_lock_is_told_as_running() {
    let setup = Setup::new("exit 1");
    let _lock = setup.store.lock(&setup.name, Duration::ZERO).unwrap();
    let (ok, said) = setup.run("one");
    assert_eq!((ok, said.as_str()), (false, "running\n"));
}

#[test]
fn a_vmm_that_does_not_start_is_written_down() {
    // A script at that: its jail lets it run no shell.
    let setup = Setup::new("exit 1");
    let (ok, said) = setup.run("one");
    // The keeper itself did its work.
    assert_eq!((ok, said.as_str()), (true, "listening\n"));
    let end = setup.store.last_end(&setup.name).unwrap().unwrap();
    assert!(!end.clean && end.reason.starts_with("the virtual machine monitor "), "{end:?}");
    assert!(!setup.store.is_running(&setup.name).unwrap());
    assert_eq!(std::fs::read_dir(&setup.store.layout().runtime).unwrap().count(), 0);
}
