//! The same machine with virtio-fs instead of our workspace: QEMU's own daemon on a shared memory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::bench::world::{Machine, World};
use crate::bench::{MEMORY_MIB, Rows, Task, parse_rows};
use crate::process::{End, command};

/// How long the whole measurement may take.
const LIMIT: Duration = Duration::from_secs(900);

/// Boots the machine and gives the rows that it printed.
pub(crate) fn measure(
    world: &World,
    machine: &Machine,
    share: &Path,
    task: &Task,
) -> anyhow::Result<Rows> {
    let initramfs = initramfs(world, machine)?;
    let socket = world.path("virtiofs.sock");
    let mut daemon = End(daemon(&socket, share)?.spawn().context("cannot run virtiofsd")?);
    wait_until("virtiofsd listens", Duration::from_secs(10), || Ok(socket.exists()))?;
    let console = world.path("console");
    let mut vmm = End(vmm(machine, &initramfs, &socket, &console, task)?
        .spawn()
        .context("cannot run QEMU")?);
    wait_until("the guest has measured", LIMIT, || Ok(vmm.0.try_wait()?.is_some()))?;
    daemon.0.kill()?;
    let printed = fs::read(&console)?;
    parse_rows(&String::from_utf8_lossy(&printed))
}

/// Hutch's initramfs with `workspace-bench` as its init: of two archives in a row the later one wins.
fn initramfs(world: &World, machine: &Machine) -> anyhow::Result<PathBuf> {
    let directory = world.path("initramfs");
    fs::create_dir(&directory)?;
    fs::copy(world.guest_program("workspace-bench"), directory.join("init"))?;
    let second = world.path("second.cpio");
    let mut cpio = command("cpio");
    cpio.args(["--create", "--format=newc", "--quiet"])
        .current_dir(&directory)
        .stdin(Stdio::piped());
    cpio.stdout(File::create(&second)?);
    let mut cpio = cpio.spawn().context("cannot run cpio")?;
    io::Write::write_all(&mut cpio.stdin.take().context("cpio has no input")?, b"init\n")?;
    if !cpio.wait()?.success() {
        bail!("cpio failed");
    }
    let whole = world.path("whole.cpio");
    let mut target = File::create(&whole)?;
    io::copy(&mut File::open(machine.file("--initramfs")?)?, &mut target)?;
    io::copy(&mut File::open(&second)?, &mut target)?;
    Ok(whole)
}

/// The distribution's daemon with its default settings: the C one of QEMU 7, or the Rust one that replaced it.
fn daemon(socket: &Path, share: &Path) -> anyhow::Result<Command> {
    let (old, new) = (Path::new("/usr/lib/qemu/virtiofsd"), Path::new("/usr/libexec/virtiofsd"));
    let mut path = std::ffi::OsString::from("--socket-path=");
    path.push(socket);
    let mut daemon;
    if old.exists() {
        let mut source = std::ffi::OsString::from("source=");
        source.push(share);
        daemon = command(old);
        daemon.arg(path).arg("-o").arg(source);
    } else if new.exists() {
        daemon = command(new);
        daemon.arg(path).arg("--shared-dir").arg(share);
    } else {
        bail!("no virtiofsd is installed");
    }
    daemon.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(daemon)
}

fn vmm(
    machine: &Machine,
    initramfs: &Path,
    socket: &Path,
    console: &Path,
    task: &Task,
) -> anyhow::Result<Command> {
    let mut vmm = command(machine.program()?);
    vmm.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    for option in ["-machine", "-accel", "-cpu", "-smp"] {
        vmm.args([option, machine.option(option)?]);
    }
    vmm.args(["-m", &format!("{MEMORY_MIB}M")]);
    vmm.args(["-object", &format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on")]);
    vmm.args(["-chardev", &format!("socket,id=share,path={}", socket.display())]);
    vmm.args(["-device", "vhost-user-fs-pci,chardev=share,tag=workspace,queue-size=1024"]);
    let template = machine.file("--template-layer")?;
    vmm.args([
        "-drive",
        &format!("if=none,id=template,format=raw,readonly=on,file={}", template.display()),
    ]);
    vmm.args(["-device", "virtio-blk-pci,drive=template"]);
    vmm.args(["-serial", &format!("file:{}", console.display())]);
    vmm.arg("-kernel").arg(machine.file("--kernel")?).arg("-initrd").arg(initramfs);
    vmm.arg("-append").arg(format!(
        "{} scale={} groups={}",
        machine.option("-append")?,
        task.scale,
        task.groups.join(",")
    ));
    vmm.stdin(Stdio::null());
    Ok(vmm)
}

fn wait_until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    while !condition()? {
        if started.elapsed() > limit {
            bail!("within {limit:?} it did not happen that {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
