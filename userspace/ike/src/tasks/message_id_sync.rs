//! Message ID synchronisation (RFC 6311 5.1), as peer of a cluster and as a member of one.
//!
//! As a peer we answer whenever it was negotiated. As a member it is not needed: by output commit a taker has the exact Message
//! IDs. It is used on command only, where a split pair has discarded a fork that may have used others.

use super::{Pending, abandon_outstanding};
use crate::config::MidSync;
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::extras::SyncAnswer;
use crate::ike_sa::message::{self, register_aside, repeat, transmit};
use crate::ike_sa::phase::Phase;
use crate::outbox::Context;
use crypto::sha256;
use ike_wire::{ExchangeType, Header, MessageIdSync, Notify, Payload, PayloadList};
use serde::{Deserialize, Serialize};

/// Numbers above this are not taken: an IKE SA whose Message IDs end soon has to be replaced, not synchronised.
const MESSAGE_ID_MAX: u32 = u32::MAX - (1 << 16);

/// What our synchronisation request said.
#[derive(Serialize, Deserialize)]
pub(crate) struct Asked {
    pub nonce: u32,
    pub m1: u32,
    pub p1: u32,
}

/// What a peer knows when a cluster asks it.
#[derive(Clone, Copy)]
struct Known {
    /// Next Message ID that the cluster's requests have, by what was received.
    their_next: u32,
    /// M1 of the last synchronisation message that was accepted.
    last_m1: Option<u32>,
    /// One more than the highest Message ID that we used.
    our_next: u32,
}

//= rfc6311#5.1
// The peer MUST silently drop any received synchronization message if M1 is lower than or equal to the highest value it has
// seen from the cluster. This includes any previous received synchronization messages.
// M2 MUST be at least the higher of the received M1, and one more than the highest sender value received from the cluster.
// P2 MUST be the higher of the received P1 value, and one more than the highest sender value used by the peer.
/// (M2, P2), or `None` where the message is to be dropped.
fn answer(known: Known, m1: u32, p1: u32) -> Option<(u32, u32)> {
    // `their_next` is one more than the highest value seen, so that "lower than or equal" is "below".
    let too_low = m1 < known.their_next || known.last_m1.is_some_and(|last| m1 <= last);
    if too_low || m1 > MESSAGE_ID_MAX || p1 > MESSAGE_ID_MAX {
        return None;
    }
    Some((m1.max(known.their_next), p1.max(known.our_next)))
}

/// Whether a protected message may be a cluster's synchronisation request, which stands outside of the window.
pub(crate) fn may_be_request(sa: &IkeSa, header: &Header) -> bool {
    header.message_id == 0
        && !header.flags.response
        && header.exchange == ExchangeType::INFORMATIONAL
        && sa.extras.sync.message_ids
        && matches!(sa.phase, Phase::Established(_))
}

/// Peer: the very octets that were answered last are answered alike, since our answer may have been lost. `true`: done.
pub(crate) fn repeated(sa: &IkeSa, ctx: &mut Context<'_>, bytes: &[u8]) -> bool {
    match &sa.extras.sync.answered {
        Some(answered) if answered.request == sha256(&[bytes]) => {
            repeat(sa, ctx, &answered.response);
            true
        }
        _ => false,
    }
}

/// Peer: answers an authentic request with Message ID 0. `false`: it is no synchronisation request.
pub(crate) fn respond(sa: &mut IkeSa, ctx: &mut Context<'_>, bytes: &[u8], payloads: &PayloadList) -> bool {
    let Some(asked) = payloads.notifies().find_map(Notify::as_message_id_sync) else {
        return false;
    };
    let known = Known {
        their_next: sa.their.above_all(),
        last_m1: sa.extras.sync.last_m1,
        our_next: sa.our.next,
    };
    let Some((m2, p2)) = answer(known, asked.expected_send, asked.expected_recv) else {
        return true;
    };
    //= rfc6311#9
    // Requests that are pending are not waited for: the cluster expects P2 next.
    abandon_outstanding(sa, ctx);
    sa.their.jump(m2);
    sa.our.next = p2;
    sa.extras.sync.last_m1 = Some(asked.expected_send);
    sa.dirty = true;
    // RFC 6311 5.2: the Message IDs are processed first, then the counters that came with them.
    super::counter_sync::take(sa, ctx, payloads);
    let sync = MessageIdSync {
        nonce: asked.nonce,
        expected_send: p2,
        expected_recv: m2,
    };
    let payloads = [Payload::Notify(Notify::message_id_sync(sync))];
    if let Some(response) = message::seal_aside(sa, ctx, ExchangeType::INFORMATIONAL, true, &payloads) {
        transmit(sa, ctx, &response);
        sa.extras.sync.answered = Some(Box::new(SyncAnswer {
            request: sha256(&[bytes]),
            response,
        }));
        let text = format!("the peer's cluster has failed over: its next Message ID is {m2}, ours {p2}");
        ctx.event(sa, EventKind::MessageIdsSynched, text);
    }
    true
}

/// Member: asks the peer. `margin`: how many Message IDs the fork that was discarded may have used at most.
pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>, margin: u32) -> Result<(), String> {
    let allowed = sa.connection(ctx.config).map(|connection| connection.mid_sync);
    if allowed != Some(MidSync::OnFork) {
        return Err("Message IDs are not synchronised: mid_sync is \"never\"".to_owned());
    }
    if !sa.extras.sync.message_ids {
        return Err("the peer cannot synchronise Message IDs".to_owned());
    }
    if !matches!(sa.phase, Phase::Established(_)) {
        return Err(format!("IKE SA {} is {}", sa.spi, sa.phase.name()));
    }
    abandon_outstanding(sa, ctx);
    if !sa.our.is_idle() {
        return Ok(()); // asked already
    }
    // RFC 6311 5.1: M1 is above all that may have been used; "it is RECOMMENDED to add at least the window size".
    let m1 = sa
        .our
        .next
        .saturating_add(sa.send_window())
        .saturating_add(margin);
    let asked = Asked {
        nonce: ctx.random_u32(),
        m1,
        p1: sa.their.above_all(),
    };
    if m1 > MESSAGE_ID_MAX {
        return Err("its Message IDs are used up; rekey it".to_owned());
    }
    let sync = MessageIdSync {
        nonce: asked.nonce,
        expected_send: m1,
        expected_recv: asked.p1,
    };
    let payloads = [Payload::Notify(Notify::message_id_sync(sync))];
    let bytes = message::seal_aside(sa, ctx, ExchangeType::INFORMATIONAL, false, &payloads)
        .ok_or("the request could not be made")?;
    register_aside(sa, ctx, bytes, Pending::MessageIdSync(asked));
    Ok(())
}

/// Member: the peer's answer, if it is one to our request: the nonce is ours, and no number went back. Anything else is dropped.
pub(crate) fn read_response(asked: &Asked, payloads: &PayloadList) -> Option<MessageIdSync> {
    payloads
        .notifies()
        .find_map(Notify::as_message_id_sync)
        .filter(|sync| sync.nonce == asked.nonce)
        .filter(|sync| (asked.m1..=MESSAGE_ID_MAX).contains(&sync.expected_recv))
        .filter(|sync| (asked.p1..=MESSAGE_ID_MAX).contains(&sync.expected_send))
}

/// Member: adopts what the peer says.
pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, asked: &Asked, payloads: &PayloadList) {
    let Some(sync) = read_response(asked, payloads) else {
        return;
    };
    // The higher ones: where both sides have failed over, we may have answered the peer's request in the meantime (A.4).
    sa.our.next = sa.our.next.max(sync.expected_recv);
    sa.their.jump(sa.their.above_all().max(sync.expected_send));
    sa.dirty = true;
    let text = format!(
        "Message IDs synchronised: ours {}, the peer's {}",
        sa.our.next, sa.their.next
    );
    ctx.event(sa, EventKind::MessageIdsSynched, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// strongSwan's table (test_ike_mid_sync.c): the peer initiated the IKE SA and sent `dpds_a` more requests, the cluster
    /// sent `dpds_b`; then the cluster asks with (send, recv).
    #[test]
    fn strongswans_vectors() {
        let rows = [
            ((0, 0), (0, 2), Some((0, 2))),
            ((0, 0), (1, 3), Some((1, 3))),
            ((1, 0), (0, 3), Some((0, 3))),
            ((1, 0), (5, 8), Some((5, 8))),
            ((0, 1), (1, 2), Some((1, 2))),
            ((0, 1), (2, 2), Some((2, 2))),
            ((1, 1), (1, 3), Some((1, 3))),
            ((1, 1), (2, 4), Some((2, 4))),
            ((1, 2), (2, 4), Some((2, 4))),
            // The peer has used more than the cluster knows.
            ((0, 0), (0, 0), Some((0, 2))),
            ((1, 0), (5, 2), Some((5, 3))),
            // Too low.
            ((0, 1), (0, 2), None),
            ((1, 2), (0, 0), None),
            ((1, 2), (1, 3), None),
        ];
        for ((dpds_a, dpds_b), (m1, p1), expected) in rows {
            let known = Known {
                their_next: dpds_b,
                last_m1: None,
                our_next: 2 + dpds_a,
            };
            assert_eq!(answer(known, m1, p1), expected, "{dpds_a} {dpds_b} {m1} {p1}");
        }
    }

    /// RFC 6311 appendix A: (M1, P1) of the member, (next send, next expected) of the peer, the answer (P2, M2). A.2 and A.3 break
    /// the rule of 5.1 that the appendix illustrates: M1 = 2 is not above what the peer has seen. So they hold for the
    /// arithmetic only, and the rule, which strongSwan follows as well, drops them.
    #[test]
    fn appendix_a_and_where_it_contradicts_5_1() {
        let rows = [
            ("A.1", (0, 5), (5, 0), (5, 0), true),
            ("A.2", (2, 3), (4, 5), (4, 5), false),
            ("A.3", (2, 5), (2, 4), (5, 4), false),
            ("A.4 member", (4, 4), (5, 4), (5, 4), true),
            ("A.4 peer", (5, 5), (4, 4), (5, 5), true),
        ];
        for (name, (m1, p1), (our_next, their_next), (p2, m2), accepted) in rows {
            assert_eq!((p1.max(our_next), m1.max(their_next)), (p2, m2), "{name}");
            let known = Known {
                their_next,
                last_m1: None,
                our_next,
            };
            assert_eq!(answer(known, m1, p1), accepted.then_some((m2, p2)), "{name}");
        }
    }

    #[test]
    fn earlier_synchronisations_count_and_numbers_do_not_run_out() {
        let known = Known {
            their_next: 10,
            last_m1: Some(10),
            our_next: 3,
        };
        assert_eq!(answer(known, 10, 3), None, "the same again");
        assert_eq!(answer(known, 11, 3), Some((11, 3)));
        assert_eq!(answer(known, u32::MAX, 3), None);
        assert_eq!(answer(known, 11, u32::MAX), None);
    }
}
