//! IKE_SESSION_RESUME, both roles, and what differs in the IKE_AUTH exchange behind it (RFC 5723 4.3).

use super::ike_init::{self, RESTARTS_MAX, detect_nat, fragment_size, nat_detection, set_nat};
use super::{Pending, delete, ike_auth, notify, ticket};
use crate::config::{Childless, Connection, Identity};
use crate::event::EventKind;
use crate::ike_sa::authentication::Authentication;
use crate::ike_sa::extras::{HeldTicket, Resumed};
use crate::ike_sa::message::{register_request, transmit};
use crate::ike_sa::phase::{AwaitAuthRequest, AwaitResumeResponse, InitTranscript, Phase, Protected};
use crate::ike_sa::{IkeSa, Path};
use crate::negotiate;
use crate::outbox::Context;
use crate::tasks::child_create::NONCE_LEN;
use crypto::{AuthInput, IkeKeys, KeyInputs, verify_resumption_auth};
use ike_wire::{
    AuthMethod, ExchangeType, Flags, Header, Message, Notify, NotifyType, Payload, PayloadList,
    encode_message,
};
use model::IkeSpi;
use std::net::{IpAddr, SocketAddr};

/// Begins an IKE SA with a ticket, with the peer at `remote` where that is given. `Err`: why it cannot be.
pub(crate) fn start(
    ctx: &mut Context<'_>,
    connection: &Connection,
    remote: Option<IpAddr>,
    held: HeldTicket,
) -> Result<IkeSa, String> {
    let path = ike_init::path_of(connection, remote)?;
    let spi = ctx.around.ike_spi(None, &connection.name);
    let authentication = held.authentication.clone();
    let phase = AwaitResumeResponse {
        nonce_i: ctx.random(NONCE_LEN),
        held,
        cookie: None,
        restarts: 0,
    };
    let phase = Phase::AwaitResumeResponse(Box::new(phase));
    let mut sa = IkeSa::new(spi, IkeSpi(0), true, path, phase);
    sa.connection = Some(connection.name.clone());
    sa.more.authentication = authentication;
    sa.timers.since = ctx.now;
    send(&mut sa, ctx)?;
    Ok(sa)
}

/// HDR, [N(COOKIE),] Ni, N(TICKET_OPAQUE), N(NAT_DETECTION_*)
fn send(sa: &mut IkeSa, ctx: &mut Context<'_>) -> Result<(), String> {
    let force = sa
        .connection(ctx.config)
        .is_some_and(|connection| connection.force_encap);
    let Phase::AwaitResumeResponse(phase) = &sa.phase else {
        return Err("not resuming".to_owned());
    };
    let cookie = phase.cookie.clone();
    let mut payloads: Vec<_> = cookie
        .map(|cookie| Payload::Notify(Notify::new(NotifyType::COOKIE, cookie)))
        .into_iter()
        .collect();
    payloads.push(Payload::Nonce(phase.nonce_i.clone()));
    payloads.push(Payload::Notify(Notify::ticket_opaque(&phase.held.ticket)));
    payloads.extend(nat_detection(sa.spi, IkeSpi(0), sa.path, force));
    if sa
        .connection(ctx.config)
        .is_some_and(|connection| connection.fragmentation)
    {
        payloads.push(notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED));
    }
    let header = header(sa.spi, IkeSpi(0), false);
    let bytes = encode_message(&header, &payloads).map_err(|error| error.to_string())?;
    sa.our.next = 0;
    register_request(sa, ctx, bytes, Pending::Init);
    Ok(())
}

fn header(spi_i: IkeSpi, spi_r: IkeSpi, response: bool) -> Header {
    Header {
        spi_i,
        spi_r,
        exchange: ExchangeType::IKE_SESSION_RESUME,
        flags: Flags {
            initiator: !response,
            version: false,
            response,
        },
        message_id: 0,
    }
}

/// Initiator: an answer, not protected.
pub(crate) fn on_response(sa: &mut IkeSa, ctx: &mut Context<'_>, message: &Message, bytes: &[u8]) {
    let Phase::AwaitResumeResponse(phase) = &mut sa.phase else {
        return;
    };
    let payloads = &message.payloads;
    if let Some(cookie) = payloads.notifies().find_map(Notify::as_cookie) {
        // A second copy of the answer that we followed already.
        if phase.cookie.as_deref() == Some(cookie) {
            return;
        }
        phase.restarts += 1;
        if phase.restarts > RESTARTS_MAX {
            return fall_back(sa, ctx, "the peer keeps asking for cookies");
        }
        phase.cookie = Some(cookie.to_vec());
        drop(sa.our.take_all());
        if let Err(why) = send(sa, ctx) {
            fall_back(sa, ctx, &why);
        }
        return;
    }
    let refusal = payloads
        .notify(NotifyType::TICKET_NACK)
        .or_else(|| payloads.error())
        .map(|notify| notify.kind);
    if let Some(kind) = refusal {
        return fall_back(sa, ctx, &format!("the peer answers {kind}"));
    }
    let (Some(nonce_r), true) = (payloads.nonce(), message.header.spi_r.0 != 0) else {
        return;
    };
    let inputs = KeyInputs {
        nonce_i: &phase.nonce_i,
        nonce_r,
        spi_i: sa.spi,
        spi_r: message.header.spi_r,
    };
    let Some(keys) = derive(&phase.held.suite, inputs, &phase.held.sk_d) else {
        return fall_back(sa, ctx, "no keys for the ticket's algorithms");
    };
    let protected = Protected {
        keys,
        suite: phase.held.suite.clone(),
    };
    let resumed = Resumed {
        peer_id: phase.held.peer_id.clone(),
        own_id: phase.held.own_id.clone(),
        replaces: None,
        ticket: None,
    };
    let nonce_i = phase.nonce_i.clone();
    let request = sa.our.take_all().next().map(|outstanding| outstanding.bytes);
    let transcript = InitTranscript {
        request: request.unwrap_or_default(),
        response: bytes.to_vec(),
        nonce_i,
        nonce_r: nonce_r.to_vec(),
    };
    let (nat_local, nat_remote) = detect_nat(payloads, sa.spi, message.header.spi_r, sa.path);
    sa.peer_spi = message.header.spi_r;
    sa.extras.resumed = Some(Box::new(resumed));
    set_nat(sa, ctx, nat_local, nat_remote);
    sa.more.fragment_size = sa
        .connection(ctx.config)
        .and_then(|connection| fragment_size(connection, payloads));
    let childless = payloads.notify(NotifyType::CHILDLESS_IKEV2_SUPPORTED).is_some();
    ike_auth::start(sa, ctx, protected, transcript, childless);
}

fn derive(
    suite: &crate::proposal::Proposal,
    inputs: KeyInputs<'_>,
    sk_d: &model::SecretBytes,
) -> Option<IkeKeys> {
    let (prf, cipher, _) = negotiate::ike_suite(suite)?;
    IkeKeys::resume(prf, cipher, inputs, sk_d).ok()
}

//= rfc5723#4.3.2
// In that case, the initiator should re-initiate a regular IKE exchange.
/// The answer is not authentic, but to believe it costs no more than what any IKE SA costs. The ticket is given up.
fn fall_back(sa: &mut IkeSa, ctx: &mut Context<'_>, why: &str) {
    let text = format!("the session is not resumed but begun anew: {why}");
    ctx.event(sa, EventKind::TicketRefused, text);
    drop(sa.our.take_all());
    if let Err(why) = ike_init::begin(sa, ctx) {
        ctx.event(sa, EventKind::Trouble, why.clone());
        delete::vanish(sa, ctx, &why);
    }
}

/// Responder: a first message that has passed the endpoint. `Err`: why the ticket is refused.
pub(crate) fn respond(
    ctx: &mut Context<'_>,
    message: &Message,
    bytes: &[u8],
    local: SocketAddr,
    remote: SocketAddr,
) -> Result<IkeSa, String> {
    let payloads = &message.payloads;
    let (Some(shown), Some(nonce_i)) = (
        payloads.notifies().find_map(Notify::as_ticket_opaque),
        payloads.nonce(),
    ) else {
        return Err("there is none".to_owned());
    };
    let now = ctx.around.unix_time().ok_or("this member has no clock")?;
    let (state, secret) = ticket::read(&ctx.config.endpoint, now, shown)?;
    let connection = ticket::check(ctx.config, &state, secret, now)?;
    if !connection.takes(local.ip(), remote.ip()) {
        return Err(format!(
            "connection {} is not for these addresses",
            connection.name
        ));
    }
    let id = ticket::id_of(shown);
    //= rfc5723#4.3.1
    // A reused ticket SHOULD be rejected by a gateway.
    if ctx.tickets.is_spent(&id, now) {
        return Err("it was used already".to_owned());
    }
    // An IKE SA that was replaced or is being deleted is not the peer's last word.
    let old = ctx
        .table
        .get(state.spi)
        .filter(|old| old.peer_spi == state.peer_spi);
    if old.is_some_and(|old| !matches!(old.phase, Phase::Established(_))) {
        return Err("its IKE SA was replaced or deleted".to_owned());
    }
    let force = connection.force_encap;
    let peer_spi = message.header.spi_i;
    let spi = ctx.around.ike_spi(Some(peer_spi), "");
    let nonce_r = ctx.random(NONCE_LEN);
    let inputs = KeyInputs {
        nonce_i,
        nonce_r: &nonce_r,
        spi_i: peer_spi,
        spi_r: spi,
    };
    let keys = derive(&state.suite, inputs, &state.sk_d).ok_or("no keys for its algorithms")?;
    let mut path = Path {
        local,
        remote,
        nat_local: false,
        nat_remote: false,
        encap: false,
    };
    // RFC 5723 4.3.2: the NAT status is determined anew.
    (path.nat_local, path.nat_remote) = detect_nat(payloads, peer_spi, IkeSpi(0), path);
    path.encap = path.nat_local || path.nat_remote || force;
    let mut answer = vec![Payload::Nonce(nonce_r.clone())];
    answer.extend(nat_detection(peer_spi, spi, path, force));
    if connection.childless != Childless::Never {
        answer.push(notify(NotifyType::CHILDLESS_IKEV2_SUPPORTED));
    }
    let fragment_size = fragment_size(connection, payloads);
    if fragment_size.is_some() {
        answer.push(notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED));
    }
    let response =
        encode_message(&header(peer_spi, spi, true), &answer).map_err(|error| error.to_string())?;
    let phase = AwaitAuthRequest {
        protected: Protected {
            keys,
            suite: state.suite,
        },
        transcript: InitTranscript {
            request: bytes.to_vec(),
            response: response.clone(),
            nonce_i: nonce_i.to_vec(),
            nonce_r,
        },
    };
    let phase = Phase::AwaitAuthRequest(Box::new(phase));
    let mut sa = IkeSa::new(spi, peer_spi, false, path, phase);
    sa.connection = Some(state.connection);
    sa.extras.resumed = Some(Box::new(Resumed {
        peer_id: state.client_id,
        own_id: state.own_id,
        replaces: Some(state.spi),
        ticket: Some((id, state.expires)),
    }));
    sa.more.fragment_size = fragment_size;
    // A ticket proves that somebody authenticated then, not that he does now.
    let remembered = state.authenticated;
    let remembered = remembered.map(|at| Authentication::remembered(ctx.now, now, at, false));
    sa.more.authentication = remembered.map(Box::new);
    sa.their.answered(0, Some(response.clone()), 1);
    sa.timers.since = ctx.now;
    sa.timers.expire = Some(ctx.now + ctx.config.endpoint.half_open_timeout);
    transmit(&sa, ctx, &response);
    Ok(sa)
}

/// Responder: checks the proof of the ticket's holder in IKE_AUTH. The identities must be the ticket's (RFC 5723 4.3.3).
pub(crate) fn authenticate<'c>(
    sa: &IkeSa,
    ctx: &Context<'c>,
    resumed: &Resumed,
    payloads: &PayloadList,
) -> Result<(&'c Connection, Identity), String> {
    let Phase::AwaitAuthRequest(phase) = &sa.phase else {
        return Err("not expected".to_owned());
    };
    let id = payloads.id_i().ok_or("IKE_AUTH request without IDi")?;
    let remote_id = ike_auth::identity_of(id);
    let asked = payloads.id_r().map(ike_auth::identity_of);
    if remote_id != resumed.peer_id || asked.is_some_and(|asked| asked != resumed.own_id) {
        return Err(format!("{remote_id} resumes a session of {}", resumed.peer_id));
    }
    let keys = &phase.protected.keys;
    let input = AuthInput {
        message: &phase.transcript.request,
        nonce: &phase.transcript.nonce_r,
        sk_p: &keys.sk_pi,
        id_body: &id.body(),
        // A session is resumed without IKE_INTERMEDIATE, whatever the ticket's IKE SA was made with.
        intermediate: &[],
    };
    let proved = payloads.auth().is_some_and(|auth| {
        auth.method == AuthMethod::SHARED_KEY_MIC && verify_resumption_auth(keys.prf, input, &auth.data)
    });
    if !proved {
        return Err(format!(
            "{remote_id} shows a ticket but does not prove that it is its own"
        ));
    }
    // Between the two exchanges another IKE SA may have been resumed with it, or the policy may have changed.
    if let (Some((id, _)), Some(now)) = (resumed.ticket, ctx.around.unix_time())
        && ctx.tickets.is_spent(&id, now)
    {
        return Err(format!("{remote_id} uses a ticket twice"));
    }
    let connection = sa.connection(ctx.config).filter(|c| c.local_id == resumed.own_id);
    let connection = connection.ok_or("the connection is no longer in the configuration")?;
    Ok((connection, remote_id))
}

//= rfc5723#4.3.4
// When the responder receives a ticket for an IKE SA that is still active and if the responder accepts it (i.e., following
// successful completion of the IKE_AUTH exchange), the old SA SHOULD be silently deleted without sending a DELETE
// informational exchange.
/// Responder: both sides are authenticated. The ticket is spent, the old IKE SA is replaced.
pub(crate) fn succeeded(sa: &IkeSa, ctx: &mut Context<'_>) {
    let Some(resumed) = &sa.extras.resumed else { return };
    if let (Some((id, expires)), Some(now)) = (resumed.ticket, ctx.around.unix_time()) {
        ctx.tickets.spend(id, expires, now);
    }
    let same_peer = |old: &IkeSa| old.connection == sa.connection && old.remote_id == sa.remote_id;
    if let Some(old) = resumed.replaces.filter(|old| *old != sa.spi)
        && ctx.table.get(old).is_some_and(same_peer)
        && let Some(mut old) = ctx.table.take(old)
    {
        delete::vanish(&mut old, ctx, "the peer resumed it");
        ctx.put_back(old);
    }
    ctx.event(
        sa,
        EventKind::Resumed,
        format!("IKE SA {} resumes a session by a ticket", sa.spi),
    );
}
