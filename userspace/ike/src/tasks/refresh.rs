//! An INFORMATIONAL exchange with what IKE_AUTH carried for the IKE SA before a rekey: our QCD token (RFC 6290 4.3) and a
//! request for a ticket (RFC 5723 4.1).

use super::{Pending, qcd, ticket};
use crate::ike_sa::IkeSa;
use crate::ike_sa::message::send_request;
use crate::outbox::Context;
use ike_wire::{ExchangeType, Payload, PayloadList};

pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let mut payloads: Vec<Payload> = qcd::own_token(sa, ctx).into_iter().collect();
    if sa.extras.wants_ticket {
        payloads.extend(ticket::request(sa, ctx));
    }
    if !payloads.is_empty() {
        send_request(sa, ctx, ExchangeType::INFORMATIONAL, &payloads, Pending::Refresh);
    }
}

pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    qcd::take(sa, payloads);
    ticket::take(sa, ctx, payloads);
}
