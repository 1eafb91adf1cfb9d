//! Loads the kernel modules that the initramfs brings.
//!
//! `/lib/modules/hutch.order` lists what every boot needs, `network.order` what the network needs, `later.order` what
//! some need, each one file name a line after all those it depends on. What is needed later the kernel asks for itself
//! ([`asked`]), mostly by another name, which `aliases` knows. A module that does not load is a line in the log:
//! whether the sandbox can do without shows later, in an error that says what is missing.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::log;
use crate::network::{self, Prepared};
use crate::stages::Stages;

const DIRECTORY: &str = "/lib/modules";
const BOOT: &str = "hutch.order";
const NETWORK: &str = "network.order";
const LATER: &str = "later.order";
const ALIASES: &str = "aliases";
/// Names the program that the kernel runs to ask for a module.
const ASKER: &str = "/proc/sys/kernel/modprobe";
/// How the kernel calls the program that it asks.
pub(crate) const ASKED: [&str; 2] = ["-q", "--"];
/// Where a module names those it depends on, in its `.modinfo` section.
const DEPENDS: &[u8] = b"\0depends=";

/// The loading of what every boot needs, in the background: nobody needs a disk before the host asks for one.
#[derive(Debug)]
pub(crate) struct Loading {
    disks: Mutex<Option<JoinHandle<()>>>,
    network: Mutex<Option<JoinHandle<Option<Prepared>>>>,
    prepared: Mutex<Option<Prepared>>,
}

impl Loading {
    /// Starts loading.
    pub(crate) fn start() -> Self {
        Self {
            disks: Mutex::new(Some(thread::spawn(load_boot))),
            network: Mutex::new(Some(thread::spawn(network))),
            prepared: Mutex::new(None),
        }
    }

    /// Waits until everything that the disks need is loaded.
    pub(crate) fn finish(&self) {
        join(&self.disks);
    }

    /// Waits until the network is prepared, or cannot be.
    pub(crate) fn finish_network(&self) {
        if let Some(prepared) = join(&self.network).flatten() {
            *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared);
        }
    }

    /// Waits for the prepared network and takes it. `None` when there is none, or it was taken before.
    pub(crate) fn network(&self) -> Option<Prepared> {
        self.finish_network();
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn join<T>(thread: &Mutex<Option<JoinHandle<T>>>) -> Option<T> {
    let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take()?;
    thread.join().map_err(|_| log::warn("loading kernel modules failed")).ok()
}

/// Loads what the network needs and makes it.
fn network() -> Option<Prepared> {
    let mut stages = Stages::start();
    load_list(NETWORK);
    stages.mark("modules");
    let prepared = Prepared::make(network::DRIVER)
        .map_err(|error| log::warn(format!("no network: {error}")))
        .ok()?;
    stages.mark("rules");
    log::info(format!("network prepared; {stages}"));
    Some(prepared)
}

/// Has the kernel ask this program for modules. It passes [`ASKED`] and a name.
pub(crate) fn answer_kernel() {
    let asker = fs::OpenOptions::new().write(true).open(ASKER);
    // A kernel without the setting asks nobody.
    if let Err(error) = asker.and_then(|mut file| file.write_all(b"/init")) {
        log::info(format!("the kernel will not ask for modules: {error}"));
    }
}

/// Loads the module that the kernel asks for by this name or alias.
pub(crate) fn asked(name: &str) {
    let aliases = fs::read_to_string(Path::new(DIRECTORY).join(ALIASES)).unwrap_or_default();
    load_later(&meant(name, &aliases));
}

/// The module that has this name or alias.
fn meant(name: &str, aliases: &str) -> String {
    let wanted = normal(name);
    aliases
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(alias, _)| normal(alias) == wanted)
        .and_then(|(_, file)| file.strip_suffix(".ko"))
        .unwrap_or(&wanted)
        .to_owned()
}

fn load_list(list: &str) {
    let directory = Path::new(DIRECTORY);
    let list = fs::read_to_string(directory.join(list)).unwrap_or_default();
    for file in parse_order(&list) {
        load(directory, file);
    }
}

fn load_boot() {
    let directory = Path::new(DIRECTORY);
    let list = match fs::read_to_string(directory.join(BOOT)) {
        Ok(list) => list,
        Err(error) => return log::info(format!("no kernel modules: {error}")),
    };
    let mut stages = Stages::start();
    let files: Vec<&str> = parse_order(&list).collect();
    // The driver of the disks comes first. It takes as long as all others together, because it looks at each disk, and
    // the others hardly ever need it; one that does is tried again.
    let again = match files.split_first() {
        None => Vec::new(),
        Some((first, rest)) => thread::scope(|scope| {
            scope.spawn(|| load(directory, first));
            rest.iter().filter(|file| try_load(directory, file).is_err()).collect()
        }),
    };
    for file in again {
        load(directory, file);
    }
    stages.mark("kernel modules");
    log::info(format!("loaded {}: {stages}", files.join(" ")));
}

/// Loads one of the modules for later and what it depends on; does nothing when there is none of that name.
pub(crate) fn load_later(name: &str) {
    let directory = Path::new(DIRECTORY);
    let Ok(list) = fs::read_to_string(directory.join(LATER)) else { return };
    let needed = with_dependencies(name, |file| {
        let content = fs::read(directory.join(file)).unwrap_or_default();
        depends(&content).map(str::to_owned).collect()
    });
    for file in parse_order(&list) {
        if needed.contains(&normal(file)) {
            load(directory, file);
        }
    }
}

fn load(directory: &Path, file: &str) {
    if let Err(error) = try_load(directory, file) {
        log::warn(format!("kernel module {file} not loaded: {error}"));
    }
}

fn try_load(directory: &Path, file: &str) -> io::Result<()> {
    let module = File::open(directory.join(file))?;
    match finit_module(module, parameters(file), 0) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a module is told.
fn parameters(file: &str) -> &'static CStr {
    match file {
        // It makes an interface of its own otherwise, which nobody asked for.
        "dummy.ko" => c"numdummies=0",
        _ => c"",
    }
}

/// File names in a list: one a line; a comment starts with `#`; anything that is a path is not a file name.
fn parse_order(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.contains('/'))
}

/// Normal file names of a module and all below it.
fn with_dependencies(name: &str, depends: impl Fn(&str) -> Vec<String>) -> Vec<String> {
    let mut all = vec![normal(&format!("{name}.ko"))];
    let mut next = 0;
    while let Some(file) = all.get(next).cloned() {
        next += 1;
        for dependency in depends(&file) {
            let dependency = normal(&format!("{dependency}.ko"));
            if !all.contains(&dependency) {
                all.push(dependency);
            }
        }
    }
    all
}

/// What a module says it depends on.
fn depends(module: &[u8]) -> impl Iterator<Item = &str> {
    let list = module
        .windows(DEPENDS.len())
        .position(|window| window == DEPENDS)
        .and_then(|start| module.get(start + DEPENDS.len()..))
        .and_then(|rest| rest.split(|byte| *byte == 0).next())
        .and_then(|list| std::str::from_utf8(list).ok())
        .unwrap_or_default();
    list.split(',').filter(|name| !name.is_empty())
}

/// The kernel takes `-` and `_` in a module's name for the same.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_keeps_lines_and_drops_what_is_no_file_name() {
        let list = "# kernel 6.12\nvirtio_blk.ko\n\n  lz4.ko \n../evil.ko\nerofs.ko";
        assert_eq!(parse_order(list).collect::<Vec<_>>(), ["virtio_blk.ko", "lz4.ko", "erofs.ko"]);
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"\x7fELF..\0license=GPL\0depends=lz4-a,xx\0name=y\0";
        assert_eq!(depends(module).collect::<Vec<_>>(), ["lz4-a", "xx"]);
        assert_eq!(depends(b"\0depends=\0").count(), 0);
        assert_eq!(depends(b"nothing").count(), 0);
        assert_eq!(depends(b"\0depends=cut").collect::<Vec<_>>(), ["cut"]);
    }

    #[test]
    fn the_kernel_may_ask_by_alias_or_name() {
        let aliases = "rtnl-link-veth veth.ko\nipt_mark xt_mark.ko\nfs-squashfs squashfs.ko\n";
        assert_eq!(meant("rtnl-link-veth", aliases), "veth");
        assert_eq!(meant("ipt-mark", aliases), "xt_mark");
        assert_eq!(meant("br-netfilter", aliases), "br_netfilter");
        assert_eq!(meant("x", ""), "x");
    }

    #[test]
    fn all_levels_of_dependencies_are_needed_once() {
        let below = |file: &str| match file {
            "a.ko" => vec!["b-b".to_owned(), "c".to_owned()],
            "b_b.ko" => vec!["c".to_owned(), "a".to_owned()],
            _ => Vec::new(),
        };
        assert_eq!(with_dependencies("a", below), ["a.ko", "b_b.ko", "c.ko"]);
    }
}
