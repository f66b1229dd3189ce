//! See `hostile::peer`.
#![no_main]

fuzz::target!(hostile::peer);
