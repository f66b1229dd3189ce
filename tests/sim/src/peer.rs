//! A peer: the real engine, SA database and programs as a gateway that stands alone, behind a strict and narrow replay window.

use crate::around::{Around, Clock};
use crate::entry::EntryChange;
use crate::frames::{self, IkeDatagram, Packet};
use crate::member::{Cx, Effect};
use crate::plane::{Host, OUTSIDE_ROUTER, Outcome, Plane};
use crate::rng::Rng;
use ike::{Command, Engine, EngineConfig, Transmit};
use maps_schema::segment::{OwnerWord, SEGMENT_ALONE, SideWord, VALID_UNTIL_MASK};
use model::{Epoch, EspSpi, InitialLimits, Instant, MemberId};
use sad::{Context, Sad, Settings};
use std::collections::BTreeMap;
use std::time::Duration;

/// A peer.
pub struct Peer {
    /// Its number, from 1.
    pub number: u8,
    /// The engine.
    pub engine: Engine,
    /// Its SAs.
    pub sad: Sad,
    plane: Plane,
    rng: Rng,
    /// Width of the replay window.
    pub window: u64,
    highest: BTreeMap<u64, u64>,
    /// Packets that the narrow window refused.
    pub too_old: u64,
    /// It initiates the connection.
    pub initiates: bool,
    redial: (Instant, u32),
    next_second: Instant,
    steer_key: [u64; 2],
    mac: [u8; 6],
    clock: Option<Clock>,
}

/// What a peer is made of.
pub struct PeerConfig {
    /// From 1.
    pub number: u8,
    /// Outside address.
    pub address: u32,
    /// Engine.
    pub engine: EngineConfig,
    /// Policies.
    pub policies: Vec<sad::Policy>,
    /// Width of the replay window.
    pub window: u64,
    /// It initiates.
    pub initiates: bool,
    /// Its wall clock, where its connection asks for it.
    pub clock: Option<Clock>,
    /// CPUs.
    pub cpus: u32,
    /// Child SAs for each.
    pub per_cpu: bool,
}

impl Peer {
    /// A peer without SAs.
    pub fn new(config: PeerConfig, rng: Rng, now: Instant) -> Self {
        let steer_key = [1, u64::from(config.number)];
        let mac = [2, 0, 0, 0, 2, config.number];
        let mut plane = Plane::new(
            &Host {
                member: 1,
                cpus: config.cpus,
                per_cpu: config.per_cpu,
                macs: (mac, [2, 0, 0, 0, 3, config.number]),
                steer_key,
                addresses: vec![(config.address, maps_schema::steer::SIDE_OUTSIDE, 0)],
            },
            None,
        );
        for segment in 0..=255 {
            let word = OwnerWord {
                owner: 1,
                epoch: 1,
                valid_until_ms: VALID_UNTIL_MASK,
            };
            let side = SideWord {
                flags: SEGMENT_ALONE,
                ..SideWord::default()
            };
            plane.flip(segment, word, side);
        }
        let mut rng = rng;
        let mut sad = Sad::new(Settings {
            member: MemberId(1),
            max_slots: if config.per_cpu {
                8 * crate::plane::SLOTS
            } else {
                crate::plane::SLOTS
            },
            cpus: config.cpus,
            first_generation: rng.range(1, 200) as u8,
            outside_mtu: 1500,
            detection: Duration::from_millis(100),
            lifetimes: sad::lifetime::Lifetimes::NONE,
        });
        let plan = sad.configure(config.policies).expect("the policies fit");
        plane.execute(&plan).expect("the maps are there");
        Self {
            number: config.number,
            engine: Engine::new(config.engine),
            sad,
            plane,
            rng,
            window: config.window,
            highest: BTreeMap::new(),
            too_old: 0,
            initiates: config.initiates,
            redial: (now, 0),
            next_second: now,
            steer_key,
            mac,
            clock: config.clock,
        }
    }

    /// The next time at which it has something to do by itself.
    pub fn next_wake(&self) -> Instant {
        self.engine
            .next_timeout()
            .map_or(self.next_second, |at| at.min(self.next_second))
    }

    /// Timers.
    pub fn turn(&mut self, cx: &mut Cx<'_>) {
        let now = cx.now;
        if self.engine.next_timeout().is_some_and(|at| at <= now) {
            self.input(cx, ike::Input::Timeout { now });
        }
        if self.next_second <= now {
            self.next_second = now + Duration::from_millis(500);
            let down = self.engine.connection_phase(&self.connection()) == ike::ConnectionPhase::Down;
            if self.initiates && down && self.redial.0 <= now {
                let pause = Duration::from_millis(500 << self.redial.1.min(2));
                self.redial = (now + pause, self.redial.1 + 1);
                self.initiate(cx);
            }
        }
    }

    /// Name of its connection, on both sides.
    pub fn connection(&self) -> String {
        format!("peer{}", self.number)
    }

    fn initiate(&mut self, cx: &mut Cx<'_>) {
        let connection = self.connection();
        self.command(cx, Command::Initiate { connection });
    }

    /// An operator at the peer wants something.
    pub fn command(&mut self, cx: &mut Cx<'_>, command: Command) {
        let now = cx.now;
        self.input(cx, ike::Input::Command { now, command });
    }

    fn input(&mut self, cx: &mut Cx<'_>, input: ike::Input<'_>) {
        let mut drawn = Vec::new();
        let epoch_of = |_| Some(Epoch(1));
        let plane = &self.plane;
        let counters = |slot| plane.counters(slot);
        let mut around = Around {
            sad: &mut self.sad,
            rng: &mut self.rng,
            member: MemberId(1),
            epoch_of: &epoch_of,
            steer_key: self.steer_key,
            limits: InitialLimits {
                lease: 1 << 20,
                lease_step: 1 << 20,
                ceiling: 1 << 20,
                headroom: 1 << 20,
            },
            drawn: &mut drawn,
            now: cx.now,
            unix_time: self.clock.map(|clock| clock.unix_time(cx.now)),
            counters: &counters,
            advances: Vec::new(),
            guests: None,
        };
        self.engine.handle(input, &mut around);
        for raise in around.advances {
            if let Ok(plan) = self.sad.apply_raise(&raise, cx.now) {
                self.plane.execute(&plan).expect("every slot is there");
            }
        }
        while let Some(output) = self.engine.poll() {
            match output {
                ike::Output::Commit(commit) => {
                    for change in commit.changes {
                        self.apply(cx.now, &EntryChange::from(change));
                    }
                    for transmit in commit.transmits {
                        self.transmit(cx, &transmit);
                    }
                }
                ike::Output::Transmit(transmit) => self.transmit(cx, &transmit),
                ike::Output::Sign(_) | ike::Output::Tls(_) => {
                    unreachable!("connections here use pre-shared keys")
                }
                ike::Output::Compute(_) => unreachable!("this engine computes its key exchanges itself"),
                ike::Output::Event(event) => {
                    cx.trace.note(
                        cx.now,
                        "peer-ike",
                        [u64::from(self.number), event.kind as u64],
                        || format!("peer {}: {event}", self.number),
                    );
                    if event.kind == ike::EventKind::Established {
                        self.redial = (cx.now, 0);
                    }
                    cx.watch.peer_event(cx.now, self.number, &event);
                }
            }
        }
    }

    fn apply(&mut self, now: Instant, change: &EntryChange) {
        let EntryChange::Child(change) = change else {
            return;
        };
        if let model::ChildSaChange::Remove { spi_in } = change
            && self.sad.get(*spi_in).is_none()
        {
            return;
        }
        let context = Context {
            now,
            epoch: Epoch(1),
            alone: true,
        };
        if let Ok(plan) = self.sad.apply(change, context) {
            self.plane.execute(&plan).expect("every slot is there");
        }
    }

    fn transmit(&mut self, cx: &mut Cx<'_>, transmit: &Transmit) {
        cx.watch.peer_ike_sent(cx.now, &transmit.bytes);
        let octets = frames::ike(
            OUTSIDE_ROUTER,
            self.mac,
            transmit.local,
            transmit.remote,
            &transmit.bytes,
        );
        cx.effects.push(Effect::Frame {
            ifindex: crate::plane::OUTSIDE,
            octets,
        });
    }

    /// A host behind the peer sends.
    pub fn send(&mut self, cx: &mut Cx<'_>, packet: Packet) {
        let frame = packet.frame([2, 0, 0, 0, 3, self.number], crate::plane::INSIDE_ROUTER);
        match self.plane.run(cx.now, true, frame) {
            Outcome::Send { ifindex, octets, .. } => {
                cx.watch.peer_sent(cx.now, packet);
                cx.effects.push(Effect::Frame { ifindex, octets });
            }
            Outcome::Gone(_) | Outcome::Stack(..) => {}
        }
        let asked = std::mem::take(&mut self.plane.events);
        if self.initiates
            && asked.iter().any(|e| e.kind == maps_schema::event::EVENT_ACQUIRE)
            && self.engine.connection_phase(&self.connection()) == ike::ConnectionPhase::Partial
        {
            self.initiate(cx);
        }
        self.plane.slow.clear();
    }

    /// A frame arrives on the outside.
    pub fn frame(&mut self, cx: &mut Cx<'_>, mut octets: Vec<u8>) {
        frames::readdress(&mut octets, self.mac, OUTSIDE_ROUTER);
        match self.plane.run(cx.now, false, octets) {
            Outcome::Stack(_, octets) => {
                if let Some(IkeDatagram { local, remote, bytes }) = frames::read_ike(&octets) {
                    let now = cx.now;
                    let input = ike::Input::Datagram {
                        now,
                        local,
                        remote,
                        bytes: &bytes,
                    };
                    self.input(cx, input);
                }
            }
            Outcome::Send {
                octets,
                esp: Some(esp),
                ..
            } if esp.opened => {
                // RFC 4303 3.4.3, with the width that this peer has.
                let highest = self.highest.entry(esp.key).or_insert(0);
                if esp.seq + self.window <= *highest {
                    self.too_old += 1;
                    return;
                }
                *highest = (*highest).max(esp.seq);
                if let Some(packet) = Packet::read(&octets) {
                    cx.watch.delivered(cx.now, packet);
                }
            }
            Outcome::Send { .. } | Outcome::Gone(_) => {}
        }
        self.plane.events.clear();
        self.plane.slow.clear();
    }

    /// One of its Child SAs.
    pub fn any_child(&mut self) -> Option<EspSpi> {
        let all: Vec<EspSpi> = self.sad.iter().map(|e| e.record.spi_in).collect();
        self.rng.pick(&all).copied()
    }

    /// One of its IKE SAs.
    pub fn any_ike(&mut self) -> Option<model::IkeSpi> {
        let all: Vec<_> = self
            .engine
            .status()
            .into_iter()
            .filter(|sa| sa.phase == "established")
            .map(|sa| sa.spi)
            .collect();
        self.rng.pick(&all).copied()
    }
}
