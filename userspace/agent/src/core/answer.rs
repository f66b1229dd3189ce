//! Answers to the control socket.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster::NodeStatus;
use cluster::status::Role;
use ike::{Command, ConnectionPhase};
use maps_schema::segment::SEGMENTS;
use model::{EspSpi, Instant, MemberId, TrafficSelector};
use sad::SaEntry;

use super::Core;
use super::orders::{Goal, Part};
use super::slow::COUNTS;
use crate::api::{ChildSa, ConnectionStatus, IkeSa, JournalStatus, MemberStatus, RekeyRequest, Status};
use crate::clock;
use crate::control::{Outcome, Request};
use crate::metrics::{Sample, SynchSample};

/// A stopping agent waits no longer than this for the end of its handover.
const LEAVE: Duration = Duration::from_secs(3);

/// Where the outcome of a command goes.
type Answer = tokio::sync::oneshot::Sender<Outcome>;

/// A selector as an operator writes it.
fn selector(ts: &TrafficSelector) -> String {
    let mut text = crate::config::prefixes(ts)
        .iter()
        .map(|(network, length)| format!("{network}/{length}"))
        .collect::<Vec<_>>()
        .join("+");
    if ts.protocol != 0 || (ts.first_port, ts.last_port) != (0, u16::MAX) {
        let ports = match (ts.first_port, ts.last_port) {
            (0, u16::MAX) => String::new(),
            (first, last) if first == last => format!("/{first}"),
            (first, last) => format!("/{first}-{last}"),
        };
        text.push_str(&format!("[{}{ports}]", ts.protocol));
    }
    text
}

fn suite(entry: &SaEntry) -> String {
    match entry.record.suite {
        model::EspSuite::Aes128Gcm16 => "aes128gcm16",
        model::EspSuite::Aes256Gcm16 => "aes256gcm16",
        model::EspSuite::ChaCha20Poly1305 => "chacha20poly1305",
    }
    .to_owned()
}

impl Core {
    /// Answers one wish. Whoever asked may be gone: then nobody reads the answer.
    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Status(answer) => drop(answer.send(self.status())),
            Request::Sas(answer) => drop(answer.send(self.sas())),
            Request::Events(answer) => drop(answer.send(self.log.all())),
            Request::Metrics(answer) => drop(answer.send(self.sample())),
            Request::Takeover(wish, answer) => self.take_over(wish.to, answer),
            Request::Rekey(wish, answer) => self.rekey(&wish, answer),
            Request::Liveness(wish, answer) => self.liveness(&wish.connection, answer),
            Request::ReloadPki(answer) => {
                drop(answer.send(self.synch.reload_files(&self.config.cluster.pki)));
            }
        }
    }

    /// A planned takeover; whoever asked hears of its end.
    fn take_over(&mut self, to: Option<u8>, answer: tokio::sync::oneshot::Sender<Outcome>) {
        let other = self.config.others().next().map(|m| m.id);
        // Without a name: from the owner to its standby, wherever the command was given.
        let to = match to {
            Some(id) => MemberId(id),
            None if self.owns() => match other {
                Some(other) => other,
                None => {
                    let _ = answer.send(Err(
                        "this cluster has one member: there is nobody to hand over to".to_owned(),
                    ));
                    return;
                }
            },
            None => self.me,
        };
        if !self.config.cluster.members.iter().any(|m| m.id == to) {
            let _ = answer.send(Err(format!("there is no member {to}")));
            return;
        }
        self.takeover.waiting.push((to, answer));
        self.node_input(cluster::Input::Command {
            now: clock::now(),
            command: cluster::Command::TakeoverTo(to),
        });
    }

    /// The agent is told to stop: hands over, if there is a standby. Returns when to go at the latest.
    pub(super) fn leave(&mut self) -> Instant {
        let now = clock::now();
        let standby = self
            .node
            .status()
            .in_sync
            .and_then(|set| set.into_iter().map(|m| m.member).find(|m| *m != self.me));
        match standby {
            Some(to) if self.owns() => {
                self.log
                    .note("stopping", format!("stopping: handing over to member {to} first"));
                self.node_input(cluster::Input::Command {
                    now,
                    command: cluster::Command::TakeoverTo(to),
                });
                now + LEAVE
            }
            _ => {
                self.log.note("stopping", "stopping");
                now
            }
        }
    }

    /// Whether another member owns the segments and needs nothing of this one any more.
    pub(super) fn has_left(&self) -> bool {
        let status = self.node.status();
        !self.owns() && !status.handover
    }

    fn role(&self) -> &'static str {
        match self.node.status().role {
            Role::Starting => "starting",
            Role::Active if self.node.is_alone() => "alone",
            Role::Active => "active",
            Role::Standby => "standby",
            Role::Joining => "joining",
        }
    }

    fn status(&self) -> Status {
        let (word, _) = self.segments.get(0);
        let valid_for_ms = word.valid_until_ms as i64 - (clock::now().millis() & ((1 << 40) - 1)) as i64;
        let node = self.node.status();
        let owner = node.epoch.owner.0;
        let synch = self.synch.counters();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut verdicts = BTreeMap::new();
        for count in self.plane.verdicts().unwrap_or_default() {
            *verdicts.entry(count.verdict.name().to_owned()).or_insert(0) += count.packets;
        }
        Status {
            channel: self.synch.status(),
            cluster: self.config.cluster.name.clone(),
            member: self.me.0,
            name: self.config.me().name.clone(),
            role: self.role().to_owned(),
            owner,
            epoch: node.epoch.number.0,
            incarnation: self.incarnation,
            in_sync: node.in_sync.iter().flatten().map(|m| m.member.0).collect(),
            valid_for_ms,
            uptime_s: clock::now().since(self.started).as_secs(),
            segments: (owner != 0)
                .then_some((owner, SEGMENTS as u32))
                .into_iter()
                .collect(),
            members: self.members(&node),
            journal: JournalStatus {
                position: node.position,
                committed: node.committed,
                synch_bytes_sent: load(&synch.stream_sent) + load(&synch.datagram_sent),
                synch_bytes_received: load(&synch.stream_received) + load(&synch.datagram_received),
            },
            connections: self
                .config
                .connections
                .iter()
                .map(|c| self.connection(c))
                .collect(),
            interfaces: self.attached.clone(),
            last_takeover: self.takeover.last.clone().map(|mut last| {
                last.evidence_rekeys = self.takeover.evidence_rekeys;
                last
            }),
            verdicts,
        }
    }

    fn members(&self, node: &NodeStatus) -> Vec<MemberStatus> {
        let now = clock::now();
        let member = |config: &crate::config::MemberConfig| {
            let peer = node.peers.iter().find(|p| p.member == config.id);
            let state = match peer {
                Some(p) if p.suspected => "suspected",
                Some(p) if p.alive => "up",
                _ => "down",
            };
            let up = peer.filter(|p| p.alive).into_iter().flat_map(|p| &p.links);
            MemberStatus {
                id: config.id.0,
                name: config.name.clone(),
                state: state.to_owned(),
                in_sync: node.in_sync.iter().flatten().any(|m| m.member == config.id),
                links_up: up
                    .map(|link| match link {
                        cluster::Link::Synch => "synch".to_owned(),
                        cluster::Link::Outside => "outside".to_owned(),
                    })
                    .collect(),
                last_heartbeat_ms: peer
                    .and_then(|p| p.last_heard)
                    .map(|at| now.since(at).as_millis() as u64),
                suspicion_ms: peer.map_or(0, |p| p.threshold_ms),
            }
        };
        self.config.others().map(member).collect()
    }

    fn connection(&self, config: &crate::config::ConnectionConfig) -> ConnectionStatus {
        let children = self
            .sad
            .iter()
            .filter(|e| e.record.connection == config.name)
            .count();
        let state = if self.owns() {
            match self.engine.connection_phase(&config.name) {
                ConnectionPhase::Down => "down",
                ConnectionPhase::Connecting | ConnectionPhase::Partial => "connecting",
                ConnectionPhase::Up => "up",
            }
        } else if children > 0 {
            "mirrored"
        } else {
            "down"
        };
        ConnectionStatus {
            name: config.name.clone(),
            state: state.to_owned(),
            remote: config.remote.map_or_else(|| "any".to_owned(), |r| r.to_string()),
            children: children as u32,
            reason: self.reasons.get(&config.name).filter(|_| state != "up").cloned(),
        }
    }

    fn sas(&self) -> Vec<IkeSa> {
        let mut out = Vec::new();
        let mut shown = std::collections::HashSet::new();
        for sa in self.engine.status() {
            let children = self
                .sad
                .iter()
                .filter(|e| e.record.ike_spi == sa.spi)
                .collect::<Vec<_>>();
            shown.extend(children.iter().map(|e| e.record.spi_in));
            out.push(IkeSa {
                connection: sa.connection.unwrap_or_default(),
                state: sa.phase.to_owned(),
                spi_local: sa.spi.to_string(),
                spi_remote: sa.peer_spi.to_string(),
                initiator: sa.initiator,
                local: sa.local.to_string(),
                remote: sa.remote.to_string(),
                remote_id: sa.remote_id.unwrap_or_default(),
                suite: sa.suite,
                age_s: Some(sa.age.as_secs()),
                next_request_id: sa.next_send,
                expected_request_id: sa.next_receive,
                children: children.into_iter().map(|e| self.child(e)).collect(),
            });
        }
        // On a standby the engine is empty: the mirror is shown by IKE SA.
        let mut mirrored: BTreeMap<_, Vec<&SaEntry>> =
            self.mirror.keys().map(|spi| (*spi, Vec::new())).collect();
        for entry in self.sad.iter().filter(|e| !shown.contains(&e.record.spi_in)) {
            mirrored.entry(entry.record.ike_spi).or_default().push(entry);
        }
        let served = out
            .iter()
            .map(|sa| sa.spi_local.clone())
            .collect::<std::collections::HashSet<_>>();
        for (spi, entries) in mirrored {
            // An owner's record without an SA waits only for the end of a deletion.
            if entries.is_empty() && (self.owns() || served.contains(&spi.to_string())) {
                continue;
            }
            let first = entries.first();
            out.push(IkeSa {
                connection: first.map(|e| e.record.connection.clone()).unwrap_or_default(),
                state: "mirrored".to_owned(),
                spi_local: spi.to_string(),
                local: first.map(|e| e.record.local.to_string()).unwrap_or_default(),
                remote: first.map(|e| e.record.remote.to_string()).unwrap_or_default(),
                children: entries.into_iter().map(|e| self.child(e)).collect(),
                ..IkeSa::default()
            });
        }
        out
    }

    fn child(&self, entry: &SaEntry) -> ChildSa {
        let counters = self.counters.counters(entry.slot()).unwrap_or_default();
        ChildSa {
            name: entry.record.child.clone(),
            spi_in: entry.record.spi_in.to_string(),
            spi_out: entry.record.spi_out.to_string(),
            suite: suite(entry),
            esn: entry.record.esn,
            udp_encap: entry.record.udp_encap,
            ts_local: entry.record.ts_local.iter().map(selector).collect(),
            ts_remote: entry.record.ts_remote.iter().map(selector).collect(),
            segment: entry.segment().0,
            cpu: self.plane.cpu_of(entry.slot()),
            packets_in: counters.inbound.packets,
            bytes_in: counters.inbound.bytes,
            packets_out: counters.outbound.packets,
            bytes_out: counters.outbound.bytes,
            edge: counters.inbound.edge,
            ceiling: self.ceiling_of(entry.slot()).unwrap_or(0),
            seq: counters.outbound.seq,
            lease: self.lease_of(entry.slot()).unwrap_or(0),
        }
    }

    /// What a rekey is about; the error says why there is nothing to do.
    fn rekey_parts(&self, wish: &RekeyRequest) -> Result<Vec<(Part, Command)>, String> {
        if !self.owns() {
            return Err("this member is not active; ask the active one".to_owned());
        }
        if let Some(connection) = &wish.ike {
            let found = self.ike_sas_of(connection)?;
            let part = |sa: ike::IkeSaStatus| {
                let goal = Goal::Ike(sa.spi);
                (
                    Part {
                        goal,
                        connection: connection.clone(),
                        peer: sa.remote,
                    },
                    Command::RekeyIke { spi: sa.spi },
                )
            };
            return Ok(found.into_iter().map(part).collect());
        }
        let part = |e: &SaEntry| {
            let spi_in = e.record.spi_in;
            // The SA and the IKE SA that it is rekeyed on have the same peer.
            let part = Part {
                goal: Goal::Child(spi_in),
                connection: e.record.connection.clone(),
                peer: e.record.remote,
            };
            (part, Command::RekeyChild { spi_in })
        };
        let known = |e: &&SaEntry| self.engine.ike_spi_of_child(e.record.spi_in).is_some();
        let parts = if let Some(spi) = &wish.spi {
            let number = u32::from_str_radix(spi.trim_start_matches("0x"), 16)
                .map_err(|_| format!("'{spi}' is no SPI; give 8 hexadecimal digits, as in espalier sas"))?;
            self.sad
                .get(EspSpi(number))
                .into_iter()
                .filter(known)
                .map(part)
                .collect::<Vec<_>>()
        } else {
            let wanted = wish.connection.as_deref().unwrap_or_default();
            let matches = |e: &&SaEntry| {
                e.outbound_in_use
                    && (e.record.connection == wanted
                        || e.record.child == wanted
                        || format!("{}/{}", e.record.connection, e.record.child) == wanted)
            };
            self.sad.iter().filter(matches).filter(known).map(part).collect()
        };
        if parts.is_empty() {
            return Err("no SA matches; see espalier sas".to_owned());
        }
        Ok(parts)
    }

    /// Established IKE SAs of a connection.
    fn ike_sas_of(&self, connection: &str) -> Result<Vec<ike::IkeSaStatus>, String> {
        let found = self
            .engine
            .status()
            .into_iter()
            .filter(|sa| sa.connection.as_deref() == Some(connection) && sa.phase == "established")
            .collect::<Vec<_>>();
        if found.is_empty() {
            let why = self.reasons.get(connection);
            return Err(match why {
                Some(why) => format!("connection '{connection}' has no established IKE SA: {why}"),
                None => format!("connection '{connection}' has no established IKE SA; see espalier status"),
            });
        }
        Ok(found)
    }

    fn rekey(&mut self, wish: &RekeyRequest, answer: Answer) {
        match self.rekey_parts(wish) {
            Ok(parts) => {
                let what = if wish.ike.is_some() {
                    "IKE SA(s)"
                } else {
                    "Child SA(s)"
                };
                let done = format!("{} {what} rekeyed", parts.len());
                self.order(parts, done, answer);
            }
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    fn liveness_parts(&self, connection: &str) -> Result<Vec<(Part, Command)>, String> {
        if !self.owns() {
            return Err("this member is not active; ask the active one".to_owned());
        }
        let part = |sa: ike::IkeSaStatus| {
            let ids = self.engine.message_ids(sa.spi)?;
            let goal = Goal::sign_of_life(sa.spi, ids);
            Some((
                Part {
                    goal,
                    connection: connection.to_owned(),
                    peer: sa.remote,
                },
                Command::Liveness { spi: sa.spi },
            ))
        };
        Ok(self
            .ike_sas_of(connection)?
            .into_iter()
            .filter_map(part)
            .collect())
    }

    fn liveness(&mut self, connection: &str, answer: Answer) {
        match self.liveness_parts(connection) {
            Ok(parts) => {
                let peers = parts.iter().map(|(part, _)| part.peer.to_string());
                let done = format!("{connection}: {} answered", peers.collect::<Vec<_>>().join(", "));
                self.order(parts, done, answer);
            }
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    /// Smallest part of a lease and of a headroom that is left.
    fn headroom(&self) -> (Option<f64>, Option<f64>) {
        let mut lowest = (None, None);
        let least = |now: Option<f64>, value: f64| Some(now.map_or(value, |n: f64| n.min(value)));
        for entry in self.sad.iter().filter(|e| !e.local_only) {
            let Some(counters) = self.counters.counters(entry.slot()) else {
                continue;
            };
            if let Some(last) = self.lease_of(entry.slot()).filter(|last| *last < u64::MAX) {
                let left = last.saturating_sub(counters.outbound.seq) as f64 / entry.lease.step.max(1) as f64;
                lowest.0 = least(lowest.0, left.min(1.0));
            }
            if let Some(ceiling) = self.ceiling_of(entry.slot()).filter(|c| *c < u64::MAX) {
                let left =
                    ceiling.saturating_sub(counters.inbound.edge) as f64 / entry.ceiling.step.max(1) as f64;
                lowest.1 = least(lowest.1, left.min(1.0));
            }
        }
        lowest
    }

    fn sample(&self) -> Sample {
        let (lease_headroom_lowest, ceiling_headroom_lowest) = self.headroom();
        let verdicts = self.plane.verdicts().unwrap_or_default();
        let synch = self.synch.counters();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Sample {
            status: self.status(),
            ike_sas: self.mirror.len() as u64,
            child_sas: self.sad.len() as u64,
            commits_pending: (self.pending.len() + self.node.status().raises_open) as u64,
            lease_headroom_lowest,
            ceiling_headroom_lowest,
            verdicts: verdicts
                .into_iter()
                .map(|v| {
                    let name = self
                        .sad
                        .connection_name(v.connection)
                        .unwrap_or("none")
                        .to_owned();
                    (name, v.verdict.name(), v.packets)
                })
                .collect(),
            ike_events: self.ike_events.iter().map(|(kind, n)| (*kind, *n)).collect(),
            takeovers: self.takeover.count,
            slow_frames: COUNTS.iter().copied().zip(self.slow.counts).collect(),
            synch: SynchSample {
                stream_sent: load(&synch.stream_sent),
                stream_received: load(&synch.stream_received),
                datagram_sent: load(&synch.datagram_sent),
                datagram_received: load(&synch.datagram_received),
                datagram_lost: load(&synch.datagram_lost),
                refused: self.synch.refusals().total(),
            },
        }
    }
}
