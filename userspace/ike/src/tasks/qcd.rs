//! Quick crash detection, both roles (RFC 6290).
//!
//! As token maker we give the peer a token that only the cluster can make, under the protection of the IKE SA. As token
//! taker we keep the peer's. A peer that shows its token in clear has lost the IKE SA: ours is discarded at once, where
//! RFC 7296 would ask for minutes of unanswered requests.

use super::{delete, ticket};
use crate::command;
use crate::config::EndpointConfig;
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::outbox::Context;
use crypto::sha256;
use ike_wire::{Message, Notify, NotifyType, Payload, PayloadList};
use model::IkeSpi;
use std::time::Duration;

/// Tokens that are tried of one message. RFC 6290 4.5: "the token taker MUST support at least four".
const TRIED_MAX: usize = 4;

/// Tokens that do not match are reported at most once in this time and IKE SA.
const REPORT_AGAIN: Duration = Duration::from_secs(60);

//= rfc6290#5.1
// TOKEN_SECRET_DATA = HASH(QCD_SECRET | SPI-I | SPI-R)
/// Our tokens for an IKE SA: that of the secret in use, then those of secrets that are being replaced. None where we make none.
pub(crate) fn tokens(config: &EndpointConfig, spi_i: IkeSpi, spi_r: IkeSpi) -> Vec<[u8; 32]> {
    let others = config.also_honoured.iter().map(|other| &other.qcd);
    let Some(secret) = &config.qcd_secret else {
        return Vec::new();
    };
    let (spi_i, spi_r) = (spi_i.0.to_be_bytes(), spi_r.0.to_be_bytes());
    std::iter::once(secret)
        .chain(others)
        .take(TRIED_MAX)
        .map(|secret| sha256(&[secret.expose(), &spi_i, &spi_r]))
        .collect()
}

fn is_wanted(sa: &IkeSa, ctx: &Context<'_>) -> bool {
    sa.connection(ctx.config)
        .is_some_and(|connection| connection.crash_detection)
}

/// Our token for the peer, as a payload.
pub(crate) fn own_token(sa: &IkeSa, ctx: &Context<'_>) -> Option<Payload> {
    if !is_wanted(sa, ctx) {
        return None;
    }
    let (spi_i, spi_r) = sa.header_spis();
    let tokens = tokens(&ctx.config.endpoint, spi_i, spi_r);
    Some(Payload::Notify(Notify::qcd_token(tokens.first()?)))
}

/// Keeps what tokens the peer gives under protection, asked for or not (RFC 6290 4.4).
pub(crate) fn take(sa: &mut IkeSa, payloads: &PayloadList) {
    for token in payloads
        .notifies()
        .filter_map(Notify::as_qcd_token)
        .take(TRIED_MAX)
    {
        sa.dirty |= sa.extras.qcd.take(token);
    }
}

//= rfc6290#4.5
// If the QCD_TOKEN verifies OK, the receiver MUST silently discard the IKE SA and all associated child SAs. If the
// QCD_TOKEN cannot be validated, a response MUST NOT be sent, and the event may be logged.
/// A message in clear for this IKE SA. `true`: it proved that the peer has lost the IKE SA, which is gone now.
pub(crate) fn shown(sa: &mut IkeSa, ctx: &mut Context<'_>, message: &Message) -> bool {
    let about_loss =
        |notify: &Notify| matches!(notify.kind, NotifyType::INVALID_IKE_SPI | NotifyType::INVALID_SPI);
    if sa.extras.qcd.is_empty()
        || !is_wanted(sa, ctx)
        || sa.header_spis() != (message.header.spi_i, message.header.spi_r)
        || !message.payloads.notifies().any(about_loss)
    {
        return false;
    }
    let mut tokens = message
        .payloads
        .notifies()
        .filter_map(Notify::as_qcd_token)
        .peekable();
    if tokens.peek().is_none() {
        return false;
    }
    if !tokens.take(TRIED_MAX).any(|token| sa.extras.qcd.contains(token)) {
        if sa
            .timers
            .refused_token
            .is_none_or(|at| ctx.now.since(at) >= REPORT_AGAIN)
        {
            sa.timers.refused_token = Some(ctx.now);
            let text = "somebody shows a QCD token that the peer never gave us: ignored";
            ctx.event(sa, EventKind::TokenRefused, text);
        }
        return false;
    }
    let text = format!("the peer proves that it has lost IKE SA {}: discarded", sa.spi);
    ctx.event(sa, EventKind::PeerCrashed, text);
    let replaced = sa.successor.is_some();
    if !replaced {
        ticket::keep(sa, ctx);
    }
    delete::vanish(sa, ctx, "the peer has lost it (QCD token)");
    if !replaced && let Some(name) = sa.connection.clone() {
        command::begin_again(ctx, &name);
    }
    true
}
