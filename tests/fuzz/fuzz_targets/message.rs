//! See `hostile::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|octets: &[u8]| hostile::message(octets));
