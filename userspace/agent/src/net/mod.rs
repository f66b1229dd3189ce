//! This host's network: interfaces, cluster addresses, routes, neighbours, sockets.

pub mod announce;
pub mod frame;
pub mod neighbour;
pub mod socket;
pub mod sysctl;
pub mod tun;
pub mod watch;

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use rtnetlink::{Handle, RouteMessageBuilder};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Kernel index.
    pub index: u32,
    /// MAC address; all zero where it has none.
    pub mac: [u8; 6],
    /// Octets of IP packet.
    pub mtu: u32,
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
        mac: [0; 6],
        mtu: 1500,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(octets) => {
                if let Ok(mac) = octets.as_slice().try_into() {
                    interface.mac = mac;
                }
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            _ => {}
        }
    }
    Ok(interface)
}

/// Whether the interface has an IPv4 address of its own.
pub async fn has_own_address(handle: &Handle, interface: &Interface) -> bool {
    let mut addresses = handle
        .address()
        .get()
        .set_link_index_filter(interface.index)
        .execute();
    while let Ok(Some(message)) = addresses.try_next().await {
        let v4 = message
            .attributes
            .iter()
            .any(|a| matches!(a, AddressAttribute::Address(IpAddr::V4(_))));
        if v4 {
            return true;
        }
    }
    false
}

/// Puts a cluster address on `lo`, as /32. It stays when the agent stops: every member has it always.
///
/// # Errors
/// The kernel refuses.
pub async fn add_cluster_address(handle: &Handle, address: Ipv4Addr) -> Result<()> {
    let lo = interface(handle, "lo").await?;
    let up = rtnetlink::LinkUnspec::new_with_index(lo.index).up().build();
    handle
        .link()
        .set(up)
        .execute()
        .await
        .context("cannot bring lo up")?;
    handle
        .address()
        .add(lo.index, IpAddr::V4(address), 32)
        .replace()
        .execute()
        .await
        .with_context(|| format!("cannot put the cluster address {address} on lo"))
}

/// Routes what this host itself sends to `network` into the TUN device.
///
/// # Errors
/// The kernel refuses.
pub async fn route_to_tun(
    handle: &Handle,
    tun: u32,
    network: (Ipv4Addr, u8),
    source: Option<Ipv4Addr>,
) -> Result<()> {
    let mut route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(network.0, network.1)
        .output_interface(tun);
    if let Some(source) = source {
        route = route.pref_source(source);
    }
    // Worse than any route that the operator made: a more direct path to a protected network wins.
    let route = route.priority(9_000).build();
    handle
        .route()
        .add(route)
        .replace()
        .execute()
        .await
        .with_context(|| format!("cannot route {}/{} into the TUN device", network.0, network.1))
}
