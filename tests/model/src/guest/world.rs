//! The world: journals of both groups, a sponsor and a host for each of their epochs, the peer, a network that keeps every record.

use super::rules::Rules;
use cluster::EpochId;
use cluster::rules_guest::{HostStep, Lodging, Voice};
use model::{Epoch, GroupId, MemberId};
use stateright::{Model, Property};
use std::collections::BTreeSet;

/// Epochs of each group.
pub const EPOCHS: usize = 2;
/// SPIs: one for each pair of a host's and a sponsor's epoch.
pub const SPIS: usize = EPOCHS * EPOCHS;

/// What the journal of the IKE SA's group says of an SPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Recorded {
    /// Nothing.
    #[default]
    No,
    /// It is in a request of ours.
    Promised,
    /// A Child SA.
    Child,
    /// It was one.
    Deleted,
}

/// What the journal of the host's group says of an SPI.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lodged {
    /// Nothing.
    #[default]
    No,
    /// Installed; the IKE SA that it belongs to, and whether it carries outbound traffic.
    Here(u8, bool),
    /// It was.
    Gone,
}

/// How far a sponsor is with an SPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Step {
    /// The peer asked for it: it has the SA once our answer leaves.
    pub answers: bool,
    /// The host.
    pub host: HostKnown,
    /// Number of the installation that was said, 0 before.
    pub said: u8,
    /// Its own part is committed.
    pub recorded: bool,
    /// It is to be used, and that was said.
    pub used: bool,
    /// The messages have left.
    pub left: bool,
}

/// [`HostStep`] in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostKnown {
    /// Not asked, or no answer.
    Open,
    /// It has it.
    Done,
    /// It refused, or the sponsor waits no longer.
    Failed,
}

impl HostKnown {
    fn step(self) -> HostStep {
        match self {
            Self::Open => HostStep::Asked,
            Self::Done => HostStep::Committed,
            Self::Failed => HostStep::Failed,
        }
    }
}

/// A sponsor in its epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sponsor {
    /// The host's epoch as it knows it.
    pub host: u8,
    /// Number of what it said last.
    pub number: u8,
    /// SPIs that it took.
    pub steps: [Option<Step>; SPIS],
}

/// A host in its epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host {
    /// The sponsor's epoch as it knows it.
    pub sponsor: u8,
    /// Offers that were used up.
    pub used_up: u8,
    /// (epoch, number) of what was said last of each guest.
    pub said: [Option<(u8, u8)>; SPIS],
    /// It has followed a roster of this epoch.
    pub roster: Option<u8>,
}

/// What is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Said {
    /// Install.
    Install(u8),
    /// Use outbound.
    Use(u8),
    /// It belongs to another IKE SA.
    Move(u8, u8),
    /// Remove.
    Remove(u8),
    /// These SPIs are there, by bits.
    Roster(u8),
    /// Host: done or refused.
    Answer(u8, bool),
}

/// A record on the network. It stays: late, twice or never is the same to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Record {
    /// The host's epoch that it is for.
    pub host: u8,
    /// The sponsor's epoch.
    pub sponsor: u8,
    /// Number of what was said, or is answered.
    pub number: u8,
    /// What.
    pub said: Said,
}

/// What must never happen, once it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Broken {
    /// Installed a second time: its numbers begin anew under the same keys.
    Again,
    /// A message left that completes an exchange which the host's journal does not know, and that nobody takes back.
    TooSoon,
    /// In use outbound before the record that names it was committed.
    UsedEarly,
    /// A guest that the record names was removed.
    Evicted,
    /// It was given back to an IKE SA that is gone.
    Backwards,
    /// Installed for a sponsor whose successor the host has obeyed.
    Orphan,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    /// Present epochs: the sponsor's, the host's.
    pub epochs: [u8; 2],
    /// Journal of the IKE SA's group.
    pub recorded: [Recorded; SPIS],
    /// The IKE SA that Child SAs belong to, by its rekeys.
    pub ike: u8,
    /// Journal of the host's group.
    pub lodged: [Lodged; SPIS],
    /// SPIs of SAs that the peer has.
    pub peer: u8,
    /// By epoch.
    pub sponsors: [Sponsor; EPOCHS],
    /// By epoch.
    pub hosts: [Host; EPOCHS],
    /// Every record that was ever sent.
    pub network: BTreeSet<Record>,
    /// What is left of the bounds.
    pub left: Bounds,
    /// What went wrong.
    pub broken: BTreeSet<Broken>,
}

/// How much may happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Child SAs that are begun.
    pub children: u8,
    /// Deletions.
    pub deletions: u8,
    /// Rosters.
    pub rosters: u8,
    /// Rekeys of the IKE SA.
    pub rekeys: u8,
    /// Takeovers of the sponsor's group.
    pub sponsors: u8,
    /// Takeovers of the host's group.
    pub hosts: u8,
    /// A sponsor waits no longer.
    pub patience: u8,
}

/// One step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A sponsor takes an SPI: for a request of its own, or for the peer's.
    Take(u8, bool),
    /// It has the host install it.
    Ask(u8, u8),
    /// It waits no longer.
    GiveUp(u8, u8),
    /// It has its own part committed.
    Commit(u8, u8),
    /// It says what follows.
    Follow(u8, u8),
    /// Its messages leave.
    Leave(u8, u8),
    /// It deletes a Child SA.
    Delete(u8, u8),
    /// It rekeys the IKE SA.
    Rekey(u8),
    /// It says what there is.
    CallRoster(u8),
    /// It hears of the host's epoch.
    SponsorLearns(u8),
    /// A host hears of the sponsor's epoch.
    HostLearns(u8),
    /// Another member owns the IKE SA's group.
    SponsorLost,
    /// Another member owns the host's group.
    HostLost,
    /// A record arrives.
    Hear(Record),
}

/// The model.
#[derive(Clone, Copy)]
pub struct World {
    /// What decides.
    pub rules: Rules,
    /// How much may happen.
    pub bounds: Bounds,
    /// The checker also has to find the states in [`REACHED`].
    pub reaches: bool,
}

/// What is to be guarded against, and has to happen for that.
pub const REACHED: [(&str, fn(&World, &State) -> bool); 4] = [
    ("an orphan: installed, and no record names it", |_, state| {
        state.epochs[0] == 1
            && state.lodged[0] != Lodged::No
            && state.recorded[0] == Recorded::No
            && state.sponsors[1].steps[0].is_none()
    }),
    ("an orphan that a roster removed", |_, state| {
        state.lodged[0] == Lodged::Gone && state.recorded[0] == Recorded::No
    }),
    ("a record whose guest is not there", |_, state| {
        state.lodged[0] == Lodged::No && state.recorded[0] == Recorded::Child
    }),
    ("a host that serves what its predecessor installed", |_, state| {
        state.epochs[1] == 1 && matches!(state.lodged[0], Lodged::Here(_, true))
    }),
];

fn epoch(number: u8) -> EpochId {
    EpochId {
        number: Epoch(u64::from(number) + 1),
        owner: MemberId(number + 1),
    }
}

fn voice((number, said): (u8, u8)) -> Voice {
    Voice {
        epoch: epoch(number),
        number: u64::from(said),
        group: GroupId(0),
    }
}

const fn bit(spi: usize) -> u8 {
    1 << spi
}

struct At<'a> {
    state: &'a mut State,
    rules: &'a Rules,
}

impl At<'_> {
    fn say(&mut self, sponsor: u8, said: Said) -> u8 {
        let me = &mut self.state.sponsors[usize::from(sponsor)];
        me.number += 1;
        let record = Record {
            host: me.host,
            sponsor,
            number: me.number,
            said,
        };
        let number = me.number;
        self.state.network.insert(record);
        number
    }

    fn step(&mut self, sponsor: u8, spi: u8) -> Option<&mut Step> {
        self.state.sponsors[usize::from(sponsor)].steps[usize::from(spi)].as_mut()
    }

    fn sponsor_acts(&mut self, action: Action) -> Option<()> {
        match action {
            Action::Take(sponsor, answers) => {
                let host = self.state.sponsors[usize::from(sponsor)].host;
                let spi = usize::from(host) * EPOCHS + usize::from(sponsor);
                let steps = &mut self.state.sponsors[usize::from(sponsor)].steps;
                if steps[spi].is_some() {
                    return None;
                }
                steps[spi] = Some(Step {
                    answers,
                    host: HostKnown::Open,
                    said: 0,
                    recorded: false,
                    used: false,
                    left: false,
                });
                self.state.left.children -= 1;
                if !answers {
                    // A request of ours: committed before it is sent, and the peer answers.
                    if self.state.epochs[0] != sponsor {
                        return None;
                    }
                    self.state.recorded[spi] = Recorded::Promised;
                    self.state.peer |= bit(spi);
                }
            }
            Action::Ask(sponsor, spi) => {
                if self.step(sponsor, spi)?.said != 0 {
                    return None;
                }
                let number = self.say(sponsor, Said::Install(spi));
                self.step(sponsor, spi)?.said = number;
            }
            Action::GiveUp(sponsor, spi) => {
                let step = self.step(sponsor, spi)?;
                if step.said == 0 || step.host != HostKnown::Open {
                    return None;
                }
                step.host = HostKnown::Failed;
                self.state.left.patience -= 1;
            }
            Action::Commit(sponsor, spi) => {
                let step = *self.step(sponsor, spi)?;
                let may = step.said != 0 && (self.rules.may_propose)(step.host.step());
                if step.recorded || !may || self.state.epochs[0] != sponsor {
                    return None;
                }
                self.state.recorded[usize::from(spi)] = Recorded::Child;
                self.step(sponsor, spi)?.recorded = true;
            }
            Action::Follow(sponsor, spi) => {
                let step = *self.step(sponsor, spi)?;
                if step.used || step.said == 0 || !(self.rules.may_use)(step.host.step(), step.recorded) {
                    return None;
                }
                self.step(sponsor, spi)?.used = true;
                self.say(sponsor, Said::Use(spi));
            }
            Action::Leave(sponsor, spi) => {
                let step = *self.step(sponsor, spi)?;
                if step.left || !step.recorded || !step.answers {
                    return None;
                }
                self.step(sponsor, spi)?.left = true;
                self.state.peer |= bit(usize::from(spi));
                let unknown = self.state.lodged[usize::from(spi)] == Lodged::No;
                if unknown && step.host != HostKnown::Failed {
                    self.state.broken.insert(Broken::TooSoon);
                }
            }
            Action::Delete(sponsor, spi) => {
                let named = self.state.recorded[usize::from(spi)] == Recorded::Child;
                if !named || self.state.epochs[0] != sponsor {
                    return None;
                }
                self.state.left.deletions -= 1;
                self.state.recorded[usize::from(spi)] = Recorded::Deleted;
                self.state.peer &= !bit(usize::from(spi));
                self.say(sponsor, Said::Remove(spi));
            }
            Action::Rekey(sponsor) => {
                if self.state.epochs[0] != sponsor {
                    return None;
                }
                self.state.left.rekeys -= 1;
                self.state.ike += 1;
                let ike = self.state.ike;
                for spi in 0..SPIS as u8 {
                    if self.state.recorded[usize::from(spi)] == Recorded::Child {
                        self.say(sponsor, Said::Move(spi, ike));
                    }
                }
            }
            Action::CallRoster(sponsor) => {
                // The owner word of one that is deposed runs out: it says no rosters.
                if self.state.epochs[0] != sponsor {
                    return None;
                }
                self.state.left.rosters -= 1;
                let mut listed = 0;
                for spi in 0..SPIS {
                    let taken = self.state.sponsors[usize::from(sponsor)].steps[spi].is_some();
                    let promised = self.rules.lists_promised
                        && (taken || self.state.recorded[spi] == Recorded::Promised);
                    let deleted = self.state.recorded[spi] == Recorded::Deleted;
                    if !deleted && (self.state.recorded[spi] == Recorded::Child || promised) {
                        listed |= bit(spi);
                    }
                }
                self.say(sponsor, Said::Roster(listed));
            }
            Action::SponsorLearns(sponsor) => {
                let host = self.state.epochs[1];
                let me = &mut self.state.sponsors[usize::from(sponsor)];
                if me.host == host {
                    return None;
                }
                me.host = host;
                for step in me.steps.iter_mut().flatten() {
                    // Another owner knows nothing of what its predecessor was asked.
                    if step.said != 0 && step.host == HostKnown::Open {
                        step.host = HostKnown::Failed;
                    }
                }
            }
            _ => return None,
        }
        Some(())
    }

    fn hear(&mut self, record: Record) -> Option<()> {
        if let Said::Answer(spi, done) = record.said {
            let me = &self.state.sponsors[usize::from(record.sponsor)];
            let step = me.steps[usize::from(spi)]?;
            if me.host != record.host || step.said != record.number || step.host != HostKnown::Open {
                return None;
            }
            let known = if done { HostKnown::Done } else { HostKnown::Failed };
            self.step(record.sponsor, spi)?.host = known;
            return Some(());
        }
        // A host that is none any more has nothing committed.
        if record.host != self.state.epochs[1] {
            return None;
        }
        let host = &mut self.state.hosts[usize::from(record.host)];
        let from = epoch(record.sponsor);
        if !(self.rules.may_speak)(epoch(host.sponsor), from, from.owner) {
            return None;
        }
        if self.rules.remembers_epoch {
            host.sponsor = host.sponsor.max(record.sponsor);
        }
        let now = (record.sponsor, record.number);
        if let Said::Roster(listed) = record.said {
            host.roster = host.roster.max(Some(record.sponsor));
            for spi in 0..SPIS {
                let here = matches!(self.state.lodged[spi], Lodged::Here(..));
                let before = self.state.hosts[usize::from(record.host)].said[spi];
                let is_listed = listed & bit(spi) != 0;
                if here && (self.rules.evicts)(before.map(voice), voice(now), is_listed) {
                    self.remove(spi);
                }
            }
            return Some(());
        }
        let (Said::Install(spi) | Said::Use(spi) | Said::Move(spi, _) | Said::Remove(spi)) = record.said
        else {
            return None;
        };
        let spi = usize::from(spi);
        if !(self.rules.counts)(host.said[spi].map(voice), voice(now)) {
            return None;
        }
        host.said[spi] = Some(now);
        self.change(record, spi)
    }

    fn change(&mut self, record: Record, spi: usize) -> Option<()> {
        let here = matches!(self.state.lodged[spi], Lodged::Here(..));
        let host = &mut self.state.hosts[usize::from(record.host)];
        match record.said {
            Said::Install(_) => {
                let offered = spi / EPOCHS == usize::from(record.host) && host.used_up & bit(spi) == 0;
                let decided = (self.rules.lodging)(offered, here);
                if decided == Lodging::Install {
                    if self.rules.offers_are_used_up {
                        host.used_up |= bit(spi);
                    }
                    let obeyed = host.roster.is_some_and(|roster| roster > record.sponsor);
                    if self.state.lodged[spi] != Lodged::No {
                        self.state.broken.insert(Broken::Again);
                    }
                    if obeyed && self.state.recorded[spi] == Recorded::No {
                        self.state.broken.insert(Broken::Orphan);
                    }
                    self.state.lodged[spi] = Lodged::Here(self.state.ike, false);
                }
                self.state.network.insert(Record {
                    said: Said::Answer(spi as u8, decided != Lodging::Refuse),
                    ..record
                });
            }
            Said::Use(_) => {
                if let Lodged::Here(_, used) = &mut self.state.lodged[spi] {
                    *used = true;
                    let early = [Recorded::No, Recorded::Promised].contains(&self.state.recorded[spi]);
                    if early {
                        self.state.broken.insert(Broken::UsedEarly);
                    }
                }
            }
            Said::Move(_, ike) => {
                if let Lodged::Here(of, _) = &mut self.state.lodged[spi] {
                    if ike < *of {
                        self.state.broken.insert(Broken::Backwards);
                    }
                    *of = ike;
                }
            }
            Said::Remove(_) => {
                host.used_up |= bit(spi);
                if here {
                    self.remove(spi);
                }
            }
            Said::Roster(_) | Said::Answer(..) => {}
        }
        Some(())
    }

    fn remove(&mut self, spi: usize) {
        if [Recorded::Child, Recorded::Promised].contains(&self.state.recorded[spi]) {
            self.state.broken.insert(Broken::Evicted);
        }
        self.state.lodged[spi] = Lodged::Gone;
    }

    fn takeover(&mut self, action: Action) -> Option<()> {
        match action {
            Action::SponsorLost => {
                self.state.left.sponsors -= 1;
                self.state.epochs[0] += 1;
                let host = self.state.epochs[1];
                let recorded = self.state.recorded;
                let me = &mut self.state.sponsors[usize::from(self.state.epochs[0])];
                me.host = host;
                for (step, recorded) in me.steps.iter_mut().zip(recorded) {
                    // It goes on with what is promised; of a Child SA it knows that it is there.
                    let taken = |host, recorded| Step {
                        answers: false,
                        host,
                        said: 0,
                        recorded,
                        used: false,
                        left: true,
                    };
                    *step = match recorded {
                        Recorded::Promised => Some(taken(HostKnown::Open, false)),
                        Recorded::Child => Some(taken(HostKnown::Done, true)),
                        _ => None,
                    };
                }
            }
            Action::HostLost => {
                self.state.left.hosts -= 1;
                self.state.epochs[1] += 1;
            }
            Action::HostLearns(host) => {
                let sponsor = self.state.epochs[0];
                let me = &mut self.state.hosts[usize::from(host)];
                if me.sponsor == sponsor {
                    return None;
                }
                me.sponsor = sponsor;
            }
            _ => return None,
        }
        Some(())
    }
}

/// Names of the properties.
pub const ONCE: &str = "keys are installed once";
/// Commit before send, in both journals.
pub const BOTH: &str = "a message leaves after both commits";
/// Outbound.
pub const NAMED: &str = "what seals is named by the record";
/// Inbound.
pub const KEPT: &str = "what the record names stays";
/// Order.
pub const FORWARD: &str = "a guest follows its IKE SA forward";
/// Deposed sponsors.
pub const HEIR: &str = "nothing is installed for a sponsor whose successor was obeyed";

impl Model for World {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            left: self.bounds,
            ..State::default()
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if !state.broken.is_empty() {
            return;
        }
        let left = state.left;
        for sponsor in 0..=state.epochs[0] {
            if left.children > 0 {
                actions.extend([Action::Take(sponsor, false), Action::Take(sponsor, true)]);
            }
            for spi in 0..SPIS as u8 {
                if state.sponsors[usize::from(sponsor)].steps[usize::from(spi)].is_none() {
                    continue;
                }
                actions.extend([
                    Action::Ask(sponsor, spi),
                    Action::Commit(sponsor, spi),
                    Action::Follow(sponsor, spi),
                    Action::Leave(sponsor, spi),
                ]);
                if left.patience > 0 {
                    actions.push(Action::GiveUp(sponsor, spi));
                }
                if left.deletions > 0 {
                    actions.push(Action::Delete(sponsor, spi));
                }
            }
            if left.rekeys > 0 {
                actions.push(Action::Rekey(sponsor));
            }
            if left.rosters > 0 {
                actions.push(Action::CallRoster(sponsor));
            }
            actions.push(Action::SponsorLearns(sponsor));
        }
        for host in 0..=state.epochs[1] {
            actions.push(Action::HostLearns(host));
        }
        if left.sponsors > 0 {
            actions.push(Action::SponsorLost);
        }
        if left.hosts > 0 {
            actions.push(Action::HostLost);
        }
        actions.extend(state.network.iter().map(|record| Action::Hear(*record)));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let mut at = At {
            state: &mut state,
            rules: &self.rules,
        };
        match action {
            Action::Hear(record) => at.hear(record)?,
            Action::SponsorLost | Action::HostLost | Action::HostLearns(_) => at.takeover(action)?,
            other => at.sponsor_acts(other)?,
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn without(state: &State, what: Broken) -> bool {
            !state.broken.contains(&what)
        }
        let always = vec![
            Property::always(ONCE, |_, state| without(state, Broken::Again)),
            Property::always(BOTH, |_, state| without(state, Broken::TooSoon)),
            Property::always(NAMED, |_, state| without(state, Broken::UsedEarly)),
            Property::always(KEPT, |_, state| without(state, Broken::Evicted)),
            Property::always(FORWARD, |_, state| without(state, Broken::Backwards)),
            Property::always(HEIR, |_, state| without(state, Broken::Orphan)),
        ];
        let reached = REACHED.map(|(name, reached)| Property::sometimes(name, reached));
        let reached = reached.into_iter().filter(|_| self.reaches);
        always.into_iter().chain(reached).collect()
    }
}
