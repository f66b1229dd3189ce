//! See `hostile::proposal`.
#![no_main]

fuzz::target!(hostile::proposal);
