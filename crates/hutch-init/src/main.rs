//! PID 1 of the guest, and the sandbox's supervisor. Everything is in the library, so that its parts can be tested.

use std::ffi::OsString;
use std::process::ExitCode;

use hutch_init::container;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    // The kernel hands words of its command line that it does not know to PID 1, so only others look at arguments.
    if rustix::process::getpid().is_init() {
        hutch_init::run()
    }
    match arguments.split_first() {
        Some((first, rest)) if first == container::ARGUMENT => container::main(rest),
        Some(_) => hutch_init::kernel_asks(&arguments),
        None => ExitCode::FAILURE,
    }
}
