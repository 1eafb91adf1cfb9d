//! A running VM into two files, and back.
//!
//! The guest's memory is one of them from the start: a shared mapping, which QEMU leaves out of the state that it
//! writes (`x-ignore-shared`). The state, 0.4 MB of devices, goes through a descriptor: QEMU may open and start nothing.
//!
//! A VM before 8.2 opens the memory of a snapshot for writing although it maps it privately. Who resumes snapshots
//! must notice a file that was changed; the time of its last change tells.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use hutch_sys::jail::Identity;
use rustix::fs::{Gid, Uid};
use serde_json::{Value, json};

use super::qmp::{Client, ControlError};
use crate::SaveError;

/// The state is small; a busy machine and a slow disk are given time.
const SAVED_WITHIN: Duration = Duration::from_secs(60);
/// QEMU tells the end of its work only when asked.
const ASK_EVERY: Duration = Duration::from_millis(1);
/// What QEMU calls the descriptor.
const STATE: &str = "state";

/// Gives the file of a VM's memory its size, and to the user that QEMU runs as.
pub(super) fn prepare(memory: &OwnedFd, mib: u32, identity: Option<Identity>) -> io::Result<()> {
    rustix::fs::ftruncate(memory, u64::from(mib) << 20)?;
    if let Some(Identity { uid, gid }) = identity {
        rustix::fs::fchown(memory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    Ok(())
}

/// Stops the guest and writes the state.
pub(super) async fn save(control: &mut Client, state: OwnedFd) -> Result<(), SaveError> {
    let saved = async {
        control.execute("stop", json!({})).await?;
        leave_memory_out(control).await?;
        control.give(STATE, state.as_fd()).await?;
        control.execute("migrate", json!({ "uri": format!("fd:{STATE}") })).await?;
        loop {
            let answer = control.execute("query-migrate", json!({})).await?;
            match status(&answer)? {
                "completed" => return Ok(()),
                "failed" | "cancelled" => {
                    let said = answer.get("error-desc").and_then(Value::as_str);
                    let reason = super::qmp::shorten(said.unwrap_or("it did not say why"));
                    return Err(SaveError::Write { reason });
                }
                _ => tokio::time::sleep(ASK_EVERY).await,
            }
        }
    };
    tokio::time::timeout(SAVED_WITHIN, saved)
        .await
        .unwrap_or(Err(SaveError::TimedOut { after: SAVED_WITHIN }))
}

/// Has QEMU read the state from a descriptor that it inherited. QEMU ends when it cannot.
pub(super) async fn load(control: &mut Client, state: i32) -> Result<(), ControlError> {
    leave_memory_out(control).await?;
    control.execute("migrate-incoming", json!({ "uri": format!("fd:{state}") })).await?;
    loop {
        let answer = control.execute("query-status", json!({})).await?;
        if status(&answer)? != "inmigrate" {
            return Ok(());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Memory that is a shared file is not part of the state.
async fn leave_memory_out(control: &mut Client) -> Result<(), ControlError> {
    let capabilities = json!([{ "capability": "x-ignore-shared", "state": true }]);
    let arguments = json!({ "capabilities": capabilities });
    control.execute("migrate-set-capabilities", arguments).await.map(drop)
}

fn status(answer: &Value) -> Result<&str, ControlError> {
    // An empty answer says that the work has not begun.
    match answer.get("status") {
        None => Ok("none"),
        Some(status) => status.as_str().ok_or(ControlError::Malformed),
    }
}

#[cfg(test)]
mod tests;
