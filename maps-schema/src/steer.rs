//! Who serves a packet: this host's facts, the other members' MAC addresses, the cluster's addresses.

use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Highest member id (ids are 1 to 16).
pub const MAX_MEMBERS: usize = 16;
/// Highest connection index plus one; index 0 counts what belongs to no connection.
pub const MAX_CONNECTIONS: usize = 256;

/// This host, array index 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Local {
    /// Key of the hash that steers first IKE messages; the same on every member.
    pub steer_key: [u64; 2],
    /// This member's id.
    pub member: u32,
    /// CPUs that serve SAs; fixed for the life of the maps.
    pub cpus: u32,
    /// Slots per cluster (all CPUs together).
    pub slots: u32,
    /// Outside interface index.
    pub outside_ifindex: u32,
    /// Inside interface index.
    pub inside_ifindex: u32,
    /// MAC address of the outside interface.
    pub outside_mac: [u8; 6],
    /// MAC address of the inside interface.
    pub inside_mac: [u8; 6],
    /// Outside MTU, octets of IP packet.
    pub outside_mtu: u32,
    /// UDP port for IKE and ESP encapsulation: 4500 (host order); and for IKE: 500.
    pub nat_t_port: u16,
    /// UDP port for plain IKE, host order.
    pub ike_port: u16,
    /// Cluster inside address that ICMP errors come from, IPv4 mapped.
    pub inside_address: [u8; 16],
}

/// Another member (or this one) as a second hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Member {
    /// MAC address on the outside network; all zero where unknown.
    pub outside_mac: [u8; 6],
    /// MAC address on the inside network; all zero where unknown.
    pub inside_mac: [u8; 6],
}

/// A MAC address as a hash key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct MacKey {
    /// The address.
    pub mac: [u8; 6],
    /// 0.
    pub zero: [u8; 2],
}

/// An address as a hash key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddressKey {
    /// IPv6 or mapped IPv4.
    pub address: [u8; 16],
}

/// The address is on the outside.
pub const SIDE_OUTSIDE: u8 = 1;
/// The address is the next hop on the inside.
pub const SIDE_INSIDE: u8 = 2;

/// A cluster address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ClusterAddress {
    /// `SIDE_*`.
    pub side: u8,
    /// Segment whose owner answers for it.
    pub segment: u8,
    /// Reserved, 0.
    pub reserved: [u8; 2],
}

const _: () = {
    assert!(size_of::<Local>() == 16 + 20 + 12 + 4 + 4 + 16);
    assert!(size_of::<Member>() == 12);
    assert!(size_of::<MacKey>() == 8);
    assert!(size_of::<ClusterAddress>() == 4);
};
