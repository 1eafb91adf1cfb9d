//! See `hutch_fuzz::policy_patterns`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hutch_fuzz::policy_patterns::check(data));
