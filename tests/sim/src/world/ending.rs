//! The end of a run: faults end, service comes back, traffic stops, mirrors are compared.

use super::{Stage, State, What, World};
use crate::check::{SERVICE_WITHIN, differences, disagreements, mirror_of, more_or_less};
use crate::setup::Engine;
use cluster::{Command, Solo};
use model::{GroupId, Instant, MemberId};
use std::time::Duration;

/// Connections and checkers are looked at this often.
const LOOK: Duration = Duration::from_millis(50);
/// Mirrors must agree and all members be in sync this long after the last packet.
const QUIET_WITHIN: Duration = Duration::from_secs(8);
/// A peer has one IKE SA this long after the last packet: each side in turn may have to find the other one silent.
const PEERS_WITHIN: Duration = Duration::from_secs(20);
/// After a first contact all members have heard of it.
const HEARD_WITHIN: Duration = Duration::from_millis(250);
/// A member that has just come back is given this time.
const SETTLED: Duration = Duration::from_millis(1500);

impl World {
    pub(super) fn quiet(&self) -> bool {
        matches!(self.stage, Stage::Quiet { .. } | Stage::Done)
    }

    pub(super) fn look(&mut self) {
        self.look_at_links();
        self.look_at_groups();
        self.look_at_contacts();
        match self.stage {
            Stage::Faults if self.now >= self.heal_at => self.heal(),
            Stage::Faults => {}
            Stage::Healing => self.look_for_service(),
            Stage::Quiet { since } => self.look_at_mirrors(since),
            Stage::Done => {}
        }
        if self.stage != Stage::Done {
            self.put(self.now + LOOK, What::Look);
        }
    }

    fn serves(&self, member: u8, group: GroupId) -> bool {
        let seat = &self.seats[usize::from(member) - 1];
        let Some(m) = seat.member.as_ref().filter(|_| seat.state == State::Up) else {
            return false;
        };
        let segment = m.layout.segments(group).next().map_or(0, |s| s.0);
        m.owns(group) && m.plane.word(segment).valid_until_ms >= self.now.millis()
    }

    /// Whether this member could serve the group by all that the world knows.
    fn able(&self, member: u8, group: GroupId) -> bool {
        let seat = &self.seats[usize::from(member) - 1];
        let steady =
            seat.state == State::Up && seat.slow.is_zero() && self.now.since(seat.up_since) > SETTLED;
        let named = self.watch.liveness.set(group).is_some_and(|set| {
            set.iter()
                .any(|m| m.member == MemberId(member) && m.incarnation.0 == seat.life)
        });
        if !steady || !named || self.watch.truth_troubled() {
            return false;
        }
        match self.setup.engine {
            Engine::Etcd => {
                !self.etcd.down
                    && self.etcd.slow_ms == 0
                    && self.net.open(member, 0, crate::net::Road::Engine)
                    && self.net.open(0, member, crate::net::Road::Engine)
                    && self.etcd.get(group).is_some_and(|record| {
                        record
                            .in_sync
                            .iter()
                            .any(|m| m.member == MemberId(member) && m.incarnation.0 == seat.life)
                    })
            }
            // Under `stop` an owner without its standby does not serve; the standby of a lost owner does.
            Engine::Pair => {
                self.setup.solo == Solo::Continue
                    || self.seats[usize::from(member) - 1]
                        .member
                        .as_ref()
                        .is_some_and(|m| !m.node.owns(group))
            }
        }
    }

    fn look_at_groups(&mut self) {
        let groups: Vec<GroupId> = self.watch.facts.layout.groups().collect();
        for group in groups {
            let served = self.members().any(|m| self.serves(m, group));
            let able = !served && self.members().any(|m| self.able(m, group));
            if let Err(text) = self.watch.liveness.look(self.now, group, served, able) {
                self.watch.breach("takeover", self.now, text);
            }
        }
        if self.judge_traffic && self.steady.is_none() && self.now > Instant::from_millis(3000) {
            self.steady = Some(self.watch.traffic);
        }
    }

    /// What a peer had before it began anew is gone everywhere a moment later, long before anybody finds that peer silent.
    fn look_at_contacts(&mut self) {
        if !self.watch.facts.anew_only {
            return;
        }
        let established = self.watch.established.clone();
        for (peer, _) in established.iter().filter(|(_, at)| {
            let since = self.now.since(**at);
            since >= HEARD_WITHIN && since < HEARD_WITHIN * 2
        }) {
            let name = format!("peer{peer}");
            let engines = self.seats.iter().filter_map(|seat| seat.member.as_ref());
            let all = engines.flat_map(|m| m.engine.status().into_iter().map(move |sa| (m.me, sa)));
            let of_it: Vec<_> = all
                .filter(|(_, sa)| sa.connection.as_ref() == Some(&name) && sa.phase == "established")
                .map(|(member, sa)| format!("{} at member {member}", sa.spi))
                .collect();
            if of_it.len() > 1 {
                let text = format!("peer {peer} began anew, and has {}", of_it.join(", "));
                return self.watch.breach("contact", self.now, text);
            }
        }
    }

    fn heal(&mut self) {
        self.trace
            .note(self.now, "heal", [0, 0], || "all faults end".to_owned());
        self.stage = Stage::Healing;
        self.net.heal();
        self.etcd.heal();
        for member in self.members() {
            self.seat(member).slow = Duration::ZERO;
            match self.seat(member).state {
                State::Paused => self.resume(member),
                State::AgentDead | State::Down => self.start(member),
                State::Up => {}
            }
        }
        self.watch.truth.trouble(self.now, false);
        for member in self.members() {
            self.command(member, Command::Undrain);
        }
        self.next_start_over = self.now + Duration::from_secs(2);
    }

    /// An operator sees that nobody that is left may claim a group, and begins again with no SAs.
    fn start_over(&mut self) {
        if self.setup.engine != Engine::Etcd || self.now < self.next_start_over {
            return;
        }
        self.next_start_over = self.now + Duration::from_secs(2);
        let groups: Vec<GroupId> = self.watch.facts.layout.groups().collect();
        for group in groups {
            let alive = self.etcd.get(group).is_some_and(|record| {
                record.in_sync.iter().any(|m| {
                    let seat = &self.seats[usize::from(m.member.0) - 1];
                    seat.state == State::Up && seat.life == m.incarnation.0
                })
            });
            let served = self.members().any(|m| self.serves(m, group));
            if !alive && !served && self.etcd.get(group).is_some() {
                let member = self.rng.range(1, u64::from(self.setup.members)) as u8;
                self.trace.note(self.now, "operator", [u64::from(member), 0], || {
                    format!("start over with group {group} at member {member}")
                });
                self.command(member, Command::StartOver { group: Some(group) });
            }
        }
    }

    fn look_for_service(&mut self) {
        self.start_over();
        let since = self.heal_at + Duration::from_secs(1);
        if self.now < since + Duration::from_millis(300) {
            return;
        }
        let recent = since.max(Instant(self.now.0.saturating_sub(400_000_000)));
        let missing: Vec<String> = self
            .setup
            .peers
            .iter()
            .flat_map(|p| [(p.number, false), (p.number, true)])
            .filter(|(peer, outbound)| !self.watch.liveness.flows(*peer, *outbound, recent))
            .map(|(peer, outbound)| format!("{} peer {peer}", if outbound { "to" } else { "from" }))
            .collect();
        if missing.is_empty() {
            self.stage = Stage::Quiet { since: self.now };
            self.trace
                .note(self.now, "quiet", [0, 0], || "traffic stops".to_owned());
            if let Some(before) = self.steady {
                let standbys = u64::from(self.setup.members) - 1;
                if let Err(text) = self.watch.traffic.judge(&before, standbys) {
                    self.watch.breach("R5", self.now, text);
                }
            }
        } else if self.now.since(self.heal_at) > SERVICE_WITHIN && self.untold {
            // Documented: nobody can tell what a half of a split pair did whose host is lost (docs/SYNCH-CHANNEL.md).
            self.stage = Stage::Quiet { since: self.now };
            self.trace.note(self.now, "quiet", [1, 0], || {
                format!(
                    "no packets come through {}, which nobody could mend",
                    missing.join(", ")
                )
            });
        } else if self.now.since(self.heal_at) > SERVICE_WITHIN {
            let text = format!(
                "{} ms after the end of all faults no packets come through {}",
                self.now.since(self.heal_at).as_millis(),
                missing.join(", ")
            );
            self.watch.breach("service", self.now, text);
        }
    }

    fn look_at_mirrors(&mut self, since: Instant) {
        self.start_over();
        self.look_at_peers();
        if self.now.since(since) < Duration::from_millis(600) {
            return;
        }
        let after = self.now.since(since);
        let wrong = self.unsettled();
        self.mirrors_settled |= wrong.is_empty();
        let peers: Vec<String> = self.peers_settled.values().flatten().cloned().collect();
        // Documented: nobody can tell what a half of a split pair did whose host is lost (docs/SYNCH-CHANNEL.md).
        let peers_settled = peers.is_empty() || (self.untold && after > PEERS_WITHIN);
        if self.mirrors_settled && peers_settled {
            self.stage = Stage::Done;
            self.watch.ended(self.now);
        } else if !self.mirrors_settled && after > QUIET_WITHIN {
            let text = format!(
                "{} ms after the last packet: {}",
                after.as_millis(),
                wrong.join("; ")
            );
            self.watch.breach("mirror", self.now, text);
        } else if after > PEERS_WITHIN {
            let text = format!(
                "{} ms after the last packet: {}",
                after.as_millis(),
                peers.join("; ")
            );
            self.watch.breach("one-ike-sa", self.now, text);
        }
    }

    /// What keeps the cluster from being at rest with equal mirrors.
    fn unsettled(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for group in self.watch.facts.layout.groups() {
            let owners: Vec<u8> = self.members().filter(|m| self.serves(*m, group)).collect();
            let [owner] = owners[..] else {
                wrong.push(format!("group {group} is served by {owners:?}"));
                continue;
            };
            let member = |m: u8| self.seats[usize::from(m) - 1].member.as_ref();
            let Some(at_owner) = member(owner) else { continue };
            let status = at_owner.node.status();
            let Some(state) = status.groups.iter().find(|g| g.group == group) else {
                continue;
            };
            let in_sync = state.in_sync.as_ref().map_or(0, |set| set.len());
            if in_sync < usize::from(self.setup.members) {
                wrong.push(format!(
                    "group {group}: {in_sync} members are in sync at member {owner}"
                ));
                continue;
            }
            if state.position != state.committed || state.raises_open > 0 || state.handover {
                wrong.push(format!(
                    "group {group}: member {owner} still waits for acknowledgements"
                ));
                continue;
            }
            let view = mirror_of(at_owner, group);
            for other in self.members().filter(|m| *m != owner) {
                let Some(m) = member(other) else { continue };
                for difference in differences(&view, &mirror_of(m, group)) {
                    wrong.push(format!(
                        "group {group}, member {other} against owner {owner}: {difference}"
                    ));
                }
            }
        }
        let owner = |group| {
            let mut owners = self.members().filter(|m| self.serves(*m, group));
            self.seats[usize::from(owners.next()?) - 1].member.as_ref()
        };
        let wants = |connection: &str| {
            let mut peers = self.setup.peers.iter();
            peers.any(|p| p.per_resource.has_members() && format!("peer{}", p.number) == connection)
        };
        wrong.extend(disagreements(self.watch.facts.layout, owner, wants));
        wrong
    }

    /// Whether each peer has been down to one IKE SA since traffic stopped: where it is authenticated anew it has two again soon.
    fn look_at_peers(&mut self) {
        let (layout, world) = (self.watch.facts.layout, &*self);
        let serving = world.members().filter_map(|member| {
            let groups = layout.groups().filter(|group| world.serves(member, *group));
            let groups = groups.collect();
            let member = world.seats[usize::from(member) - 1].member.as_ref()?;
            Some((member, groups))
        });
        let serving: Vec<_> = serving.collect();
        let wrong = world
            .peers
            .iter()
            .map(|peer| (peer.number, more_or_less(peer, &serving, layout)));
        for (peer, wrong) in wrong.collect::<Vec<_>>() {
            match (wrong, self.peers_settled.get_mut(&peer)) {
                (None, _) => drop(self.peers_settled.insert(peer, None)),
                (wrong, None) => drop(self.peers_settled.insert(peer, wrong)),
                (wrong, Some(before)) if before.is_some() => *before = wrong,
                _ => {}
            }
        }
    }
}
