//! The sponsor: takes offered SPIs for its IKE SAs, has guests installed before its own commits, tells hosts what there is.

use super::{Act, GuestBody, Listed, Owners, View};
use crate::Layout;
use crate::rules::EpochId;
use crate::rules_guest::{HostStep, Voice, may_propose, may_use};
use model::{ChildSaChange, EspSpi, GroupId, IkeSpi, Instant, MemberId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// A host that has not installed a guest by then has failed to: the exchange goes on without it, and the guest is deleted again
/// with the peer. As long as a standby may be silent.
const PATIENCE: Duration = Duration::from_millis(1000);
/// Messages of a commit wait no longer than that for what follows it: the roster mends what is late.
const AFTERWARDS: Duration = Duration::from_millis(300);
/// A roster that nobody has answered is said again.
const ROSTER_AGAIN: Duration = Duration::from_millis(1000);
/// Hosts that have guests hear of all of them this often.
const ROUND: Duration = Duration::from_secs(10);
/// All hosts hear this often, also that there are none: a host may have obeyed a sponsor that was deposed already.
const ROUND_OF_ALL: Duration = Duration::from_secs(60);
/// Guests in one roster.
const ROSTER_MAX: usize = 1000;

/// SPIs that a host keeps for this member in one of its groups.
struct Stock {
    host: MemberId,
    epoch: EpochId,
    number: u64,
    spis: Vec<(EspSpi, u16)>,
}

/// A guest that this member is the sponsor of.
#[derive(Clone, Copy)]
struct Guest {
    ike_spi: IkeSpi,
    /// Its host has it, and the record of the IKE SA names it.
    certain: bool,
}

/// Changes of guests in the order in which they are to happen.
pub type Changes = Vec<(EspSpi, Vec<ChildSaChange>)>;

/// What a commit does with guests.
#[derive(Default)]
pub struct Part {
    /// What their hosts have to have before the record of the IKE SA is proposed.
    pub before: Changes,
    /// What they hear once it is committed.
    pub after: Changes,
}

impl Part {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// Adds a change of the engine's, in its order. An SA is installed without carrying outbound traffic; that comes afterwards.
    pub fn add(&mut self, change: ChildSaChange) {
        let spi_in = change.spi_in();
        let to = match change {
            ChildSaChange::Install { .. } => &mut self.before,
            ChildSaChange::Bind { now, .. } => {
                if now {
                    self.after
                        .push((spi_in, vec![ChildSaChange::UseOutbound { spi_in }]));
                }
                let bind = ChildSaChange::Bind { spi_in, now: false };
                match self.before.iter_mut().find(|(spi, _)| *spi == spi_in) {
                    Some((_, changes)) => changes.push(bind),
                    None => self.after.push((spi_in, vec![bind])),
                }
                return;
            }
            _ => &mut self.after,
        };
        to.push((spi_in, vec![change]));
    }
}

struct Wait {
    spi_in: EspSpi,
    host: EpochId,
}

struct Job {
    group: GroupId,
    /// Its own part is proposed, or committed.
    recorded: bool,
    proposed: bool,
    /// Answers that are missing, by the number of what was said.
    waits: BTreeMap<u64, Wait>,
    after: Changes,
    failed: Vec<EspSpi>,
    installs: Vec<EspSpi>,
    until: Instant,
}

#[derive(Default)]
struct Roster {
    /// Parts that are not answered, by number.
    missing: BTreeSet<u64>,
    said: Instant,
}

/// What a member has with others.
pub struct Sponsor {
    me: MemberId,
    layout: Layout,
    number: u64,
    stock: BTreeMap<GroupId, Stock>,
    guests: BTreeMap<EspSpi, Guest>,
    jobs: BTreeMap<u64, Job>,
    /// Pairs of a group of IKE SAs and a host's group whose roster is to be said, or is not answered.
    rosters: BTreeMap<(GroupId, GroupId), Roster>,
    /// Owners of the groups when they were looked at last.
    owners: BTreeMap<GroupId, EpochId>,
    round: Instant,
    round_of_all: Instant,
    pub(super) acts: VecDeque<Act>,
}

impl Sponsor {
    pub(super) fn new(me: MemberId, layout: Layout) -> Self {
        Self {
            me,
            layout,
            number: 0,
            stock: BTreeMap::new(),
            guests: BTreeMap::new(),
            jobs: BTreeMap::new(),
            rosters: BTreeMap::new(),
            owners: BTreeMap::new(),
            round: Instant::default(),
            round_of_all: Instant::default(),
            acts: VecDeque::new(),
        }
    }

    /// Whether an SPI is that of a guest, and of which IKE SA.
    pub fn ike_spi_of(&self, spi_in: EspSpi) -> Option<IkeSpi> {
        self.guests.get(&spi_in).map(|guest| guest.ike_spi)
    }

    /// How many guests there are.
    pub fn len(&self) -> usize {
        self.guests.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.guests.is_empty()
    }

    /// Whether [`Sponsor::take`] would give one.
    pub fn has(&self, view: &dyn Owners, host: MemberId, cpu: Option<u16>) -> bool {
        self.usable(view, host)
            .any(|(_, stock)| stock.spis.iter().any(|(_, on)| cpu.is_none_or(|cpu| cpu == *on)))
    }

    fn usable(&self, view: &dyn Owners, host: MemberId) -> impl Iterator<Item = (GroupId, &Stock)> {
        let mine = self.me;
        let stock = self
            .stock
            .iter()
            .filter(move |(group, stock)| stock.host == host && view.epoch(**group) == stock.epoch);
        stock
            .filter(move |_| host != mine)
            .map(|(group, stock)| (*group, stock))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// An SPI of a host's for a Child SA of this IKE SA; each is given out once.
    pub fn take(
        &mut self,
        view: &dyn Owners,
        host: MemberId,
        cpu: Option<u16>,
        ike_spi: IkeSpi,
    ) -> Option<EspSpi> {
        let fits = |(_, on): &(EspSpi, u16)| cpu.is_none_or(|cpu| cpu == *on);
        let group = self
            .usable(view, host)
            .find(|(_, stock)| stock.spis.iter().any(fits))
            .map(|(group, _)| group)?;
        let spis = &mut self.stock.get_mut(&group)?.spis;
        let at = spis.iter().position(fits)?;
        let (spi_in, _) = spis.remove(at);
        let guest = Guest {
            ike_spi,
            certain: false,
        };
        self.guests.insert(spi_in, guest);
        Some(spi_in)
    }

    /// A taker's engine has adopted an IKE SA with this guest; `certain`: it is among its Child SAs, and not only promised.
    pub fn adopt(&mut self, spi_in: EspSpi, ike_spi: IkeSpi, certain: bool) {
        self.guests.insert(spi_in, Guest { ike_spi, certain });
    }

    /// The exchange came to nothing.
    pub fn release(&mut self, view: &dyn Owners, spi_in: EspSpi) -> bool {
        let Some(guest) = self.guests.remove(&spi_in) else {
            return false;
        };
        let group = self.layout.group_of(guest.ike_spi.segment());
        self.say(view, group, spi_in, vec![ChildSaChange::Remove { spi_in }]);
        true
    }

    /// All IKE SAs of the group are known here now.
    pub fn ready(&mut self, group: GroupId) {
        for host in self.layout.groups().filter(|host| *host != group) {
            self.rosters.insert((group, host), Roster::default());
        }
    }

    /// A commit of the engine, of IKE SAs of `group`, that does something with guests. [`Act::Ready`] asks for its own part.
    pub fn begin(&mut self, now: Instant, view: &dyn View, job: u64, group: GroupId, part: Part) {
        let mut waits = BTreeMap::new();
        let mut installs = Vec::new();
        for (spi_in, changes) in part.before {
            if let Some(ChildSaChange::Install { record, .. }) = changes.first() {
                let guest = Guest {
                    ike_spi: record.ike_spi,
                    certain: false,
                };
                self.guests.insert(spi_in, guest);
                installs.push(spi_in);
            }
            waits.extend(self.say(view, group, spi_in, changes));
        }
        self.jobs.insert(
            job,
            Job {
                group,
                recorded: false,
                proposed: false,
                waits,
                after: part.after,
                failed: Vec::new(),
                installs,
                until: now + PATIENCE,
            },
        );
        self.step(now, view, job);
    }

    /// The own part of a commit has taken effect.
    pub fn own_committed(&mut self, now: Instant, view: &dyn View, job: u64) {
        let Some(open) = self.jobs.get_mut(&job) else {
            return;
        };
        open.recorded = true;
        open.until = now + AFTERWARDS;
        let (group, failed) = (open.group, open.failed.clone());
        let after = std::mem::take(&mut open.after);
        for spi_in in &open.installs {
            if !failed.contains(spi_in)
                && let Some(guest) = self.guests.get_mut(spi_in)
            {
                guest.certain = true;
            }
        }
        let mut waits = BTreeMap::new();
        for (spi_in, changes) in after {
            let host = if failed.contains(&spi_in) {
                HostStep::Failed
            } else {
                HostStep::Committed
            };
            match changes.first() {
                Some(ChildSaChange::Remove { .. }) => drop(self.guests.remove(&spi_in)),
                Some(ChildSaChange::MoveIkeSa { ike_spi, .. }) => {
                    if let Some(guest) = self.guests.get_mut(&spi_in) {
                        guest.ike_spi = *ike_spi;
                    }
                }
                Some(ChildSaChange::UseOutbound { .. }) if !may_use(host, true) => continue,
                _ => {}
            }
            waits.extend(self.say(view, group, spi_in, changes));
        }
        if let Some(open) = self.jobs.get_mut(&job) {
            open.waits = waits;
        }
        self.step(now, view, job);
    }

    /// Moves a commit on, if nothing is missing.
    fn step(&mut self, now: Instant, view: &dyn View, job: u64) {
        let Some(open) = self.jobs.get_mut(&job) else {
            return;
        };
        let mut late = Vec::new();
        let layout = self.layout;
        open.waits.retain(|_, wait| {
            // Another owner knows nothing of what its predecessor was asked.
            let host = layout.group_of(wait.spi_in.segment());
            let over = open.until <= now || view.epoch(host) != wait.host;
            if over {
                late.push(wait.spi_in);
            }
            !over
        });
        for spi_in in &late {
            let host = layout.group_of(spi_in.segment());
            if open.recorded {
                self.rosters.insert((open.group, host), Roster::default());
            } else {
                open.failed.push(*spi_in);
            }
        }
        let host = match (open.waits.is_empty(), open.failed.is_empty()) {
            (false, _) => HostStep::Asked,
            (true, true) => HostStep::Committed,
            (true, false) => HostStep::Failed,
        };
        if !may_propose(host) {
            return;
        }
        if !open.proposed {
            open.proposed = true;
            self.acts.push_back(Act::Ready(job));
        } else if open.recorded {
            let failed = std::mem::take(&mut open.failed);
            self.jobs.remove(&job);
            self.acts.push_back(Act::Done(job, failed));
        }
    }

    fn say(
        &mut self,
        view: &dyn Owners,
        group: GroupId,
        spi_in: EspSpi,
        changes: Vec<ChildSaChange>,
    ) -> Option<(u64, Wait)> {
        self.number += 1;
        let host = self.layout.group_of(spi_in.segment());
        let epoch = view.epoch(host);
        let voice = Voice {
            epoch: view.epoch(group),
            number: self.number,
            group,
        };
        self.acts.push_back(Act::Say {
            to: epoch.owner,
            group: host,
            body: GuestBody::Change {
                voice,
                spi_in,
                changes,
            },
        });
        Some((self.number, Wait { spi_in, host: epoch }))
    }

    pub(super) fn offered(
        &mut self,
        view: &dyn View,
        host: MemberId,
        group: GroupId,
        number: u64,
        spis: Vec<(EspSpi, u16)>,
    ) {
        let epoch = view.epoch(group);
        let layout = self.layout;
        let stale = |stock: &Stock| stock.epoch == epoch && stock.number >= number;
        if self.stock.get(&group).is_some_and(stale) {
            return;
        }
        let usable = |(spi, _): &(EspSpi, u16)| {
            layout.group_of(spi.segment()) == group && !self.guests.contains_key(spi)
        };
        let spis = spis.into_iter().filter(usable).collect();
        let stock = Stock {
            host,
            epoch,
            number,
            spis,
        };
        self.stock.insert(group, stock);
    }

    pub(super) fn answered(
        &mut self,
        now: Instant,
        view: &dyn View,
        spi_in: EspSpi,
        number: u64,
        done: bool,
    ) {
        let found = self
            .jobs
            .iter_mut()
            .find_map(|(id, job)| Some((*id, job.waits.remove(&number)?)));
        let Some((id, wait)) = found else { return };
        if let Some(open) = self.jobs.get_mut(&id)
            && !(done && wait.spi_in == spi_in)
        {
            if open.recorded {
                let host = self.layout.group_of(wait.spi_in.segment());
                self.rosters.insert((open.group, host), Roster::default());
            } else {
                open.failed.push(wait.spi_in);
            }
        }
        self.step(now, view, id);
    }

    pub(super) fn roster_seen(&mut self, view: &dyn View, host: GroupId, number: u64, lacking: &[EspSpi]) {
        for ((_, of), roster) in &mut self.rosters {
            if *of == host {
                roster.missing.remove(&number);
            }
        }
        self.rosters
            .retain(|_, roster| roster.said == Instant::default() || !roster.missing.is_empty());
        for spi_in in lacking {
            let known = self.guests.get(spi_in).filter(|guest| guest.certain);
            if known.is_some_and(|guest| view.known(guest.ike_spi, *spi_in).is_some()) {
                self.acts.push_back(Act::Lost(*spi_in));
            }
        }
    }

    pub(super) fn tick(&mut self, now: Instant, view: &dyn View) {
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.step(now, view, job);
        }
        // A new owner of a group has guests of which it does not know whether they are still wanted.
        for host in self.layout.groups() {
            let epoch = view.epoch(host);
            if self.owners.insert(host, epoch) != Some(epoch) {
                for group in self.layout.groups().filter(|group| *group != host) {
                    if view.has_all(group) {
                        self.rosters.insert((group, host), Roster::default());
                    }
                }
            }
        }
        if now.since(self.round) >= ROUND {
            self.round = now;
            let layout = self.layout;
            let pairs = self.guests.iter().map(|(spi_in, guest)| {
                (
                    layout.group_of(guest.ike_spi.segment()),
                    layout.group_of(spi_in.segment()),
                )
            });
            for pair in pairs.collect::<BTreeSet<_>>() {
                self.rosters.entry(pair).or_default();
            }
        }
        if now.since(self.round_of_all) >= ROUND_OF_ALL {
            self.round_of_all = now;
            for group in self.layout.groups().filter(|group| view.has_all(*group)) {
                for host in self.layout.groups().filter(|host| *host != group) {
                    self.rosters.entry((group, host)).or_default();
                }
            }
        }
        let due = self
            .rosters
            .iter()
            .filter(|(_, r)| r.said == Instant::default() || now.since(r.said) >= ROSTER_AGAIN);
        for (group, host) in due.map(|(pair, _)| *pair).collect::<Vec<_>>() {
            // While IKE SAs are still to be adopted, what is not listed is only not known yet.
            if view.has_all(group) {
                self.call_roster(now, view, group, host);
            } else {
                self.rosters.remove(&(group, host));
            }
        }
    }

    /// Says what there is, in parts.
    fn call_roster(&mut self, now: Instant, view: &dyn View, group: GroupId, host: GroupId) {
        let to = view.epoch(host).owner;
        let layout = self.layout;
        let mut listed: Vec<(IkeSpi, Listed)> = self
            .guests
            .iter()
            .filter(|(spi_in, guest)| {
                layout.group_of(spi_in.segment()) == host && layout.group_of(guest.ike_spi.segment()) == group
            })
            .map(|(spi_in, guest)| {
                let known = guest.certain.then(|| view.known(guest.ike_spi, *spi_in));
                let listed = Listed {
                    spi_in: *spi_in,
                    known: known.flatten(),
                };
                (guest.ike_spi, listed)
            })
            .collect();
        listed.sort_by_key(|(ike_spi, listed)| (*ike_spi, listed.spi_in));
        let mut missing = BTreeSet::new();
        let mut first = IkeSpi(0);
        loop {
            // All guests of an IKE SA are in one part.
            let cut = listed.get(ROSTER_MAX).map(|(ike_spi, _)| *ike_spi);
            let end = cut.map_or(listed.len(), |cut| {
                let before = listed.partition_point(|(ike_spi, _)| *ike_spi < cut);
                if before == 0 { listed.len() } else { before }
            });
            let part: Vec<Listed> = listed.drain(..end).map(|(_, listed)| listed).collect();
            let last = listed
                .first()
                .map_or(IkeSpi(u64::MAX), |(next, _)| IkeSpi(next.0 - 1));
            self.number += 1;
            missing.insert(self.number);
            let voice = Voice {
                epoch: view.epoch(group),
                number: self.number,
                group,
            };
            self.acts.push_back(Act::Say {
                to,
                group: host,
                body: GuestBody::Roster {
                    voice,
                    first,
                    last,
                    guests: part,
                },
            });
            if listed.is_empty() {
                break;
            }
            first = IkeSpi(last.0 + 1);
        }
        self.rosters.insert((group, host), Roster { missing, said: now });
    }

    pub(super) fn suspend(&mut self, group: GroupId) {
        let layout = self.layout;
        self.guests
            .retain(|_, guest| layout.group_of(guest.ike_spi.segment()) != group);
        self.jobs.retain(|_, job| job.group != group);
        self.rosters.retain(|(of, _), _| *of != group);
    }
}
