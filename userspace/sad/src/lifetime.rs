//! When an SA has to be replaced: by age and by sequence numbers used (RFC 4301 4.4.2.1, RFC 4303 3.3.3).

use model::{EspSpi, IkeSpi};
use std::time::Duration;

/// Limits of a Child SA: age, and what either direction carries. Zero means none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Rekey from this age on.
    pub soft: Duration,
    /// Delete at this age.
    pub hard: Duration,
    /// Rekey once a direction has carried this many inner octets.
    pub soft_bytes: u64,
    /// A direction carries no more than this many inner octets; the SA is deleted then.
    pub hard_bytes: u64,
    /// Rekey once a direction has carried this many packets.
    pub soft_packets: u64,
    /// A direction carries no more than this many packets; the SA is deleted then.
    pub hard_packets: u64,
}

impl Lifetimes {
    /// No limit at all, but for what the sequence numbers set.
    pub const NONE: Self = Self {
        soft: Duration::ZERO,
        hard: Duration::ZERO,
        soft_bytes: 0,
        hard_bytes: 0,
        soft_packets: 0,
        hard_packets: 0,
    };

    /// Whether octets or packets are limited.
    pub const fn counts_use(&self) -> bool {
        self.soft_bytes | self.hard_bytes | self.soft_packets | self.hard_packets != 0
    }
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            soft: Duration::from_secs(3600 - 360),
            hard: Duration::from_secs(3600),
            ..Self::NONE
        }
    }
}

/// Rekey an SA without ESN once either direction has reached this sequence number (half of its 32-bit space).
pub const SOFT_SEQ: u64 = 1 << 31;
/// Rekey an SA with ESN here: half of the 40 bits that the IV has for the sequence number.
pub const SOFT_SEQ_ESN: u64 = 1 << 39;
/// Last usable sequence number without ESN (RFC 4303 3.3.3: the counter must not cycle).
pub const HARD_SEQ: u64 = u32::MAX as u64;
/// Last usable sequence number with ESN: the IV carries 40 bits of it.
pub const HARD_SEQ_ESN: u64 = (1 << 40) - 1;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LifetimeKind {
    /// Rekey; reported once.
    Soft,
    /// Delete; reported once.
    Hard,
}

/// An SA has reached a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LifetimeEvent {
    /// Our inbound SPI.
    pub spi_in: EspSpi,
    /// The IKE SA that it belongs to.
    pub ike_spi: IkeSpi,
    /// Connection's name.
    pub connection: String,
    /// Child's name.
    pub child: String,
    /// What to do.
    pub kind: LifetimeKind,
}

/// Soft lifetime of one SA, up to a tenth earlier than configured. It spreads the rekeys of SAs that were made
/// together; it depends on the SPI alone, so every member computes the same.
pub fn soft_spread(soft: Duration, spi: EspSpi) -> Duration {
    let spread = (spi.0.wrapping_mul(0x9e37_79b1) >> 22) % 1024;
    soft - soft / 10 * spread / 1024
}

/// What `age` and the highest sequence number of both directions make due.
pub fn due(
    lifetimes: Lifetimes,
    spi: EspSpi,
    esn: bool,
    age: Duration,
    highest_seq: u64,
) -> Option<LifetimeKind> {
    let (soft_seq, hard_seq) = if esn {
        (SOFT_SEQ_ESN, HARD_SEQ_ESN)
    } else {
        (SOFT_SEQ, HARD_SEQ)
    };
    if highest_seq >= hard_seq || (!lifetimes.hard.is_zero() && age >= lifetimes.hard) {
        return Some(LifetimeKind::Hard);
    }
    if highest_seq >= soft_seq || (!lifetimes.soft.is_zero() && age >= soft_spread(lifetimes.soft, spi)) {
        return Some(LifetimeKind::Soft);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Lifetimes = Lifetimes {
        soft: Duration::from_secs(3240),
        hard: Duration::from_secs(3600),
        ..Lifetimes::NONE
    };

    #[test]
    fn rows() {
        let spi = EspSpi(0x0100_0000);
        let rows: &[(&str, bool, u64, u64, Option<LifetimeKind>)] = &[
            ("young and idle", false, 10, 0, None),
            ("soft by age", false, 3240, 0, Some(LifetimeKind::Soft)),
            ("hard by age", false, 3600, 0, Some(LifetimeKind::Hard)),
            ("one short of soft by number", false, 10, (1 << 31) - 1, None),
            ("soft by number", false, 10, 1 << 31, Some(LifetimeKind::Soft)),
            ("with ESN that number is nothing", true, 10, 1 << 31, None),
            (
                "with ESN soft at half of the IV's space",
                true,
                10,
                1 << 39,
                Some(LifetimeKind::Soft),
            ),
            (
                "hard by number",
                false,
                10,
                u32::MAX as u64,
                Some(LifetimeKind::Hard),
            ),
            (
                "hard by number with ESN",
                true,
                10,
                (1 << 40) - 1,
                Some(LifetimeKind::Hard),
            ),
        ];
        for (name, esn, age, seq, want) in rows {
            assert_eq!(
                due(HOUR, spi, *esn, Duration::from_secs(*age), *seq),
                *want,
                "{name}"
            );
        }
    }

    #[test]
    fn the_spread_is_within_a_tenth_and_differs_between_spis() {
        let soft = Duration::from_secs(1000);
        let all: std::collections::BTreeSet<_> = (0..1000)
            .map(|i| soft_spread(soft, EspSpi(0x0100_0000 + i)))
            .collect();
        assert!(all.iter().all(|d| *d > Duration::from_secs(899) && *d <= soft));
        assert!(all.len() > 100, "only {} different values", all.len());
    }
}
