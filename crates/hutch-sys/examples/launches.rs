//! Launches a sleeper that dies with it, writes its process number, and waits: a part for the tests to kill.

use std::io::Write as _;

use hutch_sys::spawn::Launch;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut launch = Launch::new("/bin/sleep");
    launch.arg("1000").die_with_parent();
    let mut child = launch.start()?.child;
    writeln!(std::io::stdout(), "{:>10}", child.id())?;
    child.wait()?;
    Ok(())
}
