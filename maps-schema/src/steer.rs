//! Who serves a packet: this host's facts, the other members' MAC addresses, the cluster's addresses.

use core::mem::size_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Highest member id (ids are 1 to 16).
pub const MAX_MEMBERS: usize = 16;
/// Highest connection index plus one; index 0 counts what belongs to no connection.
pub const MAX_CONNECTIONS: usize = 256;

/// Source of frames that the agent makes and runs through the programs: a locally administered address that no member has.
pub const SLOW_PATH_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

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
    /// Device that sealed packets leave on, by its index; 0 where the routing table chooses among several.
    pub own_device: u32,
    /// Smallest MTU of the outside interfaces, octets of IP packet.
    pub outside_mtu: u32,
    /// UDP port for IKE and ESP encapsulation: 4500 (host order); and for IKE: 500.
    pub nat_t_port: u16,
    /// UDP port for plain IKE, host order.
    pub ike_port: u16,
    /// Cluster inside address that ICMP errors come from, IPv4 mapped; zero where there is none.
    pub inside_address: [u8; 16],
    /// Cluster inside address that ICMPv6 errors come from; zero where there is none.
    pub inside_address_v6: [u8; 16],
    /// Virtual MAC address of the cluster addresses but for the last octet, which is the address's segment; all zero for
    /// none: then an address is at the port's own.
    pub virtual_mac: [u8; 6],
    /// Reserved, 0.
    pub reserved: [u8; 2],
}

impl Local {
    /// The MAC address that cluster addresses of a segment are at.
    pub const fn mac_of(&self, segment: u8, port: &Port) -> [u8; 6] {
        if is_zero(self.virtual_mac) {
            return port.mac;
        }
        let [a, b, c, d, e, _] = self.virtual_mac;
        [a, b, c, d, e, segment]
    }
}

/// Ports of a member: the interfaces of its configuration. Those outside have the numbers 0 to 7 in the order of the
/// configuration, those inside 8 to 15, so that a number means the same network on every member.
pub const MAX_PORTS: usize = 16;
/// Ports of one side; also the number of the first one inside.
pub const PORTS_PER_SIDE: usize = MAX_PORTS / 2;
/// Instead of a port's number: there is none.
pub const NO_PORT: u8 = 0xff;
/// Instead of a VLAN's number: frames bear no tag.
pub const NO_VLAN: u16 = 0;

/// An interface that serves the cluster, array index is the port's number; all zero where there is none. A VLAN device is a
/// port of its own: its frames arrive and leave, tagged, on the device below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Port {
    /// Device on which frames arrive and leave: the interface, or what a VLAN device lies on.
    pub ifindex: u32,
    /// Device that routes name.
    pub device: u32,
    /// VLAN that frames are tagged with, 1 to 4094; [`NO_VLAN`] for none.
    pub vlan: u16,
    /// MAC address.
    pub mac: [u8; 6],
    /// `SIDE_*`, 0 for an unused entry.
    pub side: u8,
    /// The port's number.
    pub index: u8,
    /// `PORT_*`.
    pub flags: u8,
    /// Reserved, 0.
    pub reserved: u8,
}

/// The device takes redirected frames that lie in several buffers.
pub const PORT_TAKES_PIECES: u8 = 1;
/// The device takes no redirected frames: what leaves there goes through the host's stack.
pub const PORT_NO_REDIRECT: u8 = 2;
/// What goes back where it came from is redirected there: on a veth `XDP_TX` reaches a far end with a program only, and a redirect also one
/// with GRO.
pub const PORT_REDIRECT_BACK: u8 = 4;
/// The program runs on what the kernel has made of frames already (generic mode).
pub const PORT_GENERIC: u8 = 8;

/// How a port is found: by the device and tag of a frame that arrived, or (with [`NO_VLAN`]) by the device that a route names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PortKey {
    /// Device index.
    pub ifindex: u32,
    /// VLAN, 0 for none.
    pub vlan: u32,
}

/// Another member (or this one) as a second hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoBytes, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Member {
    /// MAC address on the network of each port; all zero where unknown.
    pub macs: [[u8; 6]; MAX_PORTS],
    /// Port through which a frame that arrived on a port goes to that member: the same one, or another of its side where
    /// the member is not reached there; [`NO_PORT`] for none.
    pub via: [u8; MAX_PORTS],
}

impl Default for Member {
    fn default() -> Self {
        Self::reached_at([[0; 6]; MAX_PORTS])
    }
}

impl Member {
    /// A member with these MAC addresses (all zero: not reached through that port).
    pub const fn reached_at(macs: [[u8; 6]; MAX_PORTS]) -> Self {
        let mut via = [NO_PORT; MAX_PORTS];
        let mut at = 0;
        while at < MAX_PORTS {
            // The port itself first, then the others of its side.
            let base = at / PORTS_PER_SIDE * PORTS_PER_SIDE;
            let mut turn = 0;
            while turn < PORTS_PER_SIDE && via[at] == NO_PORT {
                let exit = base + (at - base + turn) % PORTS_PER_SIDE;
                if !is_zero(macs[exit]) {
                    via[at] = exit as u8;
                }
                turn += 1;
            }
            at += 1;
        }
        Self { macs, via }
    }
}

const fn is_zero(mac: [u8; 6]) -> bool {
    let [a, b, c, d, e, f] = mac;
    a | b | c | d | e | f == 0
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
    /// Ports on which neighbours may ask for it, a bit each.
    pub ports: u16,
}

const _: () = {
    assert!(size_of::<Local>() == 16 + 16 + 4 + 4 + 2 * 16 + 8);
    assert!(size_of::<Port>() == 20);
    assert!(size_of::<PortKey>() == 8);
    assert!(size_of::<Member>() == 7 * MAX_PORTS);
    assert!(MAX_PORTS.is_power_of_two() && MAX_PORTS <= 16);
    assert!(size_of::<MacKey>() == 8);
    assert!(size_of::<ClusterAddress>() == 4);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_is_reached_through_the_port_of_arrival_or_another_one_of_that_side() {
        let mut macs = [[0; 6]; MAX_PORTS];
        macs[1] = [2, 0, 0, 0, 0, 1];
        macs[3] = [2, 0, 0, 0, 0, 3];
        let member = Member::reached_at(macs);
        assert_eq!(member.via[..8], [1, 1, 3, 3, 1, 1, 1, 1]);
        assert_eq!(member.via[8..], [NO_PORT; 8], "never from inside to outside");
    }
}
