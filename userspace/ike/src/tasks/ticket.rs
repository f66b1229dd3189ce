//! Tickets for session resumption (RFC 5723 4.1, 4.2, 6): granted by value, asked for, kept for the time after a loss.

use crate::auth::RemoteAuth;
use crate::config::{Connection, EndpointConfig, EngineConfig, Identity};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::extras::{HeldTicket, OwnTicket, TicketId};
use crate::ike_sa::phase::Phase;
use crate::ike_sa::record;
use crate::outbox::Context;
use crate::proposal::Proposal;
use crypto::ticket::{TICKET_KEY_PERIOD, TICKET_MAX, open_ticket, seal_ticket};
use crypto::{hmac_sha256, sha256};
use ike_wire::{Notify, NotifyType, Payload, PayloadList};
use model::{IkeSpi, SecretBytes};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Lifetime of a ticket where the IKE SA has none of its own.
const LIFETIME: Duration = Duration::from_secs(8 * 3600);
/// Shorter lifetimes are not worth a ticket.
const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// A ticket is replaced when this part of its lifetime, in per cent, has passed.
const RENEW_PERCENT: u32 = 75;

/// What a ticket holds: what RFC 5723 5 takes "from the ticket".
#[derive(Serialize, Deserialize)]
pub(crate) struct TicketState {
    /// Our SPI and the peer's of the IKE SA that it resumes.
    pub spi: IkeSpi,
    pub peer_spi: IkeSpi,
    /// The identity of who may show it.
    pub client_id: Identity,
    pub own_id: Identity,
    pub suite: Proposal,
    pub sk_d: SecretBytes,
    pub connection: String,
    /// Stands for the policy and the key that the client authenticated with.
    pub policy: [u8; 32],
    /// Seconds since 1970.
    pub expires: u64,
    /// When the holder authenticated, in seconds since 1970. Behind the rest: members of earlier releases do not look there.
    #[serde(skip)]
    pub authenticated: Option<u64>,
}

/// Digest of what a ticket's holder was authenticated by: with another key or other identities it has to authenticate anew.
pub(crate) fn policy(secret: &SecretBytes, connection: &Connection) -> [u8; 32] {
    let id = |id: &Identity| {
        let (kind, data) = id.to_wire();
        sha256(&[&[kind], &data])
    };
    let remote = connection.remote_id.as_ref().map_or([0; 32], id);
    let name = sha256(&[connection.name.as_bytes()]);
    // Authorities that are not believed any more resume nothing.
    let authorities = match &connection.remote_auth {
        RemoteAuth::Psk => Vec::new(),
        RemoteAuth::Certificate(trust) | RemoteAuth::EapTls(trust) => trust.digests().concat(),
        RemoteAuth::EapMsChapV2(_) => vec![0],
    };
    let parts: [&[u8]; 6] = [
        b"ticket policy",
        &name,
        &id(&connection.local_id),
        &remote,
        connection.psk.expose(),
        &authorities,
    ];
    hmac_sha256(secret.expose(), &parts)
}

/// Names a ticket.
pub(crate) fn id_of(ticket: &[u8]) -> TicketId {
    let digest = sha256(&[ticket]);
    std::array::from_fn(|at| digest[at])
}

/// What a ticket of ours says, and the secret that it was made with. `Err`: why it is none.
pub(crate) fn read<'c>(
    config: &'c EndpointConfig,
    now: u64,
    ticket: &[u8],
) -> Result<(TicketState, &'c SecretBytes), String> {
    let mut why = "tickets are not in use here".to_owned();
    for secret in config.ticket_secrets() {
        match open_ticket(secret, now, ticket) {
            Ok(state) => {
                let (mut state, rest): (TicketState, &[u8]) = postcard::take_from_bytes(state.expose())
                    .map_err(|_| "its content is of another version".to_owned())?;
                state.authenticated = postcard::from_bytes(rest).unwrap_or_default();
                return Ok((state, secret));
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

/// Answers TICKET_REQUEST for this (established) IKE SA (RFC 5723 4.1). `None`: there was none.
pub(crate) fn grant(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Option<Payload> {
    payloads.notify(NotifyType::TICKET_REQUEST)?;
    let granted = make(sa, ctx).unwrap_or_else(|| Notify::status(NotifyType::TICKET_NACK));
    Some(Payload::Notify(granted))
}

fn make(sa: &mut IkeSa, ctx: &mut Context<'_>) -> Option<Notify> {
    let config = ctx.config;
    let secret = config.endpoint.ticket_secret.as_ref()?;
    let connection = sa.connection(config).filter(|connection| connection.resumption)?;
    let now = ctx.around.unix_time()?;
    let lifetime = connection
        .ike_rekey_time
        .unwrap_or(LIFETIME)
        .clamp(LIFETIME_MIN, Duration::from_secs(TICKET_KEY_PERIOD));
    let protected = sa.phase.protected()?;
    let state = TicketState {
        spi: sa.spi,
        peer_spi: sa.peer_spi,
        client_id: sa.remote_id.clone()?,
        own_id: connection.local_id.clone(),
        suite: protected.suite.clone(),
        sk_d: protected.keys.sk_d.clone(),
        connection: connection.name.clone(),
        policy: policy(secret, connection),
        expires: now.saturating_add(lifetime.as_secs()),
        authenticated: sa.more.authentication.as_ref().and_then(|a| a.at()),
    };
    let octets = record::octets(&[], &(&state, state.authenticated));
    let ticket = seal_ticket(secret, now, &mut |out| ctx.around.random(out), &octets).ok()?;
    sa.extras.granted = Some((id_of(&ticket), state.expires));
    Some(Notify::ticket_lt_opaque(lifetime.as_secs() as u32, &ticket))
}

/// Whether to ask the peer for a ticket.
pub(crate) fn request(sa: &IkeSa, ctx: &Context<'_>) -> Option<Payload> {
    let wanted = sa
        .connection(ctx.config)
        .is_some_and(|connection| connection.resumption);
    (wanted && ctx.around.unix_time().is_some()).then(|| super::notify(NotifyType::TICKET_REQUEST))
}

/// Keeps the ticket that the peer grants in its answer to a request of ours.
pub(crate) fn take(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    let Some((lifetime, ticket)) = payloads.notifies().find_map(Notify::as_ticket_lt_opaque) else {
        return;
    };
    let Some(now) = ctx
        .around
        .unix_time()
        .filter(|_| sa.extras.wants_ticket && ticket.len() <= TICKET_MAX && lifetime > 0)
    else {
        return;
    };
    sa.extras.ticket = Some(OwnTicket {
        ticket: ticket.to_vec(),
        expires: now.saturating_add(u64::from(lifetime)),
    });
    sa.dirty = true;
    start_timer(sa, ctx);
}

/// When the ticket is to be replaced.
pub(crate) fn start_timer(sa: &mut IkeSa, ctx: &Context<'_>) {
    sa.timers.ticket = match (&sa.extras.ticket, ctx.around.unix_time()) {
        (Some(ticket), Some(now)) => {
            let left = Duration::from_secs(ticket.expires.saturating_sub(now).min(7 * 24 * 3600));
            Some(ctx.now + (left * RENEW_PERCENT / 100).max(Duration::from_secs(10)))
        }
        _ => None,
    };
}

/// The peer is lost, not the will to talk to it: the ticket is kept for the next try (RFC 5723 4.3.1). An IKE SA that either side
/// deletes takes its ticket along (6.2), since this is not called then.
pub(crate) fn keep(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let held = match &mut sa.phase {
        // It was shown, nobody answered: next time without, then with it again.
        Phase::AwaitResumeResponse(phase) => {
            phase.held.rests = true;
            Some(phase.held.clone())
        }
        _ => held_by(sa, ctx.config),
    };
    if let (Some(held), Some(name)) = (held, &sa.connection) {
        ctx.tickets.keep(name.clone(), held);
    }
}

fn held_by(sa: &IkeSa, config: &EngineConfig) -> Option<HeldTicket> {
    let (own, protected) = (sa.extras.ticket.clone()?, sa.phase.protected()?);
    Some(HeldTicket {
        ticket: own.ticket,
        expires: own.expires,
        suite: protected.suite.clone(),
        sk_d: protected.keys.sk_d.clone(),
        peer_id: sa.remote_id.clone()?,
        own_id: sa.connection(config)?.local_id.clone(),
        rests: false,
        authentication: sa.more.authentication.clone(),
    })
}

/// The ticket that a new IKE SA of this connection is to be resumed with, if there is a usable one. A ticket is taken out, so
/// that it is never shown for two IKE SAs.
pub(crate) fn to_show(ctx: &mut Context<'_>, connection: &Connection) -> Option<HeldTicket> {
    let now = ctx.around.unix_time()?;
    let mut held = ctx.tickets.take(&connection.name)?;
    let fits = connection.resumption
        && now < held.expires
        && held.own_id == connection.local_id
        && connection.expects(&held.peer_id)
        && crate::proposal::choose(&connection.ike_proposals, std::slice::from_ref(&held.suite)).is_some();
    if !fits {
        return None;
    }
    if held.rests {
        held.rests = false;
        ctx.tickets.keep(connection.name.clone(), held);
        return None;
    }
    Some(held)
}

/// An IKE SA was deleted in an orderly way: the ticket that was granted for it resumes nothing any more.
pub(crate) fn revoke(sa: &IkeSa, ctx: &mut Context<'_>) {
    if let (Some((id, expires)), Some(now)) = (sa.extras.granted, ctx.around.unix_time()) {
        ctx.tickets.spend(id, expires, now);
    }
}

/// The connection that a ticket made with `secret` belongs to, if ticket, policy and state here still fit together.
pub(crate) fn check<'c>(
    config: &'c EngineConfig,
    state: &TicketState,
    secret: &SecretBytes,
    now: u64,
) -> Result<&'c Connection, String> {
    if now >= state.expires {
        return Err("it has expired".to_owned());
    }
    let named = config.connections.iter().find(|c| c.name == state.connection);
    let Some(connection) = named else {
        return Err(format!("connection {:?} is gone", state.connection));
    };
    if !connection.resumption || policy(secret, connection) != state.policy {
        return Err(format!(
            "the policy of connection {} has changed",
            connection.name
        ));
    }
    if crate::proposal::choose(&connection.ike_proposals, std::slice::from_ref(&state.suite)).is_none() {
        return Err(format!(
            "connection {} no longer allows {}",
            connection.name, state.suite
        ));
    }
    Ok(connection)
}

/// Reports that a ticket was refused.
pub(crate) fn refused(ctx: &mut Context<'_>, remote: std::net::SocketAddr, why: &str) {
    let text = format!(
        "a session cannot be resumed, the peer has to authenticate anew: the ticket is refused: {why}"
    );
    ctx.event_without_sa(EventKind::TicketRefused, None, Some(remote), text);
}
