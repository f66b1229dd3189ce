//! The table's world in memory: `datapath::env::Env` without a kernel.

use std::cell::RefCell;

use datapath::aead::{Scratch, TEXT_MAX};
use datapath::control;
use datapath::env::{
    ACTION_CPU, ACTION_NEIGHBOUR, ACTION_PASS, ACTION_REDIRECT, ACTION_TRANSMIT, Area, Env, HEAD_LEN,
    OutboundCounters, Route, RouteQuery, Work,
};
use datapath::headers;
use datapath::nd;
use datapath::spd::{Changing, Policy};
use maps_schema::event::SLOW_LONG_MAX;
use maps_schema::sad::{
    FinalWindow, InboundSa, InboundSaRuntime, OutboundSa, OutboundSaRuntime, SaKey, slot_at, slot_place,
};
use maps_schema::steer::{ClusterAddress, Local, Member, NO_VLAN, PORT_NO_REDIRECT, PORT_TAKES_PIECES, Port};
use maps_schema::verdict::Verdict;
use zerocopy::FromBytes;

use crate::case::{Action, Case, Observed, Program};
use crate::in_memory::{HostFrame, run_inside, run_outside};
use crate::world::*;

/// Milliseconds that the clock shows.
const NOW_MS: u64 = 5_000_000;

struct Host<'a> {
    world: &'a World,
    ports: [Port; 6],
    ifindex: u32,
    cpu: u32,
    window: RefCell<InboundSaRuntime>,
    counters: OutboundCounters,
    own: [(RefCell<InboundSaRuntime>, OutboundCounters); 2],
    frame: HostFrame,
    events: RefCell<Vec<(u32, u64)>>,
    slow: RefCell<Vec<(u32, Vec<u8>)>>,
    members: Vec<(u8, Member)>,
}

impl Host<'_> {
    fn here<T>(&self, cpu: u32, index: u32, value: T) -> Option<T> {
        (slot_place(SLOT, self.world.local.cpus) == (cpu, index)).then_some(value)
    }

    /// Which of [`OWN_SLOTS`] is meant, if there is an SA.
    fn own(&self, cpu: u32, index: u32) -> Option<(usize, &Own)> {
        let slot = slot_at(cpu, index, self.world.local.cpus);
        let at = OWN_SLOTS.iter().position(|own| *own == slot)?;
        self.world.own[at].as_ref().map(|own| (at, own))
    }
}

impl Env for Host<'_> {
    fn now_ns(&self) -> u64 {
        NOW_MS * 1_000_000
    }

    fn cpu(&self) -> u32 {
        self.cpu
    }

    fn last_hop(&self, _cpu: u32, _outbound: bool) -> u64 {
        0
    }

    fn note_hop(&self, _cpu: u32, _outbound: bool, _now_ns: u64) {}

    fn local(&self) -> Option<&Local> {
        Some(&self.world.local)
    }

    fn arrived_at(&self, vlan: u16) -> Option<&Port> {
        self.ports
            .iter()
            .find(|p| (p.ifindex, p.vlan) == (self.ifindex, vlan))
    }

    fn port(&self, index: u8) -> Option<&Port> {
        self.ports.iter().find(|p| p.index == index)
    }

    fn segment(&self, _segment: u8) -> Option<(u64, u64)> {
        Some((self.world.owner_word(NOW_MS), self.world.side.pack()))
    }

    fn member(&self, member: u8) -> Option<&Member> {
        self.members.iter().find(|m| m.0 == member).map(|m| &m.1)
    }

    fn is_member_mac(&self, mac: [u8; 6]) -> bool {
        OTHER_MACS.contains(&mac)
    }

    fn address(&self, address: [u8; 16]) -> Option<ClusterAddress> {
        let (_, side, segment, ports) = *ADDRESSES.iter().find(|a| a.0 == address)?;
        Some(ClusterAddress { side, segment, ports })
    }

    fn inbound(&self, cpu: u32, index: u32) -> Option<&InboundSa> {
        static EMPTY: std::sync::OnceLock<InboundSa> = std::sync::OnceLock::new();
        if let Some((_, own)) = self.own(cpu, index) {
            return Some(&own.inbound);
        }
        Some(
            self.here(cpu, index, &self.world.inbound)
                .unwrap_or_else(|| EMPTY.get_or_init(InboundSa::default)),
        )
    }

    fn window<R>(&self, cpu: u32, index: u32, f: impl FnOnce(&mut InboundSaRuntime) -> R) -> Option<R> {
        if let Some((at, _)) = self.own(cpu, index) {
            return Some(f(&mut self.own[at].0.borrow_mut()));
        }
        self.here(cpu, index, ())?;
        Some(f(&mut self.window.borrow_mut()))
    }

    fn key_in(&self, cpu: u32, index: u32) -> Option<&SaKey> {
        if let Some((_, own)) = self.own(cpu, index) {
            return Some(&own.key_in);
        }
        self.here(cpu, index, &self.world.key_in)
    }

    fn outbound(&self, cpu: u32, index: u32) -> Option<&OutboundSa> {
        if let Some((_, own)) = self.own(cpu, index) {
            return Some(&own.outbound);
        }
        self.here(cpu, index, &self.world.outbound)
    }

    fn own_slot(&self, cpu: u32, slot: u32) -> u32 {
        let uses = self.world.uses_own.get(cpu as usize).is_some_and(|uses| *uses);
        match (slot, self.world.guest) {
            (SLOT, _) if uses => OWN_SLOTS[cpu as usize] + 1,
            (GUEST_OF, Some(at)) => OWN_SLOTS[at] + 1,
            _ => 0,
        }
    }

    fn counters(&self, cpu: u32, index: u32) -> Option<&OutboundCounters> {
        if let Some((at, _)) = self.own(cpu, index) {
            return Some(&self.own[at].1);
        }
        self.here(cpu, index, &self.counters)
    }

    fn key_out(&self, cpu: u32, index: u32) -> Option<&SaKey> {
        if let Some((_, own)) = self.own(cpu, index) {
            return Some(&own.key_out);
        }
        self.here(cpu, index, &self.world.key_out)
    }

    fn policy(&self, destination: headers::Address) -> Result<Option<Policy<'_>>, Changing> {
        let destination = headers::octets(destination);
        let prefix = mapped(POLICY_PREFIX);
        if let Some(at) = [mapped(PEER), PEER_V6]
            .iter()
            .position(|peer| *peer == destination)
        {
            return Ok(Some(Policy::fixed(&self.world.policy_peer[at])));
        }
        if destination[..6] == POLICY_PREFIX_V6[..6] {
            return Ok(Some(Policy::fixed(&self.world.policy_v6)));
        }
        let policy = (destination[..14] == prefix[..14]).then_some(&self.world.policy);
        Ok(policy.map(Policy::fixed))
    }

    fn route(&self, query: &RouteQuery) -> Option<Route> {
        let known = [
            (false, mapped(NEAR_HOST), INSIDE_IFINDEX, NEAR_MAC),
            (false, mapped(NEAR_2_HOST), INSIDE_2_IFINDEX, NEAR_2_MAC),
            (false, mapped(NEAR_VLAN_HOST), INSIDE_VLAN_IFINDEX, NEAR_VLAN_MAC),
            (false, NEAR_HOST_V6, INSIDE_IFINDEX, NEAR_MAC),
            (true, mapped(PEER), OUTSIDE_IFINDEX, PEER_MAC),
            (true, mapped(PEER_2), OUTSIDE_2_IFINDEX, PEER_2_MAC),
            (true, mapped(PEER_VLAN), OUTSIDE_VLAN_IFINDEX, PEER_VLAN_MAC),
            (true, PEER_V6, OUTSIDE_IFINDEX, PEER_MAC),
            (true, mapped(PEER_NARROW), OUTSIDE_IFINDEX, PEER_MAC),
        ];
        let wanted = headers::octets(query.destination);
        assert_eq!(
            headers::is_v4(query.source),
            headers::is_v4(query.destination),
            "source and destination of a route are of one family"
        );
        let carries = if wanted == mapped(PEER_NARROW) {
            NARROW_MTU as u16
        } else {
            DEVICE_MTU
        };
        let (_, _, device, destination) = *known
            .iter()
            .find(|(own, to, _, _)| *own == query.own && *to == wanted)?;
        // As in the kernel: with a device, only routes over it are looked at.
        if query.own && self.world.local.own_device != 0 && self.world.local.own_device != device {
            return None;
        }
        if query.length > carries {
            return Some(Route {
                mtu: carries,
                ..Route::NONE
            });
        }
        let port = self.ports.iter().find(|p| p.device == device)?;
        debug_assert!(port.vlan == NO_VLAN || port.ifindex != port.device);
        if port.flags & PORT_NO_REDIRECT != 0 {
            return None;
        }
        Some(Route {
            destination,
            source: port.mac,
            ifindex: port.ifindex,
            vlan: port.vlan,
            mtu: 0,
            whole: port.flags & PORT_TAKES_PIECES == 0,
        })
    }

    fn event(&self, kind: u32, _slot: u32, _spi: u32, _epoch: u16, seq: u64) {
        self.events.borrow_mut().push((kind, seq));
    }

    fn slow(&self, kind: u32, _slot: u32, _spi: u32, _seq: u64) -> Result<(), Verdict> {
        if self.frame_len() > SLOW_LONG_MAX {
            return Err(Verdict::SlowTooLong);
        }
        self.slow.borrow_mut().push((kind, self.frame.octets()));
        Ok(())
    }

    fn acquire_due(&self, _connection: u16, _now_ns: u64) -> bool {
        true
    }

    fn tell_due(&self, _now_ns: u64) -> bool {
        true
    }

    fn exceeds_device(&self, packet_len: u32) -> bool {
        packet_len > u32::from(DEVICE_MTU)
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
        !crate::frames::checksum(&text[..len])
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

/// Runs a case through `datapath`, stage by stage as the programs do.
pub fn run(case: &Case) -> Observed {
    let counters = OutboundCounters::default();
    counters.seq.set(case.world.counters.seq);
    counters.packets.set(case.world.counters.packets);
    counters.bytes.set(case.world.counters.bytes);
    counters
        .exhausted_version
        .set(case.world.counters.exhausted_version);
    let host = Host {
        world: &case.world,
        ports: case.world.ports(),
        ifindex: case.ifindex,
        cpu: case.cpu,
        own: case.world.own.map(|own| {
            let window = own.map_or_else(InboundSaRuntime::default, |own| own.window);
            (RefCell::new(window), OutboundCounters::default())
        }),
        window: RefCell::new(case.world.window),
        counters,
        frame: HostFrame::split_at(case.frame.clone(), case.first_buffer.unwrap_or(usize::MAX)),
        events: RefCell::default(),
        slow: RefCell::default(),
        members: MEMBERS.to_vec(),
    };
    let mut area = Box::new(Area {
        cipher: Scratch::default(),
        work: Work::EMPTY,
    });
    let outcome = match case.program {
        Program::Steer | Program::EspIn => {
            run_outside(&host, &mut area, case.program == Program::Steer);
            None
        }
        Program::Inside | Program::EspOut => {
            run_inside(&host, &mut area, case.program == Program::Inside);
            None
        }
        Program::SaCtl => {
            let input = FinalWindow::read_from_bytes(&case.frame).expect("a final window");
            Some(control::merge_final_window(&host, &input))
        }
    };
    if area.work.action == ACTION_NEIGHBOUR {
        nd::answer(&host, &mut area.work);
    }
    let work = &area.work;
    let action = match (outcome, work.action) {
        (Some(value), _) => Action::Value(value),
        (None, ACTION_PASS) => Action::Pass,
        (None, ACTION_TRANSMIT) => match case.program {
            Program::Steer | Program::Inside => Action::Transmit,
            _ => Action::Redirect,
        },
        (None, ACTION_REDIRECT | ACTION_CPU) => Action::Redirect,
        (None, _) => Action::Drop,
    };
    let verdict = match outcome {
        Some(_) => None,
        None => Verdict::from_number(work.verdict).map(|v| (work.connection as u16, v)),
    };
    let read = |c: &OutboundCounters| OutboundSaRuntime {
        seq: c.seq.get(),
        packets: c.packets.get(),
        bytes: c.bytes.get(),
        last_ms: c.last_ms.get(),
        exhausted_version: c.exhausted_version.get(),
    };
    let target = matches!(work.action, ACTION_REDIRECT | ACTION_CPU).then_some(work.target);
    Observed {
        verdict,
        target,
        action,
        frame: host.frame.octets(),
        cut_behind: Some(host.frame.cut_behind()),
        window: *host.window.borrow(),
        counters: read(&host.counters),
        own: [0, 1].map(|at| (*host.own[at].0.borrow(), read(&host.own[at].1))),
        events: host.events.borrow().clone(),
        slow: host.slow.borrow().clone(),
    }
}
