//! See `hostile::netlink`.
#![no_main]

fuzz::target!(hostile::netlink);
