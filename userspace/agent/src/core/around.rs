//! What the IKE engine may ask of this member: randomness, SPIs, limits.

use datapath::steer::first_message_segment;
use ike::Surroundings;
use model::{Epoch, EspSpi, IkeSpi, InitialLimits, MemberId, SegmentId};
use sad::Sad;

use super::secrets::Known;

/// Borrowed for one input of the engine.
pub struct Around<'a> {
    /// SPIs and limits come from here.
    pub sad: &'a mut Sad,
    /// This member.
    pub member: MemberId,
    /// Present ownership epoch.
    pub epoch: Epoch,
    /// Key of the hash that steers first messages.
    pub steer_key: [u64; 2],
    /// Whether what this member knows is all that there is.
    pub known: Known<'a>,
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

impl Around<'_> {
    fn spi_in(&self, segment: SegmentId) -> IkeSpi {
        let mut octets = [0; 8];
        random(&mut octets);
        octets[0] = segment.0;
        octets[1] = self.member.0;
        // The member is never 0, so the SPI is never 0 either.
        IkeSpi(u64::from_be_bytes(octets))
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

    fn release_esp_spi(&mut self, spi: EspSpi) {
        self.sad.release_spi(spi);
    }

    fn initial_limits(&mut self) -> InitialLimits {
        self.sad.initial_limits()
    }

    fn iv_prefix(&self) -> (MemberId, Epoch) {
        (self.member, self.epoch)
    }

    fn unix_time(&self) -> Option<u64> {
        Some(crate::clock::wall_ns() / 1_000_000_000)
    }

    fn may_show_qcd(&self, spi: IkeSpi) -> bool {
        self.known.may_show_qcd(spi)
    }

    fn may_initiate(&self, connection: &str) -> bool {
        self.known.serves(segment_of_name(self.steer_key, connection))
    }
}
