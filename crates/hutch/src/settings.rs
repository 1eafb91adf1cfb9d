//! What the environment and the configuration file say, resolved once.
//!
//! Flag before environment before `config.toml` before default. This is the only code of the project that reads the
//! environment; other programs are told what they need as arguments. Every variable is a constant below.

mod fields;
mod file;
mod network;
mod registries;
mod upstream_proxy;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hutch_agents::{AgentSpec, Agents};
use hutch_store::{DockerStart, Layout, LayoutInputs, Programs};
use hutch_vmm::probe::AcceleratorRequest;

use crate::agents;
use crate::failure::{Blame, Failure};
use crate::size::{ByteSize, CpuCount, IdleTime};
use crate::warm::StartMode;

pub(crate) use self::file::FileConfig;
use self::network::NetworkConfig;

/// Directory of all state, instead of `$XDG_STATE_HOME/hutch`.
pub(crate) const HUTCH_HOME: &str = "HUTCH_HOME";
/// Directory of guest images and templates, instead of `images` in the state directory.
pub(crate) const HUTCH_IMAGES: &str = "HUTCH_IMAGES";
/// Directory of the other programs of Hutch, instead of those beside this one.
pub(crate) const HUTCH_LIBEXEC: &str = "HUTCH_LIBEXEC";
/// Kernel image for guests, for hosts that cannot fetch the distribution's.
pub(crate) const HUTCH_KERNEL: &str = "HUTCH_KERNEL";
/// The `lib/modules/RELEASE` directory that belongs to `HUTCH_KERNEL`.
pub(crate) const HUTCH_KERNEL_MODULES: &str = "HUTCH_KERNEL_MODULES";
/// The template of new sandboxes, as `--template`: for hosts that cannot build one, the path of an archive.
pub(crate) const HUTCH_TEMPLATE: &str = "HUTCH_TEMPLATE";
/// The QEMU program, where it is not in a usual place.
pub(crate) const HUTCH_QEMU: &str = "HUTCH_QEMU";
/// `auto`, `kvm` or `tcg`, as `--accel`.
pub(crate) const HUTCH_ACCEL: &str = "HUTCH_ACCEL";
/// Virtual CPUs of new sandboxes, as `--cpus`.
pub(crate) const HUTCH_CPUS: &str = "HUTCH_CPUS";
/// Memory of new sandboxes, as `--memory`.
pub(crate) const HUTCH_MEMORY: &str = "HUTCH_MEMORY";
/// Disk of new sandboxes, as `--disk`.
pub(crate) const HUTCH_DISK: &str = "HUTCH_DISK";
/// Time without activity after which new sandboxes stop by themselves.
pub(crate) const HUTCH_IDLE_TIMEOUT: &str = "HUTCH_IDLE_TIMEOUT";
/// Seconds that a sandbox may take to start.
pub(crate) const HUTCH_BOOT_TIMEOUT: &str = "HUTCH_BOOT_TIMEOUT";
/// `warm` or `cold`: whether sandboxes are resumed from a snapshot where there is one.
pub(crate) const HUTCH_START: &str = "HUTCH_START";
/// Base directory of state files (XDG Base Directory specification).
pub(crate) const XDG_STATE_HOME: &str = "XDG_STATE_HOME";
/// Base directory of sockets (XDG Base Directory specification).
pub(crate) const XDG_RUNTIME_DIR: &str = "XDG_RUNTIME_DIR";
/// Base directory of configuration files (XDG Base Directory specification).
pub(crate) const XDG_CONFIG_HOME: &str = "XDG_CONFIG_HOME";
/// The home directory.
pub(crate) const HOME: &str = "HOME";
/// The login shell, whose environment may hold credentials.
pub(crate) const SHELL: &str = "SHELL";
/// The user's name.
pub(crate) const USER: &str = "USER";
/// Any value: no colour.
pub(crate) const NO_COLOR: &str = "NO_COLOR";
/// Set by the Docker CLI: a socket whose end says that we should end too.
pub(crate) const DOCKER_CLI_PLUGIN_SOCKET: &str = "DOCKER_CLI_PLUGIN_SOCKET";
/// Told to every session with a terminal, because they describe the terminal that it is shown on.
pub(crate) const OF_THE_TERMINAL: &[&str] = &["TERM", "COLORTERM"];
/// Told to the tools that fetch packages, because there may be no other way out.
pub(crate) const OF_THE_NETWORK: &[&str] = &[
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "PIP_INDEX_URL",
    "PIP_CERT",
    "PIP_CONFIG_FILE",
    "NODE_EXTRA_CA_CERTS",
];
/// What npm reads its configuration by, whatever the case.
const OF_NPM: &str = "npm_config_";

/// A copy of the environment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// The environment of this process.
    pub(crate) fn of_this_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// The value of a variable.
    pub(crate) fn value(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        self.0.get(name.as_ref()).map(OsString::as_os_str)
    }

    /// The value of a variable; an empty one counts as unset.
    fn filled(&self, name: &str) -> Option<&OsStr> {
        self.value(name).filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.filled(name).map(PathBuf::from)
    }

    /// Those of the named variables that are set.
    pub(crate) fn some(&self, names: &[&str]) -> Vec<(OsString, OsString)> {
        names
            .iter()
            .filter_map(|name| Some((OsString::from(name), self.filled(name)?.to_owned())))
            .collect()
    }

    /// What the tools need that fetch packages: the way out, and where a person's configuration of them is.
    pub(crate) fn of_fetching(&self) -> Vec<(OsString, OsString)> {
        let mut all = self.some(OF_THE_NETWORK);
        all.extend(self.some(&[HOME]));
        let of_npm = |name: &OsStr| {
            name.to_str().is_some_and(|name| name.to_ascii_lowercase().starts_with(OF_NPM))
        };
        let npm = self.0.iter().filter(|(name, _)| of_npm(name));
        all.extend(npm.map(|(name, value)| (name.clone(), value.clone())));
        all
    }

    fn parsed<T>(&self, name: &str) -> Result<Option<T>, Failure>
    where
        T: FromStr<Err: std::error::Error>,
    {
        let Some(value) = self.filled(name) else { return Ok(None) };
        let text = value.to_string_lossy();
        text.parse()
            .map(Some)
            .map_err(|error: T::Err| Failure::user(format!("the variable {name}: {error}")))
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(pairs: [(&str, &str); N]) -> Self {
        pairs.into_iter().collect()
    }
}

#[cfg(test)]
impl<'t> FromIterator<(&'t str, &'t str)> for Environment {
    fn from_iter<T: IntoIterator<Item = (&'t str, &'t str)>>(pairs: T) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// `auto`, `kvm` or `tcg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Accel {
    /// Hardware virtualisation where it works, else emulation
    Auto,
    /// Hardware virtualisation or nothing
    Kvm,
    /// Emulation
    Tcg,
}

/// Something that is no accelerator.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an accelerator: `auto`, `kvm` or `tcg`")]
pub(crate) struct AccelError(String);

impl FromStr for Accel {
    type Err = AccelError;
    fn from_str(text: &str) -> Result<Self, AccelError> {
        <Self as clap::ValueEnum>::from_str(text, false).map_err(|_| AccelError(text.to_owned()))
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

impl From<Accel> for AcceleratorRequest {
    fn from(accel: Accel) -> Self {
        match accel {
            Accel::Auto => Self::Auto,
            Accel::Kvm => Self::Kvm,
            Accel::Tcg => Self::Tcg,
        }
    }
}

/// What flags say about a sandbox's machine; `None` where they do not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct MachineFlags {
    /// Give a new sandbox this many virtual CPUs
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<CpuCount>,
    /// Give a new sandbox this much memory, like `4g`
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<ByteSize>,
    /// Give a new sandbox a disk of this size, like `64g`; it takes only the space that is used
    #[arg(long, value_name = "SIZE")]
    pub(crate) disk: Option<ByteSize>,
    /// Choose what runs the sandbox's machine
    #[arg(long, value_name = "NAME")]
    pub(crate) accel: Option<Accel>,
    /// Choose when a new sandbox's Docker engine starts
    #[arg(long, value_name = "WHEN")]
    pub(crate) docker: Option<Docker>,
}

/// When a sandbox's Docker engine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Docker {
    /// When it is first used
    Lazy,
    /// With the sandbox, at each start
    Eager,
}

impl From<Docker> for DockerStart {
    fn from(docker: Docker) -> Self {
        match docker {
            Docker::Lazy => Self::Lazy,
            Docker::Eager => Self::Eager,
        }
    }
}

/// The machine of a new sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) disk_bytes: u64,
}

/// Who the user is, for the part that asks the login shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct UserSettings {
    home: Option<PathBuf>,
    shell: Option<PathBuf>,
    name: Option<OsString>,
}

impl UserSettings {
    fn new(environment: &Environment) -> Self {
        let absolute = |name| environment.path(name).filter(|path| path.is_absolute());
        Self {
            home: absolute(HOME),
            shell: absolute(SHELL),
            name: environment.filled(USER).map(OsStr::to_owned),
        }
    }

    /// As flags of the keeper.
    pub(crate) fn flags(&self) -> impl Iterator<Item = (&'static str, &OsStr)> {
        let flags = [
            ("--home", self.home.as_deref().map(Path::as_os_str)),
            ("--shell", self.shell.as_deref().map(Path::as_os_str)),
            ("--user", self.name.as_deref()),
        ];
        flags.into_iter().filter_map(|(flag, value)| Some((flag, value?)))
    }

    /// Where `docker sandbox` keeps the policy of new sandboxes.
    pub(crate) fn policy_of_docker(&self) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(".sandboxd/proxy-config.json"))
    }
}

/// Everything that is decided outside of the command line.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Where everything is.
    pub(crate) layout: Layout,
    /// The agents, built in and the user's own.
    pub(crate) agents: Agents,
    /// The other programs.
    pub(crate) programs: Programs,
    /// The whole environment, for what is passed on by name.
    pub(crate) environment: Environment,
    /// Kernel image, where it is not the distribution's.
    pub(crate) kernel: Option<PathBuf>,
    /// Modules of that kernel.
    pub(crate) kernel_modules: Option<PathBuf>,
    /// Template, where it is not the agent's own: a name, or the path of an archive or disk image.
    pub(crate) template: Option<String>,
    /// The QEMU program, where it is not looked for.
    pub(crate) qemu: Option<PathBuf>,
    /// Time without activity after which new sandboxes stop.
    pub(crate) idle_timeout: IdleTime,
    /// Seconds that a start may take, where that is not the keeper's own choice.
    pub(crate) boot_timeout: Option<IdleTime>,
    /// Whether sandboxes are resumed from a snapshot.
    pub(crate) start: StartMode,
    /// Space for snapshots.
    pub(crate) snapshots: ByteSize,
    /// Key sequence that leaves a session, where it is not the usual one.
    pub(crate) detach_keys: Option<String>,
    /// Who the user is.
    pub(crate) user: UserSettings,
    /// Colour is welcome.
    pub(crate) colour: bool,
    /// Set when the Docker CLI is our parent and tells us when to end.
    pub(crate) plugin_socket: Option<OsString>,
    accel: Accel,
    cpus: Option<CpuCount>,
    memory: Option<ByteSize>,
    disk: Option<ByteSize>,
    network: NetworkConfig,
    /// How registries of images are reached.
    pub(crate) registries: registries::RegistriesConfig,
}

/// Memory of a sandbox when nobody says anything, on a host that has enough.
const MEMORY_USUAL: ByteSize = ByteSize::gib(4);
/// Least memory that a sandbox can be given.
const MEMORY_MIN: ByteSize = ByteSize::mib(256);
/// Most memory that a sandbox can be given.
const MEMORY_MAX: ByteSize = ByteSize::gib(1024);
/// Virtual CPUs of a sandbox when nobody says anything, on a host that has enough.
const CPUS_USUAL: u32 = 4;
/// Most virtual CPUs that a sandbox can be given.
const CPUS_MAX: u32 = 128;
/// Disk of a sandbox when nobody says anything.
const DISK_USUAL: ByteSize = ByteSize::gib(64);
/// Smallest disk that a sandbox can be given.
const DISK_MIN: ByteSize = ByteSize::gib(1);
/// Largest disk that a sandbox can be given: ext4 with blocks of 4 KiB.
const DISK_MAX: ByteSize = ByteSize::gib(16 * 1024);
/// Space for snapshots when nobody says anything: some 0.2 GiB each.
const SNAPSHOTS_USUAL: ByteSize = ByteSize::gib(8);
/// A sandbox that nobody uses stops after this time.
const IDLE_USUAL: IdleTime = IdleTime::minutes(30);

impl Settings {
    /// Reads the environment of this process and the configuration file that it leads to.
    pub(crate) fn read() -> Result<Self, Failure> {
        let environment = Environment::of_this_process();
        let layout = Self::layout(&environment)?;
        let agents = Agents::with_directory(&layout.config.join("agents"))
            .map_err(|error| agents::not_known(&error))?;
        let file = FileConfig::read(&layout.config.join("config.toml"), &agents)?;
        let executable = std::env::current_exe().map_err(|error| {
            Failure::host(format!("the running program cannot be found: {error}"))
        })?;
        Self::resolve(environment, layout, agents, file, &executable)
    }

    fn layout(environment: &Environment) -> Result<Layout, Failure> {
        let uid = rustix::process::geteuid().as_raw();
        Layout::resolve(&LayoutInputs {
            hutch_home: environment.path(HUTCH_HOME),
            hutch_images: environment.path(HUTCH_IMAGES),
            xdg_state_home: environment.path(XDG_STATE_HOME),
            xdg_runtime_dir: environment
                .path(XDG_RUNTIME_DIR)
                .filter(|path| is_runtime_dir(path, uid)),
            xdg_config_home: environment.path(XDG_CONFIG_HOME),
            home: environment.path(HOME),
            uid,
        })
        .map_err(|error| Failure::from_error(Blame::User, &error))
    }

    fn resolve(
        environment: Environment,
        layout: Layout,
        agents: Agents,
        file: FileConfig,
        executable: &Path,
    ) -> Result<Self, Failure> {
        let libexec = environment.path(HUTCH_LIBEXEC);
        Ok(Self {
            programs: Programs::new(libexec.as_deref(), executable),
            kernel: environment.path(HUTCH_KERNEL).or(file.kernel),
            kernel_modules: environment.path(HUTCH_KERNEL_MODULES).or(file.kernel_modules),
            template: environment.parsed(HUTCH_TEMPLATE)?.or(file.template),
            qemu: environment.path(HUTCH_QEMU).or(file.qemu),
            idle_timeout: environment
                .parsed(HUTCH_IDLE_TIMEOUT)?
                .or(file.idle_timeout)
                .unwrap_or(IDLE_USUAL),
            boot_timeout: environment.parsed(HUTCH_BOOT_TIMEOUT)?.or(file.boot_timeout),
            start: environment.parsed(HUTCH_START)?.or(file.start).unwrap_or_default(),
            snapshots: file.snapshots.unwrap_or(SNAPSHOTS_USUAL),
            detach_keys: file.detach_keys,
            user: UserSettings::new(&environment),
            colour: environment.filled(NO_COLOR).is_none(),
            plugin_socket: environment.filled(DOCKER_CLI_PLUGIN_SOCKET).map(OsStr::to_owned),
            accel: environment.parsed(HUTCH_ACCEL)?.or(file.accel).unwrap_or(Accel::Auto),
            cpus: environment.parsed(HUTCH_CPUS)?.or(file.cpus),
            memory: environment.parsed(HUTCH_MEMORY)?.or(file.memory),
            disk: environment.parsed(HUTCH_DISK)?.or(file.disk),
            network: file.network,
            agents,
            registries: file.registries,
            environment,
            layout,
        })
    }

    /// What runs a sandbox's machine, unless something else is chosen for it.
    pub(crate) fn accelerator(&self, chosen: Option<Accel>) -> AcceleratorRequest {
        chosen.unwrap_or(self.accel).into()
    }

    /// The template of a new sandbox.
    pub(crate) fn template_for<'a>(
        &'a self,
        agent: &'a AgentSpec,
        chosen: Option<&'a str>,
    ) -> &'a str {
        chosen.or(self.template.as_deref()).unwrap_or(&agent.template)
    }

    /// The machine of a new sandbox.
    pub(crate) fn machine(&self, flags: &MachineFlags) -> Result<Machine, Failure> {
        let cpus =
            flags.cpus.or(self.cpus).map_or_else(|| host_cpus().min(CPUS_USUAL), |count| count.0);
        if !(1..=CPUS_MAX).contains(&cpus) {
            return Err(Failure::user(format!("a sandbox has 1 to {CPUS_MAX} CPUs, not {cpus}")));
        }
        let memory = flags.memory.or(self.memory).unwrap_or_else(usual_memory);
        if !(MEMORY_MIN..=MEMORY_MAX).contains(&memory) {
            return Err(Failure::user(format!(
                "a sandbox has {MEMORY_MIN} to {MEMORY_MAX} of memory, not {memory}"
            )));
        }
        let disk = flags.disk.or(self.disk).unwrap_or(DISK_USUAL);
        if !(DISK_MIN..=DISK_MAX).contains(&disk) {
            return Err(Failure::user(format!(
                "a sandbox has a disk of {DISK_MIN} to {DISK_MAX}, not {disk}"
            )));
        }
        // Within the limit above, so it fits.
        let memory_mib = u32::try_from(memory.bytes() >> 20).unwrap_or(u32::MAX);
        Ok(Machine { cpus, memory_mib, disk_bytes: disk.bytes() })
    }
}

fn host_cpus() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX))
}

/// Half of what the host has, in steps, at most the usual amount.
fn usual_memory() -> ByteSize {
    let host = rustix::system::sysinfo();
    let bytes = u64::from(host.mem_unit).saturating_mul(host.totalram);
    let step = MEMORY_MIN.bytes();
    let half = (bytes / 2 / step).max(1) * step;
    ByteSize::mib(half >> 20).clamp(MEMORY_MIN, MEMORY_USUAL)
}

/// After `su` or `sudo` the variable may still name the directory of another user, or one that has gone.
fn is_runtime_dir(path: &Path, uid: u32) -> bool {
    path.metadata().is_ok_and(|found| found.is_dir() && found.uid() == uid)
}

#[cfg(test)]
mod tests;
