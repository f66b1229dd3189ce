//! See `hostile::message`.
#![no_main]

fuzz::target!(hostile::message);
