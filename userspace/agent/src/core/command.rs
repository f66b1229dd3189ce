//! Commands about ownership. Whoever gave one hears of its end: every group has come to its new owner, or why not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cluster::rules_doubt::REKEYS_PATIENCE;
use cluster::status::{GroupStatus, NodeStatus, Role};
use cluster::{Command, Input};
use model::{GroupId, Instant, MemberId};
use tokio::sync::oneshot;

use super::{Core, Stop};
use crate::api::{StartOverRequest, StopRequest, TakeoverRequest};
use crate::clock;
use crate::control::Outcome;

/// A move that takes longer than this, and [`PER_GROUP`] for each group, has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Groups move one after the other.
const PER_GROUP: Duration = Duration::from_millis(500);
/// A stopping agent waits no longer than this for the end of its handovers, and [`LEAVE_PER_GROUP`] for each group.
const LEAVE: Duration = Duration::from_secs(3);
/// See [`LEAVE`].
const LEAVE_PER_GROUP: Duration = Duration::from_millis(100);

/// Where the outcome of a command goes.
type Answer = oneshot::Sender<Outcome>;

/// When a group has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    /// This member owns it, and no handover is under way.
    OwnedBy(MemberId),
    /// This one owns it no more.
    GivenUp(MemberId),
}

impl Goal {
    fn reached(self, group: &GroupStatus) -> bool {
        match self {
            Self::OwnedBy(to) => group.epoch.owner == to && !group.handover,
            Self::GivenUp(from) => group.epoch.owner != from && !group.handover,
        }
    }
}

struct Wish {
    open: BTreeMap<GroupId, Goal>,
    failed: BTreeSet<String>,
    /// What to say at the end.
    done: String,
    /// What to do where time runs out.
    remedy: &'static str,
    until: Instant,
    answer: Answer,
}

/// All commands that wait.
#[derive(Default)]
pub struct Wishes(Vec<Wish>);

impl Wishes {
    fn turn(&mut self, groups: &[GroupStatus], now: Instant) {
        for wish in &mut self.0 {
            wish.open
                .retain(|id, goal| !groups.iter().any(|g| g.group == *id && goal.reached(g)));
        }
        let is_over = |wish: &mut Wish| wish.open.is_empty() || wish.until <= now;
        for wish in self.0.extract_if(.., is_over) {
            let outcome = if !wish.open.is_empty() {
                let open = list(wish.open.keys());
                Err(format!("{open}: not done in time; {}", wish.remedy))
            } else if !wish.failed.is_empty() {
                Err(wish.failed.into_iter().collect::<Vec<_>>().join("; "))
            } else {
                Ok(wish.done)
            };
            // Whoever asked may be gone: then nobody reads the answer.
            let _ = wish.answer.send(outcome);
        }
    }

    fn failed(&mut self, group: Option<GroupId>, to: MemberId, text: &str) {
        for wish in &mut self.0 {
            let before = wish.open.len();
            wish.open
                .retain(|id, goal| *goal != Goal::OwnedBy(to) || group.is_some_and(|group| group != *id));
            if wish.open.len() < before {
                wish.failed.insert(text.to_owned());
            }
        }
    }
}

fn list<'a>(groups: impl Iterator<Item = &'a GroupId>) -> String {
    let names = groups.map(ToString::to_string).collect::<Vec<_>>();
    format!("group {}", names.join(", "))
}

fn selected(status: &NodeStatus, group: Option<u8>) -> Vec<&GroupStatus> {
    let wanted = |g: &&GroupStatus| group.is_none_or(|id| g.group.0 == id);
    status.groups.iter().filter(wanted).collect()
}

/// Members of the in-sync set but for the owner.
fn standbys(group: &GroupStatus) -> impl Iterator<Item = MemberId> {
    let owner = group.epoch.owner;
    let set = group.in_sync.iter().flatten().map(|m| m.member);
    set.filter(move |member| *member != owner)
}

impl Core {
    fn known_group(&self, group: Option<u8>) -> Result<(), String> {
        let count = self.groups.layout.count();
        match group {
            Some(id) if id >= count => Err(format!(
                "there is no group {id}: this cluster has {count}, from 0"
            )),
            _ => Ok(()),
        }
    }

    fn command(&mut self, command: Command) {
        self.node_input(Input::Command {
            now: clock::now(),
            command,
        });
    }

    /// Has a command's end waited for; the command itself is given right after.
    fn await_end(
        &mut self,
        open: BTreeMap<GroupId, Goal>,
        done: String,
        remedy: &'static str,
        answer: Answer,
    ) {
        let until = clock::now() + PATIENCE + PER_GROUP * open.len() as u32 + self.move_may_wait();
        self.wishes.0.push(Wish {
            open,
            failed: BTreeSet::new(),
            done,
            remedy,
            until,
            answer,
        });
    }

    /// How long a move may wait for Child SAs that a lost standby knew to be rekeyed.
    fn move_may_wait(&self) -> Duration {
        let waits = self.node.status().groups.iter().any(|g| g.suspects > 0);
        if waits { REKEYS_PATIENCE } else { Duration::ZERO }
    }

    /// After what may have changed ownership, and once a second.
    pub(super) fn wishes_turn(&mut self, now: Instant) {
        if !self.wishes.0.is_empty() {
            let status = self.node.status();
            self.wishes.turn(&status.groups, now);
        }
    }

    /// A move was given up, of one group or (`None`) of all that were to go there.
    pub(super) fn wish_failed(&mut self, group: Option<GroupId>, to: MemberId, why: &str) {
        let text = format!("{}: {why}", self.group_name(group));
        self.wishes.failed(group, to, &text);
    }

    /// A planned takeover; whoever asked hears of its end.
    pub(super) fn take_over(&mut self, wish: &TakeoverRequest, answer: Answer) {
        match self.takeover_parts(wish) {
            Ok((to, open)) => {
                let of = self.group_name(wish.group.map(GroupId));
                let done = format!("member {to} owns {of} now");
                self.await_end(open, done, "see espalier status and espalier events", answer);
                self.command(Command::TakeoverTo {
                    to,
                    group: wish.group.map(GroupId),
                });
                self.wishes_turn(clock::now());
            }
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    fn takeover_parts(&self, wish: &TakeoverRequest) -> Result<(MemberId, BTreeMap<GroupId, Goal>), String> {
        self.known_group(wish.group)?;
        if self.config.others().next().is_none() {
            return Err("this cluster has one member: there is nobody to hand over to".to_owned());
        }
        let status = self.node.status();
        let groups = selected(&status, wish.group);
        let to = match wish.to {
            Some(id) => MemberId(id),
            None => self.obvious_taker(&groups)?,
        };
        if !self.config.cluster.members.iter().any(|m| m.id == to) {
            return Err(format!("there is no member {to}"));
        }
        let open = groups.into_iter().filter(|g| g.epoch.owner != to);
        let open = open
            .map(|g| (g.group, Goal::OwnedBy(to)))
            .collect::<BTreeMap<_, _>>();
        if open.is_empty() {
            let of = self.group_name(wish.group.map(GroupId));
            return Err(format!("member {to} owns {of} already"));
        }
        Ok((to, open))
    }

    /// Without a name: from the owner to its standby, wherever the command was given.
    fn obvious_taker(&self, groups: &[&GroupStatus]) -> Result<MemberId, String> {
        let mine = groups.iter().filter(|g| g.epoch.owner == self.me);
        let takers = mine.flat_map(|g| standbys(g)).collect::<BTreeSet<_>>();
        if groups.iter().all(|g| g.epoch.owner != self.me) {
            return Ok(self.me);
        }
        let mut takers = takers.into_iter();
        match (takers.next(), takers.next()) {
            (Some(only), None) => Ok(only),
            (None, _) => Err("no other member is in sync; wait until `espalier status` shows one".to_owned()),
            _ => Err("several members could take over: name one with --to".to_owned()),
        }
    }

    /// Hands over everything and takes nothing back.
    pub(super) fn drain(&mut self, answer: Answer) {
        let status = self.node.status();
        let open = status.owned().map(|g| (g.group, Goal::GivenUp(self.me)));
        let open = open.collect::<BTreeMap<_, _>>();
        let done = format!(
            "member {} owns nothing and takes nothing over by itself until `espalier undrain`",
            self.me
        );
        let remedy = "is another member in sync and healthy (espalier status)? This member goes on trying; `espalier undrain` ends that";
        self.log.note("drain", "this member is being drained");
        self.await_end(open, done, remedy, answer);
        self.command(Command::Drain);
        self.wishes_turn(clock::now());
    }

    /// The end of it.
    pub(super) fn undrain(&mut self, answer: Answer) {
        self.log.note("undrain", "this member is not drained any more");
        self.command(Command::Undrain);
        let _ = answer.send(Ok(format!(
            "member {} takes groups over again; `espalier rebalance` gives it its share back",
            self.me
        )));
    }

    /// Every group goes to the member that it is meant for, where that one is in sync.
    pub(super) fn rebalance(&mut self, answer: Answer) {
        let status = self.node.status();
        let away = status.groups.iter().filter(|g| g.epoch.owner != g.home);
        let (ready, not) = away.partition::<Vec<_>, _>(|g| standbys(g).any(|member| member == g.home));
        let open = ready.iter().map(|g| (g.group, Goal::OwnedBy(g.home)));
        let open = open.collect::<BTreeMap<_, _>>();
        let mut done = match open.len() {
            0 => "nothing to move".to_owned(),
            count => format!("{count} group(s) are with the member that they are meant for"),
        };
        if !not.is_empty() {
            let homeless = list(not.iter().map(|g| &g.group));
            done.push_str(&format!("; {homeless}: its member is not in sync"));
        }
        let remedy = "see espalier status and espalier events";
        self.await_end(open, done, remedy, answer);
        self.command(Command::Rebalance);
        self.wishes_turn(clock::now());
    }

    /// Begins anew with groups whose in-sync members are all lost.
    pub(super) fn start_over(&mut self, wish: &StartOverRequest, answer: Answer) {
        match self.start_over_parts(wish) {
            Ok(open) => {
                let done = format!(
                    "{}: begun anew without SAs; the peers establish theirs again",
                    list(open.keys())
                );
                self.log
                    .warn("start_over", "an operator has this member begin anew");
                let remedy = "does a member that is heard still own it? see espalier status";
                self.await_end(open, done, remedy, answer);
                self.command(Command::StartOver {
                    group: wish.group.map(GroupId),
                });
                self.wishes_turn(clock::now());
            }
            Err(why) => drop(answer.send(Err(why))),
        }
    }

    fn start_over_parts(&self, wish: &StartOverRequest) -> Result<BTreeMap<GroupId, Goal>, String> {
        self.known_group(wish.group)?;
        if !wish.yes {
            return Err("all SAs of the group are lost by this; confirm it with --yes".to_owned());
        }
        let status = self.node.status();
        let heard = |member: MemberId| {
            member == self.me || status.peers.iter().any(|p| p.member == member && p.alive)
        };
        let groups = selected(&status, wish.group).into_iter();
        let lost = groups.filter(|g| !heard(g.epoch.owner));
        let open = lost
            .map(|g| (g.group, Goal::OwnedBy(self.me)))
            .collect::<BTreeMap<_, _>>();
        if open.is_empty() {
            let of = self.group_name(wish.group.map(GroupId));
            return Err(format!("{of}: an owner is heard, there is nothing to begin anew"));
        }
        Ok(open)
    }

    /// An operator has the agent stop.
    pub(super) fn stop(&mut self, wish: &StopRequest, answer: Answer) {
        if !wish.keep {
            self.stopping = Some(Stop::Leave);
            let _ = answer.send(Ok(format!("member {} stops", self.me)));
            return;
        }
        let kept = self.keep();
        match &kept {
            Ok(text) => {
                self.stopping = Some(Stop::Kept);
                self.log.note("kept", text.clone());
            }
            Err(why) => self.log.warn("not_kept", why.clone()),
        }
        let _ = answer.send(kept);
    }

    /// The agent is told to stop: hands over what another member can take. Returns when to go at the latest.
    pub(super) fn leave(&mut self) -> Instant {
        let now = clock::now();
        let owned = self.node.status().owned().count() as u32;
        if self.has_left() {
            self.log.note("stopping", "stopping");
            return now;
        }
        self.log.note("stopping", "stopping: handing over first");
        self.command(Command::Drain);
        now + LEAVE + LEAVE_PER_GROUP * owned + self.move_may_wait()
    }

    /// Whether nobody needs anything of this member any more: what it still owns, nobody could take, and what a fork of its has touched, the
    /// owner has heard of and dealt with.
    pub(super) fn has_left(&self) -> bool {
        let status = self.node.status();
        let lives = self.node.lives();
        let hears = |member: MemberId| {
            lives
                .iter()
                .any(|life| life.member == member && member != self.me)
        };
        let owes = |g: &GroupStatus| hears(g.epoch.owner) && self.node.owes_a_fork(g.group);
        let needed = |g: &GroupStatus| {
            g.handover || owes(g) || (g.role == Role::Active && standbys(g).next().is_some())
        };
        !status.groups.iter().any(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::EpochId;
    use model::Epoch;

    fn group(id: u8, owner: u8, handover: bool) -> GroupStatus {
        GroupStatus {
            group: GroupId(id),
            role: Role::Standby,
            epoch: EpochId {
                number: Epoch(7),
                owner: MemberId(owner),
            },
            home: MemberId(1),
            in_sync: None,
            standing: None,
            position: 0,
            committed: 0,
            raises_open: 0,
            valid_until: Instant(0),
            handover,
            suspects: 0,
            move_waits: None,
            engine_waits: false,
        }
    }

    fn wish(wishes: &mut Wishes, goals: &[(u8, Goal)]) -> oneshot::Receiver<Outcome> {
        let (answer, wait) = oneshot::channel();
        wishes.0.push(Wish {
            open: goals.iter().map(|(id, goal)| (GroupId(*id), *goal)).collect(),
            failed: BTreeSet::new(),
            done: "done".to_owned(),
            remedy: "look",
            until: Instant(1000),
            answer,
        });
        wait
    }

    const TO_2: Goal = Goal::OwnedBy(MemberId(2));

    #[test]
    fn a_takeover_is_done_when_its_last_group_is_and_no_sooner_than_its_handover() {
        let mut wishes = Wishes::default();
        let mut wait = wish(&mut wishes, &[(0, TO_2), (1, TO_2)]);
        wishes.turn(&[group(0, 2, false), group(1, 2, true)], Instant(1));
        assert!(wait.try_recv().is_err(), "the windows of group 1 are not merged");
        wishes.turn(&[group(0, 1, false), group(1, 2, false)], Instant(2));
        assert_eq!(wait.try_recv().unwrap(), Ok("done".to_owned()));
    }

    #[test]
    fn a_group_that_fails_does_not_keep_the_others_from_moving_but_is_told() {
        let mut wishes = Wishes::default();
        let mut wait = wish(&mut wishes, &[(0, TO_2), (1, TO_2)]);
        wishes.failed(Some(GroupId(0)), MemberId(3), "another one's");
        wishes.failed(Some(GroupId(0)), MemberId(2), "group 0: lost");
        wishes.turn(&[group(1, 1, false)], Instant(1));
        assert!(wait.try_recv().is_err(), "group 1 is on its way");
        wishes.turn(&[group(1, 2, false)], Instant(2));
        assert_eq!(wait.try_recv().unwrap(), Err("group 0: lost".to_owned()));
    }

    #[test]
    fn time_runs_out_with_the_groups_and_a_remedy() {
        let mut wishes = Wishes::default();
        let mut wait = wish(
            &mut wishes,
            &[(0, Goal::GivenUp(MemberId(1))), (3, Goal::GivenUp(MemberId(1)))],
        );
        let groups = [group(0, 2, false), group(3, 1, false)];
        wishes.turn(&groups, Instant(999));
        assert!(wait.try_recv().is_err());
        wishes.turn(&groups, Instant(1000));
        assert_eq!(
            wait.try_recv().unwrap(),
            Err("group 3: not done in time; look".to_owned())
        );
    }
}
