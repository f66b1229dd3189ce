//! See `hostile::record`.
#![no_main]

fuzz::target!(hostile::record);
