//! The tables.

mod handover;
mod inbound;
mod neighbour;
mod outbound;
mod per_cpu;
mod ports;
mod steer;
mod v6;
mod virtual_mac;
mod vlan;

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
    cases.extend(neighbour::cases());
    cases.extend(virtual_mac::cases());
    cases.extend(handover::cases());
    cases
}
