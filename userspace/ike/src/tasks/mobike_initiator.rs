//! MOBIKE (RFC 4555) as initiator: we have several addresses, and say which one the IKE SA and its Child SAs use now.
//!
//! A path that has gone dead is noticed by the outstanding request (a liveness check, if nothing else): from its third transmission on it
//! is repeated on the other paths in turn (3.10), and the one that the answer comes back on is the new one. The agent may also say that an
//! address of ours is of no use any more.

use super::ike_init::{PORT_NAT_T, detect_nat, nat_detection};
use super::{Pending, notify};
use crate::config::Connection;
use crate::event::EventKind;
use crate::ike_sa::child::ChildPhase;
use crate::ike_sa::message::{repeat, send_request};
use crate::ike_sa::phase::Phase;
use crate::ike_sa::windows::Task;
use crate::ike_sa::{IkeSa, Path};
use crate::outbox::Context;
use ike_wire::{ExchangeType, Notify, NotifyType, Payload, PayloadList};
use model::{ChildSaChange, SaMode};
use std::net::{IpAddr, SocketAddr};

/// Transmissions of a request on one path before others are tried.
const SENT_BEFORE: u32 = 2;
/// Addresses of the peer's that are remembered.
const PEER_ADDRESSES: usize = 8;

/// Whether we may roam on this connection.
pub(crate) fn is_wanted(connection: &Connection) -> bool {
    connection.mobike && !connection.further_locals.is_empty()
}

fn additional(address: IpAddr) -> Payload {
    let (kind, octets) = match address {
        IpAddr::V4(v4) => (NotifyType::ADDITIONAL_IP4_ADDRESS, v4.octets().to_vec()),
        IpAddr::V6(v6) => (NotifyType::ADDITIONAL_IP6_ADDRESS, v6.octets().to_vec()),
    };
    Payload::Notify(Notify::new(kind, octets))
}

/// IKE_AUTH request: that we can do it, and our other addresses (RFC 4555 3.3, 3.4).
pub(crate) fn offer(sa: &IkeSa, connection: &Connection) -> Vec<Payload> {
    if !is_wanted(connection) {
        return Vec::new();
    }
    let others = ours(connection).filter(|address| *address != sa.path.local.ip());
    let mut payloads = vec![notify(NotifyType::MOBIKE_SUPPORTED)];
    payloads.extend(others.map(additional));
    payloads
}

/// IKE_AUTH response: whether the peer can do it too.
pub(crate) fn agree(sa: &mut IkeSa, connection: &Connection, payloads: &PayloadList) {
    if is_wanted(connection) && payloads.notify(NotifyType::MOBIKE_SUPPORTED).is_some() {
        sa.more.mobike = true;
        sa.more.roaming_mut().peer_addresses = addresses(payloads);
    }
}

/// The peer tells its addresses anew (RFC 4555 3.6).
pub(crate) fn take_addresses(sa: &mut IkeSa, payloads: &PayloadList) {
    let told = addresses(payloads);
    let none = payloads.notify(NotifyType::NO_ADDITIONAL_ADDRESSES).is_some();
    if sa.initiator && sa.more.mobike && (none || !told.is_empty()) {
        sa.more.roaming_mut().peer_addresses = told;
        sa.dirty = true;
    }
}

fn addresses(payloads: &PayloadList) -> Vec<IpAddr> {
    let read = |notify: &Notify| match notify.kind {
        NotifyType::ADDITIONAL_IP4_ADDRESS => {
            <[u8; 4]>::try_from(notify.data.as_slice()).ok().map(IpAddr::from)
        }
        NotifyType::ADDITIONAL_IP6_ADDRESS => <[u8; 16]>::try_from(notify.data.as_slice())
            .ok()
            .map(IpAddr::from),
        _ => None,
    };
    payloads
        .notifies()
        .filter_map(read)
        .take(PEER_ADDRESSES)
        .collect()
}

fn ours(connection: &Connection) -> impl Iterator<Item = IpAddr> {
    [connection.local]
        .into_iter()
        .chain(connection.further_locals.iter().copied())
}

/// All paths that there may be, in an order that does not depend on which one is in use; never empty.
fn paths(sa: &IkeSa, connection: &Connection) -> Vec<(IpAddr, IpAddr)> {
    let now = (sa.path.local.ip(), sa.path.remote.ip());
    let mut paths = vec![now];
    for remote in connection
        .remotes
        .iter()
        .chain(sa.more.roaming.iter().flat_map(|roaming| &roaming.peer_addresses))
        .chain([&now.1])
    {
        for local in ours(connection) {
            let usable =
                local.is_ipv4() == remote.is_ipv4() && !local.is_unspecified() && !remote.is_unspecified();
            if usable {
                paths.push((local, *remote));
            }
        }
    }
    paths.sort_unstable();
    paths.dedup();
    paths
}

fn may_roam(sa: &IkeSa) -> bool {
    sa.initiator && sa.more.mobike && matches!(sa.phase, Phase::Established(_))
}

/// Messages go this way from now on; the one that worked last is remembered until the peer has agreed.
fn turn_to(sa: &mut IkeSa, local: IpAddr, remote: IpAddr) {
    let before = sa.path;
    let roaming = sa.more.roaming_mut();
    roaming.confirmed.get_or_insert((before.local, before.remote));
    sa.path.local = SocketAddr::new(local, PORT_NAT_T);
    if remote != before.remote.ip() {
        sa.path.remote = SocketAddr::new(remote, PORT_NAT_T);
    }
    sa.dirty = true;
}

/// The outstanding request is about to be sent again: on another path, if this one does not seem to work.
/// `sent`: how often it, or the one of several that was sent most often, was sent again, this time included.
pub(crate) fn before_repetition(sa: &mut IkeSa, ctx: &Context<'_>, sent: u32) {
    if !may_roam(sa) || sent < SENT_BEFORE {
        return;
    }
    let Some(connection) = sa.connection(ctx.config) else {
        return;
    };
    let paths = paths(sa, connection);
    let now = (sa.path.local.ip(), sa.path.remote.ip());
    let at = paths.iter().position(|path| *path == now).unwrap_or(0);
    if let Some((local, remote)) = paths.get((at + 1) % paths.len()).filter(|path| **path != now) {
        turn_to(sa, *local, *remote);
    }
}

/// The answer to a request has come, on the path that works.
pub(crate) fn answered(sa: &mut IkeSa, ctx: &Context<'_>) {
    let (Some(confirmed), Some((local, remote)), true) = (sa.more.confirmed_path(), ctx.from, may_roam(sa))
    else {
        return;
    };
    (sa.path.local, sa.path.remote) = (local, remote);
    sa.dirty = true;
    if (local, remote) == confirmed {
        // It was slow, not dead.
        sa.more.roaming_mut().confirmed = None;
    } else {
        sa.our.push_front(Task::UpdateAddresses);
    }
}

/// The agent says that this address of ours is the one to use.
pub(crate) fn move_local(sa: &mut IkeSa, ctx: &mut Context<'_>, local: IpAddr) -> Result<(), String> {
    let connection = sa.connection(ctx.config).ok_or("its connection is gone")?;
    if !may_roam(sa) {
        return Err(
            "only the initiator moves, where the peer has MOBIKE too and both agreed to it".to_owned(),
        );
    }
    if !ours(connection).any(|address| address == local) {
        return Err(format!("{local} is none of the connection's own addresses"));
    }
    if local == sa.path.local.ip() {
        return Ok(());
    }
    turn_to(sa, local, sa.path.remote.ip());
    sa.our.push_front(Task::UpdateAddresses);
    // RFC 4555 3.5: what is outstanding goes the new way, too; the update follows it.
    for outstanding in sa.our.all() {
        repeat(sa, ctx, &outstanding.bytes);
    }
    Ok(())
}

/// Tells the peer where we are (RFC 4555 3.5).
pub(crate) fn start(sa: &mut IkeSa, ctx: &mut Context<'_>) {
    let (spi_i, spi_r) = sa.header_spis();
    let force = sa.connection(ctx.config).is_some_and(|c| c.force_encap);
    let pending = Pending::UpdateAddresses {
        local: sa.path.local,
        remote: sa.path.remote,
    };
    let mut payloads = vec![notify(NotifyType::UPDATE_SA_ADDRESSES)];
    payloads.extend(nat_detection(spi_i, spi_r, sa.path, force));
    send_request(sa, ctx, ExchangeType::INFORMATIONAL, &payloads, pending);
}

/// The peer has answered: it sends there from now on. `asked`: where the request was made for.
pub(crate) fn finish(
    sa: &mut IkeSa,
    ctx: &mut Context<'_>,
    asked: (SocketAddr, SocketAddr),
    payloads: &PayloadList,
) {
    if let Some(path) = ctx.from.filter(|path| *path != asked) {
        // It got through on another path only: what it says of NATs is about the one that it was made for.
        (sa.path.local, sa.path.remote) = path;
        return sa.our.push_front(Task::UpdateAddresses);
    }
    (sa.path.local, sa.path.remote) = asked;
    if let Some(error) = payloads.error() {
        let text = format!("the peer does not follow us to {}: {}", sa.path.local, error.kind);
        ctx.event(sa, EventKind::PeerMisbehaved, text);
        return;
    }
    let Some(before) = sa.more.roaming_mut().confirmed.take() else {
        return;
    };
    let encap = sa.path.encap;
    if payloads.notify(NotifyType::NAT_DETECTION_SOURCE_IP).is_some() {
        let (spi_i, spi_r) = sa.header_spis();
        let force = sa.connection(ctx.config).is_some_and(|c| c.force_encap);
        (sa.path.nat_local, sa.path.nat_remote) = detect_nat(payloads, spi_i, spi_r, sa.path);
        sa.path.encap = sa.path.nat_local || sa.path.nat_remote || force;
    }
    let keepalive = sa.connection(ctx.config).map(|connection| connection.keepalive);
    sa.timers.keepalive = keepalive
        .filter(|_| sa.path.nat_local)
        .map(|interval| ctx.now + interval);
    follow(sa, ctx, before, encap);
    let Path { local, remote, .. } = sa.path;
    let text = format!("from {} to {local}, with the peer at {remote} (MOBIKE)", before.0);
    ctx.event(sa, EventKind::PathMoved, text);
}

/// The data plane follows a peer's address; with another address of ours, or another encapsulation, new Child SAs take the place
/// of the old ones, which the peer sends to us on the new path meanwhile.
fn follow(sa: &mut IkeSa, ctx: &mut Context<'_>, before: (SocketAddr, SocketAddr), encap: bool) {
    let only_remote = before.0.ip() == sa.path.local.ip() && encap == sa.path.encap;
    let (local, remote) = (sa.path.local, sa.path.remote);
    let elsewhere = (before.0.ip(), before.1.ip()) != (local.ip(), remote.ip());
    for child in &sa.children {
        if elsewhere && child.mode == SaMode::Transport {
            // It is about the two addresses that it was made for (RFC 4555 is about tunnel mode only).
            sa.our.push(Task::DeleteChild { spi_in: child.spi_in });
        } else if only_remote {
            let spi_in = child.spi_in;
            ctx.out
                .child_changes
                .push(ChildSaChange::MovePeer { spi_in, remote });
        } else if child.phase == ChildPhase::Installed {
            sa.our.push(Task::RekeyChild { spi_in: child.spi_in });
        }
    }
}
