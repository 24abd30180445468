#![no_main]

#[path = "../parsers/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::npy(bytes));
