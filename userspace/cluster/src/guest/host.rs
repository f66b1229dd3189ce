//! The host: offers SPIs of its groups, journals what sponsors install there, lets go what no sponsor knows.

use super::{Act, Found, GuestBody, Listed, View};
use crate::layout::Layout;
use crate::message::SetMember;
use crate::rules::EpochId;
use crate::rules_guest::{Lodging, Voice, counts, evicts, lodging, may_speak};
use model::{ChildSaChange, EspSpi, GroupId, IkeSpi, Instant, MemberId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Offers to a life of a sponsor's that is over are kept for this time: a taker may go on with an exchange in which one was
/// promised to a peer. Longer than peers are asked again and again.
const AFTERLIFE: Duration = Duration::from_secs(600);
/// All offers are said once more after this time.
const SAY_AGAIN: Duration = Duration::from_secs(5);

struct Offered {
    to: SetMember,
    cpu: u16,
    /// Since when that life is not heard.
    orphaned: Option<Instant>,
}

/// A proposal under way.
struct Job {
    group: GroupId,
    spi_in: EspSpi,
    /// The peer's SPI and our SPI of the IKE SA, where it is an installation.
    installs: Option<(EspSpi, IkeSpi)>,
    /// Who wants to hear of it, and the number to name.
    answer: Vec<(MemberId, u64)>,
}

/// What a member does for others' IKE SAs.
pub struct Host {
    me: MemberId,
    layout: Layout,
    offers: BTreeMap<EspSpi, Offered>,
    /// Newest epoch of each group in which a sponsor has spoken: heard here before the news of it, perhaps.
    heard: BTreeMap<GroupId, EpochId>,
    /// When the sponsor spoke last of each guest.
    said: BTreeMap<EspSpi, Voice>,
    jobs: BTreeMap<u64, Job>,
    next_job: u64,
    number: u64,
    /// Groups whose offers have changed since they were said, by sponsor.
    news: BTreeSet<(MemberId, GroupId)>,
    said_all: Instant,
    pub(super) acts: VecDeque<Act>,
}

impl Host {
    pub(super) fn new(me: MemberId, layout: Layout) -> Self {
        Self {
            me,
            layout,
            offers: BTreeMap::new(),
            heard: BTreeMap::new(),
            said: BTreeMap::new(),
            jobs: BTreeMap::new(),
            next_job: 0,
            number: 0,
            news: BTreeSet::new(),
            said_all: Instant::default(),
            acts: VecDeque::new(),
        }
    }

    /// How many SPIs are kept for sponsors.
    pub fn offers(&self) -> usize {
        self.offers.len()
    }

    /// Keeps `enough` SPIs for each CPU in `cpus` ready for every sponsor in `lives`; `reserve` takes one of any group that this
    /// member serves. Offers are said when they have changed, and now and then.
    pub fn keep_ready(
        &mut self,
        now: Instant,
        lives: &BTreeSet<SetMember>,
        cpus: &[(u16, usize)],
        reserve: &mut dyn FnMut(u16) -> Option<EspSpi>,
    ) {
        let layout = self.layout;
        let mut over = Vec::new();
        for (spi, offer) in &mut self.offers {
            if lives.contains(&offer.to) {
                offer.orphaned = None;
            } else if now.since(*offer.orphaned.get_or_insert(now)) >= AFTERLIFE {
                over.push(*spi);
            }
        }
        for spi in over {
            self.offers.remove(&spi);
            self.acts.push_back(Act::Release(spi));
        }
        for to in lives.iter().filter(|to| to.member != self.me) {
            for (cpu, enough) in cpus {
                let there = |offer: &&Offered| offer.to == *to && offer.cpu == *cpu;
                let there = self.offers.values().filter(there).count();
                for _ in there..*enough {
                    let Some(spi) = reserve(*cpu) else { break };
                    let offer = Offered {
                        to: *to,
                        cpu: *cpu,
                        orphaned: None,
                    };
                    self.offers.insert(spi, offer);
                    self.news.insert((to.member, layout.group_of(spi.segment())));
                }
            }
        }
        let all = now.since(self.said_all) >= SAY_AGAIN;
        if all {
            self.said_all = now;
            let every = self.offers.iter();
            let every = every.map(|(spi, offer)| (offer.to.member, layout.group_of(spi.segment())));
            self.news.extend(every);
        }
        for (to, group) in std::mem::take(&mut self.news) {
            self.number += 1;
            let life = lives.iter().find(|life| life.member == to);
            let of = |(spi, offer): &(&EspSpi, &Offered)| {
                Some(&offer.to) == life && layout.group_of(spi.segment()) == group
            };
            let spis = self.offers.iter().filter(of);
            let spis = spis.map(|(spi, offer)| (*spi, offer.cpu)).collect();
            let number = self.number;
            let body = GuestBody::Offer { number, spis };
            self.acts.push_back(Act::Say { to, group, body });
        }
    }

    /// Whether this sponsor is obeyed.
    pub(super) fn listens(&mut self, view: &dyn View, voice: Voice, from: MemberId) -> bool {
        let heard = self.heard.entry(voice.group).or_insert(EpochId::NONE);
        let known = view.epoch(voice.group).max(*heard);
        let obeyed = may_speak(known, voice.epoch, from);
        if obeyed {
            *heard = voice.epoch;
        }
        obeyed
    }

    /// A sponsor's changes of a guest in a group of this member's.
    pub(super) fn change(
        &mut self,
        view: &dyn View,
        from: MemberId,
        group: GroupId,
        voice: Voice,
        spi_in: EspSpi,
        changes: Vec<ChildSaChange>,
    ) {
        if changes.iter().any(|change| change.spi_in() != spi_in) {
            return;
        }
        if !counts(self.said.get(&spi_in).copied(), voice) {
            return;
        }
        self.said.insert(spi_in, voice);
        let answer = (from, voice.number);
        match changes.first() {
            Some(ChildSaChange::Install { record, .. }) => {
                let names = (record.spi_out, record.ike_spi);
                self.install(view, group, spi_in, names, changes, answer);
            }
            Some(ChildSaChange::Remove { .. }) => {
                if self.offers.remove(&spi_in).is_some() {
                    self.acts.push_back(Act::Release(spi_in));
                }
                if self.is_here(view, spi_in) {
                    self.propose(group, spi_in, None, changes, vec![answer]);
                } else {
                    self.said.remove(&spi_in);
                    self.answer(group, spi_in, answer, true);
                }
            }
            Some(_) if self.is_here(view, spi_in) => self.propose(group, spi_in, None, changes, vec![answer]),
            _ => {
                self.said.remove(&spi_in);
                self.answer(group, spi_in, answer, false);
            }
        }
    }

    fn install(
        &mut self,
        view: &dyn View,
        group: GroupId,
        spi_in: EspSpi,
        names: (EspSpi, IkeSpi),
        changes: Vec<ChildSaChange>,
        answer: (MemberId, u64),
    ) {
        let there = view.sa(spi_in);
        let coming = self.jobs.values_mut();
        let coming = coming
            .filter(|job| job.spi_in == spi_in)
            .find(|job| job.installs.is_some());
        let offered = self.offers.contains_key(&spi_in);
        match lodging(offered, there.is_some() || coming.is_some()) {
            Lodging::Install => {
                self.offers.remove(&spi_in);
                self.propose(group, spi_in, Some(names), changes, vec![answer]);
            }
            // Another taker's word of the same exchange: it is the same SA where the peer's SPI is the same.
            Lodging::There => match (there, coming) {
                (_, Some(job)) if job.installs.is_some_and(|(spi_out, _)| spi_out == names.0) => {
                    job.answer.push(answer);
                }
                (Some(there), None) => self.answer(group, spi_in, answer, there.spi_out == names.0),
                _ => self.answer(group, spi_in, answer, false),
            },
            Lodging::Refuse => {
                self.said.remove(&spi_in);
                self.answer(group, spi_in, answer, false);
            }
        }
    }

    /// Installed, or on its way.
    fn is_here(&self, view: &dyn View, spi_in: EspSpi) -> bool {
        let coming = |job: &Job| job.spi_in == spi_in && job.installs.is_some();
        view.sa(spi_in).is_some() || self.jobs.values().any(coming)
    }

    fn propose(
        &mut self,
        group: GroupId,
        spi_in: EspSpi,
        installs: Option<(EspSpi, IkeSpi)>,
        changes: Vec<ChildSaChange>,
        answer: Vec<(MemberId, u64)>,
    ) {
        self.next_job += 1;
        let job = self.next_job;
        self.jobs.insert(
            job,
            Job {
                group,
                spi_in,
                installs,
                answer,
            },
        );
        self.acts.push_back(Act::Propose { group, job, changes });
    }

    fn answer(&mut self, group: GroupId, spi_in: EspSpi, (to, number): (MemberId, u64), done: bool) {
        let body = GuestBody::Answer { spi_in, number, done };
        self.acts.push_back(Act::Say { to, group, body });
    }

    /// A proposal has taken effect; `applied`: on this member too.
    pub fn committed(&mut self, view: &dyn View, job: u64, applied: bool) {
        let Some(Job {
            group,
            spi_in,
            installs,
            answer,
        }) = self.jobs.remove(&job)
        else {
            return;
        };
        for answer in answer {
            self.answer(group, spi_in, answer, applied);
        }
        if installs.is_some() && !applied {
            // A standby may have it.
            let changes = vec![ChildSaChange::Remove { spi_in }];
            self.propose(group, spi_in, None, changes, Vec::new());
        }
        if !self.is_here(view, spi_in) {
            self.said.remove(&spi_in);
        }
    }

    /// What a sponsor has in a group of this member's.
    pub(super) fn roster(
        &mut self,
        view: &dyn View,
        from: MemberId,
        group: GroupId,
        voice: Voice,
        (first, last): (IkeSpi, IkeSpi),
        guests: &[Listed],
    ) {
        let layout = self.layout;
        let listed: BTreeMap<EspSpi, &Listed> = guests.iter().map(|guest| (guest.spi_in, guest)).collect();
        let here = view.guests(group, voice.group, first, last).into_iter();
        let mut here: BTreeSet<EspSpi> = here.map(|found| found.spi_in).collect();
        // What is on its way into the journal is there as well.
        let coming = self.jobs.values().filter(|job| job.group == group);
        here.extend(coming.filter_map(|job| {
            let (_, ike_spi) = job.installs?;
            let of = layout.group_of(ike_spi.segment()) == voice.group;
            (of && (first..=last).contains(&ike_spi)).then_some(job.spi_in)
        }));
        for spi_in in here {
            let before = self.said.get(&spi_in).copied();
            if evicts(before, voice, listed.contains_key(&spi_in)) {
                self.said.insert(spi_in, voice);
                let changes = vec![ChildSaChange::Remove { spi_in }];
                self.propose(group, spi_in, None, changes, Vec::new());
            }
        }
        let mut lacking = Vec::new();
        for guest in guests {
            match (view.sa(guest.spi_in), guest.known) {
                (Some(found), Some(_)) => self.follow(group, voice, found, guest),
                (None, Some(_)) if !self.is_here(view, guest.spi_in) => lacking.push(guest.spi_in),
                _ => {}
            }
        }
        let body = GuestBody::RosterSeen {
            number: voice.number,
            lacking,
        };
        self.acts.push_back(Act::Say {
            to: from,
            group,
            body,
        });
    }

    /// Brings a guest to what its sponsor says of it.
    fn follow(&mut self, group: GroupId, voice: Voice, found: Found, listed: &Listed) {
        let (Some(known), spi_in) = (listed.known, found.spi_in) else {
            return;
        };
        if !counts(self.said.get(&spi_in).copied(), voice) {
            return;
        }
        self.said.insert(spi_in, voice);
        let mut changes = Vec::new();
        if known.ike_spi != found.ike_spi {
            let ike_spi = known.ike_spi;
            changes.push(ChildSaChange::MoveIkeSa { spi_in, ike_spi });
        }
        if known.remote != found.remote {
            let remote = known.remote;
            changes.push(ChildSaChange::MovePeer { spi_in, remote });
        }
        if known.in_use && !found.in_use {
            changes.push(ChildSaChange::UseOutbound { spi_in });
        }
        if !changes.is_empty() {
            self.propose(group, spi_in, None, changes, Vec::new());
        }
    }

    /// This member does not own the group any more; its reservations there are given back as a whole.
    pub(super) fn suspend(&mut self, group: GroupId) {
        let layout = self.layout;
        let stays = |spi: &EspSpi| layout.group_of(spi.segment()) != group;
        self.offers.retain(|spi, _| stays(spi));
        self.said.retain(|spi, _| stays(spi));
        self.jobs.retain(|_, job| job.group != group);
        self.news.retain(|(_, of)| *of != group);
    }
}
