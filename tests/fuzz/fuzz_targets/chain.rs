//! See `hostile::chain`.
#![no_main]

fuzz::target!(hostile::chain);
