//! Rekey of a Child SA, also when both sides start it at once (RFC 7296 1.3.3, 2.8, 2.8.1, 2.25.1).

use super::child_answer::{self, not_found, temporary_failure};
use super::child_create::{self, Agreed, ChildOffer, NONCE_LEN, install};
use super::follow_up::{self, Unfinished};
use super::{Pending, put_off};
use crate::config::{ChildConfig, Resource};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::{ChildPhase, ChildSa};
use crate::ike_sa::windows::Task;
use crate::outbox::Context;
use ike_wire::{Notify, Payload, PayloadList};
use model::{EspSpi, OutboundUse};

/// A rekey waits this many times for a resource that is not there: about half a minute in all.
const GONE_AFTER: u8 = 6;

/// Offers a successor with the selectors that the old one ended up with.
pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>, spi_in: EspSpi, tries: u8) {
    let Some(old) = sa
        .child(spi_in)
        .filter(|child| child.phase == ChildPhase::Installed)
        .cloned()
    else {
        return;
    };
    if follow_up::peer_replaces(sa, Some(spi_in)) {
        // The peer's rekey may still come to nothing.
        return put_off(sa, ctx, Task::RekeyChild { spi_in }, tries, "rekey by the peer");
    }
    let configured = sa
        .connection(ctx.config)
        .and_then(|connection| connection.child(&old.name));
    let proposals = configured.map_or_else(|| vec![old.suite.clone()], |child| child.esp_proposals.clone());
    let child = ChildConfig {
        name: old.name.clone(),
        local_ts: old.ts_local.clone(),
        remote_ts: old.ts_remote.clone(),
        esp_proposals: proposals.clone(),
        start: false,
        mode: old.mode,
        // An offer takes it from the configuration, by name.
        tfc_padding: true,
    };
    if let Some(resource) = old.resource
        && !ctx.around.has_resource(sa.spi, resource)
    {
        return resource_is_gone(sa, ctx, &old, resource, tries);
    }
    let nonce = ctx.random(NONCE_LEN);
    match child_create::offer(sa, ctx, &child, proposals, nonce, None, old.resource) {
        Some(mut offer) => {
            offer.rekeys = Some(spi_in);
            offer.multiple = old.multiple;
            offer.tries = tries;
            child_create::send_offer(sa, ctx, offer);
        }
        None => put_off(
            sa,
            ctx,
            Task::RekeyChild { spi_in },
            tries,
            &format!("rekey of child {}", old.name),
        ),
    }
}

/// Nobody serves what the Child SA is for. Its member may be back in a moment; if not, the Child SA goes, and its traffic is on the
/// one that all may use.
fn resource_is_gone(sa: &mut IkeSa, ctx: &mut Context<'_>, old: &ChildSa, resource: Resource, tries: u8) {
    let spi_in = old.spi_in;
    if tries < GONE_AFTER {
        return put_off(
            sa,
            ctx,
            Task::RekeyChild { spi_in },
            tries,
            &format!("rekey of child {} for {resource}", old.name),
        );
    }
    let text = format!(
        "child {}: {resource} takes no Child SA, so it is deleted instead of rekeyed",
        old.name
    );
    ctx.child_event(sa, Some(spi_in), EventKind::ChildFailed, text);
    sa.our.push(Task::DeleteChild { spi_in });
}

/// Our rekey succeeded: switch, then delete the old one. Where the peer's rekey crossed ours, the SA made with the
/// lowest of the four nonces is redundant and deleted by the side that made it.
pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: ChildOffer, agreed: Agreed) {
    let old = offer.rekeys;
    // The peer may have deleted it in the meantime.
    let still_there = old.filter(|spi| sa.child(*spi).is_some());
    let mut agreed = agreed;
    agreed.replaces = still_there;
    let ours_lowest = (&agreed.nonce_i).min(&agreed.nonce_r).clone();
    let new = agreed.spi_in;
    let ours_is_redundant = offer
        .crossing
        .as_ref()
        .is_some_and(|(other, lowest)| ours_lowest < *lowest && sa.child(*other).is_some());
    if ours_is_redundant {
        if let (Some(child), Some((by, _))) = (old.and_then(|spi| sa.child_mut(spi)), &offer.crossing) {
            child.phase = ChildPhase::Rekeyed { by: *by };
            child.rekey_at = None;
        }
        agreed.outbound = OutboundUse::Later;
        if install(sa, ctx, agreed, ChildPhase::Deleting) {
            sa.our.push_front(Task::DeleteChild { spi_in: new });
        }
        return;
    }
    if !install(sa, ctx, agreed, ChildPhase::Installed) {
        return;
    }
    if let Some((other, _)) = offer.crossing
        && let Some(redundant) = sa.child_mut(other)
    {
        // The peer made it and will delete it; it never carries our traffic.
        redundant.phase = ChildPhase::Rekeyed { by: new };
        redundant.rekey_at = None;
    }
    if let Some(spi_in) = still_there {
        if let Some(child) = sa.child_mut(spi_in) {
            child.phase = ChildPhase::Deleting;
            child.rekey_at = None;
        }
        sa.our.push_front(Task::DeleteChild { spi_in });
    }
}

//= rfc9370#2.2.4
// if additional key exchanges are negotiated in the CREATE_CHILD_SA exchange in which the smallest nonce is used, then, because there
// is nothing to delete yet, the initiator of this exchange just stops the rekeying process, and it MUST NOT initiate the
// IKE_FOLLOWUP_KE exchange.
/// The peer's rekey crossed ours, and ours is the redundant one, with nothing made yet.
pub(crate) fn yield_to_crossing(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    offer: &ChildOffer,
    agreed: &Agreed,
) -> bool {
    let ours_lowest = (&agreed.nonce_i).min(&agreed.nonce_r);
    let Some((by, _)) = offer
        .crossing
        .as_ref()
        .filter(|(other, lowest)| ours_lowest < lowest && sa.child(*other).is_some())
    else {
        return false;
    };
    if let Some(child) = offer.rekeys.and_then(|old| sa.child_mut(old)) {
        child.phase = ChildPhase::Rekeyed { by: *by };
        child.rekey_at = None;
    }
    ctx.around.release_esp_spi(agreed.spi_in);
    true
}

/// The peer does not know the SA that we wanted to replace: make a new one in its place.
pub(crate) fn peer_lost_it(sa: &mut IkeSa, ctx: &mut Context<'_>, offer: &ChildOffer) {
    let Some(spi_in) = offer.rekeys else { return };
    // A crossing rekey, or a crossing deletion, explains it.
    if offer.crossing.is_some() || sa.child(spi_in).is_none() {
        return;
    }
    ctx.child_event(
        sa,
        Some(spi_in),
        EventKind::ChildFailed,
        format!(
            "child {}: the peer no longer has the SA with our SPI {spi_in}, making a new one",
            offer.name
        ),
    );
    super::delete::finish_child(sa, ctx, spi_in);
    let child = offer.name.clone();
    sa.our.push(match offer.resource {
        Some(resource) => Task::CreateResourceChild { child, resource },
        None => Task::CreateChild { child },
    });
}

/// The peer replaces a Child SA.
pub(crate) fn respond(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    payloads: &PayloadList,
    rekey: &Notify,
) -> Vec<Payload> {
    // REKEY_SA carries the SPI that the peer expects in packets to itself.
    let Some(spi_out) = rekey.esp_spi() else {
        return vec![super::notify(ike_wire::NotifyType::INVALID_SYNTAX)];
    };
    let Some(old) = sa.child_by_out(spi_out).cloned() else {
        return not_found(spi_out);
    };
    match old.phase {
        ChildPhase::Installed => {}
        // RFC 7296 2.25.1: being closed, or replaced just now.
        ChildPhase::Deleting | ChildPhase::Rekeyed { .. } | ChildPhase::AwaitsSwitch { .. } => {
            return temporary_failure();
        }
    }
    //= rfc9370#2.2.4
    // a situation may occur when one of the peers receives the CREATE_CHILD_SA message requesting the rekey of an SA that is already
    // being rekeyed by this peer (i.e., the series of IKE_FOLLOWUP_KE exchanges is in progress). In this case, a TEMPORARY_FAILURE
    // notification MUST be sent in response to such a request.
    let follows =
        |pending: &Pending| matches!(pending, Pending::FollowUp(asked) if asked.rekeys() == Some(old.spi_in));
    if sa.our.pending().any(follows) {
        return temporary_failure();
    }
    let rekeys =
        |pending: &Pending| matches!(pending, Pending::CreateChild(ours) if ours.rekeys == Some(old.spi_in));
    let crosses = sa.our.pending().any(rekeys);
    let (mut answer, agreed) = match child_answer::answer(sa, ctx, payloads, None, Some(&old)) {
        Ok(agreed) => agreed,
        Err(refusal) => return vec![refusal.report(sa, ctx)],
    };
    if agreed.suite.has_additional() {
        if crosses || follow_up::is_awaited(sa) {
            ctx.around.release_esp_spi(agreed.spi_in);
            return temporary_failure();
        }
        answer.push(follow_up::promise(sa, ctx, Unfinished::Child(Box::new(agreed))));
        return answer;
    }
    if !accept(sa, ctx, agreed, old.spi_in) {
        return vec![super::notify(ike_wire::NotifyType::NO_ADDITIONAL_SAS)];
    }
    answer
}

/// The peer's rekey of `old` is complete.
pub(crate) fn accept(sa: &mut IkeSa, ctx: &mut Context<'_>, agreed: Agreed, old: EspSpi) -> bool {
    let lowest = (&agreed.nonce_i).min(&agreed.nonce_r).clone();
    let new = agreed.spi_in;
    if !install(sa, ctx, agreed, ChildPhase::AwaitsSwitch { replaces: old }) {
        return false;
    }
    let mut crosses = false;
    for outstanding in sa.our.all_mut() {
        if let Pending::CreateChild(ours) = &mut outstanding.pending
            && ours.rekeys == Some(old)
        {
            ours.crossing = Some((new, lowest.clone()));
            crosses = true;
        }
    }
    // In a crossing the old SA stays as it is until it is clear who deletes it.
    if !crosses && let Some(child) = sa.child_mut(old) {
        child.phase = ChildPhase::Rekeyed { by: new };
        child.rekey_at = None;
    }
    true
}
