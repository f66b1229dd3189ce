//! IKE_SA_INIT as responder (RFC 7296 1.2, 2.6, 2.23).

use super::ike_init::{detect_nat, fragment_size, nat_detection};
use super::notify;
use super::ppk::{self, PpkState};
use super::redirect;
use crate::auth;
use crate::config::{Childless, Connection};
use crate::event::EventKind;
use crate::ike_sa::message::transmit;
use crate::ike_sa::phase::{AwaitAuthRequest, InitTranscript, Phase, Protected};
use crate::ike_sa::{IkeSa, Path};
use crate::negotiate;
use crate::outbox::Context;
use crate::proposal::{self, Proposal};
use crate::tasks::child_answer::key_exchange;
use crate::tasks::child_create::NONCE_LEN;
use crypto::signature::SIGNATURE_HASHES;
use crypto::{IkeKeys, KeyInputs};
use ike_wire::{
    ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload, ProtocolId, encode_message,
};
use model::IkeSpi;
use std::net::SocketAddr;

/// Responder: a first message that has passed the endpoint. `Err`: the stateless answer, if there is one.
pub(crate) fn respond(
    ctx: &mut Context<'_>,
    message: &Message,
    bytes: &[u8],
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<IkeSa, Option<Notify>> {
    let payloads = &message.payloads;
    let (Some(offered), Some(nonce_i)) = (payloads.sa(), payloads.nonce()) else {
        return Err(Some(Notify::status(NotifyType::INVALID_SYNTAX)));
    };
    let config = ctx.config;
    let candidates: Vec<&Connection> = config
        .connections
        .iter()
        .filter(|connection| connection.takes(local.ip(), remote.ip()))
        .collect();
    if candidates.is_empty() {
        let text = format!("first message from {remote} to {local}, but no connection has these addresses");
        ctx.event_without_sa(EventKind::NoConnection, None, Some(remote), text);
        return Err(config.refusal(local.ip(), remote.ip()));
    }
    let mut theirs = negotiate::read(offered, ProtocolId::IKE);
    if payloads
        .notify(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED)
        .is_none()
    {
        // RFC 9370 2.2.1: then additional key exchanges are unknown transform types, whose proposals are skipped.
        theirs.retain(|their| !their.proposal.has_additional());
    }
    let their_proposals: Vec<Proposal> = theirs.iter().map(|their| their.proposal.clone()).collect();
    let chosen = candidates.iter().find_map(|connection| {
        let (index, suite) = proposal::choose(&connection.ike_proposals, &their_proposals)?;
        Some((theirs.get(index)?.number, suite, *connection))
    });
    let implemented = chosen.and_then(|(number, suite, connection)| {
        let algorithms = negotiate::ike_suite(&suite)?;
        Some((number, suite, connection, algorithms))
    });
    let Some((number, suite, connection, (prf, cipher, _))) = implemented else {
        let ours: Vec<Proposal> = candidates.iter().flat_map(|c| c.ike_proposals.clone()).collect();
        let text = format!(
            "no common IKE proposal: the peer offers {}, we have {}",
            proposal::list(&their_proposals),
            proposal::list(&ours)
        );
        let name = candidates.first().map(|connection| connection.name.as_str());
        ctx.event_without_sa(EventKind::NoProposal, name, Some(remote), text);
        return Err(config.refusal(local.ip(), remote.ip()));
    };
    if let Some(elsewhere) = redirect::refuse(ctx, connection, payloads, local.ip(), remote) {
        return Err(Some(elsewhere));
    }
    // The wrong group is no fault: the initiator guessed, and is told (RFC 7296 1.2).
    let (shared, public) = key_exchange(ctx, &suite, payloads).map_err(|refusal| Some(refusal.notify))?;
    let (Some(shared), Some(public)) = (shared, public) else {
        return Err(Some(Notify::status(NotifyType::NO_PROPOSAL_CHOSEN)));
    };
    let peer_spi = message.header.spi_i;
    let spi = ctx.around.ike_spi(Some(peer_spi), "");
    let nonce_r = ctx.random(NONCE_LEN);
    let inputs = KeyInputs {
        nonce_i,
        nonce_r: &nonce_r,
        spi_i: peer_spi,
        spi_r: spi,
    };
    let keys = IkeKeys::derive(prf, cipher, inputs, &shared).map_err(|_| None)?;
    let mut path = Path {
        local,
        remote,
        nat_local: false,
        nat_remote: false,
        encap: false,
    };
    (path.nat_local, path.nat_remote) = detect_nat(payloads, peer_spi, IkeSpi(0), path);
    let force = connection.force_encap;
    path.encap = path.nat_local || path.nat_remote || force;
    let fragment_size = fragment_size(connection, payloads);

    let mut answer = vec![
        Payload::SecurityAssociation(negotiate::accept(&suite, number, ProtocolId::IKE, &[])),
        Payload::KeyExchange(public),
        Payload::Nonce(nonce_r.clone()),
    ];
    answer.extend(nat_detection(peer_spi, spi, path, force));
    // Which of the connections it is turns out later: some of them may not take it then.
    if candidates
        .iter()
        .any(|connection| connection.childless != Childless::Never)
    {
        answer.push(notify(NotifyType::CHILDLESS_IKEV2_SUPPORTED));
    }
    let ppk_agreed = ppk::on_init_request(&candidates, payloads);
    if ppk_agreed {
        answer.push(notify(NotifyType::USE_PPK));
    }
    if fragment_size.is_some() {
        answer.push(notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED));
    }
    if suite.has_additional() {
        answer.push(notify(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED));
    }
    // Which of the connections it is turns out with the identities: what any of them needs is said.
    if candidates.iter().any(|connection| connection.uses_certificates()) {
        if payloads.notify(NotifyType::SIGNATURE_HASH_ALGORITHMS).is_some() {
            answer.push(Payload::Notify(Notify::signature_hashes(&SIGNATURE_HASHES)));
        }
        answer.extend(auth::certificate_requests(candidates.iter().copied()));
    }
    let header = Header {
        spi_i: peer_spi,
        spi_r: spi,
        exchange: ExchangeType::IKE_SA_INIT,
        flags: Flags {
            initiator: false,
            version: false,
            response: true,
        },
        message_id: 0,
    };
    let response = encode_message(&header, &answer).map_err(|_| None)?;
    let transcript = InitTranscript {
        request: bytes.to_vec(),
        response: response.clone(),
        nonce_i: nonce_i.to_vec(),
        nonce_r,
    };
    let phase = AwaitAuthRequest {
        protected: Protected { keys, suite },
        transcript,
    };
    let mut sa = IkeSa::new(
        spi,
        peer_spi,
        false,
        path,
        Phase::AwaitAuthRequest(Box::new(phase)),
    );
    sa.more.fragment_size = fragment_size;
    sa.more.redirectable = redirect::is_supported(payloads);
    sa.more.ppk = ppk_agreed.then_some(PpkState::Agreed);
    sa.their.answered(0, Some(response.clone()), 1);
    sa.timers.since = ctx.now;
    sa.timers.expire = Some(ctx.now + ctx.config.endpoint.half_open_timeout);
    transmit(&sa, ctx, &response);
    Ok(sa)
}
