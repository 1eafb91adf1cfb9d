//! PID 1 of the guest, and the sandbox's supervisor. Everything is in the library, so that its parts can be tested.

use std::ffi::OsString;
use std::process::ExitCode;

use hutch_init::{container, engine};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    // The kernel hands words of its command line that it does not know to PID 1, so only others look at arguments.
    if rustix::process::getpid().is_init() {
        hutch_init::run()
    }
    if let Some(done) = engine::main(name.as_ref(), &arguments) {
        return done;
    }
    match arguments.split_first() {
        Some((first, rest)) if first == container::ARGUMENT => container::main(rest),
        Some(_) => hutch_init::kernel_asks(&arguments),
        None => ExitCode::FAILURE,
    }
}
