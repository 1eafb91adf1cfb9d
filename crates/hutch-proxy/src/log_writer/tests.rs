//! What log_writer promises.
