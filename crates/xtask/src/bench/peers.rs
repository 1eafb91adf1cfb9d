//! What else isolates a program on this machine: a plain QEMU that boots the same image, bubblewrap, gVisor's `runsc`.
//!
//! Each is measured where it is installed (`scripts/setup bench`).

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::MEMORY_MIB;
use super::figures::{Figure, p50_and_p95};
use super::world::{Machine, World};
use crate::process::End;

/// Measures all that are there. `machine` is that of a running sandbox.
pub(crate) fn measure(
    world: &World,
    machine: &Machine,
    runs: usize,
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    eprintln!("==> plain QEMU");
    let boots = (0..runs.min(5)).map(|_| boot(world, machine)).collect::<Result<Vec<_>, _>>()?;
    let (p50, _) = p50_and_p95(boots);
    figures.push(Figure::time("plain QEMU, same image, to its init, p50", p50));
    let bubblewrap =
        ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--unshare-all", "true"];
    let gvisor = ["--rootless", "--network=none", "--ignore-cgroups", "do", "true"];
    for (name, program, arguments) in [
        ("bubblewrap", "/usr/bin/bwrap", &bubblewrap[..]),
        ("gVisor (runsc)", "/usr/bin/runsc", &gvisor[..]),
    ] {
        if !Path::new(program).exists() {
            eprintln!("==> {name} is not installed");
            continue;
        }
        eprintln!("==> {name}");
        let mut times = Vec::new();
        for _ in 0..runs {
            let mut command = world.command(Path::new(program));
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
            let started = Instant::now();
            let output = command.stderr(Stdio::piped()).output()?;
            times.push(started.elapsed());
            if !output.status.success() {
                bail!("{name} failed: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        let (p50, _) = p50_and_p95(times);
        figures.push(Figure::time(format!("{name}, new sandbox for true, p50"), p50));
    }
    Ok(figures)
}

/// Boots the image of the sandbox with what people write on QEMU's command line; until its init opens its port.
fn boot(world: &World, machine: &Machine) -> anyhow::Result<Duration> {
    let mut command = world.command(Path::new(machine.program()?));
    command
        .args(["-nodefaults", "-display", "none", "-machine", "q35", "-smp", "2"])
        .args(["-accel", machine.option("-accel")?.split(',').next().unwrap_or("tcg")])
        .args(["-cpu", machine.option("-cpu")?])
        .args(["-m", &format!("{MEMORY_MIB}M"), "-qmp", "stdio"])
        .args(["-append", "console=ttyS0", "-serial", "null"])
        .args(["-device", "virtio-serial-pci", "-chardev", "null,id=port"])
        .args(["-device", "virtserialport,id=channel,chardev=port,name=hutch.channel"]);
    for (option, file) in [("-kernel", "--kernel"), ("-initrd", "--initramfs")] {
        command.arg(option).arg(machine.file(file)?);
    }
    let started = Instant::now();
    let mut qemu = End(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let mut control = qemu.0.stdin.take().context("QEMU has no input")?;
    control.write_all(b"{\"execute\":\"qmp_capabilities\"}\n")?;
    for line in BufReader::new(qemu.0.stdout.take().context("QEMU has no output")?).lines() {
        let line = line?;
        if line.contains("VSERPORT_CHANGE") && line.contains("\"open\": true") {
            return Ok(started.elapsed());
        }
    }
    bail!("QEMU ended before its guest was up: {}", qemu.0.wait()?)
}
