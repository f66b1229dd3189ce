//! IKE_AUTH and the first Child SA (RFC 7296 1.2, 2.15): the initiator, and what both roles share.

use super::ike_auth_answer::{prove_to, refuse};
use super::proof::{Then, ask_signature, auth_input, check_proof, own_certificate, prove, what_to_compare};
use super::{
    Pending, child_create, delete, mobike_initiator, notify, padding, ppk, qcd, reauth, redirect, resource,
    ticket, transport, window,
};
use crate::auth::{self, signing};
use crate::config::{Childless, Connection, Identity};
use crate::event::EventKind;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::message::{send_request, send_response};
use crate::ike_sa::phase::{
    AwaitAuthResponse, AwaitSignature, Established, InitTranscript, Phase, Protected,
};
use crate::ike_sa::windows::Task;
use crate::ike_sa::{IkeSa, jittered};
use crate::outbox::Context;
use crate::proposal::Proposal;
use crate::tasks::intermediate::int_auth;
use crypto::verify_resumption_auth;
use ike_wire::{
    AuthMethod, Authentication, Delete, ExchangeType, IdType, Identification, Message, NotifyType, Payload,
    PayloadList,
};
use model::SaMode;

pub(crate) fn wire_identity(id: &Identity) -> Identification {
    use ike_wire::Identity as Wire;
    use std::net::IpAddr;
    Identification::from(match id {
        Identity::Address(IpAddr::V4(ip)) => Wire::Ipv4(*ip),
        Identity::Address(IpAddr::V6(ip)) => Wire::Ipv6(*ip),
        Identity::Fqdn(name) => Wire::Fqdn(name.clone()),
        Identity::Email(name) => Wire::Rfc822(name.clone()),
        Identity::KeyId(octets) => Wire::KeyId(octets.clone()),
        Identity::Other(kind, data) if *kind == IdType::ID_DER_ASN1_DN.0 => Wire::DerAsn1Dn(data.clone()),
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
pub(super) fn agree_on_sync(sa: &mut IkeSa, ours: bool, payloads: &PayloadList) -> Vec<NotifyType> {
    let both = |kind: &NotifyType| ours && payloads.notify(*kind).is_some();
    let agreed: Vec<_> = CLUSTER_SYNC.into_iter().filter(both).collect();
    sa.extras.sync.message_ids = agreed.contains(&NotifyType::IKEV2_MESSAGE_ID_SYNC_SUPPORTED);
    sa.extras.sync.counters = agreed.contains(&NotifyType::IPSEC_REPLAY_COUNTER_SYNC_SUPPORTED);
    agreed
}

/// Our signature, or why there is none.
pub(crate) fn signed(sa: &mut IkeSa, ctx: &mut Context<'_>, token: u64, signature: Result<Vec<u8>, String>) {
    let Some(signing) = sa.signing.take_if(|signing| signing.token == token) else {
        return;
    };
    let signature = signature.and_then(|signature| {
        signing::payload(signing.choice, &signature).ok_or_else(|| "the signature is malformed".to_owned())
    });
    match (signature, signing.then) {
        (Ok(auth), Then::Send) => {
            if let Phase::AwaitSignature(phase) = &sa.phase {
                let phase = (**phase).clone();
                send(sa, ctx, phase, auth);
            }
        }
        (
            Ok(auth),
            Then::Answer {
                message_id,
                payloads,
                connection,
                remote_id,
            },
        ) => {
            let connection = ctx.config.connections.iter().find(|c| c.name == connection);
            let answer = match connection {
                Some(connection) => prove_to(sa, ctx, &payloads, connection, remote_id, auth),
                None => refuse(
                    sa,
                    ctx,
                    "the connection is no longer in the configuration".to_owned(),
                ),
            };
            send_response(sa, ctx, ExchangeType::IKE_AUTH, message_id, &answer);
        }
        (Err(why), then) => {
            let text = format!("we cannot sign: {why}; look at key_file or key of the connection");
            ctx.event(sa, EventKind::Trouble, text.clone());
            match then {
                Then::Send => delete::vanish(sa, ctx, &text),
                Then::Answer { message_id, .. } => {
                    let answer = refuse(sa, ctx, text);
                    send_response(sa, ctx, ExchangeType::IKE_AUTH, message_id, &answer);
                }
            }
        }
    }
}

/// After a takeover: the signature was asked for elsewhere.
pub(crate) fn ask_again(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let Some(connection) = sa.connection(ctx.config) else {
        return delete::vanish(sa, ctx, "the connection is no longer in the configuration");
    };
    if let Phase::AwaitSignature(phase) = &sa.phase {
        let phase = (**phase).clone();
        start_with(sa, ctx, connection, phase);
    }
}

/// Initiator: everything for IKE_AUTH is there; sends it, or asks for our signature first.
pub(crate) fn start(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    mut protected: Protected,
    transcript: InitTranscript,
    childless: bool,
) {
    let Some(connection) = sa.connection(ctx.config) else {
        return delete::vanish(sa, ctx, "the connection is no longer in the configuration");
    };
    //= rfc6023#4
    // the initiator sends the IKE_AUTH request without the Child SA payloads only if the responder included the notification
    if connection.childless == Childless::Force && !childless {
        let text = "the peer takes no IKE SA without a Child SA (RFC 6023): set childless = \"allow\", or let the peer allow it";
        ctx.event(sa, EventKind::AuthFailed, text);
        return delete::vanish(sa, ctx, text);
    }
    ppk::mix(sa, connection, &mut protected);
    let phase = AwaitSignature {
        protected,
        transcript,
        childless,
    };
    start_with(sa, ctx, connection, phase);
}

fn start_with(sa: &mut IkeSa, ctx: &mut Context<'_>, connection: &Connection, phase: AwaitSignature) {
    let Some(own) = own_certificate(sa, connection) else {
        let id_body = wire_identity(&connection.local_id).body();
        let intermediate = int_auth(sa);
        let input = auth_input(&phase.protected, &phase.transcript, true, &id_body, &intermediate);
        let auth = prove(sa, connection, phase.protected.keys.prf, input);
        return send(sa, ctx, phase, auth);
    };
    let asked = ask_signature(
        sa,
        ctx,
        connection,
        own,
        (&phase.protected, &phase.transcript),
        Then::Send,
    );
    sa.phase = Phase::AwaitSignature(Box::new(phase));
    // Nobody is told of an IKE SA whose signature never comes.
    sa.timers.expire = Some(ctx.now + ctx.config.endpoint.half_open_timeout);
    if let Err(why) = asked {
        ctx.event(sa, EventKind::AuthFailed, why.clone());
        delete::vanish(sa, ctx, &why);
    }
}

/// Initiator: sends IKE_AUTH with our proof and the first child.
fn send(sa: &mut IkeSa, ctx: &mut Context<'_>, phase: AwaitSignature, auth: Authentication) {
    let Some(connection) = sa.connection(ctx.config) else {
        return delete::vanish(sa, ctx, "the connection is no longer in the configuration");
    };
    let AwaitSignature {
        protected,
        transcript,
        childless: childless_allowed,
    } = phase;
    sa.timers.expire = None;
    let own_id = wire_identity(&connection.local_id);
    let mut payloads = vec![Payload::IdInitiator(own_id)];
    let resumes = sa.extras.resumed.is_some();
    if !resumes {
        // What the responder asks for is in its IKE_SA_INIT message.
        if let Ok(theirs) = Message::parse(&transcript.response) {
            payloads.extend(connection.own_certificates(&theirs.payloads));
        }
        payloads.extend(auth::certificate_requests([connection]));
    }
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
    payloads.push(Payload::Authentication(auth));
    let id_body = wire_identity(&connection.local_id).body();
    payloads.extend(ppk::identity(
        sa,
        connection,
        &transcript,
        &id_body,
        &int_auth(sa),
    ));
    payloads.extend(qcd::own_token(sa, ctx));
    payloads.extend(window::announce(sa, ctx.config));
    if connection.cluster_sync {
        payloads.extend(CLUSTER_SYNC.map(notify));
    }
    let request = ticket::request(sa, ctx);
    sa.extras.wants_ticket = request.is_some();
    payloads.extend(request);

    // Beside an IKE SA that it is to replace: what that one has.
    let start = || connection.children.iter().filter(|child| child.start).collect();
    let wanted: Vec<_> = reauth::children(sa, ctx.table, connection).unwrap_or_else(start);
    let first = match (connection.childless, childless_allowed) {
        (Childless::Force, _) => None,
        (Childless::Allow, true) => wanted.first().copied(),
        _ => wanted.first().copied().or(connection.children.first()),
    };
    let mut offer = None;
    if let Some(child) = first {
        let proposals: Vec<Proposal> = child.esp_proposals.iter().map(Proposal::without_dh).collect();
        let nonce = transcript.nonce_i.clone();
        offer = child_create::offer(sa, ctx, child, proposals, nonce, None, None);
    }
    payloads.extend(mobike_initiator::offer(sa, connection));
    if let Some(offer) = &offer {
        let (proposals, selectors) = child_create::offer_payloads(offer);
        payloads.push(proposals);
        payloads.extend(selectors);
        if offer.mode == SaMode::Transport {
            payloads.push(notify(NotifyType::USE_TRANSPORT_MODE));
        }
        payloads.extend(padding::refusal(Some(connection), &offer.name, offer.mode));
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
    let plain_keys = ppk::settle(sa, connection, payloads);
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
            "the peer refused us with {reason}: {}",
            what_to_compare(connection)
        );
        ctx.event(sa, EventKind::AuthFailed, text.clone());
        return delete::vanish(sa, ctx, &text);
    };
    let remote_id = identity_of(id);
    let id_body = id.body();
    match plain_keys {
        Ok(None) => {}
        Ok(Some(keys)) => phase.protected.keys = keys,
        Err(text) => {
            ctx.event(sa, EventKind::AuthFailed, text);
            return give_up(sa, ctx);
        }
    }
    let input = auth_input(
        &phase.protected,
        &phase.transcript,
        false,
        &id_body,
        &intermediate,
    );
    let prf = phase.protected.keys.prf;
    let checked = match &sa.extras.resumed {
        // RFC 5723 4.3.3: the IDr sent by the gateway must be the ticket's.
        Some(resumed) if resumed.peer_id != remote_id => Err(format!(
            "the peer says it is {remote_id}, but the session was with {}",
            resumed.peer_id
        )),
        Some(_) => verify_resumption_auth(prf, input, &auth.data)
            .then_some(())
            .filter(|()| auth.method == AuthMethod::SHARED_KEY_MIC)
            .ok_or_else(|| format!("the peer {remote_id} does not prove that it has the session's keys")),
        None if !connection.expects(&remote_id) => Err(format!(
            "the peer says it is {remote_id}, but remote_id of the connection is {}: align them",
            connection.expected_id()
        )),
        None => check_proof(ctx, connection, &remote_id, payloads, auth, prf, input),
    };
    if let Err(text) = checked {
        ctx.event(sa, EventKind::AuthFailed, text);
        return give_up(sa, ctx);
    }
    let protected = phase.protected.clone();
    let offer = phase.child.take();
    let nonces = (phase.transcript.nonce_i.clone(), phase.transcript.nonce_r.clone());
    sa.remote_id = Some(remote_id);
    agree_on_sync(sa, connection.cluster_sync, payloads);
    mobike_initiator::agree(sa, connection, payloads);
    qcd::take(sa, payloads);
    window::take(sa, ctx.config, payloads);
    ticket::take(sa, ctx, payloads);
    establish(sa, ctx, protected);
    reauth::take_lifetime(sa, ctx, payloads);
    redirect::arrived(sa, ctx);
    //= rfc5685#6
    // In such cases, the gateway redirects in the IKE_AUTH response, which has no Child SA then.
    redirect::follow(sa, ctx, payloads);
    let Some(offer) = offer else { return };
    if payloads.sa().is_none() && payloads.notify(NotifyType::REDIRECT).is_some() {
        return ctx.around.release_esp_spi(offer.spi_in);
    }
    if let Some(error) = payloads.error() {
        ctx.around.release_esp_spi(offer.spi_in);
        let why = child_create::explain(error.kind, &offer.proposals, &offer.ts_local, &offer.ts_remote);
        let text = format!("child {}: the peer refused with {}{why}", offer.name, error.kind);
        return ctx.event(sa, EventKind::ChildFailed, text);
    }
    match child_create::read_response(ctx, sa.path, &offer, payloads, nonces.0, nonces.1) {
        Ok(agreed) => {
            child_create::install(sa, ctx, agreed, ChildPhase::Installed);
        }
        Err(why) => {
            ctx.around.release_esp_spi(offer.spi_in);
            let text = format!(
                "child {}: IKE_AUTH response has {why}{}",
                offer.name,
                transport::explain(sa, offer.mode)
            );
            ctx.event(sa, child_create::fault(why), text);
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
    reauth::authenticated(sa, ctx);
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
    reauth::start_timers(sa, ctx);
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
