//! PID 1 of the guest: from a booted kernel to a sandbox that runs sessions, and back to a clean power-off.
//!
//! ```text
//!   boot       kernel file systems, kernel modules, the ports to the host
//!   serve      the channel: control, log and session streams
//!   attach     AttachSpec → disks, overlay, identity, workspaces, container
//!   power_off  end processes, unmount in order, power off
//! ```
//!
//! Nothing before `attach` depends on the sandbox: a VM may be saved at that point and resumed as any sandbox of the
//! same template. Invariant: init never ends. What it cannot go on from is logged, said on the console, and followed by
//! a power-off.

pub mod container;
pub mod engine;
pub mod log;
pub mod network;
pub mod port;
pub mod reaper;
pub mod session;
pub mod workspace;

mod attach;
mod boot;
mod changes;
mod clock;
mod devices;
mod disks;
mod home;
mod identity;
mod loopback;
mod modules;
mod power_off;
mod pty;
mod root;
mod seeds;
mod serve;
mod stages;
mod sys;
mod tools;
mod trust;
mod workspaces;

pub use boot::run;

/// Runs as the program that the kernel asks for a module.
pub fn kernel_asks(arguments: &[std::ffi::OsString]) -> std::process::ExitCode {
    let [q, dashes, name] = arguments else { return std::process::ExitCode::FAILURE };
    match name.to_str() {
        Some(name) if [q, dashes] == modules::ASKED => modules::asked(name),
        _ => return std::process::ExitCode::FAILURE,
    }
    std::process::ExitCode::SUCCESS
}
