//! Traffic selectors (RFC 7296 2.9) and policy rules against an inner packet.

use maps_schema::sad::SelectorPair;
use maps_schema::spd::SpdRule;

use crate::headers::{self, Address};
use crate::opaque::opaque;

/// What selectors look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Source and destination port, if `has_ports`.
    pub ports: [u16; 2],
    /// IP protocol.
    pub protocol: u8,
    /// 1 where the packet carries ports; 0 for other protocols and for later fragments, which match "any port" only.
    pub has_ports: u8,
    /// Not used.
    pub reserved: [u16; 2],
}

#[inline(always)]
fn within(address: Address, first: &[u8; 16], last: &[u8; 16]) -> bool {
    let [high, low] = address;
    let ([first_high, first_low], [last_high, last_low]) = (headers::address(first), headers::address(last));
    let not_before = first_high < high || (first_high == high && first_low <= low);
    let not_after = high < last_high || (high == last_high && low <= last_low);
    not_before && not_after
}

/// 1 for an IPv6 address, 0 for an IPv4 one; without a branch, of which the verifier would follow each way.
#[inline(always)]
fn family(address: Address) -> u64 {
    let other = address[0] | ((address[1] >> 32) ^ 0xffff);
    (other | opaque(other.wrapping_neg())) >> 63
}

/// Whether an address is of the family of a range. That of all IPv6 addresses holds the mapped ones too.
#[inline(always)]
fn of_family(address: Address, first: &[u8; 16]) -> bool {
    family(address) == family(headers::address(first))
}

#[inline(always)]
fn port_matches(flow: &Flow, port: u16, range: [u16; 2]) -> bool {
    if range[0] == 0 && range[1] == u16::MAX {
        return true;
    }
    flow.has_ports != 0 && range[0] <= port && port <= range[1]
}

/// Whether an inbound inner packet (from the remote side) matches a pair.
#[inline(always)]
pub fn pair_matches(pair: &SelectorPair, flow: &Flow) -> bool {
    // Both sides of a pair are of one family.
    of_family(flow.source, &pair.remote_first)
        && (pair.protocol == 0 || pair.protocol == flow.protocol as u32)
        && within(flow.source, &pair.remote_first, &pair.remote_last)
        && within(flow.destination, &pair.local_first, &pair.local_last)
        && port_matches(flow, flow.ports[0], pair.remote_ports)
        && port_matches(flow, flow.ports[1], pair.local_ports)
}

/// Whether an outbound inner packet matches a rule; its destination prefix matched already.
#[inline(always)]
pub fn rule_matches(rule: &SpdRule, flow: &Flow) -> bool {
    of_family(flow.source, &rule.source_first)
        && (rule.protocol == 0 || rule.protocol == flow.protocol)
        && within(flow.source, &rule.source_first, &rule.source_last)
        && port_matches(flow, flow.ports[0], rule.source_ports)
        && port_matches(flow, flow.ports[1], rule.destination_ports)
}
