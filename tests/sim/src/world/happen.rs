//! Events, one by one.

use super::{Item, State, What, World};
use crate::faults::Fault;
use crate::frames;
use crate::net::Road;
use crate::peer::Peer;
use crate::rng::digest;
use cluster::guest::GuestBody;
use cluster::message::Message;
use cluster::{Command, Input};
use model::{Instant, MemberId};
use std::time::Duration;

impl World {
    pub(super) fn happen(&mut self, what: What) {
        match what {
            What::Turn(member, life) => {
                let now = self.now;
                let seat = self.seat(member);
                if seat.life == life && seat.state == State::Up && seat.turn == now {
                    seat.turn = Instant(u64::MAX);
                    self.trace.steps += 1;
                    self.step(member, |m, cx| m.turn(cx));
                }
            }
            What::PeerTurn(peer) => {
                self.peer_step(peer, |p, cx| p.turn(cx));
                let at = self.peers[usize::from(peer) - 1].next_wake();
                let at = at.max(self.now + Duration::from_millis(1));
                self.put(at, What::PeerTurn(peer));
            }
            What::Record {
                from,
                to,
                link,
                connection,
                bytes,
            } => {
                self.trace
                    .note(self.now, "record", [digest(&bytes), u64::from(to)], || {
                        describe(from, to, link, &bytes)
                    });
                self.hand(
                    to,
                    Item::Record {
                        from,
                        link,
                        connection,
                        bytes,
                    },
                );
            }
            What::LinkLost {
                member,
                life,
                peer,
                link,
                connection,
            } => {
                if self.seat(member).life == life {
                    let up = false;
                    self.hand(
                        member,
                        Item::Link {
                            peer,
                            link,
                            connection,
                            up,
                        },
                    );
                }
            }
            What::Frame { to, inside, octets } => self.frame(to, inside, octets),
            What::PeerFrame { to, octets } => {
                self.trace
                    .note(self.now, "to-peer", [digest(&octets), u64::from(to)], || {
                        format!("peer {to}: {}", show(&octets))
                    });
                self.peer_step(to, |p, cx| p.frame(cx, octets));
                let at = self.peers[usize::from(to) - 1].next_wake();
                if at <= self.now {
                    self.peer_step(to, |p, cx| p.turn(cx));
                }
            }
            What::Late { member, life, item } => {
                let seat = self.seat(member);
                if seat.life == life {
                    match seat.state {
                        State::Up => self.take(member, item),
                        State::Paused => seat.inbox.push_back(item),
                        State::AgentDead | State::Down => {}
                    }
                }
            }
            What::Traffic { peer, outbound } => self.traffic(peer, outbound),
            What::Fault(at) => {
                let fault = self.schedule[at].1.clone();
                self.note_fault(&fault);
                self.fault(&fault);
            }
            What::EngineRuns {
                member,
                life,
                token,
                group,
                op,
                answer,
            } => {
                let wrote = self.etcd.history.len();
                let said = self.etcd.run(self.now, group, &op);
                if let Some(at) = answer {
                    self.put(
                        at,
                        What::EngineAnswers {
                            member,
                            life,
                            token,
                            answer: said,
                        },
                    );
                }
                if self.etcd.history.len() > wrote {
                    self.tell_all(group);
                }
            }
            What::EngineAnswers {
                member,
                life,
                token,
                answer,
            } => {
                if self.seat(member).life == life {
                    self.trace
                        .note(self.now, "answer", [u64::from(member), token], || {
                            format!("member {member} hears of the engine: {answer:?}")
                        });
                    self.hand(member, Item::Answer { token, answer });
                }
            }
            What::EngineTells {
                member,
                life,
                group,
                record,
            } => {
                if self.seat(member).life == life {
                    self.hand(member, Item::Tells { group, record });
                }
            }
            What::Look => self.look(),
        }
    }

    /// Watch events: late, and now and then missing.
    fn tell_all(&mut self, group: model::GroupId) {
        let record = self.etcd.get(group).cloned();
        for member in self.members() {
            if self.etcd.down || !self.net.open(0, member, Road::Engine) || self.rng.permille(50) {
                continue;
            }
            let late = Duration::from_micros(self.rng.range(300, 4000))
                + Duration::from_millis(self.rng.below(self.etcd.slow_ms + 1));
            let life = self.seat(member).life;
            let record = record.clone();
            self.put(
                self.now + late,
                What::EngineTells {
                    member,
                    life,
                    group,
                    record,
                },
            );
        }
    }

    fn frame(&mut self, to: u8, inside: bool, octets: Vec<u8>) {
        self.trace
            .note(self.now, "frame", [digest(&octets), u64::from(to)], || {
                format!(
                    "member {to}, {}: {}",
                    if inside { "inside" } else { "outside" },
                    show(&octets)
                )
            });
        let state = self.seat(to).state;
        if state == State::Down {
            return;
        }
        let mut datagram = None;
        self.step(to, |m, cx| {
            datagram = m.frame(cx, inside, octets, state == State::Up);
        });
        if let Some(ike) = datagram.as_deref().and_then(frames::read_ike) {
            self.hand(to, Item::Ike(ike));
        }
    }

    fn traffic(&mut self, peer: u8, outbound: bool) {
        if self.quiet() {
            return;
        }
        self.send(peer, outbound);
        let mean = self.setup.peers[usize::from(peer) - 1].interval_us[usize::from(outbound)];
        let next = self.now + Duration::from_micros(self.rng.range(mean / 4 + 1, mean * 7 / 4 + 1));
        self.put(next, What::Traffic { peer, outbound });
    }

    fn send(&mut self, peer: u8, outbound: bool) {
        let packet = self.packet(peer, outbound);
        if outbound {
            let frame = packet.frame([0; 6], [0; 6]);
            self.watch.entered(self.now, packet);
            self.enter_cluster(peer, frame, true);
        } else {
            self.peer_step(peer, |p, cx| p.send(cx, packet));
        }
    }

    pub(super) fn command(&mut self, member: u8, command: Command) {
        if self.seat(member).state == State::Up {
            let now = self.now;
            self.step(member, |m, cx| m.node_input(cx, Input::Command { now, command }));
        }
    }

    fn trouble(&mut self) {
        let slow = self.seats.iter().any(|s| !s.slow.is_zero());
        let members: Vec<u8> = self.members().collect();
        let cut = members
            .iter()
            .any(|a| members.iter().any(|b| a != b && self.net.any_cut(*a, *b)));
        self.watch.truth.trouble(self.now, slow || cut);
    }

    fn fault(&mut self, fault: &Fault) {
        match *fault {
            Fault::KillHost(m) => self.kill(m, true),
            Fault::KillAgent(m) => self.kill(m, false),
            Fault::Start(m) => self.start(m),
            Fault::Pause(m) => self.pause(m),
            Fault::Resume(m) => self.resume(m),
            Fault::Slow(m, ms) => {
                self.seat(m).slow = Duration::from_millis(ms);
                self.trouble();
            }
            Fault::Cut(from, to, road) => {
                self.net.set_cut(from, to, road, true);
                self.trouble();
            }
            Fault::Mend(from, to, road) => {
                self.net.set_cut(from, to, road, false);
                self.trouble();
            }
            Fault::Weather(road, weather) => self.net.set(road, weather),
            Fault::EngineDown(down) => self.etcd.down = down,
            Fault::EngineSlow { ms, lost } => (self.etcd.slow_ms, self.etcd.lost_answers) = (ms, lost),
            Fault::TakeoverTo(to) => {
                let command = Command::TakeoverTo {
                    to: MemberId(to),
                    group: None,
                };
                self.command(to, command);
            }
            Fault::Drain(m, on) => self.command(m, if on { Command::Drain } else { Command::Undrain }),
            Fault::Rebalance => self.command(1, Command::Rebalance),
            Fault::PeerRekeysChild(p) => self.peer_step(p, |p, cx| {
                if let Some(spi_in) = p.any_child() {
                    p.command(cx, ike::Command::RekeyChild { spi_in });
                }
            }),
            Fault::PeerRekeysIke(p) => self.peer_step(p, |p, cx| {
                if let Some(spi) = p.any_ike() {
                    p.command(cx, ike::Command::RekeyIke { spi });
                }
            }),
            Fault::PeerDeletesChild(p) => self.peer_step(p, |p, cx| {
                if let Some(spi_in) = p.any_child() {
                    p.command(cx, ike::Command::DeleteChild { spi_in });
                }
            }),
            Fault::PeerCloses(p) => self.peer_step(p, |p, cx| {
                let connection = p.connection();
                p.command(cx, ike::Command::Terminate { connection });
            }),
            Fault::PeerRestarts(p) => {
                let at = usize::from(p) - 1;
                let rng = self.rng.fork(self.now.0);
                self.peers[at] = Peer::new(self.setup.peers[at].peer(), rng, self.now);
            }
            Fault::Replay => {
                // To every member: whoever is on that network may choose.
                for (_, octets) in self.captured.clone() {
                    for to in self.members() {
                        let mut octets = octets.clone();
                        frames::readdress(
                            &mut octets,
                            crate::plane::outside_mac(to),
                            crate::plane::OUTSIDE_ROUTER,
                        );
                        let at = self.now + Duration::from_micros(self.rng.below(2000));
                        let inside = false;
                        self.put(at, What::Frame { to, inside, octets });
                    }
                }
            }
            Fault::Garbage => self.garbage(),
            Fault::StaleRecords => {
                for (from, to, link, connection, bytes) in self.datagrams.clone() {
                    let at = self.now + Duration::from_micros(self.rng.below(3000));
                    self.put(
                        at,
                        What::Record {
                            from,
                            to,
                            link,
                            connection,
                            bytes,
                        },
                    );
                }
            }
            Fault::Burst(peer) => {
                for _ in 0..self.rng.range(10, 120) {
                    self.send(peer, true);
                    self.send(peer, false);
                }
            }
        }
    }

    /// Records that cannot be read: made up, cut short, of another version, with octets behind the end.
    fn garbage(&mut self) {
        for _ in 0..8 {
            let Some((from, to, link, _, bytes)) = self.rng.pick(self.datagrams.make_contiguous()).cloned()
            else {
                return;
            };
            let mut bytes = bytes;
            match self.rng.below(5) {
                0 => bytes.truncate(self.rng.below(bytes.len() as u64) as usize),
                1 => bytes[0] = self.rng.word() as u8,
                2 => bytes.push(0),
                3 => {
                    let len = self.rng.range(1, 200) as usize;
                    bytes = vec![0; len];
                    self.rng.fill(&mut bytes);
                    bytes[0] = cluster::message::VERSION;
                }
                _ => bytes = vec![0xff; self.rng.below(40) as usize],
            }
            if Message::decode(&bytes).is_ok() || self.seat(to).state != State::Up {
                continue;
            }
            let before = self.state_of(to);
            self.step(to, |m, cx| m.record(cx, MemberId(from), link, bytes));
            let after = self.state_of(to);
            self.watch.garbage(self.now, MemberId(to), before, after);
        }
    }

    /// Digest of all that a record could change at a member.
    fn state_of(&mut self, member: u8) -> u64 {
        let Some(m) = self.seat(member).member.as_ref() else {
            return 0;
        };
        let status = m.node.status();
        let mut text = format!("{:?}{}{:?}", status.groups, status.draining, m.ownership);
        for group in m.layout.groups() {
            for (name, octets) in crate::check::mirror_of(m, group) {
                text.push_str(&format!("{name}{:x}", digest(&octets)));
            }
        }
        digest(text.as_bytes())
    }
}

fn describe(from: u8, to: u8, link: cluster::Link, bytes: &[u8]) -> String {
    use cluster::message::{Body, GroupBody};
    let body = match Message::decode(bytes) {
        Err(error) => error.to_string(),
        Ok(message) => match message.body {
            // Far too many to be of interest.
            Body::Heartbeat(_) => return String::new(),
            Body::Hello { .. } => "hello".to_owned(),
            Body::Group { group, epoch, body } => {
                let name = match body {
                    GroupBody::Journal { position, .. } => format!("journal {position}"),
                    GroupBody::JournalAck { position } => format!("journal ack {position}"),
                    GroupBody::Raise { items, .. } => format!("raise {items:?}"),
                    GroupBody::RaiseAck { armed, .. } => format!("raise ack {armed:?}"),
                    GroupBody::NewEpoch { position, .. } => format!("new epoch at {position}"),
                    GroupBody::EpochAck { position, .. } => format!("epoch ack at {position}"),
                    GroupBody::Report(_) => "report".to_owned(),
                    GroupBody::JoinRequest { join } => format!("join request {join}"),
                    GroupBody::SnapshotBegin { position, .. } => format!("snapshot at {position}"),
                    GroupBody::SnapshotChunk(chunk) => format!("snapshot chunk of {}", chunk.len()),
                    GroupBody::SnapshotAck { position, .. } => format!("snapshot ack {position}"),
                    GroupBody::Joined { .. } => "joined".to_owned(),
                    GroupBody::JoinRefused { reason } => format!("join refused: {reason}"),
                    GroupBody::SoloNotice { join } => format!("solo notice after join {join}"),
                    GroupBody::HandoverOffer { .. } => "handover offer".to_owned(),
                    GroupBody::HandoverArmed => "handover armed".to_owned(),
                    GroupBody::HandoverFlipped => "handover flipped".to_owned(),
                    GroupBody::HandoverClosing => "handover closing".to_owned(),
                    GroupBody::HandoverHolding => "handover holding".to_owned(),
                    GroupBody::HandoverWindows(_) => "handover windows".to_owned(),
                    GroupBody::HandoverDone => "handover done".to_owned(),
                    GroupBody::HandoverAborted { reason } => format!("handover aborted: {reason}"),
                    GroupBody::Guest(body) => describe_guest(&body),
                    _ => "handover request".to_owned(),
                };
                format!("group {group} epoch {}/{}: {name}", epoch.number, epoch.owner)
            }
            #[allow(unreachable_patterns)]
            _ => "another record".to_owned(),
        },
    };
    format!("{from} -> {to} over {link:?}: {body}")
}

fn describe_guest(body: &GuestBody) -> String {
    match body {
        GuestBody::Offer { number, spis } => format!("offer {number} of {} SPIs", spis.len()),
        GuestBody::Change {
            voice,
            spi_in,
            changes,
        } => format!("{} changes {} of guest {spi_in}", changes.len(), voice.number),
        GuestBody::Answer { spi_in, number, done } => format!("answer {number} about guest {spi_in}: {done}"),
        GuestBody::Roster { voice, guests, .. } => {
            format!("roster {} of group {}: {guests:?}", voice.number, voice.group)
        }
        GuestBody::RosterSeen { number, lacking } => format!("roster {number} seen, lacking {lacking:?}"),
        GuestBody::Wish { spi_in, wish } => format!("wish for guest {spi_in}: {wish:?}"),
    }
}

fn show(octets: &[u8]) -> String {
    if frames::is_esp(octets) {
        let at = if octets.get(23) == Some(&50) { 34 } else { 42 };
        let word = |at: usize| {
            octets
                .get(at..at + 4)
                .map_or(0, |w| u32::from_be_bytes([w[0], w[1], w[2], w[3]]))
        };
        return format!("ESP {:08x} number {}", word(at), word(at + 4));
    }
    if let Some(packet) = frames::Packet::read(octets) {
        return format!("{packet:?}");
    }
    match frames::read_ike(octets) {
        Some(ike) if ike.bytes.len() >= 28 => format!(
            "IKE exchange {} {} {}",
            ike.bytes[18],
            if ike.bytes[19] & 0x20 != 0 {
                "response"
            } else {
                "request"
            },
            u32::from_be_bytes([ike.bytes[20], ike.bytes[21], ike.bytes[22], ike.bytes[23]])
        ),
        _ => format!("{} octets", octets.len()),
    }
}
