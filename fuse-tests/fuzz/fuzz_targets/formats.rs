//! What is read from the layers: any bytes, the first of which says what they are.
#![no_main]

#[path = "../checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::formats(data));
