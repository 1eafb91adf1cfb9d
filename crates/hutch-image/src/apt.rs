//! The host's own package client, used without root and without touching what it knows.
//!
//! The mirror, its proxy and its credentials are the machine's configuration; lists, caches and the suite are ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{CacheError, write_file};
use crate::tool::{ToolError, Toolbox};

/// The Debian release that guests run.
pub(crate) const SUITE: &str = "trixie";

/// Package that has `apt-get` and `apt-cache`.
const PACKAGE: &str = "apt";

/// Keys of the Debian archive, in the package `debian-archive-keyring`, by the names of its versions.
const KEYRINGS: &[&str] = &[
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// Why packages cannot be fetched.
#[derive(Debug, thiserror::Error)]
pub enum AptError {
    /// A tool failed or is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A file of ours cannot be written.
    #[error(transparent)]
    File(#[from] CacheError),
    /// The machine's package sources name no Debian archive.
    #[error("no Debian archive among this machine's package sources")]
    NoMirror,
    /// The keys to check packages with are not installed.
    #[error("no keys of the Debian archive (they are in the package debian-archive-keyring)")]
    NoKeyring,
    /// The archive does not have what we need.
    #[error("the package {package} is not in {SUITE}")]
    NoPackage {
        /// The package.
        package: String,
    },
}

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirrors {
    /// The Debian archive.
    pub(crate) main: String,
    /// The archive of security updates, if the machine has one.
    pub(crate) security: Option<String>,
    /// Keys that both are signed with.
    pub(crate) keyring: PathBuf,
}

impl Mirrors {
    /// The lines of a `sources.list` for [`SUITE`].
    pub(crate) fn sources(&self) -> Vec<String> {
        let line = |options: &str, site: &str, suite: &str| {
            format!("deb [{options}signed-by={}] {site} {suite} main", self.keyring.display())
        };
        let mut lines = vec![line("", &self.main, SUITE)];
        if let Some(security) = &self.security {
            lines.push(line("", security, &format!("{SUITE}-security")));
        }
        lines
    }
}

/// Reads the mirrors from the machine's configuration; `chosen` replaces the main archive.
pub(crate) fn mirrors(tools: &Toolbox, chosen: Option<&str>) -> Result<Mirrors, AptError> {
    let keyring = KEYRINGS.iter().map(PathBuf::from).find(|path| path.exists());
    let keyring = keyring.ok_or(AptError::NoKeyring)?;
    if let Some(main) = chosen {
        return Ok(Mirrors { main: main.to_owned(), security: None, keyring });
    }
    let format = "$(SITE)|$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(RELEASE)";
    let output = tools
        .tool("apt-get", PACKAGE)
        .args(["indextargets", "--format", format, "Created-By: Packages"])
        .output()?;
    let (main, security) = choose_mirrors(&output).ok_or(AptError::NoMirror)?;
    Ok(Mirrors { main, security, keyring })
}

/// The proxies that the machine's apt uses, as the variables that other programs know them by.
///
/// mmdebstrap's apt does not read the machine's configuration.
pub(crate) fn proxies(tools: &Toolbox) -> Result<Vec<(String, String)>, AptError> {
    Ok(parse_proxies(&tools.tool("apt-config", PACKAGE).arg("dump").output()?))
}

fn parse_proxies(dump: &str) -> Vec<(String, String)> {
    let value = |scheme: &str| {
        let name = format!("Acquire::{scheme}::Proxy \"");
        let is_name =
            |line: &str| line.get(..name.len())?.eq_ignore_ascii_case(&name).then_some(());
        dump.lines().find_map(|line| {
            is_name(line)?;
            line.get(name.len()..)?.strip_suffix("\";")
        })
    };
    ["http", "https"]
        .iter()
        .filter_map(|scheme| Some((format!("{scheme}_proxy"), value(scheme)?.to_owned())))
        .filter(|(_, proxy)| !proxy.is_empty() && proxy != "DIRECT")
        .collect()
}

/// Picks the main and the security archive out of lines `site|origin|label|component|release`.
///
/// The origin and the label are known only after the machine fetched its lists once; before that the names of Debian's
/// releases tell its archive from others.
fn choose_mirrors(targets: &str) -> Option<(String, Option<String>)> {
    const RELEASES: &[&str] = &[
        "bullseye",
        "bookworm",
        "trixie",
        "forky",
        "duke",
        "sid",
        "oldoldstable",
        "oldstable",
        "stable",
        "testing",
        "unstable",
    ];
    let mut main = BTreeMap::new();
    let mut security = BTreeMap::new();
    for (position, line) in targets.lines().enumerate() {
        let fields: Vec<&str> = line.split('|').collect();
        let [site, origin, label, "main", release] = fields[..] else { continue };
        // Discs and local directories are not archives that have another release too.
        if !["http://", "https://", "mirror+"].iter().any(|scheme| site.starts_with(scheme)) {
            continue;
        }
        let named = !origin.is_empty() && !origin.starts_with("$(");
        let (base, pocket) = release.split_once(['-', '/']).unwrap_or((release, ""));
        let debian = if named { origin == "Debian" } else { RELEASES.contains(&base) };
        let chosen = match (debian, pocket) {
            (true, "") if !named || label == "Debian" => &mut main,
            (true, "security") => &mut security,
            _ => continue,
        };
        let (count, _) = chosen.entry(site.to_owned()).or_insert((0_usize, position));
        *count += 1;
    }
    // The most used one; of equals the one that the machine asks first.
    let best = |sites: BTreeMap<String, (usize, usize)>| {
        sites
            .into_iter()
            .max_by_key(|(_, (count, position))| (*count, std::cmp::Reverse(*position)))
            .map(|(site, _)| site)
    };
    Some((best(main)?, best(security)))
}

/// A package client with lists and caches of its own.
#[derive(Debug)]
pub(crate) struct Apt<'a> {
    tools: &'a Toolbox,
    directory: PathBuf,
}

/// What the archive says about a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// Size of the file to download.
    pub(crate) size: u64,
    /// SHA-256 of that file.
    pub(crate) sha256: String,
    /// Its dependencies, as written.
    depends: String,
}

impl Package {
    /// The first dependency whose name starts with `prefix`.
    pub(crate) fn dependency(&self, prefix: &str) -> Option<&str> {
        self.depends
            .split([',', '|'])
            .filter_map(|dependency| dependency.split_whitespace().next())
            .find(|name| name.starts_with(prefix))
    }
}

impl<'a> Apt<'a> {
    /// Prepares the client's directories below `directory`.
    pub(crate) fn new(
        tools: &'a Toolbox,
        directory: &Path,
        mirrors: &Mirrors,
    ) -> Result<Self, AptError> {
        for name in ["lists/partial", "cache/archives/partial"] {
            let path = directory.join(name);
            fs::create_dir_all(&path).map_err(CacheError::io("create", &path))?;
        }
        write_file(&directory.join("status"), b"")?;
        let mut sources = mirrors.sources().join("\n");
        sources.push('\n');
        // Only the packages: the machine may want descriptions, icons and contents for its own use.
        let sources = sources.replace("deb [", "deb [target=Packages ");
        write_file(&directory.join("sources.list"), sources.as_bytes())?;
        // Hooks of the machine would work on its own cache, which is none of our business.
        let hooks = [
            "APT::Update::Pre-Invoke",
            "APT::Update::Post-Invoke",
            "APT::Update::Post-Invoke-Success",
        ];
        let clear: String = hooks.iter().map(|hook| format!("#clear {hook};\n")).collect();
        write_file(&directory.join("apt.conf"), clear.as_bytes())?;
        Ok(Self { tools, directory: directory.to_owned() })
    }

    fn tool(&self, program: &str) -> crate::tool::Tool<'_> {
        let option = |name: &str, value: &str| {
            ["-o".to_owned(), format!("{name}={}", self.directory.join(value).display())]
        };
        self.tools
            .tool(program, PACKAGE)
            .arg("-c")
            .arg(self.directory.join("apt.conf"))
            .args(option("Dir::State", ""))
            .args(option("Dir::State::lists", "lists"))
            .args(option("Dir::State::status", "status"))
            .args(option("Dir::Cache", "cache"))
            .args(option("Dir::Etc::sourcelist", "sources.list"))
            .args(option("Dir::Etc::sourceparts", "none"))
            .args(["-o", "Acquire::Languages=none", "-o", "APT::Status-Fd=1"])
            // Root's apt would drop to a user who cannot enter a private directory.
            .args(["-o", "APT::Sandbox::User="])
            .args(["-o", "Dpkg::Use-Pty=0", "-q"])
            .current_dir(&self.directory)
    }

    /// Fetches the lists of packages; `on_percent` hears how far that is.
    pub(crate) fn update(&self, on_percent: &mut dyn FnMut(f64)) -> Result<(), AptError> {
        Ok(self
            .tool("apt-get")
            // Without this a list that cannot be fetched is only a warning.
            .args(["-o", "APT::Update::Error-Mode=any", "update"])
            .run(&mut |line| download_percent(line).into_iter().for_each(&mut *on_percent))?)
    }

    /// Looks a package up.
    pub(crate) fn show(&self, name: &str) -> Result<Package, AptError> {
        let missing = || AptError::NoPackage { package: name.to_owned() };
        let output =
            self.tool("apt-cache").args(["--no-all-versions", "show", name]).output().map_err(
                |error| match error {
                    ToolError::Failed { .. } => missing(),
                    other => other.into(),
                },
            )?;
        parse_package(&output).ok_or_else(missing)
    }

    /// Downloads a package and returns its file.
    pub(crate) fn download(
        &self,
        package: &Package,
        on_bytes: &mut dyn FnMut(u64),
    ) -> Result<PathBuf, AptError> {
        let exact = format!("{}={}", package.name, package.version);
        self.tool("apt-get").args(["download", &exact]).run(&mut |line| {
            if let Some(percent) = download_percent(line) {
                on_bytes(share(package.size, percent));
            }
        })?;
        let entries = fs::read_dir(&self.directory)
            .map_err(CacheError::io("list", &self.directory))?
            .filter_map(Result::ok)
            .map(|entry| entry.path());
        let mut files = entries.filter(|path| path.extension().is_some_and(|end| end == "deb"));
        files.next().ok_or(AptError::NoPackage { package: exact })
    }
}

/// `percent` of `total`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share for a progress bar, clamped before"
)]
pub(crate) fn share(total: u64, percent: f64) -> u64 {
    (total as f64 * percent.clamp(0.0, 100.0) / 100.0) as u64
}

/// The percentage of `dlstatus:FILE:PERCENT:TEXT`, a line of `APT::Status-Fd`.
pub(crate) fn download_percent(line: &str) -> Option<f64> {
    let mut fields = line.strip_prefix("dlstatus:")?.splitn(3, ':');
    fields.nth(1)?.parse().ok()
}

/// Reads the paragraph that `apt-cache show` prints.
fn parse_package(text: &str) -> Option<Package> {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        size: field("Size")?.parse().ok()?,
        sha256: field("SHA256")?,
        depends: field("Depends").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_and_security_archives_are_told_from_the_others() {
        let targets = "\
http://one.test/debian|Debian|Debian|main|bookworm
http://one.test/debian|Debian|Debian|contrib|bookworm
http://one.test/debian|Debian|Debian|main|bookworm-updates
http://one.test/security|Debian|Debian-Security|main|bookworm-security
https://packages.test/node||node|main|nodistro
https://packages.test/tool|Tool|Tool|main|bookworm
https://ports.test/x|Debian Backports|Debian Backports|main|bookworm-backports
";
        let (main, security) = choose_mirrors(targets).unwrap();
        assert_eq!(main, "http://one.test/debian");
        assert_eq!(security.as_deref(), Some("http://one.test/security"));
    }

    #[test]
    fn release_names_tell_before_the_first_update() {
        let targets = "\
https://packages.test/tool|$(ORIGIN)|$(LABEL)|main|focal
http://one.test/debian|$(ORIGIN)|$(LABEL)|main|trixie
http://one.test/debian-security|$(ORIGIN)|$(LABEL)|main|trixie-security
";
        let (main, security) = choose_mirrors(targets).unwrap();
        assert_eq!(main, "http://one.test/debian");
        assert_eq!(security.as_deref(), Some("http://one.test/debian-security"));
    }

    #[test]
    fn without_a_debian_archive_there_is_no_choice() {
        assert_eq!(choose_mirrors("http://x.test/ubuntu|Ubuntu|Ubuntu|main|noble\n"), None);
        assert_eq!(choose_mirrors("cdrom:[Debian]|Debian|Debian|main|trixie\n"), None);
        assert_eq!(choose_mirrors(""), None);
        assert_eq!(choose_mirrors("||||\n|\nx"), None);
    }

    #[test]
    fn the_most_used_mirror_wins_and_of_equals_the_first() {
        let line =
            |site: &str, release: &str| format!("http://{site}|Debian|Debian|main|{release}\n");
        let equal = line("b.test", "trixie") + &line("a.test", "trixie");
        assert_eq!(choose_mirrors(&equal).unwrap().0, "http://b.test");
        let more = equal + &line("a.test", "sid");
        assert_eq!(choose_mirrors(&more).unwrap().0, "http://a.test");
    }

    #[test]
    fn proxies_of_apt_become_variables() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://p.test:3128\";\nAcquire::https::proxy \"DIRECT\";\nAcquire::http::Proxy::one.test \"DIRECT\";\n";
        let expected = [("http_proxy".to_owned(), "http://p.test:3128".to_owned())];
        assert_eq!(parse_proxies(dump), expected);
        assert_eq!(parse_proxies("Acquire::http::Proxy \"\";\n"), []);
    }

    #[test]
    fn a_package_paragraph_is_read() {
        let text = "Package: linux-image-cloud-amd64\nVersion: 6.12-1\nDepends: linux-image-6.12-cloud-amd64 (= 6.12-1), x | y\nSize: 1480\nSHA256: ab\n";
        let package = parse_package(text).unwrap();
        assert_eq!(package.dependency("linux-image-"), Some("linux-image-6.12-cloud-amd64"));
        assert_eq!(package.dependency("y"), Some("y"));
        assert_eq!(package.dependency("z"), None);
        assert_eq!((package.size, package.version.as_str()), (1480, "6.12-1"));
        assert_eq!(parse_package("Package: x\nSize: many\n"), None);
    }

    #[test]
    fn download_progress_is_read_from_status_lines_only() {
        assert_eq!(download_percent("dlstatus:1:12.5:Retrieving file 1 of 2"), Some(12.5));
        assert_eq!(download_percent("dlstatus:1"), None);
        assert_eq!(download_percent("pmstatus:dpkg:50:x"), None);
        assert_eq!(share(200, 12.5), 25);
        assert_eq!(share(200, 1e9), 200);
    }
}
