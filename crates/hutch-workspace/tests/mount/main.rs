//! The workspace as programs in the guest see it, on a real mount of this machine's kernel.

mod changes;
mod harness;
mod relay;
mod requests;
mod scripts;
mod semantics;
