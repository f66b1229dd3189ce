//! See `hostile::exchange`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| hostile::exchange(octets));
