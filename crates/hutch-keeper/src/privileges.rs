//! What the keeper gives up, in stages.
//!
//! `start`, before it reads anything: new privileges, and being read or traced by other processes of its user (it hands
//! over secrets of the sandbox later). `running`, once the VM and the workers run: nothing yet. The keeper then needs only
//! its sandbox's directory, the socket and its descriptors, which a file jail can hold it to.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::set_no_new_privs;

/// Stage `start`. Call it in `main`, before another thread exists, and after what is opened through `/proc/self`: that
/// belongs to root afterwards.
pub fn give_up_at_start() -> std::io::Result<()> {
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Stage `running`: after the VM and the workers were started.
pub(crate) fn give_up_when_running() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_stage_is_in_force_afterwards() {
        give_up_at_start().unwrap();
        assert!(rustix::thread::no_new_privs().unwrap());
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, DumpableBehavior::NotDumpable);
    }
}
