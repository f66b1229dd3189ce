//! The agent's frames, with as much of the agent as they need.

// What the slow path does with them otherwise is not looked at here.
#![allow(dead_code)]

/// As much of an interface as frames are made of.
pub struct Interface {
    pub mac: [u8; 6],
    pub vlan: u16,
    // The rest is for tests of theirs, which are compiled here with lints.
    pub name: String,
    pub index: u32,
    pub parent: u32,
    pub veth: bool,
    pub devices: Vec<u32>,
    pub mtu: u32,
    pub networks: Vec<u8>,
}

#[path = "../../../userspace/agent/src/net/frame.rs"]
pub mod frame;
