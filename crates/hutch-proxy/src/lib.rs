//! The sandbox's only way out, in a process of its own: applies the policy, adds credentials, forwards, logs.
//!
//! The keeper starts it with [`spawn`](crate::control) and speaks the messages of [`control`] with it.

pub mod control;
