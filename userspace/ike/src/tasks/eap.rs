//! Responder: a peer that authenticates by EAP within IKE_AUTH (RFC 7296 2.16). Each round is an exchange of its own, committed like
//! every other.

use super::intermediate::int_auth;
use super::proof::auth_input;
use super::{delete, eap_tls, ike_auth, ike_auth_answer};
use crate::auth::RemoteAuth;
use crate::auth::eap::{self, Next, Step, Users};
use crate::config::Connection;
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::phase::{AwaitEap, Phase};
use crate::outbox::Context;
use crypto::{psk_auth, verify_psk_auth};
use ike_wire::{
    AuthMethod, Authentication, Eap, Payload, PayloadList, PayloadType, encode_chain, parse_chain,
};
use std::sync::Arc;

/// Rounds of one conversation, malformed ones included.
const ROUNDS_MAX: u8 = 16;

fn users(connection: &Connection) -> Option<Arc<Users>> {
    match &connection.remote_auth {
        RemoteAuth::EapMsChapV2(users) => Some(users.clone()),
        _ => None,
    }
}

/// Our proof comes first, with the first question: IDr, CERT, AUTH, EAP.
pub(crate) fn begin(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    payloads: &PayloadList,
    connection: &Connection,
    auth: Authentication,
) -> Vec<Payload> {
    let Phase::AwaitAuthRequest(phase) = &sa.phase else {
        return Vec::new();
    };
    let Ok((first, chain)) = encode_chain(payloads) else {
        return ike_auth_answer::refuse(sa, ctx, "the first request cannot be kept".to_owned());
    };
    let identifier = ctx.random_u32() as u8;
    sa.phase = Phase::AwaitEap(Box::new(AwaitEap {
        protected: phase.protected.clone(),
        transcript: phase.transcript.clone(),
        request: (first.0, chain),
        identity: None,
        identifier,
        rounds: 0,
        step: Step::Identity,
    }));
    sa.connection = Some(connection.name.clone());
    let mut answer = vec![Payload::IdResponder(ike_auth::wire_identity(
        &connection.local_id,
    ))];
    answer.extend(connection.own_certificates(payloads));
    answer.push(Payload::Authentication(auth));
    answer.push(Payload::Eap(eap::begin(identifier)));
    answer
}

/// The next request of the conversation, or the AUTH payload at its end. `None`: silence.
pub(crate) fn respond(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    message_id: u32,
    payloads: &PayloadList,
) -> Option<Vec<Payload>> {
    let Some(connection) = sa.connection(ctx.config) else {
        let text = "the connection is no longer in the configuration".to_owned();
        return Some(ike_auth_answer::refuse(sa, ctx, text));
    };
    let mut challenge = [0; 16];
    ctx.around.random(&mut challenge);
    let Phase::AwaitEap(phase) = &mut sa.phase else {
        return None;
    };
    if matches!(phase.step, Step::Done { .. }) {
        return finish(sa, ctx, connection, payloads);
    }
    if matches!(connection.remote_auth, RemoteAuth::EapTls(_)) {
        return eap_tls::respond(sa, ctx, connection, message_id, payloads);
    }
    let (Some(users), Some(packet)) = (users(connection), payloads.eap()) else {
        let text = "the peer does not go on with EAP".to_owned();
        return Some(ike_auth_answer::refuse(sa, ctx, text));
    };
    phase.rounds += 1;
    if phase.rounds > ROUNDS_MAX {
        return Some(ike_auth_answer::refuse(
            sa,
            ctx,
            format!("EAP takes more than {ROUNDS_MAX} rounds"),
        ));
    }
    let next = eap::proceed(
        &phase.step,
        &users,
        &mut phase.identity,
        phase.identifier,
        packet,
        challenge,
    );
    Some(match next {
        Next::Ask(packet, step) => {
            let refused = match &step {
                Step::Refusing { why } => Some(format!("connection {}: {why}", connection.name)),
                _ => None,
            };
            phase.identifier = packet.identifier;
            phase.step = step;
            // Some peers go away now without another word.
            if let Some(text) = refused {
                ctx.event(sa, EventKind::AuthFailed, text);
            }
            vec![Payload::Eap(packet)]
        }
        Next::Success { msk } => {
            phase.step = Step::Done { msk };
            vec![Payload::Eap(Eap::outcome(phase.identifier, true))]
        }
        Next::Failure(why) => {
            let failure = Eap::outcome(phase.identifier, false);
            let told = matches!(phase.step, Step::Refusing { .. });
            if !told {
                let text = format!("connection {}: {why}", connection.name);
                ctx.event(sa, EventKind::AuthFailed, text);
            }
            delete::close(sa, ctx, "EAP failed");
            vec![Payload::Eap(failure)]
        }
        Next::Nothing => {
            ctx.event(
                sa,
                EventKind::PeerMisbehaved,
                "an EAP payload that answers nothing",
            );
            ike_auth_answer::refuse(sa, ctx, "EAP out of step".to_owned())
        }
    })
}

/// Both sides prove that they have the key that came of EAP.
fn finish(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    connection: &Connection,
    payloads: &PayloadList,
) -> Option<Vec<Payload>> {
    let Phase::AwaitEap(phase) = &sa.phase else {
        return None;
    };
    let Step::Done { msk } = &phase.step else {
        return None;
    };
    let first = parse_chain(PayloadType(phase.request.0), &phase.request.1).ok()?;
    let id_i = first.id_i()?.body();
    let name = phase.identity.clone().unwrap_or_default();
    let remote_id = eap_tls::identity(&name);
    let prf = phase.protected.keys.prf;
    let intermediate = int_auth(sa);
    let input = auth_input(&phase.protected, &phase.transcript, true, &id_i, &intermediate);
    let proved = payloads.auth().is_some_and(|auth| {
        auth.method == AuthMethod::SHARED_KEY_MIC && verify_psk_auth(prf, msk, input, &auth.data)
    });
    if !proved {
        let text = format!("{remote_id} does not prove that it has the key that EAP gave it");
        return Some(ike_auth_answer::refuse(sa, ctx, text));
    }
    if !connection.expects(&remote_id) {
        let text = format!(
            "user {remote_id} is not one of {} (remote_id of connection {})",
            connection.expected_id(),
            connection.name
        );
        return Some(ike_auth_answer::refuse(sa, ctx, text));
    }
    let own_id = ike_auth::wire_identity(&connection.local_id).body();
    let input = auth_input(&phase.protected, &phase.transcript, false, &own_id, &intermediate);
    let auth = Authentication {
        method: AuthMethod::SHARED_KEY_MIC,
        data: psk_auth(prf, msk, input),
    };
    let proofs = (phase.protected.clone(), phase.transcript.clone());
    // What the peer wants was in its first request; a notification may have come with the last one.
    let mut all = first;
    all.0.extend(payloads.notifies().cloned().map(Payload::Notify));
    let front = vec![Payload::Authentication(auth)];
    Some(ike_auth_answer::answer(
        sa, ctx, &all, connection, remote_id, proofs, front,
    ))
}
