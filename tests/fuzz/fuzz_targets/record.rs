//! See `hostile::record`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| hostile::record(octets));
