//! Answers to the control socket.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use cluster::status::Role;
use cluster::{GroupStatus, NodeStatus, Standing};
use ike::{Command, ConnectionPhase, Pool};
use model::EspSpi;
use sad::SaEntry;

use super::Core;
use super::orders::{Goal, Part};
use super::slow::COUNTS;
use crate::api::{
    ConnectionStatus, EngineSilence, GroupLine, JournalStatus, MemberStatus, PoolStatus, RekeyRequest, Status,
};
use crate::clock;
use crate::config::PoolConfig;
use crate::control::{Outcome, Request};
use crate::metrics::{Sample, SynchSample};

/// Where the outcome of a command goes.
type Answer = tokio::sync::oneshot::Sender<Outcome>;

fn state_of(role: Role, standing: Option<Standing>) -> &'static str {
    match role {
        Role::Starting => "starting",
        Role::Active if standing.is_some_and(|s| s != Standing::WithStandby) => "alone",
        Role::Active => "active",
        Role::Standby => "standby",
        Role::Joining => "joining",
    }
}

fn standing_name(standing: Standing) -> &'static str {
    match standing {
        Standing::WithStandby => "with_standby",
        Standing::AloneTaker => "alone",
        Standing::AloneUnfenced => "alone_unfenced",
    }
}

/// What a name on the command line means.
#[derive(Debug, PartialEq, Eq)]
enum Named<'a> {
    /// All children of a connection.
    Connection(&'a str),
    /// One child of one connection.
    Child(&'a str, &'a str),
}

impl<'a> Named<'a> {
    /// `text` is the name of a connection, `CONNECTION/CHILD`, or the name of a child that one connection alone has.
    fn among(
        text: &'a str,
        children: impl Iterator<Item = (&'a str, &'a str)> + Clone,
    ) -> Result<Self, String> {
        if children.clone().any(|(connection, _)| connection == text) {
            return Ok(Self::Connection(text));
        }
        let full = |connection: &str, child: &str| format!("{connection}/{child}");
        let found = children
            .filter(|(connection, child)| *child == text || full(connection, child) == text)
            .collect::<Vec<_>>();
        match found.as_slice() {
            [(connection, child)] => Ok(Self::Child(connection, child)),
            [] => Err(format!(
                "no connection or child '{text}' in the configuration; see espalier status"
            )),
            several => {
                let names = several.iter().map(|(connection, child)| full(connection, child));
                let names = names.collect::<Vec<_>>().join(", ");
                Err(format!(
                    "'{text}' is a child of several connections: say which one ({names})"
                ))
            }
        }
    }

    fn is(&self, connection: &str, child: &str) -> bool {
        match self {
            Self::Connection(name) => *name == connection,
            Self::Child(name, of) => (*name, *of) == (connection, child),
        }
    }
}

/// What was agreed with a peer, as words.
pub(super) fn words(agreed: ike::Agreed) -> Vec<String> {
    agreed.names().into_iter().map(str::to_owned).collect()
}

impl Core {
    /// Answers one wish. Whoever asked may be gone: then nobody reads the answer.
    pub(super) fn answer(&mut self, request: Request) {
        match request {
            Request::Status(answer) => drop(answer.send(self.status())),
            Request::Sas(answer) => self.list_sas(answer),
            Request::Policies(answer) => drop(answer.send(self.policies())),
            Request::Events(answer) => drop(answer.send(self.log.all())),
            Request::Metrics(answer) => drop(answer.send(self.sample())),
            Request::Takeover(wish, answer) => self.take_over(&wish, answer),
            Request::Stop(wish, answer) => self.stop(&wish, answer),
            Request::Drain(answer) => self.drain(answer),
            Request::Undrain(answer) => self.undrain(answer),
            Request::Rebalance(answer) => self.rebalance(answer),
            Request::StartOver(wish, answer) => self.start_over(&wish, answer),
            Request::Rekey(wish, answer) => self.rekey(&wish, answer),
            Request::Liveness(wish, answer) => self.liveness(&wish.connection, answer),
            Request::Connection(wish, answer) => self.connection_wish(wish, answer),
            Request::Reload(wish, answer) => self.reload(&wish, answer),
            Request::Redirect(wish, answer) => self.redirect(&wish, answer),
            Request::ReloadPki(answer) => {
                drop(answer.send(self.reload_pki()));
            }
        }
    }

    /// Of the group in a hot-standby cluster; else the best of all groups.
    fn role(&self, node: &NodeStatus) -> &'static str {
        let rank = |g: &&GroupStatus| match g.role {
            Role::Active => 3,
            Role::Standby => 2,
            Role::Joining => 1,
            Role::Starting => 0,
        };
        let best = node.groups.iter().max_by_key(rank);
        best.map_or("starting", |g| state_of(g.role, g.standing))
    }

    fn group_status(&self, group: &GroupStatus) -> GroupLine {
        GroupLine {
            group: group.group.0,
            segments: self.groups.layout.segments(group.group).count() as u32,
            owner: group.epoch.owner.0,
            epoch: group.epoch.number.0,
            role: state_of(group.role, group.standing).to_owned(),
            home: group.home.0,
            in_sync: group.in_sync.iter().flatten().map(|m| m.member.0).collect(),
            standing: group.standing.map(|s| standing_name(s).to_owned()),
            position: group.position,
            committed: group.committed,
            handover: group.handover,
            suspects: group.suspects as u32,
            move_waits: group.move_waits.map(|to| to.0),
            engine_waits: group.engine_waits,
        }
    }

    fn status(&self) -> Status {
        let now = clock::now();
        let node = self.node.status();
        let groups = node
            .groups
            .iter()
            .map(|g| self.group_status(g))
            .collect::<Vec<_>>();
        let first = groups.first().cloned().unwrap_or_default();
        let mut segments = BTreeMap::new();
        for group in groups.iter().filter(|g| g.owner != 0) {
            *segments.entry(group.owner).or_insert(0) += group.segments;
        }
        // The first segment that this member owns speaks for all: their words are extended together.
        let shown = groups
            .iter()
            .find(|g| g.owner == self.me.0)
            .map_or(0, |g| g.group);
        let (word, _) = self.segments.get(shown);
        let valid_for_ms = word.valid_until_ms as i64 - (now.millis() & ((1 << 40) - 1)) as i64;
        let in_sync = |id: &u8| groups.iter().all(|g| g.in_sync.contains(id));
        let synch = self.synch.counters();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut verdicts = BTreeMap::new();
        for count in self.plane.verdicts().unwrap_or_default() {
            *verdicts.entry(count.verdict.name().to_owned()).or_insert(0) += count.packets;
        }
        let takeovers = self.groups.iter().filter_map(|g| g.takeover.clone());
        let last = self
            .takeover
            .last
            .and_then(|id| self.groups.get(id).takeover.clone());
        Status {
            channel: self.synch.status(),
            cluster: self.config.cluster.name.clone(),
            member: self.me.0,
            name: self.config.me().name.clone(),
            mode: self.config.cluster.mode.name().to_owned(),
            engine: self.config.cluster.engine.name().to_owned(),
            role: self.role(&node).to_owned(),
            owner: first.owner,
            epoch: first.epoch,
            incarnation: self.incarnation,
            in_sync: first.in_sync.iter().copied().filter(in_sync).collect(),
            valid_for_ms,
            uptime_s: now.since(self.started).as_secs(),
            segments,
            draining: node.draining,
            trouble: node.trouble.clone(),
            engine_silent: node.engine_silent.as_ref().map(|(since, why)| EngineSilence {
                for_ms: now.since(*since).as_millis() as u64,
                why: why.clone(),
            }),
            secret: self.secret_status(),
            record_format: self.config.cluster.record_format,
            record_format_newest: cluster::message::VERSION,
            members: self.members(&node, &groups),
            journal: JournalStatus {
                position: groups.iter().map(|g| g.position).sum(),
                committed: groups.iter().map(|g| g.committed).sum(),
                synch_bytes_sent: load(&synch.stream_sent) + load(&synch.datagram_sent),
                synch_bytes_received: load(&synch.stream_received) + load(&synch.datagram_received),
            },
            groups,
            connections: self
                .config
                .connections
                .iter()
                .map(|c| self.connection(c))
                .collect(),
            pools: self.pools(),
            interfaces: self.attached.clone(),
            last_takeover: last,
            takeovers: takeovers.collect(),
            verdicts,
        }
    }

    fn pools(&self) -> Vec<PoolStatus> {
        let pools = self.config.pools.iter().filter_map(|config| {
            let network = config.network;
            Some((
                config,
                Pool::of_network(&config.name, network.network(), network.prefix_len())?,
            ))
        });
        let pools = pools.collect::<Vec<_>>();
        let mut used = vec![0; pools.len()];
        for address in self.engine.leases() {
            if let Some(at) = pools.iter().position(|(_, pool)| pool.contains(address)) {
                used[at] += 1;
            }
        }
        let status = |((config, pool), used): (&(&PoolConfig, Pool), u32)| PoolStatus {
            name: pool.name.clone(),
            network: config.network.to_string(),
            size: pool.size,
            used,
        };
        pools.iter().zip(used).map(status).collect()
    }

    fn members(&self, node: &NodeStatus, groups: &[GroupLine]) -> Vec<MemberStatus> {
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
                in_sync: !groups.is_empty() && groups.iter().all(|g| g.in_sync.contains(&config.id.0)),
                weight: config.weight,
                groups_owned: groups.iter().filter(|g| g.owner == config.id.0).count() as u32,
                healthy: peer.is_none_or(|p| p.healthy),
                draining: peer.is_some_and(|p| p.draining),
                secret: self
                    .facts
                    .get(&config.id)
                    .filter(|_| peer.is_some_and(|p| p.alive))
                    .and_then(|facts| facts.secrets.first())
                    .map(ToString::to_string),
                record_format: peer.filter(|p| p.alive).map(|p| p.speaks),
                differs: peer.map(|p| p.differs.clone()).unwrap_or_default(),
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
        let of = self.sad.children_of(&config.name);
        let (mut children, mut elsewhere) = (0, false);
        for (segment, count) in of {
            children += count;
            elsewhere |= !self.groups.owns_segment(segment);
        }
        let phase = self.engine.connection_phase(&config.name);
        let state = if self.groups.owns_any() && (phase != ConnectionPhase::Down || !elsewhere) {
            match phase {
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
            remote: self.remote_text(config),
            retry: self.retry_status(&config.name),
            children,
            agreed: self.engine.agreed(&config.name).map(words).unwrap_or_default(),
            reason: self.reasons.get(&config.name).filter(|_| state != "up").cloned(),
            certificate: self.certificates.status(&config.name),
        }
    }

    /// What a name on the command line means: a connection before a child.
    fn named<'a>(&'a self, text: &'a str) -> Result<Named<'a>, String> {
        let children = self.config.connections.iter().flat_map(|c| {
            let names = c.children.iter().map(|child| child.name.as_str());
            names.map(|child| (c.name.as_str(), child))
        });
        Named::among(text, children)
    }

    /// What a rekey is about; the error says why there is nothing to do.
    fn rekey_parts(&self, wish: &RekeyRequest) -> Result<Vec<(Part, Command)>, String> {
        if !self.groups.owns_any() {
            return Err("this member is not active; ask the active one".to_owned());
        }
        if let Some(connection) = &wish.reauth {
            let found = self.ike_sas_of(connection)?;
            let part = |sa: ike::IkeSaStatus| {
                let part = Part {
                    goal: Goal::Reauth(sa.spi),
                    connection: connection.clone(),
                    peer: sa.remote,
                };
                (part, Command::Reauthenticate { spi: sa.spi })
            };
            return Ok(found.into_iter().map(part).collect());
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
            let wanted = self.named(wish.connection.as_deref().unwrap_or_default())?;
            let matches =
                |e: &&SaEntry| e.carries_outbound() && wanted.is(&e.record.connection, &e.record.child);
            self.sad.iter().filter(matches).filter(known).map(part).collect()
        };
        if parts.is_empty() {
            return Err("no SA matches; see espalier sas".to_owned());
        }
        Ok(parts)
    }

    /// Established IKE SAs of a connection.
    pub(super) fn ike_sas_of(&self, connection: &str) -> Result<Vec<ike::IkeSaStatus>, String> {
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
                let what = match wish {
                    RekeyRequest { reauth: Some(_), .. } => "IKE SA(s) authenticated anew",
                    RekeyRequest { ike: Some(_), .. } => "IKE SA(s) rekeyed",
                    _ => "Child SA(s) rekeyed",
                };
                let done = format!("{} {what}", parts.len());
                self.order(parts, done, answer);
            }
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    fn liveness_parts(&self, connection: &str) -> Result<Vec<(Part, Command)>, String> {
        if !self.groups.owns_any() {
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

    fn sample(&self) -> Sample {
        let lowest = self.scan.lowest_before;
        let node = self.node.status();
        let waiting = self.groups.iter().map(|g| g.pending.len()).sum::<usize>();
        let raises = node.groups.iter().map(|g| g.raises_open).sum::<usize>();
        let verdicts = self.plane.verdicts().unwrap_or_default();
        let synch = self.synch.counters();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Sample {
            status: self.status(),
            ike_sas: self.mirror.len() as u64,
            child_sas: self.sad.len() as u64,
            child_sas_lingering: self.sad.lingering().count() as u64,
            commits_pending: (waiting + raises) as u64,
            lease_headroom_lowest: lowest.lease,
            ceiling_headroom_lowest: lowest.headroom,
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
            ike_events: self.ike_event_counts(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_connection_before_a_child_and_never_two_things_at_once() {
        let children = [("a", "lan"), ("b", "lan"), ("b", "dmz"), ("dmz", "x")];
        let named = |text: &'static str| Named::among(text, children.iter().copied());
        assert_eq!(named("a"), Ok(Named::Connection("a")));
        assert_eq!(named("dmz"), Ok(Named::Connection("dmz")));
        assert_eq!(named("b/dmz"), Ok(Named::Child("b", "dmz")));
        assert_eq!(named("x"), Ok(Named::Child("dmz", "x")));
        let several = named("lan").unwrap_err();
        assert!(several.contains("a/lan, b/lan"), "{several}");
        assert!(named("nobody").unwrap_err().contains("no connection or child"));
        assert!(Named::Connection("b").is("b", "dmz") && !Named::Child("b", "dmz").is("b", "lan"));
    }
}
