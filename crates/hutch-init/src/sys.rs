//! System calls that have no safe wrapper. The only module of init with `unsafe`, and its children.

pub(crate) mod entropy;
pub(crate) mod process;
