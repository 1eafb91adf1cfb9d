//! Which kernel modules the guest gets, and in which order they can be loaded.
//!
//! The order comes from the modules themselves (`depends=` in `.modinfo`), because the kernel's package has no
//! `modules.dep`: that file is made when the package is installed, which never happens here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use object::{Object as _, ObjectSection as _};

/// Loaded by init before anything else: the template disk, its file system, the overlay on it, and entropy.
pub(crate) const BOOT: &[&str] = &["virtio_blk", "erofs", "overlay", "virtio-rng"];

/// Loaded by init at boot, after those: the interface that everything leaves by, and what its packet rules are made of.
pub(crate) const NETWORK: &[&str] =
    &["dummy", "nf_tables", "nft_chain_nat", "nft_nat", "nft_fib_inet", "nft_reject_inet"];

/// Loaded by init when something needs them, or when the kernel asks for them: other template formats, the container
/// engine.
pub(crate) const LATER: &[&str] = &[
    "squashfs",
    "loop",
    "binfmt_misc",
    "tun",
    "veth",
    "bridge",
    "br_netfilter",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_compat",
    "nft_ct",
    "nft_hash",
    "nft_limit",
    "nft_log",
    "nft_masq",
    "nft_numgen",
    "nft_redir",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_socket",
    "nft_tproxy",
    "ip_tables",
    "iptable_filter",
    "iptable_nat",
    "ip6_tables",
    "ip6table_filter",
    "ip6table_nat",
    "ipt_REJECT",
    "ip6t_REJECT",
    "xt_CT",
    "xt_LOG",
    "xt_MASQUERADE",
    "xt_REDIRECT",
    "xt_TCPMSS",
    "xt_addrtype",
    "xt_comment",
    "xt_connmark",
    "xt_conntrack",
    "xt_limit",
    "xt_mark",
    "xt_multiport",
    "xt_nat",
    "xt_owner",
    "xt_physdev",
    "xt_recent",
    "xt_state",
    "xt_statistic",
    "xt_tcpudp",
];

/// A module larger than this is not one.
const MAX_MODULE: u64 = 64 << 20;

/// Why the modules cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A directory or file cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file does not have the format of a module.
    #[error("{} is not a kernel module", path.display())]
    NotAModule {
        /// The file.
        path: PathBuf,
    },
    /// A module depends on one that is neither there nor built into the kernel.
    #[error("kernel module {module} needs {missing}, which is not in {}", directory.display())]
    MissingDependency {
        /// The module that cannot be loaded.
        module: String,
        /// What it needs.
        missing: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// Modules that depend on each other cannot be loaded in any order.
    #[error("kernel module {module} depends on itself")]
    Cycle {
        /// One of them.
        module: String,
    },
}

/// One module, decompressed.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    /// File name in the guest: `virtio_blk.ko`.
    pub(crate) file_name: String,
    /// The ELF object, ready to be loaded.
    pub(crate) content: Vec<u8>,
    /// Normal names of the modules that must be loaded before.
    depends: Vec<String>,
    /// Other names by which the kernel asks for it, patterns left out.
    pub(crate) aliases: Vec<String>,
}

/// The guest's modules, each list in an order in which they can be loaded.
#[derive(Debug, Default)]
pub(crate) struct ModuleSet {
    /// Needed to boot.
    pub(crate) boot: Vec<Module>,
    /// Needed for the network; can be loaded after all of `boot`.
    pub(crate) network: Vec<Module>,
    /// Can be loaded after all of both.
    pub(crate) later: Vec<Module>,
}

/// Collects [`BOOT`], [`NETWORK`] and [`LATER`] with all that they depend on from a `lib/modules/RELEASE` directory.
///
/// A name without a file is taken as built into the kernel: which drivers are modules is the distribution's choice.
pub(crate) fn collect(directory: &Path) -> Result<ModuleSet, ModulesError> {
    let available = find_modules(directory)?;
    let built_in = built_in_names(directory)?;
    let mut read = BTreeMap::new();
    let mut resolve = |wanted: &[&str], known: &BTreeSet<String>| {
        let mut names: Vec<String> = wanted.iter().map(|name| normal_name(name)).collect();
        names.retain(|name| available.contains_key(name));
        load_order(&names, known, &mut |name| {
            if !read.contains_key(name) {
                let Some(path) = available.get(name) else {
                    return Ok(built_in.contains(name).then(Vec::new));
                };
                read.insert(name.to_owned(), read_module(path)?);
            }
            Ok(read.get(name).map(|module: &Module| module.depends.clone()))
        })
        .map_err(|error| error.at(directory))
    };
    let boot = resolve(BOOT, &BTreeSet::new())?;
    let mut known: BTreeSet<String> = boot.iter().cloned().collect();
    let network = resolve(NETWORK, &known)?;
    known.extend(network.iter().cloned());
    let later = resolve(LATER, &known)?;
    // Built-in dependencies are in the order too, but have no file.
    let mut take = |names: Vec<String>| names.iter().filter_map(|name| read.remove(name)).collect();
    Ok(ModuleSet { boot: take(boot), network: take(network), later: take(later) })
}

/// Why there is no order, before it is known which directory it is about.
#[derive(Debug)]
enum OrderError {
    Missing { module: String, missing: String },
    Cycle { module: String },
    Read(ModulesError),
}

impl OrderError {
    fn at(self, directory: &Path) -> ModulesError {
        match self {
            Self::Missing { module, missing } => {
                ModulesError::MissingDependency { module, missing, directory: directory.to_owned() }
            }
            Self::Cycle { module } => ModulesError::Cycle { module },
            Self::Read(error) => error,
        }
    }
}

impl From<ModulesError> for OrderError {
    fn from(error: ModulesError) -> Self {
        Self::Read(error)
    }
}

/// Ends a module that has a signature; what is before it tells how long that is (scripts/sign-file.c of the kernel).
const SIGNATURE_END: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_INFO: usize = 12;

impl Module {
    /// Removes the distribution's signature, which costs the guest a hash and an RSA operation at each load.
    ///
    /// The package that the module came in was checked as a whole, and a kernel that does not insist on signatures only
    /// notes that there was none.
    pub(crate) fn strip_signature(&mut self) {
        let Some(body) = self.content.strip_suffix(SIGNATURE_END) else { return };
        let Some((body, info)) = body.split_last_chunk::<SIGNATURE_INFO>() else { return };
        let [.., a, b, c, d] = *info;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if let Some(end) = body.len().checked_sub(length) {
            self.content.truncate(end);
        }
    }
}

/// Tells the direct dependencies of a module, or `None` when there is no such module.
type Depends<'a> = dyn FnMut(&str) -> Result<Option<Vec<String>>, OrderError> + 'a;

/// Orders `wanted` and everything below it so that each name comes after what it depends on, without what is in `known`.
fn load_order(
    wanted: &[String],
    known: &BTreeSet<String>,
    depends: &mut Depends<'_>,
) -> Result<Vec<String>, OrderError> {
    enum Visit {
        Enter { name: String, needed_by: String },
        Leave(String),
    }
    let mut order = Vec::new();
    let mut done = known.clone();
    let mut open = BTreeSet::new();
    let mut stack: Vec<Visit> = wanted
        .iter()
        .rev()
        .map(|name| Visit::Enter { name: name.clone(), needed_by: name.clone() })
        .collect();
    while let Some(visit) = stack.pop() {
        match visit {
            Visit::Leave(name) => {
                open.remove(&name);
                done.insert(name.clone());
                order.push(name);
            }
            Visit::Enter { name, .. } if done.contains(&name) => {}
            Visit::Enter { name, needed_by } => {
                if !open.insert(name.clone()) {
                    return Err(OrderError::Cycle { module: name });
                }
                let Some(below) = depends(&name)? else {
                    return Err(OrderError::Missing { module: needed_by, missing: name });
                };
                stack.push(Visit::Leave(name.clone()));
                stack.extend(
                    below.into_iter().rev().map(|dependency| Visit::Enter {
                        name: dependency,
                        needed_by: name.clone(),
                    }),
                );
            }
        }
    }
    Ok(order)
}

/// One spelling for a module: the kernel takes `-` and `_` for the same.
fn normal_name(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name in a file name: `virtio_blk` of `virtio_blk.ko.xz`.
fn module_stem(file_name: &str) -> Option<&str> {
    let (stem, rest) = file_name.split_once(".ko")?;
    matches!(rest, "" | ".xz" | ".zst" | ".gz").then_some(stem)
}

fn find_modules(directory: &Path) -> Result<BTreeMap<String, PathBuf>, ModulesError> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        let failed = |source| ModulesError::Read { path: path.clone(), source };
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if let Some(stem) = entry.file_name().to_str().and_then(module_stem) {
                found.insert(normal_name(stem), entry.path());
            }
        }
    }
    Ok(found)
}

/// Names of what is in the kernel itself; without the list, nothing is known to be.
fn built_in_names(directory: &Path) -> Result<BTreeSet<String>, ModulesError> {
    let path = directory.join("modules.builtin");
    let list = match fs::read_to_string(&path) {
        Ok(list) => list,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(source) => return Err(ModulesError::Read { path, source }),
    };
    Ok(list
        .lines()
        .filter_map(|line| module_stem(line.rsplit('/').next().unwrap_or(line)))
        .map(normal_name)
        .collect())
}

fn read_module(path: &Path) -> Result<Module, ModulesError> {
    let failed = |source| ModulesError::Read { path: path.to_owned(), source };
    let packed = fs::read(path).map_err(failed)?;
    let stream: Box<dyn Read + '_> = match path.extension().and_then(|extension| extension.to_str())
    {
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(&packed[..])),
        Some("zst") => Box::new(zstd::stream::read::Decoder::new(&packed[..]).map_err(failed)?),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(&packed[..])),
        _ => Box::new(&packed[..]),
    };
    let mut content = Vec::new();
    stream.take(MAX_MODULE).read_to_end(&mut content).map_err(failed)?;
    let not_a_module = || ModulesError::NotAModule { path: path.to_owned() };
    let file_name = path.file_name().and_then(|name| name.to_str()).and_then(module_stem);
    let depends = read_depends(&content).ok_or_else(not_a_module)?;
    let aliases = read_aliases(&content);
    Ok(Module {
        file_name: format!("{}.ko", file_name.ok_or_else(not_a_module)?),
        content,
        depends,
        aliases,
    })
}

/// Reads `depends=a,b` of the `.modinfo` section.
fn read_depends(module: &[u8]) -> Option<Vec<String>> {
    let list = read_info(module, "depends=")?.into_iter().next()?;
    Some(list.split(',').filter(|name| !name.is_empty()).map(normal_name).collect())
}

/// Reads each `alias=name` of the `.modinfo` section. Patterns are for devices, which no module here is found by.
fn read_aliases(module: &[u8]) -> Vec<String> {
    let plain = |alias: &String| {
        !alias.is_empty() && !alias.contains(|c: char| "*?[".contains(c) || c.is_whitespace())
    };
    read_info(module, "alias=").unwrap_or_default().into_iter().filter(plain).collect()
}

/// The values of one kind in the `.modinfo` section: strings that each end with a zero byte.
fn read_info(module: &[u8], kind: &str) -> Option<Vec<String>> {
    let file = object::File::parse(module).ok()?;
    let info = file.section_by_name(".modinfo")?.data().ok()?;
    let values = info
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.strip_prefix(kind))
        .map(str::to_owned);
    Some(values.collect())
}

#[cfg(test)]
mod tests;
