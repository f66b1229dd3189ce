//! Keeps next hops resolved, so that the programs' FIB look-ups find a MAC address from the first packet on. On a
//! standby too: after a takeover there is no time for ARP.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};

fn hop(route: &RouteMessage) -> (Option<u32>, Option<IpAddr>) {
    let mut found = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.0 = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => found.1 = Some((*gateway).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(gateway)) => found.1 = Some((*gateway).into()),
            _ => {}
        }
    }
    found
}

/// Next hops on these interfaces: gateways of all routes, the way to each peer, and neighbours known already.
pub async fn next_hops(handle: &Handle, interfaces: &[u32], peers: &[IpAddr]) -> BTreeSet<(u32, IpAddr)> {
    let mut hops = BTreeSet::new();
    let mut add = |found: (Option<u32>, Option<IpAddr>)| {
        if let (Some(index), Some(gateway)) = found
            && interfaces.contains(&index)
        {
            hops.insert((index, gateway));
        }
    };
    for all in [
        RouteMessageBuilder::<Ipv4Addr>::new().build(),
        RouteMessageBuilder::<Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(all).execute();
        while let Ok(Some(route)) = routes.try_next().await {
            add(hop(&route));
        }
    }
    for peer in peers {
        let query = match *peer {
            IpAddr::V4(peer) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(peer, 32)
                .build(),
            IpAddr::V6(peer) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(peer, 128)
                .build(),
        };
        let mut answer = handle.route().get(query).execute();
        if let Ok(Some(route)) = answer.try_next().await
            && route.header.kind == RouteType::Unicast
        {
            let (index, gateway) = hop(&route);
            add((index, gateway.or(Some(*peer))));
        }
    }
    let mut known = handle
        .neighbours()
        .get()
        .set_address_family(AddressFamily::Unspec)
        .execute();
    while let Ok(Some(neighbour)) = known.try_next().await {
        // What failed is asked for again only if it is a next hop.
        if matches!(
            neighbour.header.state,
            NeighbourState::Failed | NeighbourState::Noarp | NeighbourState::Permanent
        ) {
            continue;
        }
        for attribute in &neighbour.attributes {
            let address = match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => IpAddr::from(*address),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(address))
                    if !address.is_multicast() =>
                {
                    IpAddr::from(*address)
                }
                _ => continue,
            };
            add((Some(neighbour.header.ifindex), Some(address)));
        }
    }
    hops
}

/// Has the kernel resolve, or confirm, a neighbour now.
pub async fn probe(handle: &Handle, index: u32, address: IpAddr) {
    let asked = handle
        .neighbours()
        .add(index, address)
        .state(NeighbourState::None)
        .flags(NeighbourFlags::Use)
        .replace()
        .execute()
        .await;
    if let Err(error) = asked {
        tracing::debug!(%address, %error, "cannot probe a neighbour");
    }
}
