//! Whether this member's data plane works: interfaces up, programs attached, maps writable. A member in trouble hands over
//! what it owns and takes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cluster::Input;
use dataplane::Seen;
use maps_schema::event::Event;
use model::Instant;
use sad::PlanError;

use super::Core;
use super::pulse::{self, Pulse};
use crate::clock;
use crate::net::hints::NetEvent;

/// So many plans in a row that could not be written are trouble; a single one may be about a single SA that does not fit.
const FAILED_IN_A_ROW: u32 = 3;

/// Octets of a frame that lies in one buffer, on every driver.
const ONE_BUFFER: u32 = 3400;

/// Merged packets on a port are said again after so long.
const MERGED_AGAIN: Duration = Duration::from_secs(60);

/// What was found, and what the node was told.
#[derive(Default)]
pub struct Health {
    /// Interfaces that do not work.
    links: BTreeSet<String>,
    /// Cluster addresses that are not on `lo`.
    addresses: BTreeSet<IpAddr>,
    /// Peers to which no route leads, and how many there are.
    unreachable: BTreeSet<IpAddr>,
    peers: usize,
    attached: Option<String>,
    /// Whether the programs judge what arrives.
    pulse: Pulse,
    failed: u32,
    why_failed: String,
    told: Option<String>,
    /// Ports with merged packets, and when that was said.
    merged: BTreeMap<u32, Instant>,
}

impl Health {
    /// What there is to watch: interfaces and peers.
    pub fn watching(peers: usize) -> Self {
        Self {
            peers,
            ..Self::default()
        }
    }

    /// There are other peers now. Whether routes lead to those that are new is told by the kernel.
    pub fn watch_peers(&mut self, peers: &[IpAddr]) {
        self.peers = peers.len();
        self.unreachable.retain(|peer| peers.contains(peer));
    }

    fn heard(&mut self, event: &NetEvent) {
        match event {
            NetEvent::LinkDown(name) => drop(self.links.insert(name.clone())),
            NetEvent::LinkUp(name) => drop(self.links.remove(name)),
            NetEvent::AddressRemoved(address) => drop(self.addresses.insert(*address)),
            NetEvent::AddressAdded(address) => drop(self.addresses.remove(address)),
            NetEvent::RouteRemoved(peer) => drop(self.unreachable.insert(*peer)),
            NetEvent::RouteAdded(peer) => drop(self.unreachable.remove(peer)),
            NetEvent::Resynchronised => {}
        }
    }

    /// A plan was executed, or not.
    pub fn wrote(&mut self, done: &Result<(), PlanError>) {
        match done {
            Ok(()) => self.failed = 0,
            Err(error) => {
                self.failed = self.failed.saturating_add(1);
                self.why_failed = error.to_string();
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        let maps =
            (self.failed >= FAILED_IN_A_ROW).then(|| format!("maps cannot be written: {}", self.why_failed));
        let links = self.links.iter().map(|name| format!("interface {name} is down"));
        let addresses = self
            .addresses
            .iter()
            .map(|address| format!("cluster address {address} is not on lo"));
        // A peer alone may be away for every member; without a route to any of them this member is of no use.
        let cut_off = (self.peers > 0 && self.unreachable.len() == self.peers)
            .then(|| "there is no route to any peer".to_owned());
        let stuck = self.pulse.trouble();
        let rest = self.attached.iter().chain(&maps).chain(&stuck).cloned();
        let all = links
            .chain(addresses)
            .chain(cut_off)
            .chain(rest)
            .collect::<Vec<_>>();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// What to tell the node, if it is something new.
    fn news(&mut self) -> Option<Option<String>> {
        let trouble = self.trouble();
        (trouble != self.told).then(|| {
            self.told = trouble.clone();
            trouble
        })
    }
}

impl Core {
    /// The kernel says that something of the network has changed.
    pub(super) fn net_event(&mut self, event: &NetEvent) {
        self.health.heard(event);
        match event {
            NetEvent::LinkDown(name) => {
                self.log.warn("net", format!("interface {name} is down"));
                self.leave_interface(name);
            }
            NetEvent::LinkUp(name) => self.log.note("net", format!("interface {name} is up")),
            NetEvent::AddressRemoved(address) => {
                self.log
                    .warn("net", format!("cluster address {address} was taken off lo"));
            }
            NetEvent::AddressAdded(address) => {
                self.log
                    .note("net", format!("cluster address {address} is on lo again"));
            }
            NetEvent::RouteRemoved(peer) => self.log.warn("net", format!("no route to {peer}")),
            NetEvent::RouteAdded(peer) => self.log.note("net", format!("there is a route to {peer} again")),
            NetEvent::Resynchronised => tracing::debug!("the kernel's notices were read anew"),
        }
        self.tell_health();
    }

    /// Once a second: asks whether the programs are attached still ([`Core::devices_seen`]), and looks whether they judge what arrives.
    pub(super) fn look_after_health(&mut self) {
        match self.plane.devices() {
            // Where the question before is not answered yet this one is dropped.
            Ok(devices) => drop(self.devices.try_send(devices)),
            Err(error) => tracing::debug!(%error, "the devices are not looked at"),
        }
        let plane = &self.plane;
        let devices = self.attached.iter().map(|i| i.name.as_str());
        if let Some(received) = pulse::received(devices) {
            let judged = |connections| plane.packets_judged(connections).ok();
            self.health.pulse.look(received, judged);
        }
        self.tell_health();
    }

    /// The kernel has answered.
    pub(super) fn devices_seen(&mut self, seen: &Seen) {
        let before = std::mem::replace(&mut self.health.attached, seen.attached.clone().err());
        if before.is_some() && self.health.attached.is_none() {
            self.log.note("attached", "the programs are attached again");
        }
        self.take_abilities(seen);
        self.tell_health();
    }

    /// What a device does not take is given to the stack instead, and an operator should know: it is slow.
    fn take_abilities(&mut self, seen: &Seen) {
        let changed = match self.plane.tell_abilities(seen) {
            Ok(changed) => changed,
            Err(error) => return tracing::debug!(%error, "the programs were not told what devices can do"),
        };
        for ability in changed {
            let port = self.ports.all().find(|p| p.parent == ability.ifindex);
            let name = port.map_or_else(|| ability.ifindex.to_string(), |p| p.name.clone());
            let mtu = port.map_or(0, |p| p.mtu);
            if !ability.takes {
                self.log.warn(
                    "device",
                    format!(
                        "{name} takes no redirected frames: what leaves there goes through the host's stack, which is slow, and on a veth \
                         pair answers to ARP are lost. Use a driver with ndo_xdp_xmit; the far end of a veth pair needs `ethtool -K DEVICE \
                         gro on` or an XDP program"
                    ),
                );
            } else if !ability.takes_pieces && mtu > ONE_BUFFER {
                self.log.warn(
                    "device",
                    format!(
                        "{name} has an MTU of {mtu} and takes no redirected frames in several buffers: frames of more than about \
                         {ONE_BUFFER} octets go through the host's stack, which is slow. Lower the MTU, or use a driver (or Linux 6.3 and \
                         later) that takes them"
                    ),
                );
            } else {
                self.log.note("device", format!("{name} takes redirected frames"));
            }
        }
    }

    /// A program has met packets that somebody merged.
    pub(super) fn merged(&mut self, event: &Event) {
        let now = clock::now();
        let said = self.health.merged.get(&event.slot);
        if said.is_some_and(|said| now.since(*said) < MERGED_AGAIN) {
            return;
        }
        let port = self
            .ports
            .numbered()
            .find(|(index, ..)| u32::from(*index) == event.slot);
        let Some((_, _, port)) = port else { return };
        let (name, mtu, octets) = (&port.name, port.mtu, event.seq);
        let text = format!(
            "a packet of {octets} octets arrived on {name}, whose MTU is {mtu}: GRO or TSO has merged several, and the programs drop those \
             (merged). `ethtool -K DEVICE gro off lro off` here for a card, `ethtool -K DEVICE tso off gso off tx-udp-segmentation off` at the \
             far end of a veth pair and on what feeds it"
        );
        self.health.merged.insert(event.slot, now);
        self.log.warn("merged", text);
    }

    fn tell_health(&mut self) {
        if let Some(trouble) = self.health.news() {
            self.node_input(Input::Health {
                now: clock::now(),
                trouble,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed() -> Result<(), PlanError> {
        Err(PlanError {
            done: 0,
            operation: "put an entry",
            cause: "no space".to_owned(),
        })
    }

    #[test]
    fn one_plan_that_does_not_fit_is_no_trouble_and_several_in_a_row_are() {
        let mut health = Health::default();
        for _ in 0..2 {
            health.wrote(&failed());
            health.wrote(&failed());
            assert_eq!(health.news(), None);
            health.wrote(&Ok(()));
        }
        for _ in 0..FAILED_IN_A_ROW {
            health.wrote(&failed());
        }
        let trouble = health.news().expect("news").expect("trouble");
        assert!(trouble.contains("no space"), "{trouble}");
        assert_eq!(health.news(), None, "said once");
        health.wrote(&Ok(()));
        assert_eq!(health.news(), Some(None));
    }

    #[test]
    fn all_troubles_are_named_together() {
        let mut health = Health {
            attached: Some("steer is not attached".to_owned()),
            ..Health::default()
        };
        health.heard(&NetEvent::LinkDown("eth1".to_owned()));
        let trouble = health.news().expect("news").expect("trouble");
        assert_eq!(trouble, "interface eth1 is down; steer is not attached");
        health.heard(&NetEvent::LinkUp("eth1".to_owned()));
        assert_eq!(health.news(), Some(Some("steer is not attached".to_owned())));
    }

    #[test]
    fn one_peer_without_a_route_is_no_trouble_and_all_of_them_are() {
        let mut health = Health::watching(2);
        health.heard(&NetEvent::RouteRemoved("192.0.2.1".parse().expect("an address")));
        assert_eq!(health.news(), None);
        health.heard(&NetEvent::RouteRemoved("192.0.2.2".parse().expect("an address")));
        assert!(
            health
                .news()
                .flatten()
                .is_some_and(|why| why.contains("no route"))
        );
    }
}
