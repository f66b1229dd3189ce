//! See `hostile::config`.
#![no_main]

fuzz::target!(hostile::config);
