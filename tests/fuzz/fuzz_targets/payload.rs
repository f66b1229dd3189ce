//! See `hostile::payload`.
#![no_main]

fuzz::target!(hostile::payload);
