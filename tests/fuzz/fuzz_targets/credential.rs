//! See `hostile::credential`.
#![no_main]

fuzz::target!(hostile::credential);
