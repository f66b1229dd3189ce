//! What a program sees of a plane, and what it leaves behind.

use super::{INSIDE, INSIDE_ROUTER, OUTSIDE, OUTSIDE_ROUTER, Slow};
use crate::sabotage::Sabotage;
use datapath::aead::TEXT_MAX;
use datapath::env::{Env, HEAD_LEN, OutboundCounters, Route, RouteQuery};
use datapath::headers::{self, Address};
use datapath::spd::{Changing, Policy};
use maps_schema::event::{Event, SLOW_LONG_MAX};
use maps_schema::sad::{
    InboundSa, InboundSaRuntime, OutboundSa, OutboundSaRuntime, SA_LOCAL_ONLY, SaKey, slot_at,
};
use maps_schema::segment::OwnerWord;
use maps_schema::steer::{ClusterAddress, Local, Member, PORT_TAKES_PIECES, Port};
use maps_schema::verdict::Verdict;
use model::Instant;
use sad::memory::MemoryPlane;
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use test_packet::in_memory::HostFrame;

/// A plane while a program runs.
pub(super) struct View<'a> {
    pub plane: &'a PlaneMaps<'a>,
    pub frame: HostFrame,
    pub cpu: u32,
    pub now_ns: u64,
    pub inside: bool,
    pub window: RefCell<(Option<u32>, InboundSaRuntime)>,
    pub counters: OnceCell<(u32, OutboundCounters)>,
    pub unlimited_in: OnceCell<InboundSa>,
    pub unlimited_out: OnceCell<OutboundSa>,
    pub events: RefCell<Vec<Event>>,
    pub slow: RefCell<Vec<Slow>>,
    pub acquired: RefCell<Option<u16>>,
}

/// The parts of a plane that a run reads.
pub(super) struct PlaneMaps<'a> {
    pub local: &'a Local,
    pub ports: &'a [Port; 2],
    pub maps: &'a MemoryPlane,
    pub segments: &'a [(u64, u64)],
    pub members: &'a BTreeMap<u8, Member>,
    pub addresses: &'a [(u32, ClusterAddress)],
    pub acquired: &'a BTreeMap<u16, u64>,
    pub slow_room: bool,
    pub sabotage: Option<Sabotage>,
}

impl View<'_> {
    fn slot(&self, cpu: u32, index: u32) -> u32 {
        slot_at(cpu, index, self.plane.local.cpus)
    }
}

impl Env for View<'_> {
    fn now_ns(&self) -> u64 {
        self.now_ns
    }
    fn cpu(&self) -> u32 {
        self.cpu
    }
    fn last_hop(&self, _cpu: u32, _outbound: bool) -> u64 {
        0
    }
    fn note_hop(&self, _cpu: u32, _outbound: bool, _now_ns: u64) {}
    fn local(&self) -> Option<&Local> {
        Some(self.plane.local)
    }
    fn arrived_at(&self, vlan: u16) -> Option<&Port> {
        let ifindex = if self.inside { INSIDE } else { OUTSIDE };
        let mut ports = self.plane.ports.iter();
        ports.find(|p| (p.ifindex, p.vlan) == (ifindex, vlan))
    }
    fn port(&self, index: u8) -> Option<&Port> {
        self.plane.ports.iter().find(|p| p.index == index)
    }
    fn segment(&self, segment: u8) -> Option<(u64, u64)> {
        let (owner, side) = self.plane.segments[usize::from(segment)];
        if self.plane.sabotage == Some(Sabotage::ValidityIgnored) {
            let mut word = OwnerWord::unpack(owner);
            word.valid_until_ms = maps_schema::segment::VALID_UNTIL_MASK;
            return Some((word.pack(), side));
        }
        Some((owner, side))
    }
    fn member(&self, member: u8) -> Option<&Member> {
        self.plane.members.get(&member)
    }
    fn is_member_mac(&self, mac: [u8; 6]) -> bool {
        self.plane.members.values().any(|m| m.macs.contains(&mac))
    }
    fn address(&self, address: [u8; 16]) -> Option<ClusterAddress> {
        self.plane
            .addresses
            .iter()
            .find(|(a, _)| datapath::headers::mapped(*a) == address)
            .map(|(_, address)| *address)
    }
    fn inbound(&self, cpu: u32, index: u32) -> Option<&InboundSa> {
        let sa = self.plane.maps.inbound.get(self.slot(cpu, index) as usize)?;
        if self.plane.sabotage == Some(Sabotage::CeilingIgnored) && sa.spi != 0 {
            return Some(self.unlimited_in.get_or_init(|| InboundSa {
                flags: sa.flags | SA_LOCAL_ONLY,
                ..*sa
            }));
        }
        Some(sa)
    }
    fn window<R>(&self, cpu: u32, index: u32, f: impl FnOnce(&mut InboundSaRuntime) -> R) -> Option<R> {
        let slot = self.slot(cpu, index);
        let mut window = self.window.borrow_mut();
        if window.0 != Some(slot) {
            *window = (Some(slot), self.plane.maps.runtime.get(slot as usize)?.inbound);
        }
        Some(f(&mut window.1))
    }
    fn key_in(&self, cpu: u32, index: u32) -> Option<&SaKey> {
        self.plane.maps.keys_in.get(self.slot(cpu, index) as usize)
    }
    fn outbound(&self, cpu: u32, index: u32) -> Option<&OutboundSa> {
        let sa = self.plane.maps.outbound.get(self.slot(cpu, index) as usize)?;
        if self.plane.sabotage == Some(Sabotage::LeaseIgnored) && sa.spi != 0 {
            return Some(self.unlimited_out.get_or_init(|| OutboundSa {
                flags: sa.flags | SA_LOCAL_ONLY,
                ..*sa
            }));
        }
        Some(sa)
    }
    fn counters(&self, cpu: u32, index: u32) -> Option<&OutboundCounters> {
        let slot = self.slot(cpu, index);
        let now = self.plane.maps.runtime.get(slot as usize)?.outbound;
        let (held, counters) = self.counters.get_or_init(|| {
            let counters = OutboundCounters::default();
            counters.seq.set(now.seq);
            counters.packets.set(now.packets);
            counters.bytes.set(now.bytes);
            counters.last_ms.set(now.last_ms);
            counters.exhausted_version.set(now.exhausted_version);
            (slot, counters)
        });
        // A packet meets one outbound SA.
        (*held == slot).then_some(counters)
    }
    fn key_out(&self, cpu: u32, index: u32) -> Option<&SaKey> {
        self.plane.maps.keys_out.get(self.slot(cpu, index) as usize)
    }
    fn own_slot(&self, cpu: u32, slot: u32) -> u32 {
        let own = self.plane.maps.cpu_slots.get(&(cpu, slot));
        own.map_or(0, |own| own + 1)
    }
    fn policy(&self, destination: Address) -> Result<Option<Policy<'_>>, Changing> {
        let number = u128::from_be_bytes(headers::octets(destination));
        let fits = |len: u32, prefix: u128| len == 0 || (number ^ prefix) >> (128 - len) == 0;
        let mut entries = self.plane.maps.spd.iter().rev();
        let longest = entries.find(|((len, prefix), _)| fits(*len, u128::from_be_bytes(*prefix)));
        Ok(longest.map(|(_, entry)| Policy::fixed(entry)))
    }
    fn route(&self, query: &RouteQuery) -> Option<Route> {
        let [outside, inside] = self.plane.ports;
        let (port, destination) = if query.own {
            (outside, OUTSIDE_ROUTER)
        } else {
            (inside, INSIDE_ROUTER)
        };
        Some(Route {
            destination,
            source: port.mac,
            ifindex: port.ifindex,
            vlan: port.vlan,
            mtu: 0,
            whole: port.flags & PORT_TAKES_PIECES == 0,
        })
    }
    fn event(&self, kind: u32, slot: u32, spi: u32, epoch: u16, seq: u64) {
        self.events.borrow_mut().push(Event {
            kind,
            slot,
            spi,
            epoch: u32::from(epoch),
            seq,
            time_ns: self.now_ns,
        });
    }
    fn slow(&self, kind: u32, slot: u32, _spi: u32, seq: u64) -> Result<(), Verdict> {
        if self.frame.frame_len() > SLOW_LONG_MAX {
            return Err(Verdict::SlowTooLong);
        }
        if !self.plane.slow_room {
            return Err(Verdict::SlowPathFull);
        }
        self.slow.borrow_mut().push(Slow {
            kind,
            slot,
            seq,
            octets: self.frame.octets(),
            inside: self.inside,
        });
        Ok(())
    }
    fn tell_due(&self, _now_ns: u64) -> bool {
        true
    }
    fn acquire_due(&self, connection: u16, now_ns: u64) -> bool {
        let due = self
            .plane
            .acquired
            .get(&connection)
            .is_none_or(|at| now_ns.saturating_sub(*at) > 500_000_000);
        if due {
            *self.acquired.borrow_mut() = Some(connection);
        }
        due
    }
    fn exceeds_device(&self, _packet_len: u32) -> bool {
        // Nobody merges packets here.
        false
    }

    fn frame_len(&self) -> usize {
        self.frame.frame_len()
    }
    fn first_buffer(&self) -> usize {
        self.frame.first_buffer()
    }
    fn load_head(&self, head: &mut [u8; HEAD_LEN]) -> usize {
        self.frame.load_head(head)
    }
    fn load(&self, offset: usize, text: &mut [u8; TEXT_MAX], len: usize) -> bool {
        self.frame.load(offset, text, len)
    }
    fn sum(&self, text: &[u8; TEXT_MAX], len: usize) -> u16 {
        !test_packet::frames::checksum(&text[..len])
    }
    fn load_16(&self, offset: usize, out: &mut [u8; 16]) -> bool {
        self.frame.load_16(offset, out)
    }
    fn store(&self, offset: usize, text: &[u8; TEXT_MAX], len: usize) -> bool {
        self.frame.store(offset, text, len)
    }
    fn store_head(&self, offset: usize, head: &[u8; HEAD_LEN], from: usize, len: usize) -> bool {
        self.frame.store_head(offset, head, from, len)
    }
    fn write<const N: usize>(&self, offset: usize, octets: &[u8; N]) -> bool {
        self.frame.write(offset, octets)
    }
    fn cut_head(&self, delta: i32) -> bool {
        self.frame.cut_head(delta)
    }
    fn truncate(&self, len: usize) -> bool {
        self.frame.truncate(len)
    }
}

/// What a program left behind.
pub(super) struct Effects {
    pub frame: Vec<u8>,
    pub window: (Option<u32>, InboundSaRuntime),
    pub counters: Option<(u32, OutboundSaRuntime)>,
    pub events: Vec<Event>,
    pub slow: Vec<Slow>,
    pub acquired: Option<u16>,
    pub now_ns: u64,
}

impl Effects {
    pub fn of(view: View<'_>) -> Self {
        let counters = view.counters.into_inner().map(|(slot, c)| {
            let runtime = OutboundSaRuntime {
                seq: c.seq.get(),
                packets: c.packets.get(),
                bytes: c.bytes.get(),
                last_ms: c.last_ms.get(),
                exhausted_version: c.exhausted_version.get(),
            };
            (slot, runtime)
        });
        Self {
            frame: view.frame.into_octets(),
            window: view.window.into_inner(),
            counters,
            events: view.events.into_inner(),
            slow: view.slow.into_inner(),
            acquired: view.acquired.into_inner(),
            now_ns: view.now_ns,
        }
    }
}

pub(super) fn view<'a>(
    plane: &'a PlaneMaps<'a>,
    octets: Vec<u8>,
    cpu: u32,
    now: Instant,
    inside: bool,
) -> View<'a> {
    View {
        plane,
        frame: HostFrame::new(octets),
        cpu,
        now_ns: now.0,
        inside,
        window: RefCell::new((None, InboundSaRuntime::default())),
        counters: OnceCell::new(),
        unlimited_in: OnceCell::new(),
        unlimited_out: OnceCell::new(),
        events: RefCell::default(),
        slow: RefCell::default(),
        acquired: RefCell::new(None),
    }
}
