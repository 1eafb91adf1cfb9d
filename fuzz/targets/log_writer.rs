//! See `hutch_fuzz::log_writer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hutch_fuzz::log_writer::check(data));
