//! See `hostile::slow`.
#![no_main]

fuzz::target!(hostile::slow);
