//! The multiplexer as a pure state machine: bytes and commands in, bytes and events out.
