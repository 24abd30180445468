#![no_main]

#[expect(dead_code, reason = "a target takes one of them")]
#[path = "../parsers/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| checks::manifest(bytes));
