//! Packets that the cluster has delivered in clear. The lab's senders number their packets, so no packet is equal to another
//! one: an equal one is a replay that was accepted, or a packet that two members accepted.

use crate::esp::Kind;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// What was delivered, by hash, with the time of the first delivery.
#[derive(Clone, Debug, Default)]
pub struct Deliveries {
    first: HashMap<u64, u64>,
    /// Deliveries of a packet that had been delivered: time of the first one, time of this one.
    pub repeated: Vec<(u64, u64)>,
    /// Packets judged.
    pub judged: u64,
}

impl Deliveries {
    /// Enters a frame that holds an IPv4 packet.
    pub fn enter(&mut self, at_ns: u64, frame: &[u8], kind: &Kind) {
        let Some(packet) = numbered(frame, kind) else {
            return;
        };
        self.judged += 1;
        let mut hasher = DefaultHasher::new();
        // All but time to live and checksum, which depend on the way.
        (&packet[..8], &packet[12..]).hash(&mut hasher);
        let first = *self.first.entry(hasher.finish()).or_insert(at_ns);
        if first != at_ns {
            self.repeated.push((first, at_ns));
        }
    }

    /// Forgets first deliveries that are older.
    pub fn forget_before(&mut self, until_ns: u64) {
        self.first.retain(|_, at| *at >= until_ns);
    }
}

/// The IPv4 packet in a frame, if it is of a kind that the lab numbers: echo requests and answers, UDP, and TCP segments whose
/// IP identification counts (a repeated segment has another one).
fn numbered<'a>(frame: &'a [u8], kind: &Kind) -> Option<&'a [u8]> {
    let packet = frame.get(14..)?;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let packet = packet.get(..total).filter(|p| p.len() >= 20)?;
    let counts = match kind {
        Kind::Icmp(0 | 8) | Kind::Udp(..) => true,
        Kind::Ip(6) => packet[4..6] != [0, 0],
        _ => false,
    };
    counts.then_some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(number: u8, ttl: u8) -> Vec<u8> {
        let mut frame = vec![0; 14];
        frame.extend([0x45, 0, 0, 29, 0, 0, 0x40, 0, ttl, 17, ttl, ttl]);
        frame.extend([10, 10, 1, 2, 10, 20, 1, 100, 1, 2, 3, 4, 0, 9, 0, 0, number]);
        frame
    }

    #[test]
    fn one_packet_that_is_delivered_again_is_found_also_by_another_way() {
        let mut deliveries = Deliveries::default();
        let kind = Kind::Udp(1, 2);
        for (at, number) in [(10, 1), (20, 2), (30, 3)] {
            deliveries.enter(at, &udp(number, 63), &kind);
        }
        assert_eq!(deliveries.repeated, []);
        deliveries.enter(40, &udp(2, 62), &kind);
        assert_eq!((deliveries.repeated, deliveries.judged), (vec![(20, 40)], 4));
    }

    #[test]
    fn what_carries_no_number_is_not_judged() {
        let mut deliveries = Deliveries::default();
        for at in [1, 2] {
            deliveries.enter(at, &udp(1, 63), &Kind::Icmp(3));
            deliveries.enter(at, &udp(1, 63), &Kind::Ip(6));
        }
        assert_eq!(deliveries.judged, 0);
    }
}
