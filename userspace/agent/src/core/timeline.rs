//! The node's events, for people: the log, and the phases of a takeover.

use std::collections::BTreeMap;

use cluster::io::EventKind;
use cluster::rules_doubt::REKEYS_PATIENCE;
use cluster::{EpochId, Event, Standing};
use model::{GroupId, Instant, MemberId};

use super::Core;
use crate::api::TakeoverStatus;
use crate::clock;
use crate::events::Level;
use maps_schema::event::Event as ProgramEvent;

/// How many takeovers there were, and which was the last.
#[derive(Default)]
pub struct Takeovers {
    /// Unplanned, planned.
    pub count: [u64; 2],
    /// The group of the last one, by whichever member.
    pub last: Option<GroupId>,
    /// Who is suspected.
    suspicion: BTreeMap<MemberId, Suspicion>,
}

/// Why a member counts as lost.
#[derive(Clone)]
struct Suspicion {
    /// Its last sign of life, or the last one that it gave of hearing this member.
    heard: Instant,
    at: Instant,
    why: String,
}

fn millis(from: u64, to: Instant) -> f64 {
    to.0.saturating_sub(from) as f64 / 1e6
}

fn members<'a>(set: impl IntoIterator<Item = &'a cluster::SetMember>) -> String {
    set.into_iter()
        .map(|m| m.member.to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// What is known of a takeover when it begins. `otherwise`: the reason, where nobody was suspected.
fn takeover(
    group: GroupId,
    epoch: EpochId,
    from: MemberId,
    planned: bool,
    at: Instant,
    suspicion: Option<Suspicion>,
    otherwise: String,
) -> TakeoverStatus {
    let suspicion = suspicion.filter(|_| !planned);
    let started = suspicion.as_ref().map_or(at, |s| s.heard);
    let ago = clock::now().0.saturating_sub(started.0);
    let mut phases = BTreeMap::new();
    if let Some(s) = &suspicion {
        phases.insert("suspected".to_owned(), millis(started.0, s.at));
    }
    TakeoverStatus {
        group: group.0,
        kind: if planned { "planned" } else { "failover" }.to_owned(),
        reason: match suspicion {
            _ if planned => format!("member {from} handed over as it was told to"),
            Some(suspicion) => suspicion.why,
            None => otherwise,
        },
        from: from.0,
        to: epoch.owner.0,
        epoch: epoch.number.0,
        started_ns: started.0,
        started_wall_ns: clock::wall_ns().saturating_sub(ago),
        phases_ms: phases,
        ..TakeoverStatus::default()
    }
}

impl Core {
    pub(super) fn node_event(&mut self, event: &Event) {
        let now = clock::now();
        let group = event.group;
        let of = self.group_name(group);
        match &event.kind {
            EventKind::PeerHeard(peer) => {
                self.takeover.suspicion.remove(peer);
                self.log.note("peer_heard", format!("member {peer} is heard"));
            }
            EventKind::Suspected {
                peer,
                last_heard,
                threshold_ms,
            } => {
                let silent = millis(last_heard.0, event.at);
                let on = format!("silent for {silent:.1} ms on every link (threshold {threshold_ms} ms)");
                let suspicion = Suspicion {
                    heard: *last_heard,
                    at: event.at,
                    why: format!("member {peer} was {on}"),
                };
                self.takeover.suspicion.insert(*peer, suspicion);
                self.log
                    .warn("suspected", format!("member {peer} is suspected: {on}"));
            }
            EventKind::Deaf { peer, unheard_ms } => {
                let text = format!(
                    "member {peer} did not hear this member: for {unheard_ms} ms its heartbeats confirmed none of ours"
                );
                let suspicion = Suspicion {
                    heard: Instant(event.at.0.saturating_sub(unheard_ms * 1_000_000)),
                    at: event.at,
                    why: text.clone(),
                };
                self.takeover.suspicion.insert(*peer, suspicion);
                self.log.add(Level::Warn, group, "deaf", text);
            }
            EventKind::Hears(peer) => {
                self.takeover.suspicion.remove(peer);
                let text = format!("member {peer} hears this member again");
                self.log.add(Level::Note, group, "hears", text);
            }
            EventKind::Claimed { epoch, from, planned } => {
                self.claimed(group.unwrap_or_default(), *epoch, *from, *planned, event.at);
            }
            EventKind::Flipped(epoch) => {
                self.phase(group, *epoch, "flipped", now);
                let text = format!("this member owns {of} in epoch {}", epoch.number);
                self.log.add(Level::Note, group, "flipped", text);
            }
            EventKind::Announced(epoch) => {
                self.phase(group, *epoch, "announced", now);
                let text = "the cluster's addresses were announced";
                self.log.add(Level::Note, group, "announced", text);
            }
            EventKind::OwnerIs {
                epoch,
                before,
                planned,
            } => {
                self.taken_over(group.unwrap_or_default(), *epoch, *before, *planned, event.at);
                let text = format!("member {} owns {of} in epoch {}", epoch.owner, epoch.number);
                self.log.add(Level::Note, group, "owner_is", text);
            }
            EventKind::InSync(set) => {
                let text = format!("in sync: {}", members(set));
                self.log.add(Level::Note, group, "in_sync", text);
                self.scan.look_at_everything();
                if let Some(id) = group.filter(|id| set.len() > 1 && self.groups.owns(*id)) {
                    self.begin_suspects(id);
                    self.fork_is_known(id);
                }
            }
            EventKind::Standing(standing) => {
                let text = format!("the owner stands {standing:?}");
                self.log.add(Level::Note, group, "standing", text);
                if let Some(id) = group.filter(|_| *standing == Standing::AloneUnfenced) {
                    self.suspect_shared(id);
                }
            }
            EventKind::Joining(member) => {
                self.takeover.suspicion.remove(&member.member);
                let text = format!("member {} joins", member.member);
                self.log.add(Level::Note, group, "joining", text);
                if let Some(id) = group {
                    self.fork_has_ended(id, member.member, member.incarnation.0);
                }
            }
            EventKind::Excluded { member, reason } => {
                let text = format!("member {member} is not in sync any more: {reason}");
                self.log.add(Level::Warn, group, "excluded", text);
            }
            EventKind::WasExcluded => {
                let text = "the owner goes on without this member; it joins anew";
                self.log.add(Level::Warn, group, "was_excluded", text);
            }
            EventKind::Waits { epoch, ms } => {
                let text = format!(
                    "this member holds nothing, and hears no more of member {}, which owned {of} in epoch {}: unless it is heard, this \
                     member begins anew in {:.0} s (espalier start-over: at once)",
                    epoch.owner,
                    epoch.number,
                    *ms as f64 / 1000.0
                );
                self.log.add(Level::Warn, group, "waits", text);
            }
            EventKind::ForkLost { mine, theirs } => {
                let text = format!(
                    "two members owned {of}: epoch {} of member {} gives way to epoch {} of member {}",
                    mine.number, mine.owner, theirs.number, theirs.owner
                );
                self.log.add(Level::Warn, group, "fork_lost", text);
            }
            EventKind::PolicyDiffers { member, parts } => self.policy_differs(*member, parts, now),
            EventKind::Twin(member) => self.log.warn(
                "twin",
                format!("two agents run with the id of member {member}: stop one of them, or give it another [cluster] member"),
            ),
            EventKind::Health { member, trouble } => match trouble {
                Some(why) => self
                    .log
                    .warn("health", format!("the data plane of member {member} is in trouble: {why}")),
                None => self
                    .log
                    .note("health", format!("the data plane of member {member} works again")),
            },
            EventKind::EngineSilent { why } => {
                let text = format!(
                    "the ownership engine does not answer ({why}): traffic goes on; a takeover, or the loss of a standby, waits for it"
                );
                self.log.add(Level::Warn, group, "engine_silent", text);
            }
            EventKind::EngineBack => {
                let text = "the ownership engine answers again";
                self.log.add(Level::Note, group, "engine_back", text);
            }
            EventKind::Orphaned { in_sync } => {
                let text = format!(
                    "nobody may take {of} over: members {} were in sync and are gone; bring one of them back, or run: espalier start-over",
                    members(in_sync)
                );
                self.log.add(Level::Warn, group, "orphaned", text);
            }
            EventKind::MoveWaits { to, suspects } => {
                let text = format!(
                    "{of} goes to member {to} once {suspects} Child SAs are rekeyed that a lost standby knew, in {} s at the latest: its release cannot be left numbers for them",
                    REKEYS_PATIENCE.as_secs()
                );
                self.log.add(Level::Note, group, "move_waits", text);
            }
            EventKind::MoveWaitedInVain { to, suspects } => {
                let text = format!(
                    "{of} goes to member {to} although {suspects} Child SAs are not rekeyed that a lost standby knew: until they are, packets of theirs are dropped"
                );
                self.log.add(Level::Warn, group, "move_waited_in_vain", text);
            }
            EventKind::HandoverDone { epoch } => {
                self.phase(group, *epoch, "windows_merged", now);
                let text = format!("planned takeover by member {} is done", epoch.owner);
                self.log.add(Level::Note, group, "handover_done", text);
            }
            EventKind::HandoverAborted { to, why } => {
                let text = format!("planned takeover of {of} by member {to} was given up: {why}");
                self.log.add(Level::Warn, group, "handover_aborted", text);
                self.wish_failed(group, *to, why);
            }
            EventKind::RecordRefused { peer, reason } => {
                tracing::debug!(%peer, reason, "a record was refused");
            }
            EventKind::LocalStall { ms } => {
                self.log.warn("stall", format!("this agent did not run for {ms} ms; it reconfirms before it serves"));
            }
        }
        self.wishes_turn(now);
    }

    /// What people call a group: in a hot-standby cluster there is but one.
    pub(super) fn group_name(&self, group: Option<GroupId>) -> String {
        match group {
            Some(id) if self.groups.layout.count() > 1 => format!("group {id}"),
            _ => "all segments".to_owned(),
        }
    }

    /// Said at every attempt to join; once a minute is enough for people.
    fn policy_differs(&mut self, member: MemberId, parts: &[String], now: Instant) {
        let said = self.policy_warned.get(&member);
        if said.is_some_and(|(at, before)| now.since(*at).as_secs() < 60 && before == parts) {
            return;
        }
        self.policy_warned.insert(member, (now, parts.to_vec()));
        self.log.warn(
            "policy_differs",
            format!(
                "member {member} has another configuration (pre-shared keys included) in: {}; make these the same on both",
                parts.join(", ")
            ),
        );
    }

    fn claimed(&mut self, group: GroupId, epoch: EpochId, from: MemberId, planned: bool, at: Instant) {
        let of = self.group_name(Some(group));
        if from.0 == 0 {
            let text = format!("nobody owned {of}: this member claims epoch {}", epoch.number);
            self.log.note_of(group, "claimed", text);
            return;
        }
        let suspicion = self.takeover.suspicion.get(&from).cloned();
        let otherwise = format!("member {from} was restarted");
        let mut last = takeover(group, epoch, from, planned, at, suspicion, otherwise);
        let reason = last.reason.clone();
        let since = millis(last.started_ns, clock::now());
        last.phases_ms.insert("claimed".to_owned(), since);
        self.groups.get_mut(group).takeover = Some(last);
        self.takeover.last = Some(group);
        self.takeover.count[usize::from(planned)] += 1;
        let text = format!("this member claims epoch {} of {of}: {reason}", epoch.number);
        self.log.note_of(group, "claimed", text);
    }

    /// Another member has taken a group over: what this one knows of it.
    fn taken_over(&mut self, group: GroupId, epoch: EpochId, before: EpochId, planned: bool, at: Instant) {
        let from = before.owner;
        if from.0 == 0 || from == epoch.owner || epoch <= before {
            return;
        }
        let suspicion = self.takeover.suspicion.get(&from).cloned();
        let otherwise = match from == self.me {
            true => format!(
                "member {} did not hear this member, or took its life for over",
                epoch.owner
            ),
            false => format!(
                "member {} says so; this member has not missed member {from}",
                epoch.owner
            ),
        };
        let mut last = takeover(group, epoch, from, planned, at, suspicion, otherwise);
        let since = millis(last.started_ns, at);
        last.phases_ms.insert("heard_of".to_owned(), since);
        self.groups.get_mut(group).takeover = Some(last);
        self.takeover.last = Some(group);
    }

    fn phase(&mut self, group: Option<GroupId>, epoch: EpochId, name: &str, at: Instant) {
        let group = self.groups.get_mut(group.unwrap_or_default());
        if let Some(last) = group
            .takeover
            .as_mut()
            .filter(|last| last.epoch == epoch.number.0)
        {
            let since = millis(last.started_ns, at);
            last.phases_ms.entry(name.to_owned()).or_insert(since);
        }
    }

    /// The engine has taken the group's IKE SAs over.
    pub(super) fn adopted(&mut self, id: GroupId, ike_sas: usize, child_sas: usize) {
        let now = clock::now();
        let group = self.groups.get_mut(id);
        let epoch = group.ownership.epoch.0;
        if let Some(last) = group.takeover.as_mut().filter(|last| last.epoch == epoch) {
            last.ike_sas = ike_sas as u32;
            last.child_sas = child_sas as u32;
            last.phases_ms
                .entry("resumed".to_owned())
                .or_insert(millis(last.started_ns, now));
        }
    }

    /// The first authentic packet that this member accepted in an epoch.
    pub(super) fn first_inbound(&mut self, event: &ProgramEvent) {
        let id = self.groups.layout.group_of_slot(event.slot);
        let Some(last) = &mut self.groups.get_mut(id).takeover else {
            return;
        };
        if last.epoch as u16 != event.epoch as u16 || last.phases_ms.contains_key("first_packet") {
            return;
        }
        let since = millis(last.started_ns, Instant(event.time_ns));
        last.phases_ms.insert("first_packet".to_owned(), since);
        self.log.note_of(
            id,
            "first_packet",
            format!("first authentic packet in this epoch {since:.1} ms after the last sign of life"),
        );
    }
}
