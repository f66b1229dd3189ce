//! See `hostile::engine`.
#![no_main]

fuzz::target!(hostile::engine);
