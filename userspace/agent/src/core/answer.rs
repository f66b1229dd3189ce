//! Answers to the control socket.

use std::collections::BTreeMap;

use ike::{Command, ConnectionPhase};
use maps_schema::segment::SEGMENTS;
use model::{EspSpi, TrafficSelector};
use sad::SaEntry;

use super::Core;
use super::slow::COUNTS;
use crate::api::{ChildSa, ConnectionStatus, IkeSa, JournalStatus, MemberStatus, RekeyRequest, Status};
use crate::clock;
use crate::control::{Outcome, Request};
use crate::metrics::Sample;

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
            Request::Takeover(_, answer) => {
                drop(answer.send(Err("this cluster has one member: there is nobody to hand over to".to_owned())));
            }
            Request::Rekey(wish, answer) => drop(answer.send(self.rekey(&wish))),
            Request::Liveness(wish, answer) => drop(answer.send(self.liveness(&wish.connection))),
        }
    }

    fn role(&self) -> &'static str {
        match (self.owns(), self.ownership.alone, self.ownership.owner) {
            (true, true, _) => "alone",
            (true, false, _) => "active",
            (false, _, None) => "starting",
            (false, _, Some(_)) => "standby",
        }
    }

    fn status(&self) -> Status {
        let (word, _) = self.segments.get(0);
        let valid_for_ms = word.valid_until_ms as i64 - (clock::now().millis() & ((1 << 40) - 1)) as i64;
        let owner = self.ownership.owner.map_or(0, |m| m.0);
        let mut verdicts = BTreeMap::new();
        for count in self.plane.verdicts().unwrap_or_default() {
            *verdicts.entry(count.verdict.name().to_owned()).or_insert(0) += count.packets;
        }
        Status {
            cluster: self.config.cluster.name.clone(),
            member: self.me.0,
            name: self.config.me().name.clone(),
            role: self.role().to_owned(),
            owner,
            epoch: self.ownership.epoch.0,
            incarnation: self.incarnation,
            in_sync: if self.owns() { vec![self.me.0] } else { Vec::new() },
            valid_for_ms,
            uptime_s: clock::now().since(self.started).as_secs(),
            segments: [(owner, SEGMENTS as u32)].into(),
            members: self.members(),
            journal: JournalStatus::default(),
            connections: self.config.connections.iter().map(|c| self.connection(c)).collect(),
            interfaces: self.attached.clone(),
            last_takeover: self.takeover.last.clone().map(|mut last| {
                last.evidence_rekeys = self.takeover.evidence_rekeys;
                last
            }),
            verdicts,
        }
    }

    fn members(&self) -> Vec<MemberStatus> {
        self.config
            .others()
            .map(|m| MemberStatus {
                id: m.id.0,
                name: m.name.clone(),
                state: "down".to_owned(),
                ..MemberStatus::default()
            })
            .collect()
    }

    fn connection(&self, config: &crate::config::ConnectionConfig) -> ConnectionStatus {
        let children = self.sad.iter().filter(|e| e.record.connection == config.name).count();
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
            let children = self.sad.iter().filter(|e| e.record.ike_spi == sa.spi).collect::<Vec<_>>();
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
        let mut mirrored: BTreeMap<_, Vec<&SaEntry>> = self.mirror.keys().map(|spi| (*spi, Vec::new())).collect();
        for entry in self.sad.iter().filter(|e| !shown.contains(&e.record.spi_in)) {
            mirrored.entry(entry.record.ike_spi).or_default().push(entry);
        }
        let served = out.iter().map(|sa| sa.spi_local.clone()).collect::<std::collections::HashSet<_>>();
        for (spi, entries) in mirrored {
            if served.contains(&spi.to_string()) && entries.is_empty() {
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

    fn rekey(&mut self, wish: &RekeyRequest) -> Outcome {
        if !self.owns() {
            return Err("this member is not active; ask the active one".to_owned());
        }
        let commands = if let Some(connection) = &wish.ike {
            let found = self.engine.status().into_iter().filter(|sa| sa.connection.as_ref() == Some(connection));
            found.map(|sa| Command::RekeyIke { spi: sa.spi }).collect::<Vec<_>>()
        } else if let Some(spi) = &wish.spi {
            let number = u32::from_str_radix(spi.trim_start_matches("0x"), 16)
                .map_err(|_| format!("'{spi}' is no SPI; give 8 hexadecimal digits, as in espalier sas"))?;
            let spi_in = EspSpi(number);
            self.sad.get(spi_in).map(|_| Command::RekeyChild { spi_in }).into_iter().collect()
        } else {
            let wanted = wish.connection.as_deref().unwrap_or_default();
            let matches = |e: &&SaEntry| {
                e.outbound_in_use
                    && (e.record.connection == wanted
                        || e.record.child == wanted
                        || format!("{}/{}", e.record.connection, e.record.child) == wanted)
            };
            self.sad.iter().filter(matches).map(|e| Command::RekeyChild { spi_in: e.record.spi_in }).collect()
        };
        if commands.is_empty() {
            return Err("no SA matches; see espalier sas".to_owned());
        }
        let count = commands.len();
        for command in commands {
            self.engine_command(command);
        }
        Ok(format!("{count} rekey(s) begun; see espalier events"))
    }

    fn liveness(&mut self, connection: &str) -> Outcome {
        if !self.owns() {
            return Err("this member is not active; ask the active one".to_owned());
        }
        let found = self.engine.status().into_iter().filter(|sa| sa.connection.as_deref() == Some(connection));
        let spis = found.map(|sa| sa.spi).collect::<Vec<_>>();
        if spis.is_empty() {
            return Err(format!("connection '{connection}' has no IKE SA"));
        }
        for spi in &spis {
            self.engine_command(Command::Liveness { spi: *spi });
        }
        Ok(format!("{} liveness check(s) begun; see espalier events", spis.len()))
    }

    /// Smallest part of a lease and of a headroom that is left.
    fn headroom(&self) -> (Option<f64>, Option<f64>) {
        let mut lowest = (None, None);
        let least = |now: Option<f64>, value: f64| Some(now.map_or(value, |n: f64| n.min(value)));
        for entry in self.sad.iter().filter(|e| !e.local_only) {
            let Some(counters) = self.counters.counters(entry.slot()) else { continue };
            if let Some(last) = self.lease_of(entry.slot()).filter(|last| *last < u64::MAX) {
                let left = last.saturating_sub(counters.outbound.seq) as f64 / entry.lease.step.max(1) as f64;
                lowest.0 = least(lowest.0, left.min(1.0));
            }
            if let Some(ceiling) = self.ceiling_of(entry.slot()).filter(|c| *c < u64::MAX) {
                let left = ceiling.saturating_sub(counters.inbound.edge) as f64 / entry.ceiling.step.max(1) as f64;
                lowest.1 = least(lowest.1, left.min(1.0));
            }
        }
        lowest
    }

    fn sample(&self) -> Sample {
        let (lease_headroom_lowest, ceiling_headroom_lowest) = self.headroom();
        let verdicts = self.plane.verdicts().unwrap_or_default();
        Sample {
            status: self.status(),
            ike_sas: self.mirror.len() as u64,
            child_sas: self.sad.len() as u64,
            commits_pending: (self.pending.len() + self.raising.len()) as u64,
            lease_headroom_lowest,
            ceiling_headroom_lowest,
            verdicts: verdicts
                .into_iter()
                .map(|v| {
                    let name = self.sad.connection_name(v.connection).unwrap_or("none").to_owned();
                    (name, v.verdict.name(), v.packets)
                })
                .collect(),
            ike_events: self.ike_events.iter().map(|(kind, n)| (*kind, *n)).collect(),
            takeovers: self.takeover.count,
            slow_frames: COUNTS.iter().copied().zip(self.slow.counts).collect(),
            ..Sample::default()
        }
    }
}
