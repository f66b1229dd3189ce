//! IKE_AUTH as responder: the initiator's proof, ours, and the first Child SA (RFC 7296 1.2, 2.15).

use super::ike_auth::{agree_on_sync, establish, wire_identity};
use super::proof::{Then, ask_signature, auth_input, authenticate, own_certificate, prove};
use super::{
    child_answer, configuration, delete, eap, mobike, notify, ppk, qcd, reauth, resume, ticket, window,
};
use crate::config::{Childless, Connection, Identity};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::{InitTranscript, Phase, Protected};
use crate::outbox::Context;
use crate::pool::PoolShare;
use crate::tasks::intermediate::int_auth;
use ike_wire::{Authentication, NotifyType, Payload, PayloadList};
use model::IkeSpi;

/// The initiator is not believed. The answer still has to be protected: the phase changes, the keys stay.
pub(crate) fn refuse(sa: &mut IkeSa, ctx: &mut Context<'_>, text: String) -> Vec<Payload> {
    ctx.event(sa, EventKind::AuthFailed, text);
    delete::close(sa, ctx, "authentication failed");
    vec![notify(NotifyType::AUTHENTICATION_FAILED)]
}

/// Responder: checks the initiator's proof, proves itself, and answers about the first child. `None`: our signature has to come
/// first.
pub(crate) fn respond(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    message_id: u32,
    mut payloads: PayloadList,
) -> Option<Vec<Payload>> {
    // The initiator is impatient; the answer is on its way. Or nobody can say yet which addresses are free.
    if sa.signing.is_some() || ctx.around.pool_share(sa.spi).is_none() {
        return None;
    }
    ppk::choose(sa, ctx.config, &mut payloads);
    let verdict = match &sa.extras.resumed {
        Some(resumed) => resume::authenticate(sa, ctx, resumed, &payloads).map(|(c, id)| (c, Some(id))),
        None => authenticate(sa, ctx, &payloads),
    };
    let (connection, remote_id) = match verdict {
        Ok(found) => found,
        Err(text) => return Some(refuse(sa, ctx, text)),
    };
    if sa.extras.resumed.is_none() && !ppk::suffices(sa, connection) {
        let text = format!(
            "connection {} requires a post-quantum pre-shared key, and the peer did not use one that we have: compare ppk_id",
            connection.name
        );
        return Some(refuse(sa, ctx, text));
    }
    if connection.childless == Childless::Never && payloads.sa().is_none() {
        let text = format!(
            "{} asks for no Child SA, which childless = \"never\" of connection {} refuses",
            sa.path.remote, connection.name
        );
        ctx.event(sa, EventKind::PeerMisbehaved, text);
        delete::close(sa, ctx, "an IKE SA without a Child SA");
        return Some(vec![notify(NotifyType::INVALID_SYNTAX)]);
    }
    let Phase::AwaitAuthRequest(phase) = &sa.phase else {
        return Some(Vec::new());
    };
    if let Some(own) = own_certificate(sa, connection) {
        let then = Then::Answer {
            message_id,
            payloads,
            connection: connection.name.clone(),
            remote_id,
        };
        // The phase stays what it is: nothing has happened yet.
        let (protected, transcript) = (phase.protected.clone(), phase.transcript.clone());
        return match ask_signature(sa, ctx, connection, own, (&protected, &transcript), then) {
            Ok(()) => None,
            Err(why) => Some(refuse(sa, ctx, why)),
        };
    }
    let id_body = wire_identity(&connection.local_id).body();
    let intermediate = int_auth(sa);
    let input = auth_input(
        &phase.protected,
        &phase.transcript,
        false,
        &id_body,
        &intermediate,
    );
    let auth = prove(sa, connection, phase.protected.keys.prf, input);
    Some(prove_to(sa, ctx, &payloads, connection, remote_id, auth))
}

/// Responder: our proof is made.
pub(super) fn prove_to(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    payloads: &PayloadList,
    connection: &Connection,
    remote_id: Option<Identity>,
    auth: Authentication,
) -> Vec<Payload> {
    let Some(remote_id) = remote_id else {
        return eap::begin(sa, ctx, payloads, connection, auth);
    };
    let Phase::AwaitAuthRequest(phase) = &sa.phase else {
        return Vec::new();
    };
    let proofs = (phase.protected.clone(), phase.transcript.clone());
    let mut front = vec![Payload::IdResponder(wire_identity(&connection.local_id))];
    if sa.extras.resumed.is_none() {
        front.extend(connection.own_certificates(payloads));
    }
    front.push(Payload::Authentication(auth));
    answer(sa, ctx, payloads, connection, remote_id, proofs, front)
}

/// Responder: both sides are proved. `front`: how we prove it.
pub(crate) fn answer(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    payloads: &PayloadList,
    connection: &Connection,
    remote_id: Identity,
    (protected, transcript): (Protected, InitTranscript),
    front: Vec<Payload>,
) -> Vec<Payload> {
    let nonces = (transcript.nonce_i, transcript.nonce_r);
    sa.connection = Some(connection.name.clone());
    sa.remote_id = Some(remote_id);
    let agreed = agree_on_sync(sa, connection.cluster_sync, payloads);
    qcd::take(sa, payloads);
    window::take(sa, ctx.config, payloads);
    establish(sa, ctx, protected);
    resume::succeeded(sa, ctx);
    if payloads.notify(NotifyType::INITIAL_CONTACT).is_some() {
        initial_contact(sa, ctx);
    }
    let mut answer = front;
    answer.extend(ppk::confirmation(sa));
    answer.extend(qcd::own_token(sa, ctx));
    answer.extend(window::announce(sa, ctx.config));
    answer.extend(agreed.into_iter().map(notify));
    answer.extend(reauth::lifetime(sa, ctx, connection));
    answer.extend(mobike::agree(sa, connection, payloads));
    answer.extend(ticket::grant(sa, ctx, payloads));
    let share = ctx.around.pool_share(sa.spi).unwrap_or(PoolShare::WHOLE);
    match configuration::answer(sa, ctx, connection, payloads, share) {
        configuration::Outcome::NotConcerned => {}
        configuration::Outcome::Given(reply) => answer.push(reply),
        configuration::Outcome::Refused(kind) => {
            answer.push(notify(kind));
            return answer;
        }
    }
    // RFC 6023: without SA payload the initiator wants no child now.
    if connection.childless == Childless::Force && payloads.sa().is_some() {
        let text = "the peer asks for a Child SA in IKE_AUTH: childless = \"force\" wants an exchange for each, so set childless there too";
        ctx.event(sa, EventKind::ChildFailed, text);
        answer.push(notify(NotifyType::NO_ADDITIONAL_SAS));
    } else if payloads.sa().is_some() {
        match child_answer::answer(sa, ctx, payloads, Some((&nonces.0, &nonces.1)), None) {
            Ok((child, agreed)) => {
                child_answer::install_new(sa, ctx, agreed);
                answer.extend(child);
            }
            Err(refusal) => answer.push(refusal.report(sa, ctx)),
        }
    }
    answer
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
