//! What oauth promises.
