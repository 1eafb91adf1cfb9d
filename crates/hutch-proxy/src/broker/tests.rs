//! What broker promises.
