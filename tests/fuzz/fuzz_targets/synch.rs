//! See `hostile::synch`.
#![no_main]

fuzz::target!(hostile::synch);
