//! The proxy worker of one sandbox, and the credential broker beside it.

fn main() {}
