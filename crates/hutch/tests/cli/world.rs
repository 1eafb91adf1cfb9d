//! A home that nobody else uses, and runs of the program in it.

use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hutch_store::{
    Draft, HostPath, Layout, SandboxName, SandboxRecord, Store, TemplateReference, Workspace,
};

/// Every test's own world.
pub(crate) struct World {
    root: tempfile::TempDir,
}

/// How a run ended, as one text with the world's own directory left out.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Everything, to be compared with what was seen before.
    pub(crate) fn seen(&self) -> String {
        let lines = |text: &str| {
            text.lines()
                .map(|line| format!("  {line}").trim_end().to_owned() + "\n")
                .collect::<String>()
        };
        format!(
            "exit code: {}\nstdout:\n{}stderr:\n{}",
            self.code,
            lines(&self.stdout),
            lines(&self.stderr)
        )
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        let world = Self { root };
        for directory in ["home", "run", "work"] {
            std::fs::create_dir(world.path(directory)).expect("a new directory is empty");
        }
        let private = std::fs::Permissions::from_mode(0o700);
        std::fs::set_permissions(world.path("run"), private).expect("it is ours");
        let _linked = symlink(env!("CARGO_BIN_EXE_hutch"), world.path("docker-sandbox"));
        world
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        let root = std::fs::canonicalize(self.root.path()).expect("it exists");
        root.join(below)
    }

    pub(crate) fn project(&self, name: &str) -> PathBuf {
        let path = self.path("work").join(name);
        std::fs::create_dir_all(&path).expect("the world is writable");
        path
    }

    /// Writes `config.toml`.
    pub(crate) fn config(&self, text: &str) {
        let directory = self.path("home/.config/hutch");
        std::fs::create_dir_all(&directory).expect("the world is writable");
        std::fs::File::create(directory.join("config.toml"))
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .expect("the world is writable");
    }

    /// `hutch` with these arguments.
    pub(crate) fn hutch(&self, arguments: &[&str]) -> Run {
        self.run(self.command(Path::new(env!("CARGO_BIN_EXE_hutch"))).args(arguments), b"")
    }

    /// The program under its other name, as the Docker CLI calls it.
    pub(crate) fn docker_sandbox(&self, arguments: &[&str]) -> Run {
        let program = self.path("docker-sandbox");
        self.run(self.command(&program).arg("sandbox").args(arguments), b"")
    }

    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command = hutch_sys::spawn::command(program);
        command
            .env_clear()
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("TZ", "UTC")
            .current_dir(self.path("work"));
        command
    }

    pub(crate) fn run(&self, command: &mut Command, input: &[u8]) -> Run {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input is fine.
            let _unread = stdin.write_all(input);
        }
        let output = child.wait_with_output().expect("it ends");
        let root = self.path("").display().to_string();
        let text = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).replace(root.trim_end_matches('/'), "WORLD")
        };
        Run {
            code: output.status.code().unwrap_or(-1),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    pub(crate) fn store(&self) -> Store {
        let state = self.path("home/.local/state/hutch");
        let layout = Layout {
            images: state.join("images"),
            state,
            runtime: self.path("run/hutch"),
            config: self.path("home/.config/hutch"),
        };
        Store::open(layout).expect("the world is writable")
    }

    /// A stopped sandbox, as `create` leaves it.
    pub(crate) fn sandbox(&self, name: &str, workspace: &Path) -> SandboxRecord {
        let draft = Draft {
            agent: "shell".to_owned(),
            template: TemplateReference {
                name: "shell".to_owned(),
                digest: "sha256:00".to_owned(),
            },
            workspaces: vec![Workspace {
                path: HostPath::new(workspace).expect("it is absolute"),
                read_only: false,
            }],
            cpus: 2,
            memory_mib: 1024,
            disk_bytes: 64 << 20,
            idle_timeout_s: 1800,
            docker: hutch_store::DockerStart::default(),
            labels: [("colour".to_owned(), "red".to_owned())].into(),
            environment: std::collections::BTreeMap::new(),
        };
        let name = SandboxName::parse(name).expect("a name");
        self.store().create(&draft, [name]).expect("the world is writable")
    }

    /// A sandbox whose record is garbage.
    pub(crate) fn broken_sandbox(&self, name: &str) {
        self.sandbox(name, &self.project(name));
        let record = self.path("home/.local/state/hutch/sandboxes").join(name).join("sandbox.json");
        let mut file = std::fs::File::create(record).expect("it is ours");
        file.write_all(b"{\"format_version\": 1, \"na").expect("it is ours");
    }
}
