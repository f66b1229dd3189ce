//! IKE_INTERMEDIATE, both roles (RFC 9242): one additional key exchange in each (RFC 9370 2.2.2).

use super::{Pending, delete, ike_auth, notify};
use crate::event::EventKind;
use crate::exchange::Inner;
use crate::ike_sa::IkeSa;
use crate::ike_sa::message::send_request;
use crate::ike_sa::phase::{AwaitIntermediateResponse, InitTranscript, Phase, Protected};
use crate::negotiate;
use crate::outbox::Context;
use crypto::{DhGroup, IkeKeys, KeyInputs};
use ike_wire::{
    DhTransform, ExchangeType, Header, KeyExchange, NotifyType, Payload, PayloadList, PayloadType,
    encode_sk_prefix,
};
use serde::{Deserialize, Serialize};

/// How far the exchanges are. No `Debug`: it may hold keys.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Intermediate {
    /// IntAuth_i: the initiator's messages so far.
    initiator: Vec<u8>,
    /// IntAuth_r: the responder's.
    responder: Vec<u8>,
    /// Exchanges that are complete.
    done: u8,
    /// Responder: SHA-256 of the request that was answered last. Its keys are gone, so that a repetition is known by its octets.
    answered: Option<[u8; 32]>,
    /// Responder, between computing an answer and sending it under the old keys.
    #[serde(skip)]
    next: Option<IkeKeys>,
}

/// IntAuth = IntAuth_iN | IntAuth_rN | IKE_AUTH_MID, what AUTH covers beside the rest; empty without IKE_INTERMEDIATE.
pub(crate) fn int_auth(sa: &IkeSa) -> Vec<u8> {
    let Some(state) = &sa.more.intermediate else {
        return Vec::new();
    };
    // IKE_SA_INIT has Message ID 0, and each exchange before IKE_AUTH the next one.
    let message_id = u32::from(state.done) + 1;
    [
        &state.initiator,
        &state.responder,
        message_id.to_be_bytes().as_slice(),
    ]
    .concat()
}

//= rfc9242#3.3.2
// IntAuth_i1 = prf(SK_pi1, IntAuth_i1A [| IntAuth_i1P]), IntAuth_iN = prf(SK_piN, IntAuth_iN-1 | IntAuth_iNA [| IntAuth_iNP])
/// Takes a message, sent or received, into what AUTH will cover: as if it were not fragmented, without IV, padding and ICV. The
/// keys are those that protect it.
pub(crate) fn cover_sent(sa: &mut IkeSa, header: &Header, first: PayloadType, inner: &[u8]) {
    let (Some(protected), Ok(prefix)) = (sa.phase.protected(), encode_sk_prefix(header, first, inner.len()))
    else {
        return;
    };
    let keys = &protected.keys;
    let from_initiator = header.flags.initiator;
    let key = if from_initiator { &keys.sk_pi } else { &keys.sk_pr };
    let state = sa.more.intermediate.get_or_insert_default();
    let chain = if from_initiator {
        &mut state.initiator
    } else {
        &mut state.responder
    };
    let parts = [chain.as_slice(), &prefix, inner];
    *chain = keys.prf.compute(key.expose(), &parts).expose().to_vec();
}

/// As [`cover_sent`], of a message that was received.
pub(crate) fn cover(sa: &mut IkeSa, inner: &Inner) {
    cover_sent(sa, &inner.header, inner.first, &inner.octets);
}

/// The next key exchange that was agreed on and has not taken place.
fn next_group(sa: &IkeSa) -> Option<DhGroup> {
    next_groups(sa)[0]
}

/// [`next_group`], and the one behind it.
pub(crate) fn next_groups(sa: &IkeSa) -> [Option<DhGroup>; 2] {
    // A resumed session takes its keys from the one before, and the suite with it (RFC 9370 2.2.5).
    if sa.extras.resumed.is_some() {
        return [None; 2];
    }
    let suite = sa.phase.protected().map(|protected| &protected.suite);
    let groups = suite.and_then(negotiate::additional).unwrap_or_default();
    let done = usize::from(sa.more.intermediate.as_ref().map_or(0, |state| state.done));
    [done, done + 1].map(|at| groups.get(at).copied())
}

/// Whether IKE_AUTH has to wait.
pub(crate) fn is_incomplete(sa: &IkeSa) -> bool {
    next_group(sa).is_some()
}

/// Responder: whether these octets were answered last.
pub(crate) fn is_answered(sa: &IkeSa, datagram: &[u8]) -> bool {
    let answered = sa.more.intermediate.as_ref().and_then(|state| state.answered);
    answered.is_some_and(|digest| digest == crypto::sha256(&[datagram]))
}

/// Initiator: begins with the first additional key exchange.
pub(crate) fn start(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    protected: Protected,
    transcript: InitTranscript,
    childless_allowed: bool,
) {
    sa.phase = Phase::AwaitIntermediateResponse(Box::new(AwaitIntermediateResponse {
        protected,
        transcript,
        childless_allowed,
        dh: model::SecretBytes::default(),
    }));
    send(sa, ctx);
}

/// HDR, SK {KEi(n)}
fn send(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let made = next_group(sa).and_then(|group| Some((group, ctx.generate(group).ok()?)));
    let (Some((group, made)), Phase::AwaitIntermediateResponse(phase)) = (made, &mut sa.phase) else {
        return delete::vanish(sa, ctx, "an additional key exchange is not possible");
    };
    phase.dh = made.secret;
    let payloads = [Payload::KeyExchange(KeyExchange {
        group: DhTransform(group.transform_id()),
        data: made.public,
    })];
    if !send_request(
        sa,
        ctx,
        ExchangeType::IKE_INTERMEDIATE,
        &payloads,
        Pending::Intermediate,
    ) {
        delete::vanish(sa, ctx, "IKE_INTERMEDIATE could not be sent");
    }
}

/// Initiator: the response. The next exchange follows, or IKE_AUTH.
pub(crate) fn finish(sa: &mut IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) {
    let keys = match use_response(sa, ctx, payloads) {
        Ok(keys) => keys,
        Err(why) => {
            let text = format!("IKE_INTERMEDIATE response has {why}");
            ctx.event(sa, EventKind::PeerMisbehaved, text.clone());
            return delete::vanish(sa, ctx, &text);
        }
    };
    complete(sa, keys);
    if next_group(sa).is_some() {
        return send(sa, ctx);
    }
    let Phase::AwaitIntermediateResponse(phase) = &mut sa.phase else {
        return;
    };
    let protected = phase.protected.clone();
    let transcript = std::mem::take(&mut phase.transcript);
    let childless_allowed = phase.childless_allowed;
    ike_auth::start(sa, ctx, protected, transcript, childless_allowed);
}

fn use_response(sa: &IkeSa, ctx: &mut Context<'_>, payloads: &PayloadList) -> Result<IkeKeys, String> {
    if let Some(error) = payloads.error() {
        return Err(error.kind.to_string());
    }
    let Phase::AwaitIntermediateResponse(phase) = &sa.phase else {
        return Err("no place here".to_owned());
    };
    let group = next_group(sa).ok_or("no place here")?;
    let ke = payloads
        .ke()
        .filter(|ke| ke.group.0 == group.transform_id())
        .ok_or("no KE payload of the method that was agreed on")?;
    let shared = ctx
        .agree(group, &phase.dh, &ke.data)
        .map_err(|_| "a public value that is not valid")?;
    updated(sa, &phase.transcript, &shared).ok_or("no usable keys".to_owned())
}

fn updated(sa: &IkeSa, transcript: &InitTranscript, shared: &model::SecretBytes) -> Option<IkeKeys> {
    let (spi_i, spi_r) = sa.header_spis();
    let inputs = KeyInputs {
        nonce_i: &transcript.nonce_i,
        nonce_r: &transcript.nonce_r,
        spi_i,
        spi_r,
    };
    sa.phase.protected()?.keys.update(inputs, shared).ok()
}

/// One exchange is complete: its keys protect what follows.
fn complete(sa: &mut IkeSa, keys: IkeKeys) {
    sa.more.intermediate.get_or_insert_default().done += 1;
    if let Some(protected) = sa.phase.protected_mut() {
        protected.keys = keys;
    }
    sa.dirty = true;
}

/// Responder: the answer, which still goes under the present keys. `Err`: why the IKE SA ends.
pub(crate) fn respond(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    payloads: &PayloadList,
    inner: &Inner,
) -> Vec<Payload> {
    let answer = answer(sa, ctx, payloads);
    if ctx.exchanges.is_wanting() {
        return Vec::new();
    }
    cover(sa, inner);
    match answer {
        Ok((ke, keys)) => {
            sa.more.intermediate.get_or_insert_default().next = Some(keys);
            vec![Payload::KeyExchange(ke)]
        }
        Err(why) => {
            let text = format!("IKE_INTERMEDIATE request has {why}");
            ctx.event(sa, EventKind::PeerMisbehaved, text.clone());
            delete::close(sa, ctx, &text);
            vec![notify(NotifyType::INVALID_SYNTAX)]
        }
    }
}

fn answer(
    sa: &IkeSa,
    ctx: &mut Context<'_>,
    payloads: &PayloadList,
) -> Result<(KeyExchange, IkeKeys), &'static str> {
    let Phase::AwaitAuthRequest(phase) = &sa.phase else {
        return Err("no place here");
    };
    let group = next_group(sa).ok_or("no place here")?;
    let ke = payloads
        .ke()
        .filter(|ke| ke.group.0 == group.transform_id())
        .ok_or("no KE payload of the method that was agreed on")?;
    let worked = ctx.respond(group, &ke.data).ok_or("to wait")?;
    let worked = worked.map_err(|_| "a public value that is not valid")?;
    let keys = updated(sa, &phase.transcript, &worked.secret).ok_or("no usable keys")?;
    let ke = KeyExchange {
        group: DhTransform(group.transform_id()),
        data: worked.public,
    };
    Ok((ke, keys))
}

/// Responder: the answer is sealed. `digest`: of the request, or of its first fragment.
pub(crate) fn answered(sa: &mut IkeSa, digest: [u8; 32]) {
    let Some(state) = &mut sa.more.intermediate else {
        return;
    };
    if let Some(keys) = state.next.take() {
        state.answered = Some(digest);
        complete(sa, keys);
    }
}
