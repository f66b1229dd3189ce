//! An INFORMATIONAL exchange with what IKE_AUTH carried for the IKE SA before a rekey: our QCD token (RFC 6290 4.3), a
//! request for a ticket (RFC 5723 4.1), and the size of our window (RFC 7296 2.3).

use super::{Pending, qcd, ticket, window};
use crate::ike_sa::IkeSa;
use crate::ike_sa::message::send_request;
use crate::outbox::Context;
use ike_wire::{ExchangeType, Payload, PayloadList};

pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let mut payloads: Vec<Payload> = qcd::own_token(sa, ctx).into_iter().collect();
    payloads.extend(window::announce(sa, ctx.config));
    if sa.extras.wants_ticket {
        payloads.extend(ticket::request(sa, ctx));
    }
    if !payloads.is_empty() {
        send_request(sa, ctx, ExchangeType::INFORMATIONAL, &payloads, Pending::Refresh);
    }
}

pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    qcd::take(sa, payloads);
    window::take(sa, ctx.config, payloads);
    ticket::take(sa, ctx, payloads);
}
