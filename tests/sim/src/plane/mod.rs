//! A host's data plane: the rules of `ebpf/datapath` over maps in memory.
//!
//! Programs run one at a time and between two steps of the agent. What several CPUs do to one map at once is shown by
//! tests/packet and tests under load, not here.

mod view;

use crate::sabotage::Sabotage;
use datapath::aead::Scratch;
use datapath::env::{ACTION_CPU, ACTION_PASS, ACTION_REDIRECT, ACTION_TRANSMIT, Area, Work};
use maps_schema::event::Event;
use maps_schema::sad::{FinalWindow, Limits, SaKey, slot_place};
use maps_schema::segment::{OwnerWord, SideWord};
use maps_schema::steer::{
    ClusterAddress, Local, MAX_PORTS, Member, NO_VLAN, PORT_TAKES_PIECES, PORTS_PER_SIDE, Port, SIDE_INSIDE,
    SIDE_OUTSIDE,
};
use maps_schema::verdict::Verdict;
use model::Instant;
use sad::memory::MemoryPlane;
use sad::{DataPlane, MapPlan, PlanError, SaCounters};
use std::collections::BTreeMap;
use test_packet::in_memory::{run_inside, run_outside};
use view::{Effects, PlaneMaps, View, view};

/// Slots of members and peers: four for each segment, so that they are used again. See [`Host::slots`].
pub const SLOTS: u32 = 1024;
/// Interface indexes.
pub const OUTSIDE: u32 = 1;
/// See [`OUTSIDE`].
pub const INSIDE: u32 = 2;
/// Numbers of the two ports.
const OUTSIDE_PORT: usize = 0;
/// See [`OUTSIDE_PORT`].
const INSIDE_PORT: usize = PORTS_PER_SIDE;
/// The ring buffers of the programs hold this many records.
const RING: usize = 512;

/// MAC address of a member's outside interface.
pub fn outside_mac(member: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, member]
}

/// MAC address of a member's inside interface.
pub fn inside_mac(member: u8) -> [u8; 6] {
    [2, 0, 0, 0, 1, member]
}

/// A host as a second hop: reached on both networks, outside and inside.
pub fn reached_at((outside, inside): ([u8; 6], [u8; 6])) -> Member {
    let mut macs = [[0; 6]; MAX_PORTS];
    (macs[OUTSIDE_PORT], macs[INSIDE_PORT]) = (outside, inside);
    Member::reached_at(macs)
}

fn port(ifindex: u32, index: usize, side: u8, mac: [u8; 6]) -> Port {
    Port {
        ifindex,
        device: ifindex,
        vlan: NO_VLAN,
        mac,
        side,
        index: index as u8,
        flags: PORT_TAKES_PIECES,
        reserved: 0,
    }
}

/// MAC address of whatever is outside and no member.
pub const OUTSIDE_ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// The same inside.
pub const INSIDE_ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 0xfe];

/// A frame for the agent.
pub struct Slow {
    /// `SLOW_*`.
    pub kind: u32,
    /// Slot of the SA.
    pub slot: u32,
    /// Sequence number.
    pub seq: u64,
    /// The frame.
    pub octets: Vec<u8>,
    /// It came in on the inside interface.
    pub inside: bool,
}

/// What became of a frame.
pub enum Outcome {
    /// Dropped, or given to the slow path.
    Gone(Verdict),
    /// Left to the host's stack (IKE, mostly).
    Stack(Verdict, Vec<u8>),
    /// Sent out of an interface.
    Send {
        /// Interface.
        ifindex: u32,
        /// Octets.
        octets: Vec<u8>,
        /// Sealed or opened just now, and with what.
        esp: Option<Esp>,
    },
}

/// An ESP packet that was sealed or opened.
#[derive(Clone, Copy, Debug)]
pub struct Esp {
    /// Opened, not sealed.
    pub opened: bool,
    /// SPI in the packet.
    pub spi: u32,
    /// Sequence number.
    pub seq: u64,
    /// Names the key.
    pub key: u64,
    /// Epoch in which it was served.
    pub epoch: u16,
    /// Opened by a lenient policy, and counted as such.
    pub lenient: bool,
    /// IV, of a sealed one.
    pub iv: u64,
}

/// A host's maps and programs.
pub struct Plane {
    local: Local,
    ports: [Port; 2],
    maps: MemoryPlane,
    segments: Vec<(u64, u64)>,
    members: BTreeMap<u8, Member>,
    addresses: Vec<(u32, ClusterAddress)>,
    /// Taken out while a program runs.
    area: Option<Box<Area>>,
    /// Events that the agent has not fetched.
    pub events: Vec<Event>,
    /// Frames that the agent has not fetched.
    pub slow: Vec<Slow>,
    /// Verdicts.
    pub verdicts: BTreeMap<u32, u64>,
    acquired: BTreeMap<u16, u64>,
    sabotage: Option<Sabotage>,
    lost: u64,
    /// CPUs that frames arrive on, and how many frames have arrived.
    arrivals: (u32, u32),
    /// Maps or owner words were written since somebody looked.
    written: bool,
}

/// What the programs have of an outbound SA's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// Names the key.
    pub key: u64,
    /// SPI in packets.
    pub spi: u32,
    /// The limits in use.
    pub limits: Limits,
}

/// What a host is.
pub struct Host {
    /// Member id; peers are members of clusters of one.
    pub member: u8,
    /// CPUs that serve SAs.
    pub cpus: u32,
    /// Frames arrive on all of them in turn, not on the first one only; and there are slots for a Child SA on each.
    pub per_cpu: bool,
    /// MAC addresses, outside and inside.
    pub macs: ([u8; 6], [u8; 6]),
    /// Key of the steering hash.
    pub steer_key: [u64; 2],
    /// Cluster addresses: value, side, segment.
    pub addresses: Vec<(u32, u8, u8)>,
}

impl Host {
    /// Slots of SAs.
    pub fn slots(&self) -> u32 {
        if self.per_cpu { 8 * SLOTS } else { SLOTS }
    }
}

/// Names a key by its octets, whatever SPI or slot it sits in.
fn key_name(key: &SaKey) -> u64 {
    let salt = u64::from(u32::from_le_bytes(key.salt));
    key.schedule[..8]
        .iter()
        .fold(salt, |h, word| crate::rng::mix(h, *word))
}

impl Plane {
    /// Empty maps; nobody owns any segment.
    pub fn new(host: &Host, sabotage: Option<Sabotage>) -> Self {
        let address = |side| host.addresses.iter().find(|a| a.1 == side).map_or(0, |a| a.0);
        Self {
            local: Local {
                steer_key: host.steer_key,
                member: u32::from(host.member),
                cpus: host.cpus,
                slots: host.slots(),
                own_device: OUTSIDE,
                outside_mtu: 1500,
                nat_t_port: 4500,
                ike_port: 500,
                inside_address: datapath::headers::mapped(address(SIDE_INSIDE)),
                inside_address_v6: [0; 16],
                virtual_mac: [0; 6],
                reserved: [0; 2],
            },
            ports: [
                port(OUTSIDE, OUTSIDE_PORT, SIDE_OUTSIDE, host.macs.0),
                port(INSIDE, INSIDE_PORT, SIDE_INSIDE, host.macs.1),
            ],
            maps: MemoryPlane::new(host.slots()),
            segments: vec![(0, 0); 256],
            members: BTreeMap::new(),
            addresses: host
                .addresses
                .iter()
                .map(|(value, side, segment)| {
                    let address = ClusterAddress {
                        side: *side,
                        segment: *segment,
                        ports: 1
                            << if *side == SIDE_INSIDE {
                                INSIDE_PORT
                            } else {
                                OUTSIDE_PORT
                            },
                    };
                    (*value, address)
                })
                .collect(),
            area: None,
            events: Vec::new(),
            slow: Vec::new(),
            verdicts: BTreeMap::new(),
            acquired: BTreeMap::new(),
            sabotage,
            lost: 0,
            arrivals: (if host.per_cpu { host.cpus } else { 1 }, 0),
            written: false,
        }
    }

    /// Whether maps or owner words were written since this was asked last.
    pub fn was_written(&mut self) -> bool {
        std::mem::take(&mut self.written)
    }

    /// The lease of the SA in a slot, as a program would read it.
    pub fn lease(&self, slot: u32) -> Option<Lease> {
        let sa = self.maps.outbound.get(slot as usize).filter(|sa| sa.spi != 0)?;
        let (limits, _) = datapath::limits::read(&sa.limits).ok()?;
        let key = self.maps.keys_out.get(slot as usize).map_or(0, key_name);
        Some(Lease {
            key,
            spi: sa.spi,
            limits,
        })
    }

    /// Notes where a member's frames go.
    pub fn set_member(&mut self, member: u8, macs: Member) {
        self.members.insert(member, macs);
    }

    /// Stores both words of a segment.
    pub fn flip(&mut self, segment: u8, word: OwnerWord, side: SideWord) {
        self.written = true;
        self.segments[usize::from(segment)] = (word.pack(), side.pack());
    }

    /// The owner word of a segment.
    pub fn word(&self, segment: u8) -> OwnerWord {
        OwnerWord::unpack(self.segments[usize::from(segment)].0)
    }

    /// What goes with it.
    pub fn side(&self, segment: u8) -> SideWord {
        SideWord::unpack(self.segments[usize::from(segment)].1)
    }

    /// Raises valid-until where the word names this owner and epoch.
    pub fn extend_validity(&mut self, segment: u8, owner: u8, epoch: u16, until_ms: u64) -> bool {
        let cell = &mut self.segments[usize::from(segment)].0;
        let mut word = OwnerWord::unpack(*cell);
        if word.owner != owner || word.epoch != epoch {
            return false;
        }
        word.valid_until_ms = word.valid_until_ms.max(until_ms);
        *cell = word.pack();
        true
    }

    /// Carries a plan out.
    ///
    /// # Errors
    /// It names a slot that does not exist.
    pub fn execute(&mut self, plan: &MapPlan) -> Result<(), PlanError> {
        self.written |= !plan.is_empty();
        self.maps.execute(plan)
    }

    /// Counters of a slot.
    pub fn counters(&self, slot: u32) -> Option<SaCounters> {
        self.maps.counters(slot)
    }

    /// The program `sa_ctl`.
    pub fn merge_window(&mut self, now: Instant, window: &FinalWindow) -> u32 {
        let (cpu, _) = slot_place(window.slot, self.local.cpus);
        let (view, code) = {
            let maps = self.maps();
            let view = view(&maps, Vec::new(), cpu, now, false);
            let code = datapath::control::merge_final_window(&view, window);
            (Effects::of(view), code)
        };
        self.absorb(view);
        code
    }

    fn maps(&self) -> PlaneMaps<'_> {
        PlaneMaps {
            local: &self.local,
            ports: &self.ports,
            maps: &self.maps,
            segments: &self.segments,
            members: &self.members,
            addresses: &self.addresses,
            acquired: &self.acquired,
            slow_room: self.slow.len() < RING,
            sabotage: self.sabotage,
        }
    }

    fn absorb(&mut self, effects: Effects) -> Vec<u8> {
        if let (Some(slot), window) = effects.window
            && let Some(runtime) = self.maps.runtime.get_mut(slot as usize)
        {
            runtime.inbound = window;
        }
        if let Some((slot, counters)) = effects.counters
            && let Some(runtime) = self.maps.runtime.get_mut(slot as usize)
        {
            runtime.outbound = counters;
        }
        if let Some(connection) = effects.acquired {
            self.acquired.insert(connection, effects.now_ns);
        }
        for event in effects.events {
            if self.events.len() < RING {
                self.events.push(event);
            } else {
                self.lost += 1;
            }
        }
        self.slow.extend(effects.slow);
        effects.frame
    }

    /// Runs a frame that arrived on an interface.
    pub fn run(&mut self, now: Instant, inside: bool, octets: Vec<u8>) -> Outcome {
        let mut area = self.area.take().unwrap_or_else(|| {
            Box::new(Area {
                cipher: Scratch::default(),
                work: Work::EMPTY,
            })
        });
        let outcome = self.run_in(&mut area, now, inside, octets);
        self.area = Some(area);
        outcome
    }

    fn run_in(&mut self, area: &mut Area, now: Instant, inside: bool, octets: Vec<u8>) -> Outcome {
        let (cpus, number) = &mut self.arrivals;
        *number = number.wrapping_add(1);
        let arrives = *number % (*cpus).max(1);
        let effects = {
            let maps = self.maps();
            let view = view(&maps, octets, arrives, now, inside);
            program(&view, area, inside, true);
            Effects::of(view)
        };
        let mut octets = self.absorb(effects);
        if area.work.action == ACTION_CPU {
            let cpu = area.work.target;
            let effects = {
                let maps = self.maps();
                let view = view(&maps, octets, cpu, now, inside);
                program(&view, area, inside, false);
                Effects::of(view)
            };
            octets = self.absorb(effects);
        }
        let work = &area.work;
        let verdict = Verdict::from_number(work.verdict).unwrap_or(Verdict::InternalError);
        *self.verdicts.entry(work.verdict).or_default() += 1;
        let esp = match verdict {
            Verdict::EspOpened | Verdict::OpenedLenient => Some(Esp {
                opened: true,
                lenient: verdict == Verdict::OpenedLenient,
                spi: work.spi,
                seq: work.seq,
                key: self.maps.keys_in.get(work.slot as usize).map_or(0, key_name),
                epoch: work.epoch,
                iv: 0,
            }),
            Verdict::EspSealed => Some(Esp {
                opened: false,
                lenient: false,
                spi: work.spi,
                seq: work.seq,
                key: self.maps.keys_out.get(work.slot as usize).map_or(0, key_name),
                epoch: work.epoch,
                // The whole IV of an AEAD; of AES-CBC's, which looks random, enough to tell two apart.
                iv: u64::from_be_bytes(std::array::from_fn(|at| area.cipher.iv[at])),
            }),
            _ => None,
        };
        match work.action {
            ACTION_PASS => Outcome::Stack(verdict, octets),
            ACTION_TRANSMIT => Outcome::Send {
                ifindex: if inside { INSIDE } else { OUTSIDE },
                octets,
                esp,
            },
            ACTION_REDIRECT => Outcome::Send {
                ifindex: work.target,
                octets,
                esp,
            },
            _ => Outcome::Gone(verdict),
        }
    }
}

fn program(view: &View<'_>, area: &mut Area, inside: bool, may_move: bool) {
    if inside {
        run_inside(view, area, may_move);
    } else {
        run_outside(view, area, may_move);
    }
}
