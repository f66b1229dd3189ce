//! What the IKE engine may ask of this member: randomness, SPIs, limits.

use cluster::Node;
use cluster::guest::Guests;
use cluster::message::CBC_SINCE;
use datapath::steer::first_message_segment;
use dataplane::CounterReader;
use ike::{PoolShare, Resource, Surroundings};
use maps_schema::sad::spi_slot;
use model::{Epoch, EspSpi, EspSuite, IkeSpi, InitialLimits, MemberId, SegmentId};
use sad::{LimitRaise, Sad};

use super::groups::Groups;
use super::guests::{Ownerships, cpu_of};
use super::secrets::Known;

/// Borrowed for one input of the engine.
pub struct Around<'a> {
    /// SPIs and limits come from here.
    pub sad: &'a mut Sad,
    /// Present ownership epochs.
    pub groups: &'a Groups,
    /// Who owns what elsewhere.
    pub node: &'a Node,
    /// SPIs of other members come from here.
    pub guests: &'a mut Guests,
    /// Key of the hash that steers first messages.
    pub steer_key: [u64; 2],
    /// Whether what this member knows is all that there is.
    pub known: Known<'a>,
    /// Counters of the programs.
    pub counters: &'a CounterReader,
    /// Leases that are to be raised for a peer whose cluster has failed over.
    pub advances: Vec<LimitRaise>,
}

/// Fills `out` from the system.
pub fn random(out: &mut [u8]) {
    // Without randomness no key may be made. Linux gives it always once booted.
    getrandom::fill(out).expect("the system's randomness");
}

/// FNV-1a, then the steering hash: which segment a connection that we initiate belongs to, equal on all members.
pub fn segment_of_name(steer_key: [u64; 2], name: &str) -> SegmentId {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    });
    SegmentId(first_message_segment(steer_key, hash))
}

/// Our SPI in an IKE message: which of the two it is says the Initiator flag (RFC 7296 3.1). `None`: a first message.
pub fn our_spi(message: &[u8]) -> Option<IkeSpi> {
    let (spi_i, spi_r, initiator) = spis(message)?;
    let ours = if initiator { spi_r } else { spi_i };
    (ours.0 != 0).then_some(ours)
}

fn spis(message: &[u8]) -> Option<(IkeSpi, IkeSpi, bool)> {
    /// Set in messages of the original initiator of the IKE SA.
    const INITIATOR: u8 = 1 << 3;
    let spi = |at: usize| {
        let octets = message.get(at..at + 8)?;
        Some(IkeSpi(u64::from_be_bytes(octets.try_into().ok()?)))
    };
    Some((spi(0)?, spi(8)?, *message.get(19)? & INITIATOR != 0))
}

/// The segment that an IKE message belongs to, by the rule of the programs (`datapath::steer`): that of our SPI; a first
/// message's by the hash of the initiator's SPI. `None`: no IKE header.
pub fn segment_of_message(steer_key: [u64; 2], message: &[u8]) -> Option<SegmentId> {
    let (spi_i, ..) = spis(message)?;
    Some(match our_spi(message) {
        None => SegmentId(first_message_segment(steer_key, spi_i.0)),
        Some(ours) => ours.segment(),
    })
}

impl Around<'_> {
    fn spi_in(&self, segment: SegmentId) -> IkeSpi {
        let mut octets = [0; 8];
        random(&mut octets);
        octets[0] = segment.0;
        octets[1] = self.groups.me.0;
        // The member is never 0, so the SPI is never 0 either.
        IkeSpi(u64::from_be_bytes(octets))
    }
}

impl<'a> Around<'a> {
    fn owners(&self) -> Ownerships<'a> {
        Ownerships {
            node: self.node,
            groups: self.groups,
            words: self.known.words(),
        }
    }
}

impl Surroundings for Around<'_> {
    fn random(&mut self, out: &mut [u8]) {
        random(out);
    }

    fn ike_spi(&mut self, peer: Option<IkeSpi>, connection: &str) -> IkeSpi {
        let segment = match peer {
            Some(peer) => SegmentId(first_message_segment(self.steer_key, peer.0)),
            None => segment_of_name(self.steer_key, connection),
        };
        self.spi_in(segment)
    }

    fn successor_ike_spi(&mut self, old: IkeSpi) -> IkeSpi {
        self.spi_in(old.segment())
    }

    fn esp_spi(&mut self, ike_spi: IkeSpi) -> Option<EspSpi> {
        self.sad.reserve_spi(ike_spi.segment())
    }

    fn resource_esp_spi(&mut self, ike_spi: IkeSpi, resource: Resource) -> Option<EspSpi> {
        if resource.member == MemberId(0) {
            // Whoever serves the IKE SA serves these Child SAs: the SPI is of the same segment, and the CPU follows from the slot.
            return self
                .sad
                .reserve_spi_on(ike_spi.segment(), u32::from(resource.cpu));
        }
        let owners = self.owners();
        self.guests
            .sponsor
            .take(&owners, resource.member, cpu_of(resource), ike_spi)
    }

    fn has_resource(&self, _ike_spi: IkeSpi, resource: Resource) -> bool {
        let owners = self.owners();
        // A member's own IKE SAs have the Child SA that all may use, and those of its CPUs.
        let sponsor = &self.guests.sponsor;
        resource.member == MemberId(0) || sponsor.has(&owners, resource.member, cpu_of(resource))
    }

    fn release_esp_spi(&mut self, spi: EspSpi) {
        let owners = self.owners();
        if !self.guests.sponsor.release(&owners, spi) {
            self.sad.release_spi(spi);
        }
    }

    fn initial_limits(&mut self) -> InitialLimits {
        self.sad.initial_limits()
    }

    fn iv_prefix(&self, ike_spi: IkeSpi) -> (MemberId, Epoch) {
        (self.groups.me, self.groups.of(ike_spi.segment()).ownership.epoch)
    }

    fn advance_outbound(&mut self, spi_in: EspSpi, delta: u64) -> bool {
        let Some(epoch) = self.groups.epoch_if_owned(spi_in.segment()) else {
            return false;
        };
        let counters = self.counters.counters(spi_slot(spi_in.0));
        let raise = counters.and_then(|counters| {
            self.sad
                .advance(spi_in, delta, crate::clock::now(), epoch, &counters)
        });
        let can = raise.is_some();
        self.advances.extend(raise);
        can
    }

    fn unix_time(&self) -> Option<u64> {
        Some(crate::clock::wall_ns() / 1_000_000_000)
    }

    fn may_show_qcd(&self, spi: IkeSpi) -> bool {
        self.known.may_show_qcd(spi)
    }

    /// A pool is cut by groups, since a group is owned as a whole.
    fn pool_share(&self, ike_spi: IkeSpi) -> Option<PoolShare> {
        let group = self.groups.of(ike_spi.segment());
        group.adoption.is_none().then(|| PoolShare {
            group: group.id.0,
            of: self.groups.layout.count(),
        })
    }

    fn members_know(&self, suite: EspSuite) -> bool {
        suite.is_aead() || self.node.all_speak(CBC_SINCE)
    }

    fn may_initiate(&self, connection: &str) -> bool {
        self.known.serves(segment_of_name(self.steer_key, connection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_belongs_to_the_segment_of_our_spi_and_a_first_one_to_that_of_the_hash() {
        let key = [3, 4];
        let message = |spi_i: u64, spi_r: u64, flags: u8| {
            let mut octets = [0; 28];
            octets[..8].copy_from_slice(&spi_i.to_be_bytes());
            octets[8..16].copy_from_slice(&spi_r.to_be_bytes());
            octets[19] = flags;
            segment_of_message(key, &octets)
        };
        let (ours, theirs) = (0x2a01_0000_0000_0007, 0x7700_0000_0000_0009);
        // The peer initiated: our SPI is the responder's.
        assert_eq!(message(theirs, ours, 0x08), Some(SegmentId(0x2a)));
        // We did: in the peer's messages the flag is not set, response or not.
        assert_eq!(message(ours, theirs, 0x20), Some(SegmentId(0x2a)));
        assert_eq!(message(ours, theirs, 0), Some(SegmentId(0x2a)));
        let first = SegmentId(first_message_segment(key, theirs));
        assert_eq!(message(theirs, 0, 0x08), Some(first));
        // The peer's refusal of our first message names no SPI of its own.
        assert_eq!(message(ours, 0, 0x20), Some(SegmentId(0x2a)));
        assert_eq!(segment_of_message(key, &[0; 19]), None);
    }
}
