//! Where things that leave a host go.

use super::{State, What, World};
use crate::frames;
use crate::member::Effect;
use crate::net::Road;
use crate::plane::{INSIDE_ROUTER, OUTSIDE, OUTSIDE_ROUTER, inside_mac, outside_mac};
use cluster::{Link, OwnershipOp};
use model::{GroupId, MemberId, SegmentId};
use std::net::{IpAddr, SocketAddr};

/// Datagrams and frames that are remembered, to come again later.
const REMEMBERED: usize = 96;

impl World {
    pub(super) fn effect(&mut self, from: u8, effect: Effect) {
        match effect {
            Effect::Stream { to, link, bytes } => self.stream(from, to, link, bytes),
            Effect::Datagram { to, link, bytes } => self.datagram(from, to, link, bytes),
            Effect::Frame { ifindex, octets } => self.frame_from_member(from, ifindex == OUTSIDE, octets),
            Effect::Ike(transmit) => {
                self.watch.ike_source(self.now, transmit.local.ip());
                let SocketAddr::V4(remote) = transmit.remote else {
                    return;
                };
                let octets = frames::ike(
                    OUTSIDE_ROUTER,
                    outside_mac(from),
                    transmit.local,
                    transmit.remote,
                    &transmit.bytes,
                );
                self.send_to_peer(from, IpAddr::V4(*remote.ip()), octets);
            }
            Effect::Announce(group) => {
                if self.watch.facts.layout.group_of(SegmentId(0)) == group {
                    self.arp = from;
                }
            }
            Effect::Ownership { token, group, op } => self.ask_engine(from, token, group, op),
        }
    }

    fn stream(&mut self, from: u8, to: MemberId, link: Link, bytes: Vec<u8>) {
        self.watch.traffic.record(&bytes);
        if let Some((at, connection, bytes)) = self.net.send(self.now, MemberId(from), to, link, bytes) {
            self.put(
                at,
                What::Record {
                    from,
                    to: to.0,
                    link,
                    connection,
                    bytes,
                },
            );
        }
    }

    fn datagram(&mut self, from: u8, to: MemberId, link: Link, bytes: Vec<u8>) {
        self.watch.traffic.record(&bytes);
        let stream = self.net.stream(MemberId(from), to, link);
        let (up, connection) = (stream.up, stream.number);
        if !up {
            return;
        }
        let road = if link == Link::Synch {
            Road::Synch
        } else {
            Road::Outside
        };
        if self.datagrams.len() == REMEMBERED {
            self.datagrams.pop_front();
        }
        self.datagrams
            .push_back((from, to.0, link, connection, bytes.clone()));
        for at in self.net.arrivals(self.now, from, to.0, road) {
            let bytes = bytes.clone();
            self.put(
                at,
                What::Record {
                    from,
                    to: to.0,
                    link,
                    connection,
                    bytes,
                },
            );
        }
    }

    fn frame_from_member(&mut self, from: u8, outside: bool, octets: Vec<u8>) {
        let Some(mac) = frames::destination_mac(&octets) else {
            return;
        };
        if mac == INSIDE_ROUTER {
            // Noted by the checkers when it was opened.
            return;
        }
        if mac == OUTSIDE_ROUTER {
            if let Some(address) = frames::destination(&octets) {
                self.send_to_peer(from, IpAddr::V4(address.into()), octets);
            }
            return;
        }
        let to = self
            .members()
            .find(|m| mac == if outside { outside_mac(*m) } else { inside_mac(*m) });
        let Some(to) = to else { return };
        let road = if outside { Road::Outside } else { Road::Inside };
        for at in self.net.arrivals(self.now, from, to, road) {
            let octets = octets.clone();
            self.put(
                at,
                What::Frame {
                    to,
                    inside: !outside,
                    octets,
                },
            );
        }
    }

    fn send_to_peer(&mut self, from: u8, address: IpAddr, octets: Vec<u8>) {
        let peer = self
            .setup
            .peers
            .iter()
            .map(|p| p.number)
            .find(|p| IpAddr::V4(crate::setup::peer_address(*p).into()) == address);
        let Some(to) = peer else { return };
        for at in self.net.arrivals(self.now, from, 0, Road::Peer) {
            let octets = octets.clone();
            self.put(at, What::PeerFrame { to, octets });
        }
    }

    /// A peer's frame reaches the cluster.
    pub(super) fn receive_from_peer(&mut self, peer: u8, octets: Vec<u8>) {
        if frames::is_esp(&octets) {
            if self.captured.len() == REMEMBERED {
                self.captured.pop_front();
            }
            self.captured.push_back((peer, octets.clone()));
        }
        self.enter_cluster(peer, octets, false);
    }

    /// The member at which something for the cluster's address arrives: whoever announced it last, or the one that an ECMP
    /// router chooses among those whose hosts are up.
    fn way_in(&self, flow: u8, inside: bool) -> Option<u8> {
        let spread = self.setup.spread && inside;
        if !self.setup.ecmp && !spread {
            return Some(self.arp);
        }
        let up: Vec<u8> = self
            .members()
            .filter(|m| self.seats[usize::from(*m) - 1].state != State::Down)
            .collect();
        let turn = if spread { self.packets as usize } else { 0 };
        let at = usize::from(flow) * 7 + usize::from(inside) * 3 + turn;
        up.get(at % up.len().max(1)).copied()
    }

    pub(super) fn enter_cluster(&mut self, flow: u8, mut octets: Vec<u8>, inside: bool) {
        let Some(to) = self.way_in(flow, inside) else {
            return;
        };
        let (mac, router) = if inside {
            (inside_mac(to), INSIDE_ROUTER)
        } else {
            (outside_mac(to), OUTSIDE_ROUTER)
        };
        frames::readdress(&mut octets, mac, router);
        if inside {
            // Hosts behind the cluster have a calm way in.
            let at = self.now + std::time::Duration::from_micros(50);
            self.put(at, What::Frame { to, inside, octets });
            return;
        }
        for at in self.net.arrivals(self.now, 0, to, Road::Peer) {
            let octets = octets.clone();
            self.put(at, What::Frame { to, inside, octets });
        }
    }

    fn ask_engine(&mut self, member: u8, token: u64, group: GroupId, op: OwnershipOp) {
        let there = self.net.open(member, 0, Road::Engine);
        let back = self.net.open(0, member, Road::Engine);
        let plan = self.etcd.plan(self.now, there, back);
        let life = self.seat(member).life;
        self.trace.note(self.now, "ask", [u64::from(member), token], || {
            format!("member {member} asks for group {group}: {op:?}")
        });
        if let Some(at) = plan.at {
            self.put(
                at,
                What::EngineRuns {
                    member,
                    life,
                    token,
                    group,
                    op,
                    answer: plan.answer,
                },
            );
        }
        if plan.answer.is_none() {
            let answer = cluster::OwnershipAnswer::Unknown("no answer in time".to_owned());
            let at = self.now + crate::etcd::TIMEOUT;
            self.put(
                at,
                What::EngineAnswers {
                    member,
                    life,
                    token,
                    answer,
                },
            );
        }
    }
}
