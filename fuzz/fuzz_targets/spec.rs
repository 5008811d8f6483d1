#![no_main]

#[path = "../properties/spec.rs"]
mod spec;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| spec::check(bytes));
