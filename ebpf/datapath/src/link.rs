//! The link layer of a frame that leaves: MAC addresses, a VLAN's tag or none.

use maps_schema::steer::NO_VLAN;

use crate::env::Env;
use crate::headers::{ETHERNET_LEN, ETHERTYPE_VLAN, VLAN_LEN};

/// Octets before the network layer of a frame in this VLAN (0 for none).
#[inline(always)]
pub const fn len(vlan: u16) -> usize {
    if vlan == NO_VLAN {
        ETHERNET_LEN
    } else {
        ETHERNET_LEN + VLAN_LEN
    }
}

/// Writes the link header of a frame that has [`len`] octets for it. The tag's priority is 0.
#[inline(always)]
pub fn write(env: &impl Env, to: [u8; 6], from: [u8; 6], vlan: u16, ethertype: u16) -> bool {
    let [a, b, c, d, e, f] = to;
    let [g, h, i, j, k, l] = from;
    let [t0, t1] = ethertype.to_be_bytes();
    if vlan == NO_VLAN {
        return env.write(0, &[a, b, c, d, e, f, g, h, i, j, k, l, t0, t1]);
    }
    let [p0, p1] = ETHERTYPE_VLAN.to_be_bytes();
    let [v0, v1] = vlan.to_be_bytes();
    env.write(0, &[a, b, c, d, e, f, g, h, i, j, k, l, p0, p1, v0, v1, t0, t1])
}

/// Writes both MAC addresses of a frame that goes back where it came from; a tag stays.
#[inline(always)]
pub fn write_addresses(env: &impl Env, to: [u8; 6], from: [u8; 6]) -> bool {
    let [a, b, c, d, e, f] = to;
    let [g, h, i, j, k, l] = from;
    env.write(0, &[a, b, c, d, e, f, g, h, i, j, k, l])
}
