//! What an IKE SA remembers for extensions: the second part of its record, so that records of members without them can
//! still be read.

use super::authentication::Authentication;
use crate::config::{Identity, Resource};
use crate::proposal::Proposal;
use model::{EspSpi, IkeSpi, SecretBytes};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Tokens of the peer's that are kept. RFC 6290 5 lets a taker keep several, since a maker with several addresses may
/// show one that it replaced.
const TOKENS_KEPT: usize = 4;

/// The peer's QCD tokens, oldest first. Whoever has one can end the IKE SA, so they are secret.
#[derive(Default, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct QcdTokens(Vec<Vec<u8>>);

impl QcdTokens {
    /// Remembers a token; `false` if it is known already.
    pub fn take(&mut self, token: &[u8]) -> bool {
        if self.0.iter().any(|known| known == token) {
            return false;
        }
        if self.0.len() == TOKENS_KEPT {
            self.0.remove(0).zeroize();
        }
        self.0.push(token.to_vec());
        true
    }

    /// Whether it is one of them; in time that depends on lengths only.
    pub fn contains(&self, shown: &[u8]) -> bool {
        self.0
            .iter()
            .fold(false, |found, known| found | crypto::ct_eq(known, shown))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What RFC 9611 adds to a Child SA, or to one that is being asked for, by our inbound SPI.
#[derive(Serialize, Deserialize)]
pub(crate) struct ChildExtras {
    pub spi_in: EspSpi,
    pub resource: Option<Resource>,
    pub multiple: bool,
}

/// Names a ticket: part of its digest.
pub(crate) type TicketId = [u8; 16];

/// A ticket that the peer granted for this IKE SA.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct OwnTicket {
    pub ticket: Vec<u8>,
    /// Seconds since 1970.
    pub expires: u64,
}

/// A ticket of an IKE SA that is lost, with all that is needed to show it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct HeldTicket {
    pub ticket: Vec<u8>,
    /// Seconds since 1970.
    pub expires: u64,
    pub suite: Proposal,
    pub sk_d: SecretBytes,
    pub peer_id: Identity,
    pub own_id: Identity,
    /// It was shown last time without an answer: the next try goes without.
    pub rests: bool,
    /// The authentication that the session comes from. An IKE SA that shows the ticket has it in its own record.
    #[serde(skip)]
    pub authentication: Option<Box<Authentication>>,
}

/// How an IKE SA came out of a ticket; AUTH depends on it.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Resumed {
    pub peer_id: Identity,
    pub own_id: Identity,
    /// Responder: our SPI of the IKE SA that the ticket was granted for.
    pub replaces: Option<IkeSpi>,
    /// Responder: the ticket and when it expires.
    pub ticket: Option<(TicketId, u64)>,
}

/// The last synchronisation request of the peer's cluster, by its digest, and our answer.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct SyncAnswer {
    pub request: [u8; 32],
    pub response: Vec<u8>,
}

/// RFC 6311, both roles.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct ClusterSync {
    /// Both sides support IKEV2_MESSAGE_ID_SYNC.
    pub message_ids: bool,
    /// Both sides support IPSEC_REPLAY_COUNTER_SYNC.
    pub counters: bool,
    /// As peer: M1 of the last synchronisation.
    pub last_m1: Option<u32>,
    pub answered: Option<Box<SyncAnswer>>,
    /// As member: the epoch in which the peer was last asked to raise its counters.
    pub counters_asked: Option<u64>,
}

/// No `Debug`: it holds secrets.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Extras {
    pub qcd: QcdTokens,
    /// We asked the peer for a ticket when this IKE SA or one that it replaced was set up, and do so after rekeys.
    pub wants_ticket: bool,
    pub ticket: Option<OwnTicket>,
    /// The last ticket that we granted, and when it expires.
    pub granted: Option<(TicketId, u64)>,
    pub resumed: Option<Box<Resumed>>,
    pub sync: ClusterSync,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_four_tokens_count() {
        let mut tokens = QcdTokens::default();
        for n in 0..6u8 {
            assert!(tokens.take(&[n; 16]));
            assert!(!tokens.take(&[n; 16]), "known already");
        }
        for n in 0..6 {
            assert_eq!(tokens.contains(&[n; 16]), n >= 2, "{n}");
        }
        assert!(!tokens.contains(&[5; 15]) && !tokens.contains(&[]));
    }
}
