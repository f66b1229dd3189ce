//! See `hostile::control`.
#![no_main]

fuzz::target!(hostile::control);
