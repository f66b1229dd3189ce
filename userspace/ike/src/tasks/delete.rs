//! Deletion of Child SAs and IKE SAs, asked for by either side (RFC 7296 1.4.1).

use super::{CLOSED_KEPT, Pending, follow_up, ike_rekey, reauth, ticket};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::{ChildPhase, ChildSa};
use crate::ike_sa::message::send_request;
use crate::ike_sa::phase::Phase;
use crate::outbox::Context;
use ike_wire::{Delete, ExchangeType, Payload};
use model::{ChildSaChange, EspSpi};

/// Asks the peer to delete a Child SA. Both directions stay until it answers.
pub(crate) fn start_child(sa: &mut IkeSa, ctx: &mut Context<'_>, spi_in: EspSpi) {
    let Some(child) = sa.child_mut(spi_in) else { return };
    child.phase = ChildPhase::Deleting;
    child.rekey_at = None;
    let payloads = [Payload::Delete(Delete::Esp(vec![spi_in]))];
    send_request(
        sa,
        ctx,
        ExchangeType::INFORMATIONAL,
        &payloads,
        Pending::DeleteChild { spi_in },
    );
}

/// The peer has answered: whatever it said, the Child SA is gone.
pub(crate) fn finish_child(sa: &mut IkeSa, ctx: &mut Context<'_>, spi_in: EspSpi) {
    if let Some(index) = sa.children.iter().position(|child| child.spi_in == spi_in) {
        let child = sa.children.remove(index);
        // The peer may have replaced it meanwhile and waits for its own Delete of it, which has nothing to delete any more.
        switch_successor(sa, ctx, spi_in);
        remove_child(sa, ctx, &child, "deleted");
    }
}

/// Removes the peer's choice of Child SAs, given by its inbound SPIs. Gives ours, for the answer.
pub(crate) fn peer_deletes_children(sa: &mut IkeSa, ctx: &mut Context<'_>, spis: &[EspSpi]) -> Vec<EspSpi> {
    let mut answered = Vec::new();
    for spi_out in spis {
        let Some(index) = sa.children.iter().position(|child| child.spi_out == *spi_out) else {
            continue;
        };
        let spi_in = sa.children[index].spi_in;
        let is_this =
            |pending: &Pending| matches!(pending, Pending::DeleteChild { spi_in: asked } if *asked == spi_in);
        let ours_is_out = sa.our.pending().any(is_this);
        // RFC 7296 1.4.1: where both Deletes crossed, the response must not name the SA; ours goes with our response.
        if ours_is_out {
            continue;
        }
        let child = sa.children.remove(index);
        switch_successor(sa, ctx, spi_in);
        let was_last = remove_child(sa, ctx, &child, "deleted by the peer");
        // One of several for a CPU or a member is made again by need.
        if was_last && child.resource.is_none() && matches!(sa.phase, Phase::Established(_)) {
            let text = format!("the peer ends child {}", child.name);
            ctx.named_child_event(sa, (&child.name, spi_in), EventKind::ChildClosed, text);
        }
        answered.push(spi_in);
    }
    answered
}

/// The new SA of a rekey that the peer made carries outbound traffic from now on.
fn switch_successor(sa: &mut IkeSa, ctx: &mut Context<'_>, old: EspSpi) {
    reauth::switch_beside(sa, ctx, &[old]);
    let waiting = ChildPhase::AwaitsSwitch { replaces: old };
    if let Some(new) = sa.children.iter_mut().find(|child| child.phase == waiting) {
        new.phase = ChildPhase::Installed;
        let change = ChildSaChange::UseOutbound { spi_in: new.spi_in };
        ctx.out.child_changes.push(change);
    }
}

/// Takes a Child SA out of the database; it is no longer in the list. Returns whether nothing has replaced it.
fn remove_child(sa: &IkeSa, ctx: &mut Context<'_>, child: &ChildSa, why: &str) -> bool {
    ctx.out
        .child_changes
        .push(ChildSaChange::Remove { spi_in: child.spi_in });
    let replaced = matches!(child.phase, ChildPhase::Rekeyed { .. })
        || sa
            .children
            .iter()
            .filter(|other| other.name == child.name && other.resource == child.resource)
            .any(|other| other.phase == ChildPhase::Installed);
    if !replaced {
        let text = format!(
            "child {} (SPI {} in, {} out) {why}",
            child.name, child.spi_in, child.spi_out
        );
        ctx.named_child_event(sa, (&child.name, child.spi_in), EventKind::ChildDown, text);
    }
    !replaced
}

/// Asks the peer to delete the IKE SA. Children go with the answer.
pub(crate) fn start_ike(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let payloads = [Payload::Delete(Delete::Ike)];
    ticket::revoke(sa, ctx);
    sa.extras.ticket = None;
    sa.timers.ticket = None;
    if send_request(
        sa,
        ctx,
        ExchangeType::INFORMATIONAL,
        &payloads,
        Pending::DeleteIke,
    ) {
        if let Some(protected) = sa.phase.protected().cloned() {
            sa.phase = Phase::Deleting(Box::new(protected));
        }
        sa.our.queue.clear();
        sa.timers.rekey = None;
        (sa.timers.reauth, sa.timers.reauth_due) = (None, None);
        sa.timers.switch = None;
        sa.timers.liveness = None;
    } else {
        vanish(sa, ctx, "its deletion could not be sent");
    }
}

/// The peer has answered our Delete.
pub(crate) fn finish_ike(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    vanish(sa, ctx, "deleted");
}

/// The peer deletes the IKE SA.
pub(crate) fn peer_deletes_ike(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    // The peer did not see that our rekey crossed its own: its new IKE SA is the successor.
    ike_rekey::yield_to_crossing(sa, ctx);
    // A peer that has authenticated anew deletes the old IKE SA (RFC 7296 2.8.3): the connection goes on.
    let up = sa.successor.is_none() && matches!(sa.phase, Phase::Established(_));
    if up && reauth::goes_on(sa, ctx).is_none() {
        ctx.event(sa, EventKind::PeerClosed, "the peer ends the connection");
    }
    close(sa, ctx, "deleted by the peer");
}

/// Ends an IKE SA but keeps it for a while, to repeat the response that the peer may have missed.
pub(crate) fn close(sa: &mut IkeSa, ctx: &mut Context<'_>, why: &str) {
    ticket::revoke(sa, ctx);
    end(sa, ctx, why);
    match sa.phase.protected().cloned() {
        Some(protected) => {
            sa.phase = Phase::Closed(Box::new(protected));
            sa.timers = crate::ike_sa::Timers {
                expire: Some(ctx.now + CLOSED_KEPT),
                ..Default::default()
            };
            sa.dirty = true;
        }
        None => sa.gone = true,
    }
}

/// Ends an IKE SA at once, without a word to the peer.
pub(crate) fn vanish(sa: &mut IkeSa, ctx: &mut Context<'_>, why: &str) {
    end(sa, ctx, why);
    sa.gone = true;
}

fn end(sa: &mut IkeSa, ctx: &mut Context<'_>, why: &str) {
    let spis: Vec<EspSpi> = sa.children.iter().map(|child| child.spi_in).collect();
    reauth::switch_beside(sa, ctx, &spis);
    let next = reauth::goes_on(sa, ctx).filter(|_| sa.was_up());
    let next = next.map(|next| {
        let names = next.children.iter().map(|child| child.name.clone());
        (next.spi, names.collect::<Vec<_>>())
    });
    for child in std::mem::take(&mut sa.children) {
        ctx.out
            .child_changes
            .push(ChildSaChange::Remove { spi_in: child.spi_in });
        if next
            .as_ref()
            .is_some_and(|(_, names)| names.contains(&child.name))
        {
            continue;
        }
        let text = format!(
            "child {} (SPI {} in) went with its IKE SA",
            child.name, child.spi_in
        );
        ctx.named_child_event(sa, (&child.name, child.spi_in), EventKind::ChildDown, text);
    }
    release_offers(sa, ctx);
    sa.our.queue.clear();
    // A replaced IKE SA, or one that was never up on our side as responder, is no news.
    let unknown = matches!(
        sa.phase,
        Phase::Closed(_) | Phase::AwaitAuthRequest(_) | Phase::AwaitEap(_)
    );
    let news = sa.successor.is_none() && !unknown;
    match next {
        _ if !news => {}
        Some((next, _)) => {
            let text = format!("IKE SA {} is gone ({why}): {next} has taken its place", sa.spi);
            ctx.event(sa, EventKind::Reauthenticated, text);
        }
        None => {
            let text = format!("IKE SA {} is gone: {why}", sa.spi);
            ctx.event(sa, EventKind::IkeSaDown, text);
        }
    }
}

/// Gives back SPIs of Child SAs that will never be.
fn release_offers(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    follow_up::forget(sa, ctx);
    for outstanding in sa.our.take_all() {
        match outstanding.pending {
            Pending::CreateChild(offer) => ctx.around.release_esp_spi(offer.spi_in),
            Pending::FollowUp(asked) => {
                if let Some(spi_in) = asked.unfinished.spi_in() {
                    ctx.around.release_esp_spi(spi_in);
                }
            }
            _ => {}
        }
    }
    if let Phase::AwaitAuthResponse(phase) = &mut sa.phase
        && let Some(offer) = phase.child.take()
    {
        ctx.around.release_esp_spi(offer.spi_in);
    }
}
