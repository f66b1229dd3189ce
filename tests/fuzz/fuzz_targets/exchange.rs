//! See `hostile::exchange`.
#![no_main]

fuzz::target!(hostile::exchange);
