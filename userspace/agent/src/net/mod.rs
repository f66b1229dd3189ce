//! This host's network: interfaces, cluster addresses, routes, neighbours, sockets.

pub mod announce;
pub mod frame;
pub mod neighbour;
pub mod ports;
pub mod socket;
pub mod sysctl;
pub mod tun;
pub mod vlan;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::LinkAttribute;
use rtnetlink::{Handle, RouteMessageBuilder};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Kernel index.
    pub index: u32,
    /// Device on which its frames arrive and leave: itself, or what a VLAN device lies on.
    pub parent: u32,
    /// VLAN that they are tagged with there, 0 for none.
    pub vlan: u16,
    /// MAC address; all zero where it has none.
    pub mac: [u8; 6],
    /// Octets of IP packet.
    pub mtu: u32,
    /// Its own addresses with prefix length; filled where they matter.
    pub networks: Vec<(IpAddr, u8)>,
}

/// Opens a netlink connection for the network namespace of this process.
///
/// # Errors
/// No netlink socket.
pub fn netlink() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Looks an interface up.
///
/// # Errors
/// It does not exist.
pub async fn interface(handle: &Handle, name: &str) -> Result<Interface> {
    let found = handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .try_next()
        .await;
    let link = found.ok().flatten().with_context(|| {
        format!("there is no interface '{name}'; correct [interfaces], or create it first")
    })?;
    let mut interface = Interface {
        name: name.to_owned(),
        index: link.header.index,
        parent: link.header.index,
        vlan: 0,
        mac: [0; 6],
        mtu: 1500,
        networks: Vec::new(),
    };
    let (mut below, mut tag) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkInfo(infos) => tag = vlan::tag(infos).with_context(|| name.to_owned())?,
            LinkAttribute::Address(octets) => {
                if let Ok(mac) = octets.as_slice().try_into() {
                    interface.mac = mac;
                }
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            _ => {}
        }
    }
    if let (Some(tag), Some(below)) = (tag, below) {
        (interface.parent, interface.vlan) = (below, tag);
    }
    Ok(interface)
}

/// Addresses of an interface with their prefix lengths, but for link-local ones.
pub async fn networks(handle: &Handle, index: u32) -> Vec<(IpAddr, u8)> {
    let mut found = Vec::new();
    let mut addresses = handle.address().get().set_link_index_filter(index).execute();
    while let Ok(Some(message)) = addresses.try_next().await {
        for attribute in &message.attributes {
            if let AddressAttribute::Address(address) = attribute
                && !matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
            {
                found.push((*address, message.header.prefix_len));
            }
        }
    }
    found
}

/// Puts a cluster address on `lo`, as /32 or /128. It stays when the agent stops: every member has it always, so an IPv6 one is
/// not probed for duplicates.
///
/// # Errors
/// The kernel refuses.
pub async fn add_cluster_address(handle: &Handle, address: IpAddr) -> Result<()> {
    let lo = interface(handle, "lo").await?;
    let up = rtnetlink::LinkUnspec::new_with_index(lo.index).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .context("cannot bring lo up")?;
    let len = if address.is_ipv4() { 32 } else { 128 };
    let mut request = handle.address().add(lo.index, address, len).replace();
    if address.is_ipv6() {
        let flags = AddressAttribute::Flags(AddressFlags::Nodad);
        request.message_mut().attributes.push(flags);
    }
    request
        .execute()
        .await
        .with_context(|| format!("cannot put the cluster address {address} on lo"))
}

/// Routes what this host itself sends to `network` into the TUN device, from the first of `sources` that is of its family.
///
/// # Errors
/// The kernel refuses.
pub async fn route_to_tun(
    handle: &Handle,
    tun: u32,
    network: (IpAddr, u8),
    sources: &[IpAddr],
) -> Result<()> {
    // Worse than any route that the operator made: a more direct path to a protected network wins.
    const PRIORITY: u32 = 9_000;
    let message = match network.0 {
        IpAddr::V4(v4) => {
            let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(v4, network.1)
                .output_interface(tun)
                .priority(PRIORITY);
            if let Some(source) = sources.iter().find_map(|a| match a {
                IpAddr::V4(a) => Some(*a),
                IpAddr::V6(_) => None,
            }) {
                route = route.pref_source(source);
            }
            route.build()
        }
        IpAddr::V6(v6) => {
            let mut route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(v6, network.1)
                .output_interface(tun)
                .priority(PRIORITY);
            if let Some(source) = sources.iter().find_map(|a| match a {
                IpAddr::V6(a) => Some(*a),
                IpAddr::V4(_) => None,
            }) {
                route = route.pref_source(source);
            }
            route.build()
        }
    };
    handle
        .route()
        .add(message)
        .replace()
        .execute()
        .await
        .with_context(|| format!("cannot route {}/{} into the TUN device", network.0, network.1))
}
