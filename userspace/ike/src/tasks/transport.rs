//! Transport mode (RFC 7296 1.3.1): USE_TRANSPORT_MODE in request and response, selectors of the two addresses of the IKE SA alone.
//!
//! Not done: the substitution of addresses behind a NAT (RFC 7296 2.23.1). A NAT that leaves addresses as they are (or encapsulation
//! that is forced) is no matter; with another one the selectors do not fit, and both sides say so by name.

use super::Pending;
use super::follow_up;
use crate::config::ChildConfig;
use crate::ike_sa::IkeSa;
use crate::ike_sa::child::ChildSa;
use crate::ike_sa::phase::Phase;
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

/// What an operator should know where selectors do not fit.
pub(crate) fn explain(sa: &IkeSa, mode: SaMode) -> &'static str {
    let nat = sa.path.nat_local || sa.path.nat_remote;
    if mode == SaMode::Transport && nat {
        "; transport mode through a NAT that changes addresses is not supported: use tunnel mode"
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
