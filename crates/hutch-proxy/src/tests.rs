//! The engine whole, in one process: a guest's end of the port, the worker's gate, and real servers behind it.

mod attacks;
mod forwarding;
mod policy;
mod tls;
mod world;
