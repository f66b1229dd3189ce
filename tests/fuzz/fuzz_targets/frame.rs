//! See `hostile::frame`.
#![no_main]

fuzz::target!(hostile::frame);
