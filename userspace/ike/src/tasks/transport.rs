//! Transport mode (RFC 7296 1.3.1): USE_TRANSPORT_MODE in request and response, selectors of the two addresses of the IKE SA alone.
//!
//! Behind a NAT the initiator asks for the addresses that it knows, and the responder answers with those that it sees; each puts its own in
//! the place of the other's (RFC 7296 2.23.1). So selectors are always of the addresses that packets bear on this side; what the NAT
//! makes of the checksums behind the IP header is the data plane's business (RFC 3948 3.1.2).

use super::Pending;
use super::follow_up;
use crate::config::ChildConfig;
use crate::ike_sa::child::ChildSa;
use crate::ike_sa::phase::Phase;
use crate::ike_sa::{IkeSa, Path};
use crate::negotiate::narrow;
use ike_wire::{NotifyType, PayloadList};
use model::{EspSpi, SaMode, TrafficSelector};
use std::net::{IpAddr, SocketAddr};

/// The mode that the peer asks for, or agrees to.
pub(crate) fn wanted(payloads: &PayloadList) -> SaMode {
    if payloads.notify(NotifyType::USE_TRANSPORT_MODE).is_some() {
        SaMode::Transport
    } else {
        SaMode::Tunnel
    }
}

/// Whether a child of the configuration can be what the peer asks for. A child in tunnel mode can be: a responder may decline
/// transport mode by saying nothing of it.
pub(crate) fn suits(child: &ChildConfig, wanted: SaMode) -> bool {
    child.mode == SaMode::Tunnel || wanted == SaMode::Transport
}

fn host(address: IpAddr) -> TrafficSelector {
    TrafficSelector {
        first: address,
        last: address,
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    }
}

/// Our side's and the peer's side's selectors of a child, in transport mode those between the two addresses of the IKE SA.
pub(crate) fn selectors(sa: &IkeSa, child: &ChildConfig) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    if child.mode == SaMode::Tunnel {
        return (child.local_ts.clone(), child.remote_ts.clone());
    }
    (
        narrow(&child.local_ts, &[host(sa.path.local.ip())]),
        narrow(&child.remote_ts, &[host(sa.path.remote.ip())]),
    )
}

/// The address that selectors are about, where it is one.
fn only_host(selectors: &[TrafficSelector]) -> Option<IpAddr> {
    let first = selectors.first()?.first;
    let same = |ts: &TrafficSelector| ts.first == first && ts.last == first;
    selectors.iter().all(same).then_some(first)
}

/// The selectors, about another address.
fn about(selectors: &[TrafficSelector], address: IpAddr) -> Vec<TrafficSelector> {
    let moved = |ts: &TrafficSelector| TrafficSelector {
        first: address,
        last: address,
        ..ts.clone()
    };
    selectors.iter().map(moved).collect()
}

//= rfc7296#2.23.1
// If the client is behind a NAT, substitute the IP address in the TSi entries with the remote address of the IKE SA.
// If the server is behind a NAT, substitute the IP address in the TSr entries with the local address of the IKE SA.
//
/// Our side's and the peer's selectors of a message, with the addresses that packets bear here where a NAT is between the two. In a
/// request (the sentences above) as well as in a response, for which the RFC says the same the other way round: "Do address substitution
/// before using those Traffic Selectors for anything other than storing original content of them."
pub(crate) fn as_seen(
    path: Path,
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    let seen = |ts: &[TrafficSelector], nat: bool, address: SocketAddr| {
        let same_family = only_host(ts).is_some_and(|asked| asked.is_ipv4() == address.is_ipv4());
        if nat && same_family {
            about(ts, address.ip())
        } else {
            ts.to_vec()
        }
    };
    (
        seen(local, path.nat_local, path.local),
        seen(remote, path.nat_remote, path.remote),
    )
}

/// What an operator should know where selectors do not fit.
pub(crate) fn explain(sa: &IkeSa, mode: SaMode) -> &'static str {
    let nat = sa.path.nat_local || sa.path.nat_remote;
    if mode == SaMode::Transport && nat {
        "; there is a NAT: `remote` has to be the address that the peer is seen at, and the peer to ask for one address on each side"
    } else {
        ""
    }
}

/// Whether the peer moved away from the address that a Child SA in transport mode is about. Nothing fits its selectors there (RFC 4555
/// is about tunnel mode only), so it ends.
pub(crate) fn is_left_behind(child: &ChildSa, before: SocketAddr, now: SocketAddr) -> bool {
    child.mode == SaMode::Transport && before.ip() != now.ip()
}

/// Inbound SPIs of all Child SAs in transport mode, made or being made.
pub(crate) fn of(sa: &IkeSa) -> Vec<EspSpi> {
    let children = sa.children.iter().map(|child| (child.spi_in, child.mode));
    let asked = sa.our.pending().filter_map(|pending| match pending {
        Pending::CreateChild(offer) => Some((offer.spi_in, offer.mode)),
        Pending::FollowUp(asked) => asked.unfinished.mode(),
        _ => None,
    });
    let first = match &sa.phase {
        Phase::AwaitAuthResponse(phase) => phase.child.as_ref().map(|offer| (offer.spi_in, offer.mode)),
        _ => None,
    };
    let awaited = sa.more.follow_up.as_deref().and_then(follow_up::Awaited::mode);
    children
        .chain(asked)
        .chain(first)
        .chain(awaited)
        .filter(|(_, mode)| *mode == SaMode::Transport)
        .map(|(spi_in, _)| spi_in)
        .collect()
}

/// Tells them, once they have been read from a record.
pub(crate) fn give(sa: &mut IkeSa) {
    let transport = std::mem::take(&mut sa.more.transport);
    let mode = |spi_in: EspSpi| {
        if transport.contains(&spi_in) {
            SaMode::Transport
        } else {
            SaMode::Tunnel
        }
    };
    for child in &mut sa.children {
        child.mode = mode(child.spi_in);
    }
    for outstanding in sa.our.all_mut() {
        match &mut outstanding.pending {
            Pending::CreateChild(offer) => offer.mode = mode(offer.spi_in),
            Pending::FollowUp(asked) => asked.unfinished.set_mode(mode),
            _ => {}
        }
    }
    if let Phase::AwaitAuthResponse(phase) = &mut sa.phase
        && let Some(offer) = &mut phase.child
    {
        offer.mode = mode(offer.spi_in);
    }
    if let Some(awaited) = &mut sa.more.follow_up {
        awaited.set_mode(mode);
    }
}
