//! What credential promises.
