//! What the IKE engines of all members share, so that any of them can help a peer after everything was lost, and when this
//! member may be sure that something is lost.

use std::collections::BTreeMap;

use dataplane::Segments;
use ike::EndpointConfig;
use maps_schema::segment::LEGACY_NONE;
use model::{IkeSpi, Instant, MemberId, SecretBytes, SegmentId};

use crate::clock;
use crate::pki::Identity;

/// Gives the engine the secrets that are derived from the cluster's secret. They never change while the cluster lives: a
/// member that starts anew makes the same tokens as before.
pub fn give(endpoint: &mut EndpointConfig, identity: &Identity) {
    let secret = |label: &str| SecretBytes::new(identity.derive(label).to_vec());
    endpoint.qcd_secret = Some(secret("ike quick crash detection"));
    endpoint.ticket_secret = Some(secret("ike session resumption"));
}

/// What this member can be sure of.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    me: MemberId,
    words: &'a Segments,
    mirror: &'a BTreeMap<IkeSpi, SecretBytes>,
}

impl<'a> Known<'a> {
    /// By the owner words that the programs obey, and the committed records.
    pub fn of(me: MemberId, words: &'a Segments, mirror: &'a BTreeMap<IkeSpi, SecretBytes>) -> Self {
        Self { me, words, mirror }
    }

    /// The owner words.
    pub fn words(&self) -> &'a Segments {
        self.words
    }

    /// Whether this member serves the segment now, alone and confirmed: not while a handover is under way, and not after its
    /// word has expired, when another member may have taken over without having been heard yet.
    pub fn serves(&self, segment: SegmentId) -> bool {
        let (owner, side) = self.words.get(segment.0);
        owner.owner == self.me.0
            && side.legacy_phase == LEGACY_NONE
            && clock::now() <= Instant::from_millis(owner.valid_until_ms)
    }

    /// Whether an IKE SA that the engine does not know is nowhere (RFC 6290 9.2). Who serves the segment took it over as a
    /// member of the in-sync set, so it has every committed record, or began when nobody else was heard, with nothing. A record
    /// that is there but not in the engine is not lost.
    ///
    /// In a pair that is split under `solo = "continue"` both members serve, and only one has the IKE SA; a peer whose packets reach
    /// the other one cannot reach it either, and is told so by the token.
    pub fn may_show_qcd(&self, spi: IkeSpi) -> bool {
        self.serves(spi.segment()) && !self.mirror.contains_key(&spi)
    }
}
