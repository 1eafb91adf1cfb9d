//! The programs that users run: optimised host programs, and the static init of the guest.

use std::path::PathBuf;

use crate::process::{cargo, release, run, target};

/// The programs that run on the host.
pub(crate) const HOST_PROGRAMS: [&str; 4] =
    ["hutch", "hutch-keeper", "hutch-workspace", "hutch-proxy"];

/// The program that runs in the guest.
pub(crate) const INIT: &str = "hutch-init";

/// Rust's name of the target of this machine's guests: the host's architecture, linked statically against glibc.
const GUEST_TARGET: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-unknown-linux-gnu"
} else {
    "x86_64-unknown-linux-gnu"
};

/// Builds everything that is installed.
pub(crate) fn build() -> anyhow::Result<()> {
    let mut host = cargo();
    host.args(["build", "--release", "--locked"]);
    for program in HOST_PROGRAMS {
        host.args(["--package", program]);
    }
    run(&mut host)?;
    build_static(INIT)
}

/// Builds a package's programs for the guest: static, because the guest's libraries are not the host's. `--target` keeps
/// the flag away from build scripts and procedural macros, which cannot be static.
pub(crate) fn build_static(package: &str) -> anyhow::Result<()> {
    run(cargo().env("RUSTFLAGS", "-C target-feature=+crt-static").args([
        "build",
        "--release",
        "--locked",
        "--bins",
        "--package",
        package,
        "--target",
        GUEST_TARGET,
    ]))
}

/// Where a program of the guest is after [`build_static`].
pub(crate) fn built_static(program: &str) -> PathBuf {
    target().join(GUEST_TARGET).join("release").join(program)
}

/// Where a program of [`HOST_PROGRAMS`] or [`INIT`] is after [`build`].
pub(crate) fn built(program: &str) -> PathBuf {
    if program == INIT { built_static(program) } else { release().join(program) }
}
