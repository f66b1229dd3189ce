//! The policies as an operator reads them: by precedence.

use crate::spd::{Holder, Policy, describe};
use crate::store::Sad;
use maps_schema::spd::{
    ACTION_BYPASS, ACTION_DISCARD, ACTION_PROTECT, ACTION_PROTECT_PER_CPU, ACTION_TRAP_HOLD, SpdRule,
};
use model::EspSpi;
use std::net::IpAddr;

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyLine {
    /// Destination prefix.
    pub destination: String,
    /// First and last source address.
    pub source: (IpAddr, IpAddr),
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// First and last source port.
    pub source_ports: (u16, u16),
    /// First and last destination port.
    pub destination_ports: (u16, u16),
    /// `protect`, `trap` (no SA: dropped), `hold` (no SA: waits for one), `bypass` or `discard`.
    pub action: &'static str,
    /// Connection and child, or the policy's name.
    pub name: String,
    /// Inbound SPI of the SA that protects.
    pub spi_in: Option<EspSpi>,
}

impl Sad {
    /// Rules by precedence: the first one that matches a packet decides. At most `most`: where there are more, those of live SAs
    /// are left out. The second value: how many were.
    pub fn policy_lines(&self, most: usize) -> (Vec<PolicyLine>, usize) {
        let all = self.spd.len();
        let rules = self
            .spd
            .by_precedence(|holder| all <= most || matches!(holder, Holder::Policy(_)));
        let left_out = all - rules.len();
        let lines = rules.into_iter().map(|(holder, prefix, rule)| {
            let (name, spi_in) = match holder {
                Holder::Policy(rank) => (self.policy_at(rank).map(full_name), None),
                Holder::Slot(slot) => match self.by_slot(slot) {
                    Some(entry) => (
                        Some(format!("{}/{}", entry.record.connection, entry.record.child)),
                        Some(entry.record.spi_in),
                    ),
                    None => (None, None),
                },
            };
            line(describe(prefix), &rule, name.unwrap_or_default(), spi_in)
        });
        (lines.collect(), left_out)
    }
}

fn full_name(policy: &Policy) -> String {
    if policy.connection.is_empty() {
        policy.child.clone()
    } else {
        format!("{}/{}", policy.connection, policy.child)
    }
}

fn line(destination: String, rule: &SpdRule, name: String, spi_in: Option<EspSpi>) -> PolicyLine {
    let ([a, b], [c, d]) = (rule.source_ports, rule.destination_ports);
    PolicyLine {
        destination,
        source: (
            model::address::unmapped(rule.source_first),
            model::address::unmapped(rule.source_last),
        ),
        protocol: rule.protocol,
        source_ports: (a, b),
        destination_ports: (c, d),
        action: match rule.action {
            ACTION_PROTECT | ACTION_PROTECT_PER_CPU => "protect",
            ACTION_BYPASS => "bypass",
            ACTION_DISCARD => "discard",
            ACTION_TRAP_HOLD => "hold",
            _ => "trap",
        },
        name,
        spi_in,
    }
}
