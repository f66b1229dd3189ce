//! This host's network: interfaces, cluster addresses, routes, neighbours, sockets.

pub mod announce;
pub mod batch;
pub mod cut;
pub mod frame;
pub mod hints;
pub mod neighbour;
pub mod offload;
pub mod own;
pub mod picture;
pub mod ports;
pub mod resolve;
pub mod socket;
pub mod sysctl;
pub mod tun;
pub mod vlan;
pub mod whole;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};
use futures_util::TryStreamExt;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoKind, InfoPortKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
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
    /// That device is one end of a veth pair, whose native XDP has a peculiarity (ADR 8).
    pub veth: bool,
    /// VLAN that they are tagged with there, 0 for none.
    pub vlan: u16,
    /// Names of `parent` and of what lies below it: parts of a bond, ports of a bridge, the device of a macvlan. Filled where they
    /// matter.
    pub devices: Vec<String>,
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
        veth: is_veth(&link),
        vlan: 0,
        devices: Vec::new(),
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
        let parent = handle.link().get().match_index(below).execute().try_next().await;
        interface.veth = parent.ok().flatten().is_some_and(|p| is_veth(&p));
    }
    Ok(interface)
}

/// Frames of an interface that is part of something else belong to that, and so do routes: the programs would look for both in vain.
///
/// # Errors
/// It is a port of a bridge, or part of a bond or team: what to name instead.
pub async fn own_master(handle: &Handle, name: &str) -> Result<()> {
    let links = links(handle).await?;
    let Some(link) = links.iter().find(|link| name_of(link) == Some(name)) else {
        return Ok(());
    };
    let (mut master, mut kind) = (None, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Controller(index) => master = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                kind = infos.iter().find_map(|info| match info {
                    LinkInfo::PortKind(kind) => Some(kind.clone()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let master = links.iter().find(|link| Some(link.header.index) == master);
    let master = master.and_then(name_of).unwrap_or("?");
    match kind {
        Some(InfoPortKind::Bridge) => anyhow::bail!(
            "{name} is a port of the bridge {master}, which has the routes and takes its frames: name {master} in [interfaces] (XDP in \
             generic mode, which is slow), or take {name} out of the bridge"
        ),
        Some(kind @ (InfoPortKind::Bond | InfoPortKind::Team)) => {
            anyhow::bail!("{name} is a part of the {kind} {master}: name {master} in [interfaces]")
        }
        // A routing domain (VRF) takes no frames.
        _ => Ok(()),
    }
}

/// Names of a device and of what lies below it.
pub async fn devices(handle: &Handle, index: u32) -> Result<Vec<String>> {
    let links = links(handle).await?;
    let mut wanted = vec![index];
    let mut at = 0;
    while let Some(upper) = wanted.get(at).copied() {
        at += 1;
        for link in &links {
            let below = link.attributes.contains(&LinkAttribute::Controller(upper));
            let above = link.header.index == upper;
            // A veth's other end is named in the same way as what a macvlan lies on.
            let lies_on = link.attributes.iter().find_map(|a| match a {
                LinkAttribute::Link(lower) if above && !is_veth(link) => Some(*lower),
                _ => None,
            });
            let found = below.then_some(link.header.index).into_iter().chain(lies_on);
            for device in found {
                if device != 0 && !wanted.contains(&device) {
                    wanted.push(device);
                }
            }
        }
    }
    let name = |index: &u32| {
        links
            .iter()
            .find(|link| link.header.index == *index)
            .and_then(name_of)
    };
    Ok(wanted.iter().filter_map(name).map(str::to_owned).collect())
}

async fn links(handle: &Handle) -> Result<Vec<LinkMessage>> {
    let links = handle.link().get().execute();
    links.try_collect().await.context("cannot list the interfaces")
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|a| match a {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn is_veth(link: &LinkMessage) -> bool {
    let veth = LinkInfo::Kind(InfoKind::Veth);
    let infos = link.attributes.iter().filter_map(|a| match a {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    infos.flatten().any(|info| *info == veth)
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

/// Has the device on which an interface's frames arrive take frames to one more MAC address.
///
/// # Errors
/// The device refuses.
pub async fn add_unicast(handle: &Handle, interface: &Interface, mac: [u8; 6]) -> Result<()> {
    let mut request = handle.neighbours().add_bridge(interface.parent, &mac).replace();
    let header = &mut request.message_mut().header;
    header.state = NeighbourState::Permanent;
    header.flags = NeighbourFlags::Own;
    match request.execute().await {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        other => other.with_context(|| {
            let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
            format!("{} does not take the virtual MAC address {mac}", interface.name)
        }),
    }
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
    handle
        .route()
        .add(tun_route(tun, network, sources))
        .replace()
        .execute()
        .await
        .with_context(|| format!("cannot route {}/{} into the TUN device", network.0, network.1))
}

/// Takes such a route away; one that is gone already is no problem.
///
/// # Errors
/// The kernel refuses.
pub async fn unroute_from_tun(
    handle: &Handle,
    tun: u32,
    network: (IpAddr, u8),
    sources: &[IpAddr],
) -> Result<()> {
    let removed = handle
        .route()
        .del(tun_route(tun, network, sources))
        .execute()
        .await;
    match removed {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ESRCH => Ok(()),
        other => other.with_context(|| {
            format!(
                "cannot remove the route of {}/{} into the TUN device",
                network.0, network.1
            )
        }),
    }
}

fn tun_route(
    tun: u32,
    network: (IpAddr, u8),
    sources: &[IpAddr],
) -> netlink_packet_route::route::RouteMessage {
    // Worse than any route that the operator made: a more direct path to a protected network wins.
    const PRIORITY: u32 = 9_000;
    match network.0 {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn ip(line: &str) -> String {
        let output = Command::new("ip").args(line.split(' ')).output().unwrap();
        assert!(
            output.status.success(),
            "ip {line}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// In a network namespace of its own; skipped where that is not permitted.
    #[test]
    fn the_kernel_takes_addresses_routes_groups_and_virtual_mac_addresses_of_both_families() {
        let thread = std::thread::spawn(|| {
            if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
                eprintln!("skipped: no network namespace ({error})");
                return;
            }
            ip("link add esp-a type veth peer name esp-b");
            for line in [
                "addr add 192.0.2.11/24 dev esp-a",
                "addr add 2001:db8:a::11/64 dev esp-a nodad",
            ] {
                ip(line);
            }
            for device in ["esp-a", "esp-b"] {
                ip(&format!("link set {device} up"));
            }
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let handle = netlink().unwrap();
                let config = crate::config::InterfaceConfig {
                    outside: vec!["esp-a".into()],
                    inside: vec!["esp-b".into()],
                    virtual_mac: Some([2, 0xaa, 0xbb, 0xcc, 0xdd, 0]),
                    tun: "esp0".into(),
                };
                let ports = ports::Ports::find(&handle, &config).await.unwrap();
                assert_eq!(ports.outside[0].networks.len(), 2, "{:?}", ports.outside[0]);
                let addresses = crate::config::AddressConfig {
                    outside: vec!["192.0.2.1".parse().unwrap(), "2001:db8:a::1".parse().unwrap()],
                    inside: vec!["2001:db8:1::1".parse().unwrap()],
                };
                for address in addresses.outside.iter().chain(&addresses.inside) {
                    // Twice: as after a restart of the agent.
                    add_cluster_address(&handle, *address).await.unwrap();
                    add_cluster_address(&handle, *address).await.unwrap();
                }
                let lo = ip("addr show dev lo");
                assert!(lo.contains("192.0.2.1/32"), "{lo}");
                assert!(lo.contains("2001:db8:a::1/128 scope global nodad"), "{lo}");

                let mut announcer = announce::Announcer::open().unwrap();
                ports.join(&mut announcer, &addresses).unwrap();
                let groups = ip("maddr show dev esp-a");
                assert!(groups.contains("ff02::1:ff00:1"), "{groups}");

                for _ in 0..2 {
                    ports.accept_virtual(&handle, &addresses).await.unwrap();
                }
                let output = Command::new("bridge")
                    .args(["fdb", "show", "dev", "esp-a"])
                    .output()
                    .unwrap();
                let table = String::from_utf8_lossy(&output.stdout).into_owned();
                for mac in ["02:aa:bb:cc:dd:00", "02:aa:bb:cc:dd:01"] {
                    assert!(table.contains(&format!("{mac} self permanent")), "{table}");
                }
                assert!(
                    !table.contains("02:aa:bb:cc:dd:80"),
                    "that is the inside's: {table}"
                );
                // Sent for all of them; a frame that the device refuses is logged, not returned.
                ports.announce(&announcer, &addresses, |_| true);

                for network in ["10.1.0.0/16", "2001:db8:2::/48"] {
                    let (net, len) = network.split_once('/').unwrap();
                    let prefix = (net.parse().unwrap(), len.parse().unwrap());
                    route_to_tun(&handle, ports.inside[0].index, prefix, &addresses.inside)
                        .await
                        .unwrap();
                }
                let routes = ip("-6 route show dev esp-b");
                assert!(routes.contains("2001:db8:2::/48"), "{routes}");
                assert!(routes.contains("src 2001:db8:1::1 metric 9000"), "{routes}");
                assert!(ip("route show dev esp-b").contains("10.1.0.0/16"));

                let peers = ["192.0.2.77".parse().unwrap(), "2001:db8:a::77".parse().unwrap()];
                let hops = neighbour::next_hops(&handle, &[ports.outside[0].index], &peers).await;
                for peer in peers {
                    assert!(hops.contains(&(ports.outside[0].index, peer)), "{hops:?}");
                    neighbour::probe(&handle, ports.outside[0].index, peer).await;
                    let known = ip("neigh show dev esp-a");
                    assert!(known.contains(&peer.to_string()), "{known}");
                }
            });
        });
        thread.join().unwrap();
    }
}
