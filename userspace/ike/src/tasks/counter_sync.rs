//! Replay counter synchronisation (RFC 6311 5.2): after a failover the cluster asks its peer to raise the outgoing ESP sequence
//! numbers of all Child SAs of the IKE SA, so that they are above what the cluster counts as seen.

use super::Pending;
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::message::send_request;
use crate::ike_sa::windows::Task;
use crate::negotiate;
use crate::outbox::Context;
use ike_wire::{CounterDelta, ExchangeType, Notify, Payload, PayloadList};
use model::EspSpi;

/// A jump of this size or more would make a receiver infer a wrong high half (RFC 4303 appendix A2).
const JUMP_MAX: u64 = 1 << 31;

/// Whether all Child SAs have extended sequence numbers, or none; `None` for a mixture, which RFC 6311 5.2 excludes.
fn all_esn(sa: &IkeSa) -> Option<bool> {
    let mut kinds = sa
        .children
        .iter()
        .filter_map(|child| negotiate::esp_suite(&child.suite).map(|(_, esn)| esn));
    let first = kinds.next()?;
    kinds.all(|esn| esn == first).then_some(first)
}

/// Peer: raises the counters as the cluster asks. What the data plane cannot raise is rekeyed, which serves the same end.
pub(crate) fn take(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    let Some(delta) = payloads.notifies().find_map(Notify::as_replay_counter_sync) else {
        return;
    };
    if !sa.extras.sync.counters {
        return;
    }
    let (delta, esn) = match delta {
        CounterDelta::Short(delta) => (u64::from(delta), false),
        CounterDelta::Extended(delta) => (delta, true),
    };
    if all_esn(sa) != Some(esn) {
        let text = "the peer's cluster asks for higher sequence numbers in a form that does not fit the Child SAs: ignored";
        return ctx.event(sa, EventKind::PeerMisbehaved, text);
    }
    if delta == 0 {
        return;
    }
    let mut rekeyed = 0;
    let children: Vec<(EspSpi, ChildPhase)> = sa.children.iter().map(|c| (c.spi_in, c.phase)).collect();
    for (spi_in, phase) in &children {
        let raised = delta < JUMP_MAX && ctx.around.advance_outbound(*spi_in, delta);
        if !raised && *phase == ChildPhase::Installed {
            sa.our.push(Task::RekeyChild { spi_in: *spi_in });
            rekeyed += 1;
        }
    }
    sa.dirty = true;
    let text = format!(
        "the peer's cluster has failed over: outgoing sequence numbers of {} Child SAs raised by {delta}, {rekeyed} rekeyed",
        children.len() - rekeyed
    );
    ctx.event(sa, EventKind::CountersSynched, text);
}

/// Member: the peer sends below what counts as seen on this Child SA. Asks it to raise its counters, once per IKE SA and epoch and
/// where it can; otherwise the Child SA is rekeyed.
pub(crate) fn repair(sa: &mut IkeSa, ctx: &Context<'_>, spi_in: EspSpi, delta: u64) {
    let (_, epoch) = ctx.around.iv_prefix(sa.spi);
    let fits = match all_esn(sa) {
        Some(true) => delta < JUMP_MAX,
        Some(false) => delta < JUMP_MAX / 2,
        None => false,
    };
    if !sa.extras.sync.counters || !fits || delta == 0 || sa.extras.sync.counters_asked == Some(epoch.0) {
        return sa.our.push(Task::RekeyChild { spi_in });
    }
    sa.extras.sync.counters_asked = Some(epoch.0);
    sa.dirty = true;
    sa.our.push(Task::SyncCounters { delta });
}

/// Member: sends the request.
pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>, delta: u64) {
    let delta = match (all_esn(sa), u32::try_from(delta)) {
        (Some(true), _) => CounterDelta::Extended(delta),
        (Some(false), Ok(delta)) => CounterDelta::Short(delta),
        // The Child SAs have changed since it was queued: new ones need no help.
        _ => return,
    };
    let payloads = [Payload::Notify(Notify::replay_counter_sync(delta))];
    send_request(
        sa,
        ctx,
        ExchangeType::INFORMATIONAL,
        &payloads,
        Pending::SyncCounters,
    );
}
