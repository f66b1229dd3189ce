//! See `hostile::proposal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| hostile::proposal(octets));
