//! The peer's INFORMATIONAL requests: deletions, notifications, liveness checks (RFC 7296 1.4).

use super::{counter_sync, delete, mobike, mobike_initiator, qcd, reauth, redirect, ticket, window};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::Phase;
use crate::outbox::Context;
use ike_wire::{Delete, Payload, PayloadList};

pub(crate) fn respond(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Vec<Payload> {
    if payloads.deletes().any(|delete| *delete == Delete::Ike) {
        delete::peer_deletes_ike(sa, ctx);
        return Vec::new();
    }
    qcd::take(sa, payloads);
    let mut answer: Vec<Payload> = Vec::new();
    if matches!(sa.phase, Phase::Established(_)) {
        window::take(sa, ctx.config, payloads);
        answer.extend(window::answer(sa, ctx.config, payloads));
        answer.extend(ticket::grant(sa, ctx, payloads));
        counter_sync::take(sa, ctx, payloads);
        reauth::take_lifetime(sa, ctx, payloads);
        redirect::follow(sa, ctx, payloads);
    }
    answer.extend(mobike::respond(sa, ctx, payloads));
    mobike_initiator::take_addresses(sa, payloads);
    for delete in payloads.deletes() {
        if let Delete::Esp(spis) = delete {
            let deleted = delete::peer_deletes_children(sa, ctx, spis);
            if !deleted.is_empty() {
                answer.push(Payload::Delete(Delete::Esp(deleted)));
            }
        }
    }
    if let Some(error) = payloads.error() {
        ctx.event(
            sa,
            EventKind::PeerMisbehaved,
            format!("the peer reports {}", error.kind),
        );
    }
    answer
}
