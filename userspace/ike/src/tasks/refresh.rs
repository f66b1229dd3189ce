//! After a rekey of the IKE SA: an INFORMATIONAL exchange with what IKE_AUTH carried for the old one (RFC 6290 4.3).

use super::{Pending, qcd};
use crate::ike_sa::IkeSa;
use crate::ike_sa::message::send_request;
use crate::outbox::Context;
use ike_wire::{ExchangeType, PayloadList};

pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let payloads: Vec<_> = qcd::own_token(sa, ctx).into_iter().collect();
    if !payloads.is_empty() {
        send_request(sa, ctx, ExchangeType::INFORMATIONAL, &payloads, Pending::Refresh);
    }
}

pub(crate) fn finish(sa: &mut IkeSa, payloads: &PayloadList) {
    qcd::take(sa, payloads);
}
