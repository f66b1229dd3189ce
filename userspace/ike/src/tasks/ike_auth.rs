//! IKE_AUTH with a pre-shared key, and the first Child SA (RFC 7296 1.2, 2.15).

use super::{Pending, child_answer, child_create, delete, ike_init, notify, qcd, resource, resume, ticket};
use crate::config::{Connection, Identity};
use crate::event::EventKind;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::message::send_request;
use crate::ike_sa::phase::{AwaitAuthResponse, Established, InitTranscript, Phase, Protected};
use crate::ike_sa::windows::Task;
use crate::ike_sa::{IkeSa, jittered};
use crate::outbox::Context;
use crate::proposal::{self, Proposal};
use crate::tasks::intermediate::int_auth;
use crypto::{AuthInput, Prf, psk_auth, resumption_auth, verify_psk_auth, verify_resumption_auth};
use ike_wire::{
    AuthMethod, Authentication, Delete, ExchangeType, IdType, Identification, NotifyType, Payload,
    PayloadList,
};
use model::IkeSpi;

fn wire_identity(id: &Identity) -> Identification {
    use ike_wire::Identity as Wire;
    use std::net::IpAddr;
    Identification::from(match id {
        Identity::Address(IpAddr::V4(ip)) => Wire::Ipv4(*ip),
        Identity::Address(IpAddr::V6(ip)) => Wire::Ipv6(*ip),
        Identity::Fqdn(name) => Wire::Fqdn(name.clone()),
        Identity::Email(name) => Wire::Rfc822(name.clone()),
        Identity::KeyId(octets) => Wire::KeyId(octets.clone()),
        Identity::Other(kind, data) => Wire::Other {
            kind: IdType(*kind),
            data: data.clone(),
        },
    })
}

pub(crate) fn identity_of(id: &Identification) -> Identity {
    Identity::from_wire(id.identity.kind().0, &id.identity.data())
}

/// What RFC 6311 4 negotiates, each by itself.
const CLUSTER_SYNC: [NotifyType; 2] = [
    NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED,
    NotifyType::IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED,
];

/// What both sides support; a responder asserts no more than that (RFC 6311 4).
fn agree_on_sync(sa: &mut IkeSa, ours: bool, payloads: &PayloadList) -> Vec<NotifyType> {
    let both = |kind: &NotifyType| ours && payloads.notify(*kind).is_some();
    let agreed: Vec<_> = CLUSTER_SYNC.into_iter().filter(both).collect();
    sa.extras.sync.message_ids = agreed.contains(&NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED);
    sa.extras.sync.counters = agreed.contains(&NotifyType::IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED);
    agreed
}

/// The data of our AUTH payload.
fn prove(sa: &IkeSa, connection: &Connection, prf: Prf, input: AuthInput<'_>) -> Vec<u8> {
    match sa.extras.resumed {
        Some(_) => resumption_auth(prf, input),
        None => psk_auth(prf, &connection.psk, input),
    }
}

/// Initiator: sends IKE_AUTH with the first child.
pub(crate) fn start(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    protected: Protected,
    transcript: InitTranscript,
    childless_allowed: bool,
) {
    let Some(connection) = sa.connection(ctx.config) else {
        return delete::vanish(sa, ctx, "the connection is no longer in the configuration");
    };
    let own_id = wire_identity(&connection.local_id);
    let intermediate = int_auth(sa);
    let input = AuthInput {
        message: &transcript.request,
        nonce: &transcript.nonce_r,
        sk_p: &protected.keys.sk_pi,
        id_body: &own_id.body(),
        intermediate: &intermediate,
    };
    let auth = prove(sa, connection, protected.keys.prf, input);
    let mut payloads = vec![Payload::IdInitiator(own_id)];
    let others = ctx.table.of_connection(&connection.name);
    let is_first = !others.iter().any(|spi| {
        ctx.table
            .get(*spi)
            .is_some_and(|other| matches!(other.phase, Phase::Established(_)))
    });
    if is_first {
        payloads.push(notify(NotifyType::INITIAL_CONTACT));
    }
    if let Some(remote_id) = &connection.remote_id {
        payloads.push(Payload::IdResponder(wire_identity(remote_id)));
    }
    payloads.push(Payload::Authentication(Authentication {
        method: AuthMethod::SHARED_KEY_MIC,
        data: auth,
    }));
    payloads.extend(qcd::own_token(sa, ctx));
    if connection.cluster_sync {
        payloads.extend(CLUSTER_SYNC.map(notify));
    }
    let request = ticket::request(sa, ctx);
    sa.extras.wants_ticket = request.is_some();
    payloads.extend(request);

    let wanted: Vec<_> = connection.children.iter().filter(|child| child.start).collect();
    let first = wanted.first().copied().or(if childless_allowed {
        None
    } else {
        connection.children.first()
    });
    let mut offer = None;
    if let Some(child) = first {
        let proposals: Vec<Proposal> = child.esp_proposals.iter().map(Proposal::without_dh).collect();
        let nonce = transcript.nonce_i.clone();
        offer = child_create::offer(sa, ctx, child, proposals, nonce, None, None);
    }
    if let Some(offer) = &offer {
        let (proposals, selectors) = child_create::offer_payloads(offer);
        payloads.push(proposals);
        payloads.extend(selectors);
        if resource::is_wanted(connection) {
            payloads.push(resource::info(sa, ctx, None));
        }
    }
    for child in wanted
        .into_iter()
        .filter(|child| offer.as_ref().is_none_or(|offer| offer.name != child.name))
    {
        sa.our.push(Task::CreateChild {
            child: child.name.clone(),
        });
    }
    sa.phase = Phase::AwaitAuthResponse(Box::new(AwaitAuthResponse {
        protected,
        transcript,
        child: offer,
    }));
    if !send_request(sa, ctx, ExchangeType::IKE_AUTH, &payloads, Pending::Auth) {
        delete::vanish(sa, ctx, "IKE_AUTH could not be sent");
    }
}

/// Initiator: the responder's proof and its answer about the first child.
pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    let Some(connection) = sa.connection(ctx.config) else {
        return delete::vanish(sa, ctx, "the connection is no longer in the configuration");
    };
    let intermediate = int_auth(sa);
    let Phase::AwaitAuthResponse(phase) = &mut sa.phase else {
        return;
    };
    let (Some(id), Some(auth)) = (payloads.id_r(), payloads.auth()) else {
        let reason = payloads
            .error()
            .map_or("an answer without AUTH".to_owned(), |error| {
                error.kind.to_string()
            });
        if sa.extras.resumed.is_some() {
            let text = format!("the peer does not resume the session but answers {reason}; it is begun anew");
            ctx.event(sa, EventKind::TicketRefused, text.clone());
            return delete::vanish(sa, ctx, &text);
        }
        let text = format!(
            "the peer refused us with {reason}: check that both sides have the same pre-shared key and that it knows \
             us as {} (we expect it as {})",
            connection.local_id,
            connection
                .remote_id
                .as_ref()
                .map_or("anyone".to_owned(), ToString::to_string)
        );
        ctx.event(sa, EventKind::AuthFailed, text.clone());
        return delete::vanish(sa, ctx, &text);
    };
    let remote_id = identity_of(id);
    let keys = &phase.protected.keys;
    let input = AuthInput {
        message: &phase.transcript.response,
        nonce: &phase.transcript.nonce_i,
        sk_p: &keys.sk_pr,
        id_body: &id.body(),
        intermediate: &intermediate,
    };
    let proved = auth.method == AuthMethod::SHARED_KEY_MIC
        && match &sa.extras.resumed {
            Some(_) => verify_resumption_auth(keys.prf, input, &auth.data),
            None => verify_psk_auth(keys.prf, &connection.psk, input, &auth.data),
        };
    let expected = match &sa.extras.resumed {
        // RFC 5723 4.3.3: the IDr sent by the gateway must be the ticket's.
        Some(resumed) => resumed.peer_id == remote_id,
        None => connection
            .remote_id
            .as_ref()
            .is_none_or(|expected| *expected == remote_id),
    };
    if !proved || !expected {
        let text = if expected {
            format!(
                "the peer {remote_id} does not prove that it has our pre-shared key: compare the keys of both sides"
            )
        } else {
            format!("the peer says it is {remote_id}, but remote_id of the connection is another: align them")
        };
        ctx.event(sa, EventKind::AuthFailed, text);
        return give_up(sa, ctx);
    }
    let protected = phase.protected.clone();
    let offer = phase.child.take();
    let nonces = (phase.transcript.nonce_i.clone(), phase.transcript.nonce_r.clone());
    sa.remote_id = Some(remote_id);
    agree_on_sync(sa, connection.cluster_sync, payloads);
    qcd::take(sa, payloads);
    ticket::take(sa, ctx, payloads);
    establish(sa, ctx, protected);
    let Some(offer) = offer else { return };
    if let Some(error) = payloads.error() {
        ctx.around.release_esp_spi(offer.spi_in);
        let why = child_create::explain(error.kind, &offer.proposals, &offer.ts_local, &offer.ts_remote);
        let text = format!("child {}: the peer refused with {}{why}", offer.name, error.kind);
        return ctx.event(sa, EventKind::ChildFailed, text);
    }
    match child_create::read_response(&offer, payloads, nonces.0, nonces.1) {
        Ok(agreed) => {
            child_create::install(sa, ctx, agreed, ChildPhase::Installed);
        }
        Err(why) => {
            ctx.around.release_esp_spi(offer.spi_in);
            ctx.event(
                sa,
                EventKind::PeerMisbehaved,
                format!("child {}: IKE_AUTH response has {why}", offer.name),
            );
            let delete = [Payload::Delete(Delete::Esp(vec![offer.spi_in]))];
            let pending = Pending::DeleteChild { spi_in: offer.spi_in };
            send_request(sa, ctx, ExchangeType::INFORMATIONAL, &delete, pending);
        }
    }
}

/// The responder believes the IKE SA is up; tell it that it is not (RFC 7296 2.21.2).
fn give_up(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    if let Phase::AwaitAuthResponse(phase) = &mut sa.phase
        && let Some(offer) = phase.child.take()
    {
        ctx.around.release_esp_spi(offer.spi_in);
    }
    delete::start_ike(sa, ctx);
}

/// Both sides are authenticated: timers start.
pub(crate) fn establish(sa: &mut IkeSa, ctx: &mut Context<'_>, protected: Protected) {
    let text = format!(
        "IKE SA {} is up with {}: {}{}",
        sa.spi,
        sa.remote_id
            .as_ref()
            .map_or("unknown".to_owned(), ToString::to_string),
        protected.suite,
        match (sa.path.nat_local, sa.path.nat_remote) {
            (true, true) => ", both sides behind a NAT",
            (true, false) => ", we are behind a NAT",
            (false, true) => ", the peer is behind a NAT",
            (false, false) => "",
        }
    );
    sa.phase = Phase::Established(Box::new(Established {
        protected,
        crossing: None,
    }));
    sa.more.intermediate = None;
    sa.dirty = true;
    start_timers(sa, ctx);
    // Whatever a ticket stood for, this is newer.
    if let Some(name) = &sa.connection {
        ctx.tickets.take(name);
    }
    ctx.event(sa, EventKind::Established, text);
}

/// Timers of an established IKE SA, from now on.
pub(crate) fn start_timers(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let keepalive = sa.timers.keepalive;
    sa.timers.expire = None;
    sa.timers.since = ctx.now;
    ticket::start_timer(sa, ctx);
    let Some(connection) = sa.connection(ctx.config) else {
        return;
    };
    let (rekey, jitter) = (connection.ike_rekey_time, connection.rekey_jitter);
    sa.timers.liveness = connection.dpd_delay.map(|delay| ctx.now + delay);
    sa.timers.keepalive = if sa.path.nat_local {
        keepalive.or(Some(ctx.now + connection.keepalive))
    } else {
        None
    };
    sa.timers.rekey = rekey.map(|time| ctx.now + jittered(time, jitter, ctx.random_u32()));
}

/// Responder: checks the initiator's proof, proves itself, and answers about the first child.
pub(crate) fn respond(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Vec<Payload> {
    let verdict = match &sa.extras.resumed {
        Some(resumed) => resume::authenticate(sa, ctx, resumed, payloads),
        None => authenticate(sa, ctx, payloads),
    };
    let (connection, remote_id) = match verdict {
        Ok(found) => found,
        Err(text) => {
            ctx.event(sa, EventKind::AuthFailed, text);
            // The answer still has to be protected: the phase changes, the keys stay.
            delete::close(sa, ctx, "authentication failed");
            return vec![notify(NotifyType::AUTHENTICATION_FAILED)];
        }
    };
    let Phase::AwaitAuthRequest(phase) = &sa.phase else {
        return Vec::new();
    };
    let protected = phase.protected.clone();
    let own_id = wire_identity(&connection.local_id);
    let intermediate = int_auth(sa);
    let input = AuthInput {
        message: &phase.transcript.response,
        nonce: &phase.transcript.nonce_i,
        sk_p: &protected.keys.sk_pr,
        id_body: &own_id.body(),
        intermediate: &intermediate,
    };
    let auth = prove(sa, connection, protected.keys.prf, input);
    let nonces = (phase.transcript.nonce_i.clone(), phase.transcript.nonce_r.clone());
    sa.connection = Some(connection.name.clone());
    sa.remote_id = Some(remote_id);
    let agreed = agree_on_sync(sa, connection.cluster_sync, payloads);
    qcd::take(sa, payloads);
    establish(sa, ctx, protected);
    resume::succeeded(sa, ctx);
    if payloads.notify(NotifyType::INITIAL_CONTACT).is_some() {
        initial_contact(sa, ctx);
    }
    let mut answer = vec![
        Payload::IdResponder(own_id),
        Payload::Authentication(Authentication {
            method: AuthMethod::SHARED_KEY_MIC,
            data: auth,
        }),
    ];
    answer.extend(qcd::own_token(sa, ctx));
    answer.extend(agreed.into_iter().map(notify));
    answer.extend(ticket::grant(sa, ctx, payloads));
    // RFC 6023: without SA payload the initiator wants no child now.
    if payloads.sa().is_some() {
        match child_answer::answer(sa, ctx, payloads, Some((&nonces.0, &nonces.1)), None) {
            Ok((child, agreed)) => {
                child_create::install(sa, ctx, agreed, ChildPhase::Installed);
                answer.extend(child);
            }
            Err(refusal) => answer.push(refusal.report(sa, ctx)),
        }
    }
    answer
}

/// Finds the connection and checks the proof.
fn authenticate<'c>(
    sa: &IkeSa,
    ctx: &Context<'c>,
    payloads: &PayloadList,
) -> Result<(&'c Connection, Identity), String> {
    let Phase::AwaitAuthRequest(phase) = &sa.phase else {
        return Err("not expected".to_owned());
    };
    let id = payloads.id_i().ok_or("IKE_AUTH request without IDi")?;
    let remote_id = identity_of(id);
    let Some(auth) = payloads.auth() else {
        return Err(format!(
            "{remote_id} wants to authenticate by EAP; configure the peer for a pre-shared key"
        ));
    };
    if auth.method != AuthMethod::SHARED_KEY_MIC {
        let method = auth.method;
        return Err(format!(
            "{remote_id} authenticates by {method}; configure the peer for a pre-shared key"
        ));
    }
    let asked = payloads.id_r().map(identity_of);
    let suite = std::slice::from_ref(&phase.protected.suite);
    let config = ctx.config;
    let mut by_address = config
        .connections
        .iter()
        .filter(|connection| ike_init::matches_path(connection, sa.path.local, sa.path.remote))
        .filter(|connection| proposal::choose(&connection.ike_proposals, suite).is_some())
        .peekable();
    if by_address.peek().is_none() {
        return Err(format!(
            "{remote_id}: no connection has these addresses and {}",
            phase.protected.suite
        ));
    }
    let by_ids: Vec<&Connection> = by_address
        .filter(|connection| {
            connection
                .remote_id
                .as_ref()
                .is_none_or(|expected| *expected == remote_id)
        })
        .filter(|connection| asked.as_ref().is_none_or(|asked| *asked == connection.local_id))
        .collect();
    // A connection for this very identity goes before one for anyone.
    let connection = by_ids
        .iter()
        .find(|connection| connection.remote_id.is_some())
        .or(by_ids.first())
        .copied()
        .ok_or_else(|| {
            format!(
                "the peer says it is {remote_id} and asks for {}, but no connection at these addresses has these \
                 identities: compare local_id and remote_id of both sides",
                asked.map_or("anyone".to_owned(), |asked| asked.to_string())
            )
        })?;
    let intermediate = int_auth(sa);
    let input = AuthInput {
        message: &phase.transcript.request,
        nonce: &phase.transcript.nonce_r,
        sk_p: &phase.protected.keys.sk_pi,
        id_body: &id.body(),
        intermediate: &intermediate,
    };
    if !verify_psk_auth(phase.protected.keys.prf, &connection.psk, input, &auth.data) {
        return Err(format!(
            "{remote_id} has another pre-shared key than connection {}: compare the keys of both sides",
            connection.name
        ));
    }
    Ok((connection, remote_id))
}

/// The peer says that this is its only IKE SA with us: older ones are leftovers (RFC 7296 2.4).
fn initial_contact(sa: &IkeSa, ctx: &mut Context<'_>) {
    let (Some(connection), Some(remote_id)) = (&sa.connection, &sa.remote_id) else {
        return;
    };
    let older: Vec<IkeSpi> = ctx
        .table
        .of_connection(connection)
        .into_iter()
        .filter(|spi| *spi != sa.spi)
        .filter(|spi| {
            ctx.table
                .get(*spi)
                .is_some_and(|other| other.remote_id.as_ref() == Some(remote_id))
        })
        .collect();
    for spi in older {
        if let Some(mut other) = ctx.table.take(spi) {
            delete::vanish(&mut other, ctx, "the peer began anew (INITIAL_CONTACT)");
            ctx.put_back(other);
        }
    }
    let text = format!("{remote_id} began anew (INITIAL_CONTACT)");
    ctx.event(sa, EventKind::InitialContact, text);
}
