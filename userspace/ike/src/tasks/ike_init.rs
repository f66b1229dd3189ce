//! IKE_SA_INIT (RFC 7296 1.2, 2.6, 2.23): the initiator, and what both roles share.

use super::ppk;
use super::redirect::{self, Redirected};
use super::wanted::{another, first_additional};
use super::{Pending, ike_auth, intermediate, mobike_initiator, notify};
use crate::config::Connection;
use crate::event::EventKind;
use crate::exchange::{self, Then};
use crate::ike_sa::authentication::Authentication;
use crate::ike_sa::message::{first_clock, register_request, repeat};
use crate::ike_sa::phase::{AwaitInitResponse, InitTranscript, Phase, Protected};
use crate::ike_sa::{IkeSa, Path};
use crate::negotiate;
use crate::outbox::Context;
use crate::proposal::{self, Proposal, TransformKind};
use crate::tasks::child_create::NONCE_LEN;
use crypto::signature::SIGNATURE_HASHES;
use crypto::{DhGroup, DhWork, IkeKeys, KeyInputs, nat_detection_hash};
use ike_wire::{
    DhTransform, ExchangeType, Flags, Header, KeyExchange, Message, Notify, NotifyType, Payload, PayloadList,
    ProtocolId, encode_message,
};
use model::IkeSpi;
use std::net::{IpAddr, SocketAddr};

/// UDP ports of IKE (RFC 7296 2.23).
pub(crate) const PORT_IKE: u16 = 500;
/// And of IKE and ESP through NATs.
pub(crate) const PORT_NAT_T: u16 = 4500;

/// A peer may ask for a cookie or another group this often.
pub(crate) const RESTARTS_MAX: u8 = 5;

/// Begins an IKE SA, with the peer at `remote` where that is given. `Err`: why it cannot be.
pub(crate) fn start(
    ctx: &mut Context<'_>,
    connection: &Connection,
    remote: Option<IpAddr>,
) -> Result<IkeSa, String> {
    begin_on(ctx, connection, path_of(connection, remote)?, None)
}

/// As [`start`], with the gateway that another one has sent us to.
pub(crate) fn start_at(
    ctx: &mut Context<'_>,
    connection: &Connection,
    gateway: IpAddr,
    redirected: Redirected,
) -> Result<IkeSa, String> {
    let mut path = path_of(connection, None)?;
    path.remote.set_ip(gateway);
    begin_on(ctx, connection, path, Some(redirected))
}

/// As [`start`], beside an IKE SA that is up: from the same address to the same one, to be the younger one of the two.
pub(crate) fn start_beside(
    ctx: &mut Context<'_>,
    connection: &Connection,
    old: Path,
    generation: u32,
) -> Result<IkeSa, String> {
    let path = Path {
        local: SocketAddr::new(old.local.ip(), first_port(connection)),
        remote: SocketAddr::new(old.remote.ip(), connection.remote_port),
        nat_local: false,
        nat_remote: false,
        encap: false,
    };
    let mut sa = begin_on(ctx, connection, path, None)?;
    prepare(&mut sa, ctx, generation);
    Ok(sa)
}

/// It is to be the younger one beside another.
pub(crate) fn prepare(sa: &mut IkeSa, ctx: &Context<'_>, generation: u32) {
    let mut authentication = Authentication::new(ctx.now, ctx.around.unix_time(), true, generation);
    authentication.is_needed = true;
    sa.more.authentication = Some(Box::new(authentication));
}

fn begin_on(
    ctx: &mut Context<'_>,
    connection: &Connection,
    path: Path,
    redirected: Option<Redirected>,
) -> Result<IkeSa, String> {
    let spi = ctx.around.ike_spi(None, &connection.name);
    let mut sa = IkeSa::new(spi, IkeSpi(0), true, path, Phase::AwaitKey);
    sa.more.redirected = redirected.map(Box::new);
    // Nobody is told of it before there is a message.
    sa.dirty = false;
    sa.connection = Some(connection.name.clone());
    sa.timers.since = ctx.now;
    begin(&mut sa, ctx)?;
    Ok(sa)
}

/// Begins once more, with the SPI that was chosen for a session that is not resumed.
pub(crate) fn begin(sa: &mut IkeSa, ctx: &mut Context<'_>) -> Result<(), String> {
    let connection = sa
        .connection(ctx.config)
        .ok_or("the connection is no longer in the configuration")?;
    let group = first_group(connection).ok_or("no IKE proposal with a key exchange group")?;
    if !ctx.exchanges.has_key(group) {
        sa.phase = Phase::AwaitKey;
        sa.timers.expire = Some(ctx.now + ctx.config.endpoint.half_open_timeout);
        exchange::wait(sa, ctx, vec![DhWork::Generate(group)], Then::Begin);
        return Ok(());
    }
    sa.timers.expire = None;
    let made = ctx.generate(group).map_err(|error| error.to_string())?;
    sa.phase = Phase::AwaitInitResponse(Box::new(AwaitInitResponse {
        nonce_i: ctx.random(NONCE_LEN),
        group: group.transform_id(),
        dh: made.secret,
        offered: connection.ike_proposals.clone(),
        cookie: None,
        restarts: 0,
    }));
    send_init(sa, ctx, made.public)
}

/// As [`begin`]; where it cannot, the IKE SA ends.
pub(crate) fn begin_or_vanish(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    if let Err(why) = begin(sa, ctx) {
        ctx.event(sa, EventKind::Trouble, why.clone());
        super::delete::vanish(sa, ctx, &why);
    }
}

/// The key exchange method that an initiator guesses.
pub(crate) fn first_group(connection: &Connection) -> Option<DhGroup> {
    let first = connection
        .ike_proposals
        .iter()
        .find_map(|p| p.first(TransformKind::Dh))?;
    DhGroup::from_transform_id(first.id)
}

/// Which key exchanges an answer to the first message needs.
pub(crate) fn wanted(sa: &IkeSa, ctx: &Context<'_>, message: &Message) -> Vec<DhWork> {
    let Phase::AwaitInitResponse(phase) = &sa.phase else {
        return Vec::new();
    };
    let payloads = &message.payloads;
    let Some(group) = DhGroup::from_transform_id(phase.group).filter(|_| ctx.exchanges.beside) else {
        return Vec::new();
    };
    let work = if let Some(cookie) = payloads.notifies().find_map(Notify::as_cookie) {
        let follows = phase.cookie.as_deref() != Some(cookie);
        [follows.then(|| DhWork::Public(group, phase.dh.clone())), None]
    } else if payloads.error().is_some() {
        [another(payloads, &phase.offered, Some(phase.group)), None]
    } else {
        let ke = payloads.ke().filter(|ke| ke.group.0 == phase.group);
        let agreed = ke.map(|ke| DhWork::Agree(group, phase.dh.clone(), ke.data.clone()));
        let next = agreed
            .as_ref()
            .and_then(|_| first_additional(payloads, ProtocolId::IKE));
        [agreed, next]
    };
    work.into_iter().flatten().collect()
}

/// Addresses and ports of a first message.
pub(crate) fn path_of(connection: &Connection, wanted: Option<IpAddr>) -> Result<Path, String> {
    let known = |address: &&IpAddr| wanted.is_none_or(|wanted| **address == wanted);
    let Some(remote) = connection
        .remotes
        .iter()
        .filter(known)
        .find(|address| !address.is_unspecified())
    else {
        return Err(match connection.remotes_by_name {
            true => "the peer's name has led to no address yet".to_owned(),
            false => "the peer's address is not configured, so only the peer can initiate".to_owned(),
        });
    };
    if connection.local.is_unspecified() || connection.local.is_ipv4() != remote.is_ipv4() {
        return Err(format!(
            "no usable local address ({}) towards {remote}",
            connection.local
        ));
    }
    Ok(Path {
        local: SocketAddr::new(connection.local, first_port(connection)),
        remote: SocketAddr::new(*remote, connection.remote_port),
        nat_local: false,
        nat_remote: false,
        encap: false,
    })
}

/// Our port of a first message.
fn first_port(connection: &Connection) -> u16 {
    if connection.remote_port == PORT_NAT_T {
        PORT_NAT_T
    } else {
        PORT_IKE
    }
}

/// Sends the first request; after a cookie or INVALID_KE_PAYLOAD again, with the same Message ID 0.
fn send_init(sa: &mut IkeSa, ctx: &mut Context<'_>, public: Vec<u8>) -> Result<(), String> {
    let force = sa
        .connection(ctx.config)
        .is_some_and(|connection| connection.force_encap);
    let Phase::AwaitInitResponse(phase) = &sa.phase else {
        return Err("not connecting".to_owned());
    };
    let mut payloads = Vec::new();
    if let Some(cookie) = &phase.cookie {
        // RFC 7296 2.6: the cookie stands first, all else is unchanged.
        payloads.push(Payload::Notify(Notify::new(NotifyType::COOKIE, cookie.clone())));
    }
    payloads.push(Payload::SecurityAssociation(negotiate::offer(
        &phase.offered,
        ProtocolId::IKE,
        &[],
    )));
    payloads.push(Payload::KeyExchange(KeyExchange {
        group: DhTransform(phase.group),
        data: public,
    }));
    payloads.push(Payload::Nonce(phase.nonce_i.clone()));
    payloads.extend(nat_detection(sa.spi, IkeSpi(0), sa.path, force));
    if sa
        .connection(ctx.config)
        .is_some_and(|connection| connection.fragmentation)
    {
        payloads.push(notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED));
    }
    payloads.extend(redirect::announce(sa, sa.connection(ctx.config)));
    payloads.extend(ppk::supported(sa.connection(ctx.config)));
    if phase.offered.iter().any(Proposal::has_additional) {
        payloads.push(notify(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED));
    }
    let signs = sa
        .connection(ctx.config)
        .is_some_and(Connection::uses_certificates);
    if signs {
        payloads.push(Payload::Notify(Notify::signature_hashes(&SIGNATURE_HASHES)));
    }
    let header = Header {
        spi_i: sa.spi,
        spi_r: IkeSpi(0),
        exchange: ExchangeType::IKE_SA_INIT,
        flags: Flags {
            initiator: true,
            version: false,
            response: false,
        },
        message_id: 0,
    };
    let bytes = encode_message(&header, &payloads).map_err(|error| error.to_string())?;
    sa.our.next = 0;
    register_request(sa, ctx, bytes, Pending::Init);
    Ok(())
}

/// The two notifications. Forced encapsulation hides our real source, so that the peer finds a NAT.
pub(crate) fn nat_detection(spi_i: IkeSpi, spi_r: IkeSpi, path: Path, force: bool) -> [Payload; 2] {
    let mut source = nat_detection_hash(spi_i, spi_r, path.local);
    if force {
        source.iter_mut().for_each(|octet| *octet = !*octet);
    }
    let destination = nat_detection_hash(spi_i, spi_r, path.remote);
    [
        Payload::Notify(Notify::new(NotifyType::NAT_DETECTION_SOURCE_IP, source.to_vec())),
        Payload::Notify(Notify::new(
            NotifyType::NAT_DETECTION_DESTINATION_IP,
            destination.to_vec(),
        )),
    ]
}

/// What the peer's notifications say about NATs: (we are behind one, the peer is).
pub(crate) fn detect_nat(payloads: &PayloadList, spi_i: IkeSpi, spi_r: IkeSpi, path: Path) -> (bool, bool) {
    let differs = |kind: NotifyType, address: SocketAddr| {
        let hash = nat_detection_hash(spi_i, spi_r, address);
        let mut found = payloads.notifies().filter(|n| n.kind == kind).peekable();
        // Without the notification the peer does not do NAT traversal.
        found.peek().is_some() && !found.any(|n| n.as_nat_detection() == Some(&hash))
    };
    (
        differs(NotifyType::NAT_DETECTION_DESTINATION_IP, path.local),
        differs(NotifyType::NAT_DETECTION_SOURCE_IP, path.remote),
    )
}

/// Initiator: a response, not protected.
pub(crate) fn on_response(sa: &mut IkeSa, ctx: &mut Context<'_>, message: &Message, bytes: &[u8]) {
    let Phase::AwaitInitResponse(phase) = &sa.phase else {
        return;
    };
    let payloads = &message.payloads;
    if let Some(cookie) = payloads.notifies().find_map(Notify::as_cookie) {
        // A second copy of the answer that we followed already.
        if phase.cookie.as_deref() == Some(cookie) {
            return;
        }
        let cookie = cookie.to_vec();
        let group = DhGroup::from_transform_id(phase.group);
        let public = group.and_then(|group| ctx.public(group, &phase.dh).ok());
        let change = |phase: &mut AwaitInitResponse| phase.cookie = Some(cookie);
        return restart(sa, ctx, change, public.unwrap_or_default(), "cookies");
    }
    if let Some(redirect) = payloads.notify(NotifyType::REDIRECT) {
        let nonce = phase.nonce_i.clone();
        return redirect::on_init(sa, ctx, redirect, &nonce);
    }
    if let Some(error) = payloads.error() {
        return refused(sa, ctx, error);
    }
    if message.header.spi_r.0 == 0 {
        return;
    }
    let sizes = (phase.nonce_i.clone(), phase.offered.clone());
    match read_response(sa, ctx, &sizes.0, &sizes.1, message) {
        Ok((protected, nonce_r)) => {
            let (nat_local, nat_remote) = detect_nat(payloads, sa.spi, message.header.spi_r, sa.path);
            let request = sa.our.take_all().next().map(|outstanding| outstanding.bytes);
            let request = request.unwrap_or_default();
            let transcript = InitTranscript {
                request,
                response: bytes.to_vec(),
                nonce_i: sizes.0,
                nonce_r,
            };
            sa.peer_spi = message.header.spi_r;
            set_nat(sa, ctx, nat_local, nat_remote);
            sa.more.fragment_size = sa
                .connection(ctx.config)
                .and_then(|connection| fragment_size(connection, payloads));
            if let Err(why) = ppk::on_init_response(sa, ctx.config, payloads) {
                ctx.event(sa, EventKind::AuthFailed, why.clone());
                return super::delete::vanish(sa, ctx, &why);
            }
            let childless = payloads.notify(NotifyType::CHILDLESS_IKEV2_SUPPORTED).is_some();
            if protected.suite.has_additional() {
                intermediate::start(sa, ctx, protected, transcript, childless);
            } else {
                ike_auth::start(sa, ctx, protected, transcript, childless);
            }
        }
        Err(why) => {
            // Not authentic, so the right response may still come (RFC 7296 2.21.1): keep on.
            ctx.event(
                sa,
                EventKind::PeerMisbehaved,
                format!("IKE_SA_INIT response has {why}"),
            );
        }
    }
}

/// What to cut messages to, where both sides can do with fragments (RFC 7383 2.3).
pub(crate) fn fragment_size(connection: &Connection, payloads: &PayloadList) -> Option<u16> {
    let both = connection.fragmentation
        && payloads
            .notify(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED)
            .is_some();
    both.then_some(connection.fragment_size)
}

/// Takes over what NAT detection found; an initiator changes to port 4500 (RFC 7296 2.23).
pub(crate) fn set_nat(sa: &mut IkeSa, ctx: &Context<'_>, nat_local: bool, nat_remote: bool) {
    let connection = sa.connection(ctx.config);
    let force = connection.is_some_and(|connection| connection.force_encap);
    let keepalive = connection.map(|connection| connection.keepalive);
    //= rfc4555#3.3
    // Both MOBIKE and NAT traversal: port 4500 from here on, whether there is a NAT now or not.
    let roams = connection.is_some_and(mobike_initiator::is_wanted);
    sa.path.nat_local = nat_local;
    sa.path.nat_remote = nat_remote;
    sa.path.encap = nat_local || nat_remote || force;
    if (sa.path.encap || roams) && sa.initiator {
        sa.path.local.set_port(PORT_NAT_T);
        if sa.path.remote.port() == PORT_IKE {
            sa.path.remote.set_port(PORT_NAT_T);
        }
    }
    if nat_local && let Some(keepalive) = keepalive {
        sa.timers.keepalive = Some(ctx.now + keepalive);
    }
}

fn read_response(
    sa: &IkeSa,
    ctx: &mut Context<'_>,
    nonce_i: &[u8],
    offered: &[Proposal],
    message: &Message,
) -> Result<(Protected, Vec<u8>), &'static str> {
    let Phase::AwaitInitResponse(phase) = &sa.phase else {
        return Err("no place here");
    };
    let payloads = &message.payloads;
    let theirs = negotiate::read(payloads.sa().ok_or("no SA payload")?, ProtocolId::IKE);
    let [their] = theirs.as_slice() else {
        return Err("not exactly one proposal");
    };
    let (_, suite) = proposal::choose(offered, std::slice::from_ref(&their.proposal))
        .ok_or("algorithms that we did not offer")?;
    let (prf, cipher, group) = negotiate::ike_suite(&suite).ok_or("algorithms that are not implemented")?;
    let ke = payloads.ke().ok_or("no KE payload")?;
    if group.transform_id() != phase.group || ke.group.0 != phase.group {
        return Err("another key exchange group");
    }
    // RFC 9370 2.2.1: without it the peer must not have chosen an additional key exchange.
    let intermediate = payloads
        .notify(NotifyType::INTERMEDIATE_EXCHANGE_SUPPORTED)
        .is_some();
    if suite.has_additional() && !intermediate {
        return Err("additional key exchanges without IKE_INTERMEDIATE");
    }
    let nonce_r = payloads.nonce().ok_or("no nonce")?.to_vec();
    let shared = ctx
        .agree(group, &phase.dh, &ke.data)
        .map_err(|_| "a public value that is not valid")?;
    let inputs = KeyInputs {
        nonce_i,
        nonce_r: &nonce_r,
        spi_i: sa.spi,
        spi_r: message.header.spi_r,
    };
    let keys = IkeKeys::derive(prf, cipher, inputs, &shared).map_err(|_| "no usable keys")?;
    Ok((Protected { keys, suite }, nonce_r))
}

/// Begins again with a cookie or another group; our SPI and nonce stay.
fn restart(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    change: impl FnOnce(&mut AwaitInitResponse),
    public: Vec<u8>,
    what: &str,
) {
    let Phase::AwaitInitResponse(phase) = &mut sa.phase else {
        return;
    };
    phase.restarts += 1;
    if phase.restarts > RESTARTS_MAX {
        let text = format!("the peer keeps asking for {what}");
        ctx.event(sa, EventKind::PeerMisbehaved, text.clone());
        return super::delete::vanish(sa, ctx, &text);
    }
    change(phase);
    drop(sa.our.take_all());
    if let Err(why) = send_init(sa, ctx, public) {
        ctx.event(sa, EventKind::Trouble, why.clone());
        super::delete::vanish(sa, ctx, &why);
    }
}

fn refused(sa: &mut IkeSa, ctx: &mut Context<'_>, error: &Notify) {
    let Phase::AwaitInitResponse(phase) = &sa.phase else {
        return;
    };
    if let Some(group) = error.as_invalid_ke() {
        // A second copy of the answer that we followed already.
        if phase.group == group.0 {
            return;
        }
        let offered = phase
            .offered
            .iter()
            .any(|p| p.of(TransformKind::Dh).any(|t| t.id == group.0));
        let made = DhGroup::from_transform_id(group.0).filter(|_| offered);
        if let Some(made) = made.and_then(|group| ctx.generate(group).ok()) {
            let change = |phase: &mut AwaitInitResponse| (phase.group, phase.dh) = (group.0, made.secret);
            return restart(sa, ctx, change, made.public, "other key exchange groups");
        }
    }
    let (kind, text) = match error.kind {
        NotifyType::NO_PROPOSAL_CHOSEN => (
            EventKind::NoProposal,
            format!(
                "the peer accepts none of our IKE proposals: {}; compare with its configuration",
                proposal::list(&phase.offered)
            ),
        ),
        NotifyType::INVALID_KE_PAYLOAD => (
            EventKind::NoProposal,
            format!(
                "the peer wants a key exchange group that is not in {}",
                proposal::list(&phase.offered)
            ),
        ),
        other => (
            EventKind::PeerMisbehaved,
            format!("the peer refused the first message with {other}"),
        ),
    };
    ctx.event(sa, kind, text.clone());
    super::delete::vanish(sa, ctx, &text);
}

/// After a takeover: requests without a response are sent again and their clocks start anew.
pub(crate) fn repeat_outstanding(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let clock = first_clock(sa, ctx);
    for outstanding in sa.our.all() {
        repeat(sa, ctx, &outstanding.bytes);
    }
    for outstanding in sa.our.all_mut() {
        outstanding.clock = clock;
    }
}
