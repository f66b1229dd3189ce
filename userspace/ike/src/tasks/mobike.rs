//! MOBIKE (RFC 4555) as responder: the peer, which initiated, may change its address and go on.

use super::ike_init::{detect_nat, nat_detection};
use super::{Pending, delete, notify, transport};
use crate::config::Connection;
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::message::send_request;
use crate::ike_sa::windows::Task;
use crate::outbox::Context;
use ike_wire::{ExchangeType, Notify, NotifyType, Payload, PayloadList};
use model::ChildSaChange;

/// Octets of our COOKIE2; 8 to 64 are allowed (RFC 4555 4.2.5).
const COOKIE_LEN: usize = 16;

/// IKE_AUTH: whether both sides can do it. Gives our answer.
pub(crate) fn agree(sa: &mut IkeSa, connection: &Connection, payloads: &PayloadList) -> Option<Payload> {
    let theirs = payloads.notify(NotifyType::MOBIKE_SUPPORTED).is_some();
    sa.more.mobike = connection.mobike && theirs && !sa.initiator;
    sa.more.mobike.then(|| notify(NotifyType::MOBIKE_SUPPORTED))
}

/// The peer's INFORMATIONAL request, as far as it is about addresses. Lists of further addresses are for an initiator, which we
/// are not.
pub(crate) fn respond(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Vec<Payload> {
    if !sa.more.mobike {
        return Vec::new();
    }
    let mut answer = Vec::new();
    if payloads.notify(NotifyType::UPDATE_SA_ADDRESSES).is_some() {
        update(sa, ctx, payloads);
    }
    if payloads.notify(NotifyType::NAT_DETECTION_SOURCE_IP).is_some() {
        let (spi_i, spi_r) = sa.header_spis();
        let force = sa.connection(ctx.config).is_some_and(|c| c.force_encap);
        answer.extend(nat_detection(spi_i, spi_r, sa.path, force));
    }
    //= rfc4555#3.7
    // The responder copies the COOKIE2 notification payload from the request to the response.
    answer.extend(payloads.notify(NotifyType::COOKIE2).cloned().map(Payload::Notify));
    answer
}

/// From now on the peer is where this request came from.
fn update(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    let Some((local, remote)) = ctx.from else { return };
    let before = ctx.path_before.unwrap_or(sa.path);
    sa.path.local = local;
    sa.path.remote = remote;
    if payloads.notify(NotifyType::NAT_DETECTION_SOURCE_IP).is_some() {
        let (spi_i, spi_r) = sa.header_spis();
        let force = sa.connection(ctx.config).is_some_and(|c| c.force_encap);
        (sa.path.nat_local, sa.path.nat_remote) = detect_nat(payloads, spi_i, spi_r, sa.path);
        sa.path.encap = sa.path.nat_local || sa.path.nat_remote || force;
    }
    sa.dirty = true;
    // The data plane follows a peer's address. With another address of ours, or with encapsulation where there was none, new Child
    // SAs take the place of the old ones.
    let only_remote = before.local.ip() == local.ip() && before.encap == sa.path.encap;
    for child in &sa.children {
        if transport::is_left_behind(child, before.remote, remote) {
            sa.our.push(Task::DeleteChild { spi_in: child.spi_in });
        } else if only_remote {
            ctx.out.child_changes.push(ChildSaChange::MovePeer {
                spi_in: child.spi_in,
                remote,
            });
        } else if child.phase == ChildPhase::Installed {
            sa.our.push(Task::RekeyChild { spi_in: child.spi_in });
        }
    }
    if (before.local, before.remote) != (local, remote) {
        let text = format!("the peer moved from {} to {remote} (MOBIKE)", before.remote);
        ctx.event(sa, EventKind::PeerMoved, text);
        // RFC 4555 3.7: whether it can be reached there SHOULD be checked.
        sa.our.push(Task::Routability);
    }
}

/// Asks for an answer from where the peer says it is.
pub(crate) fn check(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let cookie = ctx.random(COOKIE_LEN);
    let payloads = [Payload::Notify(Notify::new(NotifyType::COOKIE2, cookie.clone()))];
    send_request(
        sa,
        ctx,
        ExchangeType::INFORMATIONAL,
        &payloads,
        Pending::Routability { cookie },
    );
}

//= rfc4555#3.7
// If the COOKIE2 payload is missing or its value does not match, the IKE SA MUST be closed.
pub(crate) fn checked(sa: &mut IkeSa, ctx: &mut Context<'_>, cookie: &[u8], payloads: &PayloadList) {
    let same = payloads
        .notify(NotifyType::COOKIE2)
        .is_some_and(|notify| notify.data == cookie);
    if !same {
        let text = "the peer does not send our COOKIE2 back: somebody in between answers for it";
        ctx.event(sa, EventKind::PeerMisbehaved, text);
        delete::start_ike(sa, ctx);
    }
}
