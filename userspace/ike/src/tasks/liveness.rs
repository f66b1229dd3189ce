//! Liveness check: an empty INFORMATIONAL (RFC 7296 2.4).

use super::Pending;
use crate::ike_sa::IkeSa;
use crate::ike_sa::message::send_request;
use crate::outbox::Context;
use ike_wire::ExchangeType;

pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    send_request(sa, ctx, ExchangeType::INFORMATIONAL, &[], Pending::Liveness);
}
