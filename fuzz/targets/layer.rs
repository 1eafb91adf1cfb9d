//! See `hutch_fuzz::layer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hutch_fuzz::layer::check(data));
