//! The agent's frames, with as much of the agent as they need.

/// As much of an interface as frames are made of. What no frame bears is here for the tests of `frame`, which are compiled along.
pub struct Interface {
    /// MAC address.
    pub mac: [u8; 6],
    /// VLAN that frames are tagged with, 0 for none.
    pub vlan: u16,
    /// Its name; no frame bears it, nor any of the following.
    pub name: String,
    /// Kernel index.
    pub index: u32,
    /// Index of the device below.
    pub parent: u32,
    /// That is one end of a veth pair.
    pub veth: bool,
    /// Devices below.
    pub devices: Vec<u32>,
    /// Octets of IP packet.
    pub mtu: u32,
    /// Its own addresses.
    pub networks: Vec<u8>,
}

#[path = "../../../userspace/agent/src/net/frame.rs"]
pub mod frame;

#[path = "../../../userspace/agent/src/net/cut.rs"]
pub mod cut;
