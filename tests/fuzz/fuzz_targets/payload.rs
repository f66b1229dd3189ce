//! See `hostile::payload`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| hostile::payload(octets));
