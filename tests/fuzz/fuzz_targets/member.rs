//! See `hostile::member`.
#![no_main]

fuzz::target!(hostile::member);
