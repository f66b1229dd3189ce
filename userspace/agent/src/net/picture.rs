//! What there is of this host's network, by what the kernel says of it: interfaces, addresses on `lo`, routes; and what of that is watched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

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
pub struct Picture {
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
    // What is longer than an address is no prefix.
    let behind = |width: u32| width.checked_sub(length.into());
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let differ = network.to_bits() ^ address.to_bits();
            behind(32).is_some_and(|bits| differ.checked_shr(bits).unwrap_or(0) == 0)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let differ = network.to_bits() ^ address.to_bits();
            behind(128).is_some_and(|bits| differ.checked_shr(bits).unwrap_or(0) == 0)
        }
        _ => false,
    }
}

impl Picture {
    /// An interface is there, or is no longer.
    pub fn link(&mut self, link: &LinkMessage, there: bool) {
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

    /// An address is there, or is no longer.
    pub fn address(&mut self, message: &AddressMessage, there: bool) {
        let (Some(address), true) = (address_of(message), self.loopback == Some(message.header.index)) else {
            return;
        };
        if there {
            self.local.insert(address);
        } else {
            self.local.remove(&address);
        }
    }

    /// A route is there, or is no longer.
    pub fn route(&mut self, message: &RouteMessage, there: bool) {
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

    /// What the kernel says unasked.
    pub fn message(&mut self, message: &RouteNetlinkMessage) {
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
    pub fn facts(&self, watch: &Watch) -> Facts {
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
pub struct Facts {
    links: BTreeMap<String, bool>,
    addresses: BTreeMap<IpAddr, bool>,
    routes: BTreeMap<IpAddr, bool>,
}

impl Facts {
    /// Everything is there.
    pub fn as_it_ought_to_be(watch: &Watch) -> Self {
        Self {
            links: watch.interfaces.iter().map(|n| (n.clone(), true)).collect(),
            addresses: watch.addresses.iter().map(|a| (*a, true)).collect(),
            routes: watch.destinations.iter().map(|d| (*d, true)).collect(),
        }
    }

    /// There are other destinations: of those that are new it is told what is not as it ought to be.
    pub fn destinations(&mut self, watch: &Watch) {
        let known = |to: &IpAddr| self.routes.get(to).copied().unwrap_or(true);
        self.routes = watch.destinations.iter().map(|to| (*to, known(to))).collect();
    }

    /// An event was told.
    pub fn note(&mut self, event: &NetEvent) {
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
    pub fn since(&self, before: &Self) -> Vec<NetEvent> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_covers_what_begins_like_it() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for (network, length, address, is) in [
            ("10.0.0.0", 8, "10.9.9.9", true),
            ("10.0.0.0", 8, "11.0.0.0", false),
            ("0.0.0.0", 0, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.1", true),
            ("192.0.2.1", 32, "192.0.2.2", false),
            ("192.0.2.1", 33, "192.0.2.1", false),
            ("2001:db8::", 32, "2001:db8:1::1", true),
            ("2001:db8::", 32, "2001:db9::1", false),
            ("::", 0, "2001:db9::1", true),
            ("::", 0, "10.0.0.1", false),
            ("::", 129, "::", false),
            ("0.0.0.0", 0, "::1", false),
        ] {
            assert_eq!(
                covers((ip(network), length), ip(address)),
                is,
                "{network}/{length} {address}"
            );
        }
    }
}
