#![no_main]

#[path = "../properties/result.rs"]
mod result;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| result::check(bytes));
