//! The world: journals of both groups, a sponsor and a host for each of their epochs, the peer, a network that keeps every record.

use super::rules::Rules;
use super::state::{
    Action, Bounds, Broken, EPOCHS, Entry, HostKnown, Lodged, Record, Recorded, SPIS, Said, State, Step,
};
use cluster::EpochId;
use cluster::rules_guest::{Lodging, Voice};
use model::{Epoch, GroupId, MemberId};
use stateright::{Model, Property};

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
                let host = &mut self.state.hosts[usize::from(record.host)];
                let here = here || (self.rules.rosters_see_proposals && host.is_coming(spi));
                let is_listed = listed & bit(spi) != 0;
                if here && (self.rules.evicts)(host.said[spi].map(voice), voice(now), is_listed) {
                    host.said[spi] = Some(now);
                    host.journal.push(Entry::Change(Said::Remove(spi as u8)));
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
        let ike = self.state.ike;
        let host = &mut self.state.hosts[usize::from(record.host)];
        let here = matches!(self.state.lodged[spi], Lodged::Here(..)) || host.is_coming(spi);
        match record.said {
            Said::Install(_) => {
                let offered = spi / EPOCHS == usize::from(record.host) && host.used_up & bit(spi) == 0;
                match (self.rules.lodging)(offered, here) {
                    Lodging::Install => {
                        if self.rules.offers_are_used_up {
                            host.used_up |= bit(spi);
                        }
                        host.journal.push(Entry::Install(spi as u8, ike, record));
                    }
                    Lodging::There => host.journal.push(Entry::Confirm(spi as u8, record)),
                    Lodging::Refuse => {
                        let said = Said::Answer(spi as u8, false);
                        self.state.network.insert(Record { said, ..record });
                    }
                }
            }
            Said::Remove(_) => {
                host.used_up |= bit(spi);
                if here {
                    host.journal.push(Entry::Change(record.said));
                }
            }
            _ if here => host.journal.push(Entry::Change(record.said)),
            _ => {}
        }
        Some(())
    }

    fn commit(&mut self, host: u8) -> Option<()> {
        // A host that is none any more has nothing committed.
        if host != self.state.epochs[1] || self.state.hosts[usize::from(host)].journal.is_empty() {
            return None;
        }
        let me = &mut self.state.hosts[usize::from(host)];
        match me.journal.remove(0) {
            Entry::Install(at, ike, record) => {
                let spi = usize::from(at);
                let goes = me.journal.contains(&Entry::Change(Said::Remove(at)));
                let obeyed = me.roster.is_some_and(|roster| roster > record.sponsor);
                if self.state.lodged[spi] != Lodged::No {
                    self.state.broken.insert(Broken::Again);
                }
                if obeyed && !goes && self.state.recorded[spi] == Recorded::No {
                    self.state.broken.insert(Broken::Orphan);
                }
                self.state.lodged[spi] = Lodged::Here(ike, false);
                self.answer(at, record);
            }
            Entry::Confirm(at, record) => self.answer(at, record),
            Entry::Change(Said::Use(at)) => {
                if let Lodged::Here(_, used) = &mut self.state.lodged[usize::from(at)] {
                    *used = true;
                    let recorded = self.state.recorded[usize::from(at)];
                    if [Recorded::No, Recorded::Promised].contains(&recorded) {
                        self.state.broken.insert(Broken::UsedEarly);
                    }
                }
            }
            Entry::Change(Said::Move(at, ike)) => {
                if let Lodged::Here(of, _) = &mut self.state.lodged[usize::from(at)] {
                    if ike < *of {
                        self.state.broken.insert(Broken::Backwards);
                    }
                    *of = ike;
                }
            }
            Entry::Change(Said::Remove(at)) => {
                if matches!(self.state.lodged[usize::from(at)], Lodged::Here(..)) {
                    self.remove(usize::from(at));
                }
            }
            Entry::Change(_) => {}
        }
        Some(())
    }

    fn answer(&mut self, spi: u8, record: Record) {
        let done = matches!(self.state.lodged[usize::from(spi)], Lodged::Here(..));
        let said = Said::Answer(spi, done);
        self.state.network.insert(Record { said, ..record });
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
            actions.extend([Action::HostLearns(host), Action::HostCommits(host)]);
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
            Action::HostCommits(host) => at.commit(host)?,
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
