//! The slow path: frames that the programs gave to the agent go through the programs again once they can be served.
//! The agent itself never touches a window or a counter.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use cluster::Layout;
use cluster::io::Flip;
use dataplane::Entry;
use maps_schema::event::{
    SLOW_ABOVE_CEILING, SLOW_AWAITED, SLOW_FRAME_MAX, SLOW_HELD, SLOW_LONG_MAX, SLOW_MOVED, SLOW_NO_LEASE,
    SLOW_NO_SA, SLOW_OUT_FRAGMENT, SLOW_OUTER_FRAGMENT, SLOW_PATH_ERROR, SLOW_TO_STACK, SLOW_TTL_EXCEEDED,
    SlowHead,
};
use maps_schema::sad::spi_slot;
use maps_schema::segment::{LEGACY_HOLDING, LEGACY_OPEN};
use model::MemberId;
use sad::Direction;

use super::{Core, around};
use crate::clock;
use crate::net::frame::{self, ETH_LEN};
use crate::net::socket::Datagram;
use crate::net::whole::{self, Gathered, Pieces};
use crate::net::{self, cut};
use ike::Input;

/// Frames of one SA that may wait.
const PER_SA: usize = 512;
/// Frames that may wait in all.
const IN_ALL: usize = 8192;
/// And their octets: some may have 16 KiB.
const OCTETS_IN_ALL: usize = 28 << 20;
/// Octets that ESP in UDP may add: IPv6 40, UDP 8, ESP 8, IV 16, padding and trailer up to 17, ICV 16.
const OVERHEAD: usize = 105;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    seq: u64,
    pub(super) ifindex: u32,
    pub(super) octets: Vec<u8>,
}

/// What a slot is to this member, at the moment at which a frame comes out of the ring: the programs may have seen other owner words.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// It owns the group.
    serves: bool,
    /// It takes the group in a planned handover, and the old owner has not sent its windows yet.
    takes: bool,
    /// The SA is removed, and nobody raises its ceiling (ADR 26).
    ended: bool,
}

/// What becomes of a frame that cannot be served as it is.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// It waits.
    Waits,
    /// Not any more, or not here: it goes through the programs again, which serve it or send it on.
    Runs(Entry, Frame),
    /// Nothing would come that it could wait for.
    Lost,
}

/// Frames that wait, per slot and direction, in the order in which they came.
#[derive(Default)]
pub struct Waiting {
    inbound: HashMap<u32, VecDeque<Frame>>,
    outbound: HashMap<u32, VecDeque<Frame>>,
    held: VecDeque<(u32, Frame)>,
    waiting: usize,
    /// Of all that waits, of `held` too.
    octets: usize,
    /// Source and destination of what is sealed in transport mode, and pieces of it.
    transport: BTreeSet<(IpAddr, IpAddr)>,
    pieces: Pieces,
    /// Frames by reason, in the order of [`COUNTS`].
    pub counts: [u64; COUNTS.len()],
}

/// Names of [`Waiting::counts`].
pub const COUNTS: [&str; 16] = [
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
    "held_for_answer",
    "sent_onward",
    "to_stack",
];

impl Waiting {
    /// Nothing waits; packets between these ends, source and destination, are sealed in transport mode.
    pub fn of(transport: BTreeSet<(IpAddr, IpAddr)>) -> Self {
        Self {
            transport,
            ..Self::default()
        }
    }

    /// A frame that nothing would come for.
    pub(super) fn lost(&mut self) {
        self.counts[6] += 1;
    }

    /// A datagram that came in pieces went to the member that it belongs to.
    pub(super) fn sent_onward(&mut self) {
        self.counts[14] += 1;
    }

    fn put(&mut self, inbound: bool, slot: u32, frame: Frame) -> Next {
        let queue = if inbound {
            &mut self.inbound
        } else {
            &mut self.outbound
        }
        .entry(slot)
        .or_default();
        let octets = self.octets + frame.octets.len();
        if queue.len() >= PER_SA || self.waiting >= IN_ALL || octets > OCTETS_IN_ALL {
            self.counts[6] += 1;
            return Next::Lost;
        }
        queue.push_back(frame);
        self.waiting += 1;
        self.octets = octets;
        Next::Waits
    }

    /// A frame that is above a ceiling or beyond a lease, or comes before the old owner's windows.
    fn take_in(&mut self, kind: u32, slot: u32, frame: Frame, standing: Standing) -> Next {
        let waits = match kind {
            SLOW_HELD => standing.serves && standing.takes,
            _ => standing.serves,
        };
        if !waits {
            let entry = match kind {
                SLOW_NO_LEASE => Entry::Inside,
                _ => Entry::Steer,
            };
            return Next::Runs(entry, frame);
        }
        match kind {
            SLOW_HELD if self.held.len() < IN_ALL && self.octets + frame.octets.len() <= OCTETS_IN_ALL => {
                self.octets += frame.octets.len();
                self.held.push_back((slot, frame));
            }
            SLOW_NO_LEASE => return self.put(false, slot, frame),
            SLOW_ABOVE_CEILING if !standing.ended => return self.put(true, slot, frame),
            _ => {
                self.counts[6] += 1;
                return Next::Lost;
            }
        }
        Next::Waits
    }

    /// Owner words have changed: what goes through the programs again. Where another member owns the group now, all that waited, and
    /// the programs send it there. At a taker that has the old owner's windows, what was held for them.
    pub(super) fn after_flip(
        &mut self,
        me: MemberId,
        layout: Layout,
        flip: &Flip,
    ) -> Vec<(Entry, u32, Frame)> {
        let of_group = |slot| layout.group_of_slot(slot) == flip.group;
        if flip.epoch.owner != me {
            return self.take_where(of_group);
        }
        match flip.legacy {
            None => self.take_held(of_group),
            Some(_) => Vec::new(),
        }
    }

    /// Takes out what was held of some slots.
    fn take_held(&mut self, of: impl Fn(u32) -> bool) -> Vec<(Entry, u32, Frame)> {
        let held = std::mem::take(&mut self.held).into_iter();
        let (held, others) = held.partition::<VecDeque<_>, _>(|(slot, _)| of(*slot));
        self.held = others;
        self.octets -= held.iter().map(|(_, frame)| frame.octets.len()).sum::<usize>();
        let held = held.into_iter();
        held.map(|(slot, frame)| (Entry::Steer, slot, frame)).collect()
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
                self.octets -= frames.iter().map(|frame| frame.octets.len()).sum::<usize>();
                taken.extend(frames.into_iter().map(|frame| (entry, slot, frame)));
            }
        }
        taken.extend(self.take_held(gone));
        taken
    }
}

impl Core {
    pub(super) fn slow_frame(&mut self, slow: &SlowHead, octets: &[u8]) {
        let frame = Frame {
            seq: slow.seq,
            ifindex: slow.ifindex,
            octets: octets.to_vec(),
        };
        match slow.kind {
            SLOW_ABOVE_CEILING | SLOW_HELD | SLOW_NO_LEASE => self.waiting_frame(slow.kind, slow.slot, frame),
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
            SLOW_AWAITED => {
                self.slow.counts[13] += 1;
                self.early_frame(slow, frame);
            }
            SLOW_TO_STACK => {
                self.slow.counts[15] += 1;
                self.give_to_stack(&frame.octets);
            }
            SLOW_MOVED => {
                self.slow.counts[12] += 1;
                self.peer_seen(slow.slot, &frame.octets);
            }
            _ => {}
        }
    }

    fn waiting_frame(&mut self, kind: u32, slot: u32, frame: Frame) {
        self.slow.counts[match kind {
            SLOW_ABOVE_CEILING => 0,
            SLOW_HELD => 1,
            _ => 3,
        }] += 1;
        let (_, side) = self.segments.get(slot as u8);
        let standing = Standing {
            serves: self.groups.owns(self.groups.layout.group_of_slot(slot)),
            takes: matches!(side.legacy_phase, LEGACY_OPEN | LEGACY_HOLDING),
            ended: self.sad.lingers_below_ceiling(slot),
        };
        match self.slow.take_in(kind, slot, frame, standing) {
            Next::Runs(entry, frame) => self.run_frame(entry, slot, frame.ifindex, &frame.octets),
            Next::Waits | Next::Lost if kind != SLOW_HELD => self.run_waiting(slot),
            Next::Waits | Next::Lost => {}
        }
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
            self.slow.octets -= frame.octets.len();
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
            self.slow.octets -= frame.octets.len();
            self.run_frame(Entry::Inside, slot, frame.ifindex, &frame.octets);
        }
        if self.slow.outbound.get(&slot).is_some_and(VecDeque::is_empty) {
            self.slow.outbound.remove(&slot);
        } else if self.slow.outbound.contains_key(&slot) {
            raises.extend(self.wish(slot, Direction::Outbound, None));
        }
        self.raise(raises);
    }

    pub(super) fn run_frame(&mut self, entry: Entry, slot: u32, ifindex: u32, octets: &[u8]) {
        let cpu = self.plane.cpu_of(slot);
        // What was put together fits no link: where it is another member's by now, the kernel would not send it there. In generic mode the
        // programs would meet once more what they let pass.
        let live = SLOW_FRAME_MAX.min(self.ports.outside_mtu() as usize + ETH_LEN);
        if octets.len() > live || self.generic.contains(&ifindex) {
            return self.run_long(entry, cpu, ifindex, octets);
        }
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
        let Some(pieces) = cut::fragments(packet, mtu) else {
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
        if packet.len() + ETH_LEN > SLOW_LONG_MAX {
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
            Some(packet) if self.esp_onward(&packet) => {}
            Some(packet) if packet.len() + ETH_LEN <= SLOW_LONG_MAX => {
                let port = &self.ports.outside[0];
                let (octets, device) = (frame::ethernet(port, &packet), port.parent);
                let slot = frame::esp_spi(&packet).map_or(0, |spi| spi_slot(spi.0));
                self.run_frame(Entry::Steer, slot, device, &octets);
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
                    // The programs pass it on to its owner, unless it came in pieces or its owner has just changed. It is never
                    // answered: one member at a time works on an IKE SA (RFC 6027 3.7).
                    self.slow.counts[7] += 1;
                    if let (Some(segment), Some(packet)) = (segment, frame::udp(remote, local, bytes)) {
                        self.send_onward(segment, &packet);
                    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::EpochId;
    use cluster::io::{Legacy, LegacyPhase};
    use model::{Epoch, GroupId, Instant};

    const ME: MemberId = MemberId(1);
    const OTHER: MemberId = MemberId(2);
    const OWNER: Standing = Standing {
        serves: true,
        takes: false,
        ended: false,
    };
    const TAKER: Standing = Standing { takes: true, ..OWNER };
    const GONE: Standing = Standing {
        serves: false,
        ..OWNER
    };
    /// Four groups: slots 0 and 4 are of the first one, slot 1 of the second.
    fn layout() -> Layout {
        Layout::new(4)
    }

    fn frame(seq: u64) -> Frame {
        Frame {
            seq,
            ifindex: 7,
            octets: vec![seq as u8; 3],
        }
    }

    fn flip(owner: MemberId, legacy: Option<LegacyPhase>) -> Flip {
        let epoch = |owner, number| EpochId {
            number: Epoch(number),
            owner,
        };
        let from = if owner == ME { OTHER } else { ME };
        Flip {
            group: GroupId(0),
            token: 1,
            epoch: epoch(owner, 6),
            valid_until: Instant::from_millis(0),
            successor: None,
            alone: false,
            legacy: legacy.map(|phase| Legacy {
                epoch: epoch(from, 5),
                phase,
            }),
        }
    }

    /// Entry, slot and number of each.
    fn numbers(frames: Vec<(Entry, u32, Frame)>) -> Vec<(Entry, u32, u64)> {
        let mut all: Vec<_> = frames
            .into_iter()
            .map(|(entry, slot, f)| (entry, slot, f.seq))
            .collect();
        // Slots have no order among each other; frames of one slot have.
        all.sort_by_key(|(entry, slot, _)| (*entry == Entry::Inside, *slot));
        all
    }

    #[test]
    fn what_waited_goes_on_when_the_words_name_another_owner_in_its_order_and_once() {
        for phase in [None, Some(LegacyPhase::Open), Some(LegacyPhase::Given)] {
            let mut waiting = Waiting::default();
            for (kind, slot, seq) in [
                (SLOW_ABOVE_CEILING, 4, 9),
                (SLOW_ABOVE_CEILING, 0, 5),
                (SLOW_ABOVE_CEILING, 4, 7),
                (SLOW_NO_LEASE, 4, 1),
                (SLOW_NO_LEASE, 4, 2),
                (SLOW_ABOVE_CEILING, 1, 3),
                (SLOW_NO_LEASE, 1, 4),
            ] {
                let next = waiting.take_in(kind, slot, frame(seq), OWNER);
                assert_eq!(next, Next::Waits);
            }
            assert_eq!(waiting.waiting, 7);
            let passed = waiting.after_flip(ME, layout(), &flip(OTHER, phase));
            let expected = [
                (Entry::Steer, 0, 5),
                (Entry::Steer, 4, 9),
                (Entry::Steer, 4, 7),
                (Entry::Inside, 4, 1),
                (Entry::Inside, 4, 2),
            ];
            assert_eq!(numbers(passed), expected, "{phase:?}");
            // The other group's wait on, and nothing is passed on again.
            assert_eq!(waiting.waiting, 2);
            let again = waiting.after_flip(ME, layout(), &flip(OTHER, phase));
            assert_eq!(again, []);
            assert_eq!(waiting.counts[6], 0, "lost");
        }
    }

    #[test]
    fn a_frame_that_was_in_the_ring_when_the_words_changed_does_not_wait() {
        let mut waiting = Waiting::default();
        for (kind, entry) in [
            (SLOW_ABOVE_CEILING, Entry::Steer),
            (SLOW_HELD, Entry::Steer),
            (SLOW_NO_LEASE, Entry::Inside),
        ] {
            let next = waiting.take_in(kind, 4, frame(1), GONE);
            assert_eq!(next, Next::Runs(entry, frame(1)), "another member's now");
        }
        // Held before the windows were merged, read after that.
        let next = waiting.take_in(SLOW_HELD, 4, frame(2), OWNER);
        assert_eq!(next, Next::Runs(Entry::Steer, frame(2)));
        assert_eq!(
            (waiting.waiting, waiting.held.len(), waiting.counts[6]),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_taker_holds_frames_until_the_windows_are_merged_and_runs_them_once() {
        let mut waiting = Waiting::default();
        for (slot, seq) in [(4, 1), (1, 2), (0, 3), (4, 4)] {
            let next = waiting.take_in(SLOW_HELD, slot, frame(seq), TAKER);
            assert_eq!(next, Next::Waits);
        }
        let above = waiting.take_in(SLOW_ABOVE_CEILING, 4, frame(8), TAKER);
        assert_eq!(above, Next::Waits);
        for phase in [LegacyPhase::Open, LegacyPhase::Holding] {
            let none = waiting.after_flip(ME, layout(), &flip(ME, Some(phase)));
            assert_eq!(none, [], "{phase:?}");
        }
        let ready = waiting.after_flip(ME, layout(), &flip(ME, None));
        let ready: Vec<_> = ready
            .into_iter()
            .map(|(entry, slot, f)| (entry, slot, f.seq))
            .collect();
        // As they came. What is above the ceiling waits for its raise.
        let expected = [(Entry::Steer, 4, 1), (Entry::Steer, 0, 3), (Entry::Steer, 4, 4)];
        assert_eq!(ready, expected);
        assert_eq!((waiting.held.len(), waiting.waiting), (1, 1));
        assert_eq!(waiting.after_flip(ME, layout(), &flip(ME, None)), []);
        // A taker that loses the group in between passes on what it holds, too.
        let lost = waiting.take_in(SLOW_HELD, 0, frame(5), TAKER);
        assert_eq!(lost, Next::Waits);
        let passed = waiting.after_flip(ME, layout(), &flip(OTHER, None));
        assert_eq!(numbers(passed), [(Entry::Steer, 0, 5), (Entry::Steer, 4, 8)]);
    }

    #[test]
    fn nothing_waits_for_the_ceiling_of_an_sa_that_is_removed() {
        let ended = Standing { ended: true, ..OWNER };
        let mut waiting = Waiting::default();
        let next = waiting.take_in(SLOW_ABOVE_CEILING, 4, frame(1), ended);
        assert_eq!((next, waiting.waiting, waiting.counts[6]), (Next::Lost, 0, 1));
        // The taker of a handover still gets the windows of what lingers.
        let held = waiting.take_in(SLOW_HELD, 4, frame(2), Standing { ended: true, ..TAKER });
        assert_eq!(held, Next::Waits);
        // An old owner's programs send it to the taker.
        let next = waiting.take_in(SLOW_ABOVE_CEILING, 4, frame(3), Standing { ended: true, ..GONE });
        assert_eq!(next, Next::Runs(Entry::Steer, frame(3)));
    }

    #[test]
    fn what_waits_is_bounded_by_sa_and_in_all() {
        let mut waiting = Waiting::default();
        for seq in 0..PER_SA as u64 + 3 {
            let _ = waiting.take_in(SLOW_ABOVE_CEILING, 4, frame(seq), OWNER);
        }
        assert_eq!((waiting.waiting, waiting.counts[6]), (PER_SA, 3));
        let mut slot = 8;
        while waiting.waiting < IN_ALL {
            let next = waiting.take_in(SLOW_NO_LEASE, slot, frame(0), OWNER);
            assert_eq!(next, Next::Waits);
            slot += 1;
        }
        assert_eq!(waiting.take_in(SLOW_NO_LEASE, slot, frame(0), OWNER), Next::Lost);
        assert_eq!((waiting.waiting, waiting.counts[6]), (IN_ALL, 4));
    }

    #[test]
    fn what_waits_is_bounded_by_its_octets_as_well() {
        let mut waiting = Waiting::default();
        let long = || Frame {
            octets: vec![0; 16_000],
            ..frame(1)
        };
        let mut put = |slot| waiting.take_in(SLOW_ABOVE_CEILING, slot, long(), OWNER) == Next::Waits;
        // Slots of the first group, and of the second.
        let taken = (0..IN_ALL as u32).filter(|at| put(at % 64 * 4 + at % 2)).count();
        assert_eq!(taken, OCTETS_IN_ALL / 16_000);
        assert!(!put(0) && !put(1));
        // The group moves away, and with it half of them.
        let moved = waiting.after_flip(ME, layout(), &flip(OTHER, None)).len();
        assert!(moved.abs_diff(taken / 2) <= 1, "{moved} of {taken}");
        assert_eq!(waiting.octets, (taken - moved) * 16_000);
        let mut put = |kind| waiting.take_in(kind, 1, long(), TAKER) == Next::Waits;
        assert!(put(SLOW_ABOVE_CEILING) && put(SLOW_HELD));
    }
}
