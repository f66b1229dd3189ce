//! What happens to this host's network, as hints for the detection of failures: interfaces, cluster addresses, routes.
//!
//! A hint only: loss of carrier never triggers a takeover by itself. Events are told when something *changes*, and at the
//! start for what is not as it ought to be, so a kernel that repeats itself causes none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result};
use futures_util::{Stream, StreamExt, TryStreamExt};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::{mpsc, watch};

/// Events that may wait. A reader that is slower misses what was undone meanwhile, never the last word on anything.
const QUEUE: usize = 64;

/// What to watch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Names of interfaces. One that does not exist counts as down.
    pub interfaces: Vec<String>,
    /// Cluster addresses, which ought to be on `lo`.
    pub addresses: Vec<IpAddr>,
    /// Addresses (of peers, of other members) to which there ought to be a route.
    pub destinations: Vec<IpAddr>,
}

/// Something changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetEvent {
    /// An interface is there, switched on and has carrier.
    LinkUp(String),
    /// It is gone, was switched off or has lost its carrier.
    LinkDown(String),
    /// A cluster address is on `lo` again.
    AddressAdded(IpAddr),
    /// A cluster address was taken off `lo`: the host no longer takes packets for it.
    AddressRemoved(IpAddr),
    /// There is a route to a destination again.
    RouteAdded(IpAddr),
    /// The last route that covers a destination is gone.
    RouteRemoved(IpAddr),
    /// The kernel had more to say than the socket could hold, and everything was looked at anew.
    Resynchronised,
}

/// Destination of a route: network and length.
type Prefix = (IpAddr, u8);

/// What is so at present.
#[derive(Default)]
struct Picture {
    loopback: Option<u32>,
    /// By index: name, and whether it is usable.
    links: BTreeMap<u32, (String, bool)>,
    /// Addresses on `lo`.
    local: BTreeSet<IpAddr>,
    /// Routes by prefix.
    routes: BTreeMap<Prefix, BTreeSet<RouteKey>>,
}

/// What tells two routes with one prefix apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct RouteKey {
    /// Index of the outgoing interface; 0 where there are several.
    interface: u32,
    gateway: Option<IpAddr>,
    priority: u32,
    table: u32,
}

fn usable(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp)
}

fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let find = |local: bool| {
        message
            .attributes
            .iter()
            .find_map(move |attribute| match attribute {
                AddressAttribute::Local(address) if local => Some(*address),
                AddressAttribute::Address(address) if !local => Some(*address),
                _ => None,
            })
    };
    find(true).or_else(|| find(false))
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// Prefix and identity of a unicast route outside the local table; others lead nowhere.
fn route_of(message: &RouteMessage) -> Option<(Prefix, RouteKey)> {
    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::route::RouteType;
    if message.header.kind != RouteType::Unicast || message.header.table == libc::RT_TABLE_LOCAL {
        return None;
    }
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut key = RouteKey {
        table: u32::from(message.header.table),
        ..RouteKey::default()
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Oif(index) => key.interface = *index,
            RouteAttribute::Gateway(address) => key.gateway = ip(address),
            RouteAttribute::Priority(priority) => key.priority = *priority,
            RouteAttribute::Table(table) => key.table = *table,
            _ => {}
        }
    }
    Some(((destination, message.header.destination_prefix_length), key))
}

/// Whether a prefix covers an address.
fn covers((network, length): Prefix, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let differ = network.to_bits() ^ address.to_bits();
            length == 0 || differ.checked_shr(32 - u32::from(length)).unwrap_or(differ) == 0
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let differ = network.to_bits() ^ address.to_bits();
            length == 0 || differ.checked_shr(128 - u32::from(length)).unwrap_or(differ) == 0
        }
        _ => false,
    }
}

impl Picture {
    /// Asks the kernel for everything.
    async fn take(handle: &Handle) -> Result<Self> {
        let mut picture = Self::default();
        let mut links = handle.link().get().execute();
        while let Some(link) = links.try_next().await.context("cannot list interfaces")? {
            picture.link(&link, true);
        }
        let mut addresses = handle.address().get().execute();
        while let Some(address) = addresses.try_next().await.context("cannot list addresses")? {
            picture.address(&address, true);
        }
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for query in [v4, v6] {
            let mut routes = handle.route().get(query).execute();
            while let Some(route) = routes.try_next().await.context("cannot list routes")? {
                picture.route(&route, true);
            }
        }
        Ok(picture)
    }

    fn link(&mut self, link: &LinkMessage, there: bool) {
        let index = link.header.index;
        if !there {
            self.links.remove(&index);
        } else if let Some(name) = name_of(link) {
            if link.header.flags.contains(LinkFlags::Loopback) {
                self.loopback = Some(index);
            }
            self.links.insert(index, (name, usable(link)));
        }
        // The kernel drops the IPv4 routes of an interface that is switched off without a word about each; those of one
        // that has only lost its carrier stay.
        if !there || !link.header.flags.contains(LinkFlags::Up) {
            for routes in self.routes.values_mut() {
                routes.retain(|key| key.interface != index);
            }
        }
    }

    fn address(&mut self, message: &AddressMessage, there: bool) {
        let (Some(address), true) = (address_of(message), self.loopback == Some(message.header.index)) else {
            return;
        };
        if there {
            self.local.insert(address);
        } else {
            self.local.remove(&address);
        }
    }

    fn route(&mut self, message: &RouteMessage, there: bool) {
        let Some((prefix, key)) = route_of(message) else {
            return;
        };
        let routes = self.routes.entry(prefix).or_default();
        if there {
            routes.insert(key);
        } else {
            routes.remove(&key);
        }
        if routes.is_empty() {
            self.routes.remove(&prefix);
        }
    }

    fn message(&mut self, message: &RouteNetlinkMessage) {
        match message {
            RouteNetlinkMessage::NewLink(link) => self.link(link, true),
            RouteNetlinkMessage::DelLink(link) => self.link(link, false),
            RouteNetlinkMessage::NewAddress(address) => self.address(address, true),
            RouteNetlinkMessage::DelAddress(address) => self.address(address, false),
            RouteNetlinkMessage::NewRoute(route) => self.route(route, true),
            RouteNetlinkMessage::DelRoute(route) => self.route(route, false),
            _ => {}
        }
    }

    /// What of the watched things is so.
    fn facts(&self, watch: &Watch) -> Facts {
        let link = |name: &String| self.links.values().any(|(n, usable)| n == name && *usable);
        let leads = |key: &RouteKey| {
            key.interface == 0 || self.links.get(&key.interface).is_some_and(|(_, usable)| *usable)
        };
        let route = |to: &IpAddr| {
            let mut routes = self.routes.iter();
            routes.any(|(prefix, routes)| covers(*prefix, *to) && routes.iter().any(leads))
        };
        Facts {
            links: watch.interfaces.iter().map(|n| (n.clone(), link(n))).collect(),
            addresses: watch
                .addresses
                .iter()
                .map(|a| (*a, self.local.contains(a)))
                .collect(),
            routes: watch.destinations.iter().map(|d| (*d, route(d))).collect(),
        }
    }
}

/// What is so of the watched things.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Facts {
    links: BTreeMap<String, bool>,
    addresses: BTreeMap<IpAddr, bool>,
    routes: BTreeMap<IpAddr, bool>,
}

impl Facts {
    /// Everything is there.
    fn as_it_ought_to_be(watch: &Watch) -> Self {
        Self {
            links: watch.interfaces.iter().map(|n| (n.clone(), true)).collect(),
            addresses: watch.addresses.iter().map(|a| (*a, true)).collect(),
            routes: watch.destinations.iter().map(|d| (*d, true)).collect(),
        }
    }

    /// There are other destinations: of those that are new it is told what is not as it ought to be.
    fn destinations(&mut self, watch: &Watch) {
        let known = |to: &IpAddr| self.routes.get(to).copied().unwrap_or(true);
        self.routes = watch.destinations.iter().map(|to| (*to, known(to))).collect();
    }

    /// An event was told.
    fn note(&mut self, event: &NetEvent) {
        match event {
            NetEvent::LinkUp(name) | NetEvent::LinkDown(name) => {
                self.links
                    .insert(name.clone(), matches!(event, NetEvent::LinkUp(_)));
            }
            NetEvent::AddressAdded(address) | NetEvent::AddressRemoved(address) => {
                let now = matches!(event, NetEvent::AddressAdded(_));
                self.addresses.insert(*address, now);
            }
            NetEvent::RouteAdded(to) | NetEvent::RouteRemoved(to) => {
                self.routes.insert(*to, matches!(event, NetEvent::RouteAdded(_)));
            }
            NetEvent::Resynchronised => {}
        }
    }

    /// What has changed since `before`.
    fn since(&self, before: &Self) -> Vec<NetEvent> {
        let mut events = Vec::new();
        for (name, now) in &self.links {
            match (before.links.get(name), now) {
                (Some(false), true) => events.push(NetEvent::LinkUp(name.clone())),
                (Some(true), false) => events.push(NetEvent::LinkDown(name.clone())),
                _ => {}
            }
        }
        for (address, now) in &self.addresses {
            match (before.addresses.get(address), now) {
                (Some(false), true) => events.push(NetEvent::AddressAdded(*address)),
                (Some(true), false) => events.push(NetEvent::AddressRemoved(*address)),
                _ => {}
            }
        }
        for (destination, now) in &self.routes {
            match (before.routes.get(destination), now) {
                (Some(false), true) => events.push(NetEvent::RouteAdded(*destination)),
                (Some(true), false) => events.push(NetEvent::RouteRemoved(*destination)),
                _ => {}
            }
        }
        events
    }
}

/// Watches the network of this process' namespace. The stream ends when the receiver is dropped (at the next event) or
/// the netlink socket is lost.
///
/// # Errors
/// No netlink socket, or the kernel does not answer.
pub async fn watch(what: Watch) -> Result<mpsc::Receiver<NetEvent>> {
    let (_, never) = watch::channel(Vec::new());
    watch_changing(what, never).await
}

/// [`watch`], with destinations that change.
///
/// # Errors
/// As for [`watch`].
pub async fn watch_changing(
    what: Watch,
    destinations: watch::Receiver<Vec<IpAddr>>,
) -> Result<mpsc::Receiver<NetEvent>> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let (connection, handle, messages) =
        rtnetlink::new_multicast_connection(&groups).context("cannot open a netlink socket")?;
    let driver = tokio::spawn(connection);
    // Subscribed before asked: what happens in between is heard, and what is told twice changes nothing.
    let picture = Picture::take(&handle).await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        follow((what, destinations), picture, &handle, messages, &sender).await;
        driver.abort();
    });
    Ok(receiver)
}

async fn follow<S>(
    (mut what, mut destinations): (Watch, watch::Receiver<Vec<IpAddr>>),
    mut picture: Picture,
    handle: &Handle,
    messages: S,
    sender: &mpsc::Sender<NetEvent>,
) where
    S: Stream<
            Item = (
                rtnetlink::packet_core::NetlinkMessage<RouteNetlinkMessage>,
                rtnetlink::sys::SocketAddr,
            ),
        > + Unpin,
{
    use rtnetlink::packet_core::NetlinkPayload;
    let mut messages = messages;
    let mut told = Facts::as_it_ought_to_be(&what);
    let mut facts = picture.facts(&what);
    let mut anew = false;
    let mut settled = false;
    loop {
        let event = if anew {
            Some(NetEvent::Resynchronised)
        } else {
            facts.since(&told).into_iter().next()
        };
        let message = tokio::select! {
            biased;
            () = sender.closed() => return,
            permit = sender.reserve(), if event.is_some() => {
                let (Ok(permit), Some(event)) = (permit, event) else { return };
                told.note(&event);
                anew &= event != NetEvent::Resynchronised;
                permit.send(event);
                continue;
            }
            changed = destinations.changed(), if !settled => {
                // Whoever could change them may be gone.
                settled = changed.is_err();
                if !settled {
                    what.destinations.clone_from(&destinations.borrow_and_update());
                    told.destinations(&what);
                    facts = picture.facts(&what);
                }
                continue;
            }
            message = messages.next() => message,
        };
        match message.map(|(message, _)| message.payload) {
            None => return,
            Some(NetlinkPayload::InnerMessage(message)) => picture.message(&message),
            Some(NetlinkPayload::Overrun(_)) => match Picture::take(handle).await {
                Ok(whole) => {
                    picture = whole;
                    anew = true;
                }
                Err(error) => {
                    tracing::warn!("the network is no longer watched: {error:#}");
                    return;
                }
            },
            Some(_) => {}
        }
        facts = picture.facts(&what);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn a_prefix_covers_what_begins_like_it() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (network, length, address, is) in [
            ("10.0.0.0", 8, "10.9.9.9", true),
            ("10.0.0.0", 8, "11.0.0.0", false),
            ("0.0.0.0", 0, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.2", false),
            ("2001:db8::", 32, "2001:db8:1::1", true),
            ("2001:db8::", 32, "2001:db9::1", false),
            ("::", 0, "2001:db9::1", true),
            ("::", 0, "10.0.0.1", false),
            ("0.0.0.0", 0, "::1", false),
        ] {
            assert_eq!(
                covers((ip(network), length), ip(address)),
                is,
                "{network}/{length} {address}"
            );
        }
    }

    /// `ip ...` in the namespace of this thread.
    fn ip(line: &str) {
        let status = Command::new("ip").args(line.split(' ')).status().unwrap();
        assert!(status.success(), "ip {line}");
    }

    async fn next(events: &mut mpsc::Receiver<NetEvent>) -> NetEvent {
        tokio::time::timeout(Duration::from_secs(10), events.recv())
            .await
            .expect("an event in time")
            .expect("open")
    }

    /// Waits for an event among others that belong to the same change.
    async fn all(events: &mut mpsc::Receiver<NetEvent>, mut wanted: Vec<NetEvent>) {
        while !wanted.is_empty() {
            let event = next(events).await;
            let at = wanted.iter().position(|w| *w == event);
            wanted.remove(at.unwrap_or_else(|| panic!("{event:?} among {wanted:?}")));
        }
    }

    #[test]
    fn interfaces_addresses_and_routes_of_a_namespace_are_watched() {
        // A namespace of this thread alone; children inherit it. It ends with the thread.
        if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
            panic!("this test needs root for a network namespace: {error}");
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            ip("link set lo up");
            ip("link add esp-a type veth peer name esp-b");
            ip("address add 192.0.2.1/24 dev esp-a");
            ip("link set esp-a up");
            let cluster: IpAddr = "203.0.113.7".parse().unwrap();
            let peer: IpAddr = "198.51.100.9".parse().unwrap();
            ip("address add 203.0.113.7/32 dev lo");
            let mut events = watch(Watch {
                interfaces: vec!["esp-a".to_owned(), "esp-none".to_owned()],
                addresses: vec![cluster],
                destinations: vec![peer],
            })
            .await
            .unwrap();
            let name = || "esp-a".to_owned();
            // What is missing at the start.
            all(
                &mut events,
                vec![
                    NetEvent::LinkDown(name()),
                    NetEvent::LinkDown("esp-none".to_owned()),
                    NetEvent::RouteRemoved(peer),
                ],
            )
            .await;

            // The other end brings the carrier.
            ip("link set esp-b up");
            all(&mut events, vec![NetEvent::LinkUp(name())]).await;
            ip("route add default via 192.0.2.254 dev esp-a");
            assert_eq!(next(&mut events).await, NetEvent::RouteAdded(peer));
            // A second, better one, and its end: the first one covers the peer still.
            ip("route add 198.51.100.0/24 via 192.0.2.253 dev esp-a");
            ip("route del 198.51.100.0/24 via 192.0.2.253 dev esp-a");
            ip("route del default");
            assert_eq!(next(&mut events).await, NetEvent::RouteRemoved(peer));
            ip("route add 198.51.100.0/24 via 192.0.2.253 dev esp-a");
            assert_eq!(next(&mut events).await, NetEvent::RouteAdded(peer));

            ip("address del 203.0.113.7/32 dev lo");
            assert_eq!(next(&mut events).await, NetEvent::AddressRemoved(cluster));
            ip("address add 203.0.113.7/32 dev lo");
            assert_eq!(next(&mut events).await, NetEvent::AddressAdded(cluster));

            // Carrier alone: the kernel keeps the route, but it leads nowhere.
            ip("link set esp-b down");
            all(
                &mut events,
                vec![NetEvent::LinkDown(name()), NetEvent::RouteRemoved(peer)],
            )
            .await;
            ip("link set esp-b up");
            all(
                &mut events,
                vec![NetEvent::LinkUp(name()), NetEvent::RouteAdded(peer)],
            )
            .await;
            // Switched off and on: the kernel has forgotten the route.
            ip("link set esp-a down");
            all(
                &mut events,
                vec![NetEvent::LinkDown(name()), NetEvent::RouteRemoved(peer)],
            )
            .await;
            ip("link set esp-a up");
            assert_eq!(next(&mut events).await, NetEvent::LinkUp(name()));
            ip("link del esp-a");
            assert_eq!(next(&mut events).await, NetEvent::LinkDown(name()));
        });
    }
}
