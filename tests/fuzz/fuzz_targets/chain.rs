//! See `hostile::chain`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| hostile::chain(octets));
