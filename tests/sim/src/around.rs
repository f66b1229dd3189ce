//! What an IKE engine may ask of its host, in the simulation.

use crate::rng::Rng;
use cluster::guest::Owners;
use cluster::guest::sponsor::Sponsor;
use datapath::steer::first_message_segment;
use ike::{Resource, Surroundings};
use maps_schema::sad::spi_slot;
use model::{Epoch, EspSpi, IkeSpi, InitialLimits, Instant, MemberId, SegmentId};
use sad::{LimitRaise, SaCounters, Sad};

/// Borrowed for one input of the engine.
pub struct Around<'a> {
    /// SPIs and limits come from here.
    pub sad: &'a mut Sad,
    /// Randomness.
    pub rng: &'a mut Rng,
    /// This member.
    pub member: MemberId,
    /// Epoch of each segment; `None`: of the IVs is told nothing (a broken build).
    pub epoch_of: &'a dyn Fn(SegmentId) -> Option<Epoch>,
    /// Key of the hash that steers first messages.
    pub steer_key: [u64; 2],
    /// First limits of a new SA.
    pub limits: InitialLimits,
    /// SPIs that were drawn, for the checkers.
    pub drawn: &'a mut Vec<Drawn>,
    /// The time.
    pub now: Instant,
    /// Seconds since 1970, by this host's clock; `None` where nobody asks for it.
    pub unix_time: Option<u64>,
    /// Counters of the programs.
    pub counters: &'a dyn Fn(u32) -> Option<SaCounters>,
    /// Leases that are to be raised for a peer whose cluster has failed over.
    pub advances: Vec<LimitRaise>,
    /// Of a member: SPIs that other members keep for it.
    pub guests: Option<GuestSpis<'a>>,
}

/// The wall clock of a host: ahead of others by some seconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Seconds.
    pub ahead: u64,
}

impl Clock {
    /// Seconds since 1970 when virtual time began.
    const BEGAN: u64 = 1_800_000_000;

    /// Seconds since 1970.
    pub fn unix_time(self, now: Instant) -> u64 {
        Self::BEGAN + self.ahead + now.millis() / 1000
    }
}

/// SPIs of other members.
pub struct GuestSpis<'a> {
    /// Has them.
    pub sponsor: &'a mut Sponsor,
    /// Who owns what.
    pub owners: &'a dyn Owners,
}

fn cpu_of(resource: Resource) -> Option<u16> {
    (resource.cpu != Resource::ANY_CPU).then_some(resource.cpu)
}

/// An SPI that was given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drawn {
    /// Of ESP.
    Esp(EspSpi),
    /// Of IKE.
    Ike(IkeSpi),
}

/// Which segment a connection that we initiate belongs to, equal on all members.
pub fn segment_of_name(steer_key: [u64; 2], name: &str) -> SegmentId {
    SegmentId(first_message_segment(
        steer_key,
        crate::rng::digest(name.as_bytes()),
    ))
}

impl Around<'_> {
    fn spi_in(&mut self, segment: SegmentId) -> IkeSpi {
        let mut octets = [0; 8];
        self.rng.fill(&mut octets);
        octets[0] = segment.0;
        octets[1] = self.member.0;
        let spi = IkeSpi(u64::from_be_bytes(octets));
        self.drawn.push(Drawn::Ike(spi));
        spi
    }
}

impl Surroundings for Around<'_> {
    fn random(&mut self, out: &mut [u8]) {
        self.rng.fill(out);
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
        let spi = self.sad.reserve_spi(ike_spi.segment())?;
        self.drawn.push(Drawn::Esp(spi));
        Some(spi)
    }
    fn resource_esp_spi(&mut self, ike_spi: IkeSpi, resource: Resource) -> Option<EspSpi> {
        if resource.member != MemberId(0) {
            let guests = self.guests.as_mut()?;
            return guests
                .sponsor
                .take(guests.owners, resource.member, cpu_of(resource), ike_spi);
        }
        let spi = self
            .sad
            .reserve_spi_on(ike_spi.segment(), u32::from(resource.cpu))?;
        self.drawn.push(Drawn::Esp(spi));
        Some(spi)
    }
    fn advance_outbound(&mut self, spi_in: EspSpi, delta: u64) -> bool {
        let (epoch, counters) = (
            (self.epoch_of)(spi_in.segment()),
            (self.counters)(spi_slot(spi_in.0)),
        );
        let raise = epoch
            .zip(counters)
            .and_then(|(epoch, counters)| self.sad.advance(spi_in, delta, self.now, epoch, &counters));
        let can = raise.is_some();
        self.advances.extend(raise);
        can
    }
    fn unix_time(&self) -> Option<u64> {
        self.unix_time
    }
    fn has_resource(&self, _ike_spi: IkeSpi, resource: Resource) -> bool {
        let of_guests = |guests: &GuestSpis<'_>| {
            guests
                .sponsor
                .has(guests.owners, resource.member, cpu_of(resource))
        };
        resource.member == MemberId(0) || self.guests.as_ref().is_some_and(of_guests)
    }
    fn release_esp_spi(&mut self, spi: EspSpi) {
        let guests = self.guests.as_mut();
        if !guests.is_some_and(|guests| guests.sponsor.release(guests.owners, spi)) {
            self.sad.release_spi(spi);
        }
    }
    fn initial_limits(&mut self) -> InitialLimits {
        self.limits
    }
    fn iv_prefix(&self, ike_spi: IkeSpi) -> (MemberId, Epoch) {
        match (self.epoch_of)(ike_spi.segment()) {
            Some(epoch) => (self.member, epoch),
            None => (MemberId(0), Epoch(0)),
        }
    }
}
