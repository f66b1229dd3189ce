//! Responder: a peer that authenticates by EAP-TLS (RFC 5216, RFC 9190) within IKE_AUTH. TLS runs outside, so an answer may come later
//! than its request; and it runs at one member, so a takeover ends the conversation.

use super::{delete, ike_auth_answer};
use crate::auth::certificate::Facts;
use crate::auth::dn::{DnPattern, ID_DER_ASN1_DN};
use crate::auth::eap::Step;
use crate::auth::eap::tls::{Conversation, Turn};
use crate::config::{Connection, Identity};
use crate::event::EventKind;
use crate::ike_sa::IkeSa;
use crate::ike_sa::message::send_response;
use crate::ike_sa::phase::{AwaitEap, Phase};
use crate::io::{TlsOutcome, TlsRequest};
use crate::outbox::Context;
use ike_wire::{Eap, EapCode, EapType, ExchangeType, Payload, PayloadList};
use model::SecretBytes;

/// Rounds of one conversation: a fragment each.
const ROUNDS_MAX: u8 = 64;

/// A message that TLS was asked about.
pub(crate) struct Asked {
    pub token: u64,
    pub message_id: u32,
}

/// Who a peer says it is by EAP; a distinguished name comes as text.
pub(crate) fn identity(name: &str) -> Identity {
    if DnPattern::looks_like(name)
        && let Ok(pattern) = DnPattern::parse(name)
        && let Some(der) = pattern.to_der()
    {
        return Identity::Other(ID_DER_ASN1_DN, der);
    }
    Identity::parse(name)
}

/// The next request, or the end. `None`: TLS has to say something first.
pub(crate) fn respond(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    connection: &Connection,
    message_id: u32,
    payloads: &PayloadList,
) -> Option<Vec<Payload>> {
    // The peer is impatient; the answer is on its way.
    if sa.tls.is_some() {
        return None;
    }
    let token = ctx.random_u64();
    let Phase::AwaitEap(phase) = &mut sa.phase else {
        return None;
    };
    phase.rounds = phase.rounds.saturating_add(1);
    let expected = |packet: &&Eap| packet.code == EapCode::RESPONSE && packet.identifier == phase.identifier;
    let answer = payloads.eap().filter(expected);
    let Some((kind, data)) = answer.and_then(|packet| packet.body.as_ref()) else {
        ctx.event(
            sa,
            EventKind::PeerMisbehaved,
            "an EAP payload that answers nothing",
        );
        return Some(ike_auth_answer::refuse(sa, ctx, "EAP out of step".to_owned()));
    };
    if phase.rounds > ROUNDS_MAX {
        let why = format!("EAP-TLS takes more than {ROUNDS_MAX} rounds");
        return Some(fail(sa, ctx, connection, &why));
    }
    let turn = match &mut phase.step {
        Step::Identity if *kind == EapType::IDENTITY => match std::str::from_utf8(data) {
            Ok(name) => {
                phase.identity = Some(name.to_owned());
                phase.step = Step::Tls(Conversation::default());
                Turn::Ask(Conversation::start())
            }
            Err(_) => Turn::Failure("the peer's EAP identity is no text".to_owned()),
        },
        Step::Tls(talk) if *kind == EapType::TLS => talk.take(data),
        _ if *kind == EapType::NAK => {
            let wanted: Vec<_> = data.iter().map(|kind| EapType(*kind).to_string()).collect();
            Turn::Failure(format!(
                "the peer refuses EAP-TLS and would like EAP method {}: configure it for EAP-TLS",
                wanted.join(" or ")
            ))
        }
        _ => Turn::Failure(format!(
            "the peer answers by EAP method {kind}, which was not asked for"
        )),
    };
    match turn {
        Turn::Ask(data) => Some(ask(phase, data)),
        Turn::Feed { first, octets } => {
            ctx.out.tls.push(TlsRequest {
                ike_spi: sa.spi,
                token,
                connection: connection.name.clone(),
                first,
                octets,
            });
            sa.tls = Some(Box::new(Asked { token, message_id }));
            None
        }
        Turn::Success(msk) => {
            phase.step = Step::Done { msk };
            Some(vec![Payload::Eap(Eap::outcome(phase.identifier, true))])
        }
        Turn::Failure(why) => Some(fail(sa, ctx, connection, &why)),
    }
}

/// TLS has said something.
pub(crate) fn outcome(sa: &mut IkeSa, ctx: &mut Context<'_>, token: u64, outcome: TlsOutcome) {
    let Some(asked) = sa.tls.take_if(|asked| asked.token == token) else {
        return;
    };
    let answer = match sa.connection(ctx.config) {
        Some(connection) => go_on(sa, ctx, connection, outcome),
        None => {
            let text = "the connection is no longer in the configuration".to_owned();
            ike_auth_answer::refuse(sa, ctx, text)
        }
    };
    send_response(sa, ctx, ExchangeType::IKE_AUTH, asked.message_id, &answer);
}

fn go_on(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    connection: &Connection,
    outcome: TlsOutcome,
) -> Vec<Payload> {
    let Phase::AwaitEap(phase) = &mut sa.phase else {
        return Vec::new();
    };
    let Step::Tls(talk) = &mut phase.step else {
        return Vec::new();
    };
    match outcome {
        TlsOutcome::Continue(octets) => {
            let data = talk.say(octets);
            ask(phase, data)
        }
        TlsOutcome::Done {
            octets,
            msk,
            certificates,
        } => {
            let name = phase.identity.clone().unwrap_or_default();
            match check(&name, &certificates, &msk) {
                Ok(()) => {
                    let data = talk.complete(octets, msk);
                    ask(phase, data)
                }
                Err(why) => fail(sa, ctx, connection, &why),
            }
        }
        TlsOutcome::Failed { alert, why } if alert.is_empty() => fail(sa, ctx, connection, &why),
        TlsOutcome::Failed { alert, why } => {
            let data = talk.refuse(alert, why.clone());
            let name = phase.identity.clone().unwrap_or_default();
            let answer = ask(phase, data);
            // Some peers go away now without another word.
            said(sa, ctx, connection, &name, &why);
            answer
        }
    }
}

/// Whether the certificate, which is believed, is of who the peer says it is.
fn check(name: &str, certificates: &[Vec<u8>], msk: &SecretBytes) -> Result<(), String> {
    let leaf = certificates.first().ok_or("it showed no certificate")?;
    let facts = Facts::of(leaf).map_err(|error| format!("its certificate: {error}"))?;
    if msk.expose().len() != 64 {
        return Err("TLS gave no key".to_owned());
    }
    if facts.is_of(&identity(name)) {
        return Ok(());
    }
    let own: Vec<_> = facts.identities().iter().map(ToString::to_string).collect();
    Err(format!(
        "its certificate is of {}: set one of these as its EAP identity, or issue a certificate with {} in subjectAltName",
        own.join(" or "),
        name.escape_debug()
    ))
}

fn ask(phase: &mut AwaitEap, data: Vec<u8>) -> Vec<Payload> {
    phase.identifier = phase.identifier.wrapping_add(1);
    vec![Payload::Eap(Eap::request(phase.identifier, EapType::TLS, data))]
}

fn said(sa: &IkeSa, ctx: &mut Context<'_>, connection: &Connection, name: &str, why: &str) {
    let name = name.escape_debug();
    let text = format!("connection {}: EAP-TLS of {name}: {why}", connection.name);
    ctx.event(sa, EventKind::AuthFailed, text);
}

fn fail(sa: &mut IkeSa, ctx: &mut Context<'_>, connection: &Connection, why: &str) -> Vec<Payload> {
    let Phase::AwaitEap(phase) = &sa.phase else {
        return Vec::new();
    };
    let failure = Eap::outcome(phase.identifier, false);
    let told = matches!(&phase.step, Step::Tls(talk) if talk.refuses());
    let name = phase.identity.clone().unwrap_or_default();
    if !told {
        said(sa, ctx, connection, &name, why);
    }
    delete::close(sa, ctx, "EAP failed");
    vec![Payload::Eap(failure)]
}
