//! Boots a kernel and an initramfs through the trait and says when what happened; for measurements.
//!
//! `cargo run -p hutch-vmm --example boot -- KERNEL INITRAMFS [kvm|tcg] [KERNEL WORDS…]`
#![expect(clippy::print_stdout, reason = "an example talks to whoever runs it")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hutch_vmm::{Accelerator, Qemu, VmSpec, Vmm as _};
use tokio::io::AsyncReadExt as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut file = || arguments.next().map(PathBuf::from).ok_or("KERNEL and INITRAMFS are needed");
    let (kernel, initramfs) = (file()?, file()?);
    let accelerator = match arguments.next().as_deref() {
        Some("kvm") => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    };
    let scratch = tempfile::tempdir()?;
    let qemu = Qemu::discover(None)?;
    let started = Instant::now();
    let mut vm = qemu
        .start(VmSpec {
            accelerator,
            cpus: 2,
            memory_mib: 1024,
            memory: hutch_vmm::Memory::Anonymous,
            kernel,
            initramfs,
            kernel_arguments: arguments.collect(),
            disks: Vec::new(),
            ports: vec!["hutch.channel".to_owned(), "hutch.workspace".to_owned()],
            serial_log: scratch.path().join("serial.log"),
            vmm_log: scratch.path().join("vmm.log"),
            scratch: scratch.path().to_owned(),
        })
        .await?;
    println!(
        "QEMU {} runs the guest after {:?}; not held: {:?}",
        qemu.version(),
        started.elapsed(),
        vm.weaknesses()
    );
    if let Some(mut port) = vm.take_ports().remove("hutch.channel") {
        let mut first = [0];
        tokio::select! {
            read = port.read(&mut first) => println!("{:?} on the channel after {:?}", read, started.elapsed()),
            end = vm.wait() => println!("{end:?} after {:?}", started.elapsed()),
        }
    }
    if let Ok(end) = tokio::time::timeout(Duration::from_secs(2), vm.wait()).await {
        println!("by itself: {end:?} after {:?}", started.elapsed());
    }
    println!("{}", String::from_utf8_lossy(&std::fs::read(scratch.path().join("serial.log"))?));
    vm.kill();
    println!("{:?} after {:?}", vm.wait().await, started.elapsed());
    Ok(())
}
