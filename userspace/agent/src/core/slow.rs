//! The slow path: frames that the programs gave to the agent go through the programs again once they can be served.
//! The agent itself never touches a window or a counter.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use dataplane::Entry;
use maps_schema::event::{
    SLOW_ABOVE_CEILING, SLOW_FRAME_MAX, SLOW_HELD, SLOW_MOVED, SLOW_NO_LEASE, SLOW_NO_SA, SLOW_OUT_FRAGMENT,
    SLOW_OUTER_FRAGMENT, SLOW_PATH_ERROR, SLOW_TTL_EXCEEDED, SlowFrame,
};
use maps_schema::segment::{LEGACY_HOLDING, LEGACY_OPEN};
use sad::Direction;

use model::GroupId;

use super::{Core, around};
use crate::clock;
use crate::net;
use crate::net::frame::{self, ETH_LEN};
use crate::net::socket::Datagram;
use crate::net::whole::{self, Gathered, Pieces};
use ike::Input;

/// Frames of one SA that may wait.
const PER_SA: usize = 512;
/// Frames that may wait in all.
const IN_ALL: usize = 8192;
/// Octets that ESP in UDP may add: IPv6 40, UDP 8, ESP 8, IV 16, padding and trailer up to 17, ICV 16.
const OVERHEAD: usize = 105;

struct Frame {
    seq: u64,
    ifindex: u32,
    octets: Vec<u8>,
}

/// Frames that wait, per slot and direction, in the order in which they came.
#[derive(Default)]
pub struct Waiting {
    inbound: HashMap<u32, VecDeque<Frame>>,
    outbound: HashMap<u32, VecDeque<Frame>>,
    held: VecDeque<(u32, Frame)>,
    waiting: usize,
    /// Source and destination of what is sealed in transport mode, and pieces of it.
    transport: BTreeSet<(IpAddr, IpAddr)>,
    pieces: Pieces,
    /// Frames by reason, in the order of [`COUNTS`].
    pub counts: [u64; COUNTS.len()],
}

/// Names of [`Waiting::counts`].
pub const COUNTS: [&str; 13] = [
    "above_ceiling",
    "held",
    "out_fragment",
    "no_lease",
    "reassembled",
    "local",
    "lost",
    "ike_of_another_member",
    "outer_fragment",
    "held_for_sa",
    "ttl_exceeded",
    "path_error",
    "moved",
];

impl Waiting {
    /// Nothing waits; packets between these ends, source and destination, are sealed in transport mode.
    pub fn of(transport: BTreeSet<(IpAddr, IpAddr)>) -> Self {
        Self {
            transport,
            ..Self::default()
        }
    }

    fn put(&mut self, inbound: bool, slot: u32, frame: Frame) {
        let queue = if inbound {
            &mut self.inbound
        } else {
            &mut self.outbound
        }
        .entry(slot)
        .or_default();
        if queue.len() >= PER_SA || self.waiting >= IN_ALL {
            self.counts[6] += 1;
            return;
        }
        queue.push_back(frame);
        self.waiting += 1;
    }

    /// Takes out the frames of some slots: another member serves them now.
    fn take_where(&mut self, gone: impl Fn(u32) -> bool) -> Vec<(Entry, u32, Frame)> {
        let mut taken = Vec::new();
        for (queues, entry) in [
            (&mut self.inbound, Entry::Steer),
            (&mut self.outbound, Entry::Inside),
        ] {
            for (slot, frames) in queues.extract_if(|slot, _| gone(*slot)) {
                self.waiting -= frames.len();
                taken.extend(frames.into_iter().map(|frame| (entry, slot, frame)));
            }
        }
        let held = std::mem::take(&mut self.held).into_iter();
        let (held, others) = held.partition::<VecDeque<_>, _>(|(slot, _)| gone(*slot));
        self.held = others;
        taken.extend(held.into_iter().map(|(slot, frame)| (Entry::Steer, slot, frame)));
        taken
    }
}

impl Core {
    pub(super) fn slow_frame(&mut self, slow: &SlowFrame) {
        let octets = slow
            .frame
            .get(..slow.length as usize)
            .unwrap_or_default()
            .to_vec();
        let frame = Frame {
            seq: slow.seq,
            ifindex: slow.ifindex,
            octets,
        };
        match slow.kind {
            SLOW_ABOVE_CEILING => {
                self.slow.counts[0] += 1;
                if self.serves_slot(slow.slot) {
                    self.slow.put(true, slow.slot, frame);
                    self.run_waiting(slow.slot);
                } else {
                    self.run_frame(Entry::Steer, slow.slot, frame.ifindex, &frame.octets);
                }
            }
            SLOW_HELD => {
                self.slow.counts[1] += 1;
                if !self.serves_slot(slow.slot) || !self.is_moving_here(slow.slot) {
                    self.run_frame(Entry::Steer, slow.slot, frame.ifindex, &frame.octets);
                } else if self.slow.held.len() < IN_ALL {
                    self.slow.held.push_back((slow.slot, frame));
                } else {
                    self.slow.counts[6] += 1;
                }
            }
            SLOW_OUT_FRAGMENT => {
                self.slow.counts[2] += 1;
                self.fragment(slow.slot, &frame);
            }
            SLOW_OUTER_FRAGMENT => {
                self.slow.counts[8] += 1;
                if !self.send_cut(slow.slot, &frame.octets) {
                    self.slow.counts[6] += 1;
                }
            }
            SLOW_NO_SA => {
                self.slow.counts[9] += 1;
                self.held
                    .put(clock::now(), slow.slot, frame.ifindex, frame.octets);
            }
            SLOW_TTL_EXCEEDED => {
                self.slow.counts[10] += 1;
                self.tell_of_ttl(&frame.octets);
            }
            SLOW_PATH_ERROR => {
                self.slow.counts[11] += 1;
                self.tell_members_of_path(&frame.octets);
            }
            SLOW_MOVED => {
                self.slow.counts[12] += 1;
                self.peer_seen(slow.slot, &frame.octets);
            }
            SLOW_NO_LEASE => {
                self.slow.counts[3] += 1;
                if self.serves_slot(slow.slot) {
                    self.slow.put(false, slow.slot, frame);
                    self.run_waiting(slow.slot);
                } else {
                    self.run_frame(Entry::Inside, slow.slot, frame.ifindex, &frame.octets);
                }
            }
            _ => {}
        }
    }

    /// Whether a frame of this slot may wait here. After a move the programs pass it on.
    fn serves_slot(&self, slot: u32) -> bool {
        self.groups.owns(self.groups.layout.group_of_slot(slot))
    }

    /// Another member owns the group now: what waited goes through the programs again, which send it there.
    pub(super) fn pass_on(&mut self, group: GroupId) {
        let layout = self.groups.layout;
        for (entry, slot, frame) in self.slow.take_where(|slot| layout.group_of_slot(slot) == group) {
            self.run_frame(entry, slot, frame.ifindex, &frame.octets);
        }
    }

    /// Whether this member is the taker in a handover of the slot's segment. If not (any more), nothing will come that a held frame
    /// could wait for: it was in the ring when the windows were merged.
    fn is_moving_here(&self, slot: u32) -> bool {
        let (_, side) = self.segments.get(slot as u8);
        matches!(side.legacy_phase, LEGACY_OPEN | LEGACY_HOLDING)
    }

    /// Looks at everything that waits: a raise may have been given up, or its SA is gone.
    pub(super) fn sweep_waiting(&mut self) {
        let slots = self
            .slow
            .inbound
            .keys()
            .chain(self.slow.outbound.keys())
            .copied()
            .collect::<Vec<_>>();
        for slot in slots {
            self.run_waiting(slot);
        }
    }

    /// Runs what waited for a raise of this slot; asks for a raise for what still waits.
    pub(super) fn run_waiting(&mut self, slot: u32) {
        let mut raises = Vec::new();
        let ceiling = self.ceiling_of(slot);
        while let Some(frame) = self.slow.inbound.get_mut(&slot).and_then(|queue| {
            let ready = queue.front().is_some_and(|f| ceiling.is_none_or(|c| f.seq <= c));
            if ready { queue.pop_front() } else { None }
        }) {
            self.slow.waiting -= 1;
            // Without an SA the program counts the frame as such.
            self.run_frame(Entry::Steer, slot, frame.ifindex, &frame.octets);
        }
        match self
            .slow
            .inbound
            .get(&slot)
            .and_then(|q| q.iter().map(|f| f.seq).max())
        {
            Some(needed) => raises.extend(self.wish(slot, Direction::Inbound, Some(needed))),
            None => drop(self.slow.inbound.remove(&slot)),
        }
        let room = match (self.lease_of(slot), self.counters.counters(slot)) {
            (Some(last), Some(counters)) => last.saturating_sub(counters.outbound.seq),
            _ => u64::MAX,
        };
        for _ in 0..room.min(PER_SA as u64) {
            let Some(frame) = self.slow.outbound.get_mut(&slot).and_then(VecDeque::pop_front) else {
                break;
            };
            self.slow.waiting -= 1;
            self.run_frame(Entry::Inside, slot, frame.ifindex, &frame.octets);
        }
        if self.slow.outbound.get(&slot).is_some_and(VecDeque::is_empty) {
            self.slow.outbound.remove(&slot);
        } else if self.slow.outbound.contains_key(&slot) {
            raises.extend(self.wish(slot, Direction::Outbound, None));
        }
        self.raise(raises);
    }

    /// The final windows are merged: what was held for them goes through the programs again.
    pub(super) fn run_held(&mut self, group: GroupId) {
        let layout = self.groups.layout;
        let all = std::mem::take(&mut self.slow.held);
        let (ready, others) = all
            .into_iter()
            .partition::<VecDeque<_>, _>(|(slot, _)| layout.group_of_slot(*slot) == group);
        self.slow.held = others;
        for (slot, frame) in ready {
            self.run_frame(Entry::Steer, slot, frame.ifindex, &frame.octets);
        }
    }

    pub(super) fn run_frame(&mut self, entry: Entry, slot: u32, ifindex: u32, octets: &[u8]) {
        let cpu = self.plane.cpu_of(slot);
        if let Err(error) = self.runner.run_frame(entry, cpu, ifindex, octets) {
            self.slow.counts[6] += 1;
            tracing::debug!(%error, "a frame was not run");
        }
    }

    /// An outbound packet that does not fit: its fragments go out, each protected by itself.
    fn fragment(&mut self, slot: u32, whole: &Frame) {
        let Some((header, packet)) = whole.octets.split_at_checked(frame::link_len(&whole.octets)) else {
            return;
        };
        let outside = self.ports.outside_mtu() as usize;
        let mtu = self
            .sad
            .inner_mtu(slot)
            .unwrap_or(outside.saturating_sub(OVERHEAD));
        let Some(pieces) = frame::fragments(packet, mtu) else {
            self.slow.counts[6] += 1;
            return;
        };
        for piece in pieces {
            let octets = [header, &piece].concat();
            self.run_frame(Entry::Inside, 0, whole.ifindex, &octets);
        }
    }

    /// An opened packet died here: its sender is told, through the tunnel by which it came.
    fn tell_of_ttl(&mut self, octets: &[u8]) {
        let Some((_, packet)) = octets.split_at_checked(frame::link_len(octets)) else {
            return;
        };
        let v6 = packet.first().is_some_and(|first| first >> 4 == 6);
        let from = self.config.addresses.inside.iter().find(|a| a.is_ipv6() == v6);
        if let Some(message) = from.and_then(|from| frame::time_exceeded(packet, *from)) {
            let port = &self.ports.inside[0];
            let (octets, device) = (frame::ethernet(port, &message), port.parent);
            self.run_frame(Entry::Inside, 0, device, &octets);
        }
    }

    /// A packet that this host sends to a protected network itself.
    pub(super) fn local_packet(&mut self, packet: &[u8]) {
        // What the kernel says to the device itself (router solicitations, group reports) is for nobody. IKE and ESP are here only
        // where the host has no other route to the peer: sealed they would come again.
        if !frame::leaves_the_link(packet) || net::own::is_ipsec(packet) {
            return;
        }
        // In transport mode the pieces of a datagram are sealed together.
        let gathered;
        let packet = if whole::ends(packet).is_some_and(|ends| self.slow.transport.contains(&ends)) {
            match self.slow.pieces.gather(packet) {
                Gathered::NoPiece => packet,
                Gathered::Kept => return,
                Gathered::Whole(whole) => {
                    gathered = whole;
                    &gathered
                }
            }
        } else {
            packet
        };
        self.slow.counts[5] += 1;
        if packet.len() + ETH_LEN > SLOW_FRAME_MAX {
            self.slow.counts[6] += 1;
            return;
        }
        let port = &self.ports.inside[0];
        let (octets, device) = (frame::ethernet(port, packet), port.parent);
        self.run_frame(Entry::Inside, 0, device, &octets);
    }

    /// An ESP packet that the stack has reassembled.
    pub(super) fn reassembled(&mut self, packet: &[u8]) {
        self.slow.counts[4] += 1;
        match frame::reassembled(packet) {
            Some(packet) if packet.len() + ETH_LEN <= SLOW_FRAME_MAX => {
                let port = &self.ports.outside[0];
                let (octets, device) = (frame::ethernet(port, &packet), port.parent);
                self.run_frame(Entry::Steer, 0, device, &octets);
            }
            _ => self.slow.counts[6] += 1,
        }
    }

    /// A datagram on an IKE port.
    pub(super) fn datagram(&mut self, local: SocketAddr, remote: SocketAddr, bytes: &[u8]) {
        match crate::net::socket::classify(local.port(), bytes) {
            Datagram::Ike(message) => {
                let segment = around::segment_of_message(self.steer_key, message);
                if !segment.is_some_and(|segment| self.groups.serves_segment(segment)) {
                    // The programs pass it on to its owner; what got here in between, the peer repeats. It is never
                    // answered: one member at a time works on an IKE SA (RFC 6027 3.7).
                    self.slow.counts[7] += 1;
                    return;
                }
                if let Some(ours) = around::our_spi(message) {
                    self.adopt_first(ours);
                }
                self.engine_input(Input::Datagram {
                    now: crate::clock::now(),
                    local,
                    remote,
                    bytes: message,
                });
            }
            Datagram::Nothing => {}
            Datagram::Esp(esp) => {
                if let Some(packet) = frame::udp(remote, local, esp) {
                    self.reassembled(&packet);
                }
            }
        }
    }
}
