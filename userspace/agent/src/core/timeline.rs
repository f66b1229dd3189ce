//! The node's events, for people: the log, and the phases of a takeover.

use cluster::io::EventKind;
use cluster::{EpochId, Event, Standing};
use model::{Instant, MemberId};

use super::Core;
use crate::api::TakeoverStatus;
use crate::clock;
use crate::control::Outcome;
use maps_schema::event::Event as ProgramEvent;

/// The last takeover, and how many there were.
#[derive(Default)]
pub struct Takeovers {
    /// Unplanned, planned.
    pub count: [u64; 2],
    /// The last one.
    pub last: Option<TakeoverStatus>,
    /// Rekeys on evidence in this epoch.
    pub evidence_rekeys: u32,
    /// Who was suspected last: when last heard, when suspected, threshold in ms.
    suspicion: Option<(MemberId, Instant, Instant, u64)>,
    /// Somebody waits for the end of a planned takeover.
    pub waiting: Vec<(MemberId, tokio::sync::oneshot::Sender<Outcome>)>,
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

impl Core {
    pub(super) fn node_event(&mut self, event: &Event) {
        let now = clock::now();
        match &event.kind {
            EventKind::PeerHeard(peer) => self.log.note("peer_heard", format!("member {peer} is heard")),
            EventKind::Suspected { peer, last_heard, threshold_ms } => {
                self.takeover.suspicion = Some((*peer, *last_heard, event.at, *threshold_ms));
                let silent = millis(last_heard.0, event.at);
                self.log.warn(
                    "suspected",
                    format!("member {peer} is suspected: silent for {silent:.1} ms on every link (threshold {threshold_ms} ms)"),
                );
            }
            EventKind::Claimed { epoch, from, planned } => self.claimed(*epoch, *from, *planned, event.at),
            EventKind::Flipped(epoch) => {
                self.phase(*epoch, "flipped", now);
                self.log.note("flipped", format!("this member owns all segments in epoch {}", epoch.number));
            }
            EventKind::Announced(epoch) => {
                self.phase(*epoch, "announced", now);
                self.log.note("announced", "the cluster's addresses were announced");
            }
            EventKind::OwnerIs(epoch) => {
                self.log.note("owner_is", format!("member {} owns all segments in epoch {}", epoch.owner, epoch.number));
            }
            EventKind::InSync(set) => {
                self.log.note("in_sync", format!("in sync: {}", members(set)));
                if set.len() > 1 && self.owns() {
                    self.begin_suspects();
                }
            }
            EventKind::Standing(standing) => {
                self.log.note("standing", format!("the owner stands {standing:?}"));
                if *standing == Standing::AloneUnfenced {
                    self.suspect_shared();
                }
            }
            EventKind::Joining(member) => self.log.note("joining", format!("member {} joins", member.member)),
            EventKind::Excluded { member, reason } => {
                self.log.warn("excluded", format!("member {member} is not in sync any more: {reason}"));
            }
            EventKind::WasExcluded => self.log.warn("was_excluded", "the owner goes on without this member; it joins anew"),
            EventKind::ForkLost { mine, theirs } => self.log.warn(
                "fork_lost",
                format!(
                    "both members owned the segments: epoch {} of member {} gives way to epoch {} of member {}",
                    mine.number, mine.owner, theirs.number, theirs.owner
                ),
            ),
            // Said at every attempt to join; once a minute is enough for people.
            EventKind::PolicyDiffers(_) if self.policy_warned.is_some_and(|at| now.since(at).as_secs() < 60) => {}
            EventKind::PolicyDiffers(peer) => {
                self.policy_warned = Some(now); self.log.warn(
                "policy_differs",
                format!("member {peer} has other [[connections]] (their pre-shared keys included) or [addresses]; make them the same on both"),
            );
            }
            EventKind::HandoverDone { epoch } => {
                self.phase(*epoch, "windows_merged", now);
                self.log.note("handover_done", format!("planned takeover by member {} is done", epoch.owner));
                self.takeover_ended(epoch.owner);
            }
            EventKind::HandoverAborted(why) => {
                self.log.warn("handover_aborted", format!("planned takeover was given up: {why}"));
                for (_, answer) in self.takeover.waiting.drain(..) {
                    let _ = answer.send(Err(why.clone()));
                }
            }
            EventKind::RecordRefused { peer, reason } => {
                tracing::debug!(%peer, reason, "a record was refused");
            }
            EventKind::LocalStall { ms } => {
                self.log.warn("stall", format!("this agent did not run for {ms} ms; it reconfirms before it serves"));
            }
        }
    }

    fn claimed(&mut self, epoch: EpochId, from: MemberId, planned: bool, at: Instant) {
        if from.0 == 0 {
            self.log.note(
                "claimed",
                format!(
                    "nobody owned the segments: this member claims epoch {}",
                    epoch.number
                ),
            );
            return;
        }
        let suspicion = self.takeover.suspicion.filter(|s| s.0 == from && !planned);
        let started = suspicion.map_or(at, |s| s.1);
        let reason = match suspicion {
            _ if planned => format!("member {from} handed over as it was told to"),
            Some((_, heard, suspected, threshold)) => {
                let silent = millis(heard.0, suspected);
                format!(
                    "member {from} was silent for {silent:.1} ms on every link (threshold {threshold} ms)"
                )
            }
            None => format!("member {from} was restarted"),
        };
        let now = clock::now();
        let mut last = TakeoverStatus {
            kind: if planned { "planned" } else { "failover" }.to_owned(),
            reason: reason.clone(),
            from: from.0,
            epoch: epoch.number.0,
            started_ns: started.0,
            started_wall_ns: clock::wall_ns().saturating_sub(now.0.saturating_sub(started.0)),
            child_sas: self.sad.len() as u32,
            ike_sas: self.mirror.len() as u32,
            ..TakeoverStatus::default()
        };
        if let Some((_, _, suspected, _)) = suspicion {
            last.phases_ms
                .insert("suspected".to_owned(), millis(started.0, suspected));
        }
        last.phases_ms
            .insert("claimed".to_owned(), millis(started.0, now));
        self.takeover.last = Some(last);
        self.takeover.count[usize::from(planned)] += 1;
        self.log.note(
            "claimed",
            format!("this member claims epoch {}: {reason}", epoch.number),
        );
    }

    fn phase(&mut self, epoch: EpochId, name: &str, at: Instant) {
        if let Some(last) = self
            .takeover
            .last
            .as_mut()
            .filter(|last| last.epoch == epoch.number.0)
        {
            let since = millis(last.started_ns, at);
            last.phases_ms.entry(name.to_owned()).or_insert(since);
        }
    }

    /// The engine has taken the IKE SAs over.
    pub(super) fn adopted(&mut self, ike_sas: usize, took_ms: f64) {
        let epoch = self.ownership.epoch.0;
        let now = clock::now();
        if let Some(last) = self.takeover.last.as_mut().filter(|last| last.epoch == epoch) {
            last.ike_sas = ike_sas as u32;
            last.child_sas = self.sad.len() as u32;
            last.phases_ms
                .entry("resumed".to_owned())
                .or_insert(millis(last.started_ns, now));
            tracing::debug!(took_ms, "IKE SAs adopted");
        }
    }

    /// The first authentic packet that this member accepted in an epoch.
    pub(super) fn first_inbound(&mut self, event: &ProgramEvent) {
        let Some(last) = &mut self.takeover.last else {
            return;
        };
        if last.epoch as u16 != event.epoch as u16 || last.phases_ms.contains_key("first_packet") {
            return;
        }
        let since = millis(last.started_ns, Instant(event.time_ns));
        last.phases_ms.insert("first_packet".to_owned(), since);
        self.log.note(
            "first_packet",
            format!("first authentic packet in this epoch {since:.1} ms after the last sign of life"),
        );
    }

    /// A planned takeover whose end nobody reported: the words say what came of it.
    pub(super) fn takeover_overdue(&mut self) {
        let node = self.node.status();
        if !node.handover && !self.takeover.waiting.is_empty() {
            self.takeover_ended(node.epoch.owner);
        }
    }

    /// Whoever waited for a planned takeover to this member hears that it is done.
    fn takeover_ended(&mut self, owner: MemberId) {
        let (done, others) = self
            .takeover
            .waiting
            .drain(..)
            .partition::<Vec<_>, _>(|(to, _)| *to == owner);
        self.takeover.waiting = others;
        for (_, answer) in done {
            let _ = answer.send(Ok(format!("member {owner} owns all segments now")));
        }
    }
}
