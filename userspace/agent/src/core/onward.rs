//! Datagrams that came in pieces, and belong to another member.
//!
//! Pieces have neither SPI nor ports, so those of one datagram meet at the member that serves the cluster address. Put together there, a
//! datagram is mostly longer than the outside network carries: no program could send it on. So it is cut again, and the pieces go to the
//! member whose SA it is: that one's programs leave them to its stack, since another member sent them.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use maps_schema::steer::SIDE_OUTSIDE;
use model::{Instant, MemberId, SegmentId};

use super::Core;
use super::member::Facts;
use crate::clock;
use crate::net::{Interface, cut, frame};

/// A datagram that comes again within this time was sent here by the member that it went to: the two disagree for a moment, and it goes
/// round no further. Peers repeat themselves later than that.
const ROUND: Duration = Duration::from_millis(200);
/// Datagrams that are known again.
const KNOWN_MAX: usize = 4096;

/// What went to other members.
#[derive(Default)]
pub struct Onward {
    /// Identification of the last datagram's pieces.
    id: u32,
    hasher: RandomState,
    /// When, and what, in the order of time.
    sent: VecDeque<(Instant, u64)>,
}

impl Onward {
    /// Whether this went to another member a moment ago. From now on it did.
    fn is_back(&mut self, packet: &[u8], now: Instant) -> bool {
        while let Some((at, _)) = self.sent.front()
            && (now.since(*at) > ROUND || self.sent.len() >= KNOWN_MAX)
        {
            self.sent.pop_front();
        }
        let digest = self.hasher.hash_one(packet);
        let back = self.sent.iter().any(|(_, sent)| *sent == digest);
        if !back {
            self.sent.push_back((now, digest));
        }
        back
    }

    fn next_id(&mut self) -> u32 {
        self.id = self.id.wrapping_add(1);
        self.id
    }
}

impl Core {
    /// Where another member is reached: on the first outside network on which both are.
    pub(super) fn way_to<'a>(&'a self, facts: &Facts) -> Option<(&'a Interface, [u8; 6])> {
        let outside = self.ports.numbered().filter(|(_, side, _)| *side == SIDE_OUTSIDE);
        let mut ways = outside.filter_map(|(at, _, port)| {
            let (_, mac) = facts.macs.iter().find(|(number, _)| *number == at)?;
            Some((port, *mac))
        });
        ways.next()
    }

    /// The member that has the segment, where it is another one and this one knows the way to it.
    fn owner_elsewhere(&self, segment: SegmentId) -> Option<MemberId> {
        let (word, _) = self.segments.get(segment.0);
        let owner = MemberId(word.owner);
        (owner != self.me && self.facts.contains_key(&owner)).then_some(owner)
    }

    /// Sends a datagram (from its IP header on) to the member that has the segment, cut to what the outside network carries. `false` where
    /// there is no such member: then it is this one's.
    pub(super) fn send_onward(&mut self, segment: SegmentId, packet: &[u8]) -> bool {
        let Some(owner) = self.owner_elsewhere(segment) else {
            return false;
        };
        if self.onward.is_back(packet, clock::now()) {
            self.slow.lost();
            return true;
        }
        let way = self.facts.get(&owner).and_then(|facts| self.way_to(facts));
        let way = way.map(|(port, to)| (port.index, to));
        if way.is_some_and(|(port, to)| self.send_to(port, to, packet)) {
            self.slow.sent_onward();
        } else {
            self.slow.lost();
        }
        true
    }

    /// Sends a packet to a neighbour on this interface. What goes outside is ESP or IKE, and cut where the network does not carry it: whoever
    /// sent it had cut it too. `false`: it could not be sent, or not all of it.
    pub(super) fn send_to(&mut self, interface: u32, to: [u8; 6], packet: &[u8]) -> bool {
        let id = self.onward.next_id();
        let outside = self.ports.outside.iter().any(|port| port.index == interface);
        let Some(port) = self.ports.all().find(|port| port.index == interface) else {
            return false;
        };
        let mtu = port.mtu as usize;
        let pieces = match outside && packet.len() > mtu {
            true => cut::pieces_again(packet, mtu, id),
            false => Some(vec![packet.to_vec()]),
        };
        // A VLAN device tags by itself.
        let send = |piece: &Vec<u8>| {
            let sent = self.announcer.send(port, &frame::link(to, port.mac, piece));
            if let Err(error) = &sent {
                tracing::debug!(%error, port = port.name, "a packet did not go to its neighbour");
            }
            sent.is_ok()
        };
        pieces.is_some_and(|pieces| pieces.iter().all(send))
    }

    /// An ESP packet that the stack has put together and that no frame carries, where another member has the SA. `false`: not so.
    pub(super) fn esp_onward(&mut self, packet: &[u8]) -> bool {
        let mtu = self.ports.outside_mtu() as usize;
        let spi = frame::esp_spi(packet).filter(|_| packet.len() > mtu);
        spi.is_some_and(|spi| self.send_onward(spi.segment(), packet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_goes_round_no_further_and_a_repetition_is_sent_again() {
        let at = Instant::from_millis;
        let mut onward = Onward::default();
        assert!(!onward.is_back(b"one", at(1000)));
        assert!(!onward.is_back(b"two", at(1001)));
        assert!(onward.is_back(b"one", at(1010)));
        assert!(onward.is_back(b"one", at(1200)));
        // Half a second later it is the peer's repetition.
        assert!(!onward.is_back(b"one", at(1500)));
        assert!(onward.is_back(b"one", at(1501)));
    }

    #[test]
    fn a_flood_is_not_remembered_for_longer_than_there_is_room() {
        let mut onward = Onward::default();
        for number in 0..3 * KNOWN_MAX as u32 {
            assert!(!onward.is_back(&number.to_be_bytes(), Instant::from_millis(5)));
        }
        assert!(onward.sent.len() <= KNOWN_MAX);
    }
}
