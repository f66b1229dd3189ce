//! The tables.

mod cbc;
mod clear;
mod handover;
mod inbound;
mod jumbo;
mod lifetimes;
mod malformed;
mod marks;
mod moved;
mod neighbour;
mod outbound;
mod per_cpu;
mod ports;
mod segments;
mod sizes;
mod steer;
mod transport;
mod ttl;
mod v6;
mod virtual_mac;
mod vlan;
mod wraps;

use crate::case::Case;

/// Every case.
pub fn all() -> Vec<Case> {
    let mut cases = inbound::cases();
    cases.extend(outbound::cases());
    cases.extend(per_cpu::cases());
    cases.extend(steer::cases());
    cases.extend(ports::cases());
    cases.extend(vlan::cases());
    cases.extend(v6::cases());
    cases.extend(moved::cases());
    cases.extend(neighbour::cases());
    cases.extend(virtual_mac::cases());
    cases.extend(handover::cases());
    cases.extend(sizes::cases());
    cases.extend(jumbo::cases());
    cases.extend(marks::cases());
    cases.extend(segments::cases());
    cases.extend(lifetimes::cases());
    cases.extend(malformed::cases());
    cases.extend(wraps::cases());
    cases.extend(cbc::cases());
    cases.extend(clear::cases());
    cases.extend(ttl::cases());
    cases.extend(transport::cases());
    cases
}
