//! Snapshots of a group: taken by the owner, installed by a member that joins. Both go in turns, since with a hundred
//! thousand SAs either takes far longer than an owner word is valid.
//!
//! While an owner copies, commits of the group go on taking effect. They are kept beside the copy, and the joiner applies
//! them to it: each says what is, not what changes, so one that the copy holds already does no harm.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cluster::{Input, Output, RaiseItem};
use model::{Epoch, EspSpi, GroupId, IkeSpi, Instant, SecretBytes};
use sad::{LimitRaise, Limited, SadError, SnapshotSa};
use tokio::sync::mpsc;

use super::entry::{self, EntryChange, Snapshot, Tail};
use super::stops::Stops;
use super::suspects::Suspects;
use super::{Core, NotApplied};
use crate::clock;

/// Passes over all SAs for caps; the second one finds none unless counters could not be read.
const CAP_PASSES: usize = 16;
/// A snapshot is worked at for this long before the core does something else.
const TURN: Duration = Duration::from_millis(2);
/// SAs copied, or removed, between two looks at the clock.
const SOME: usize = 64;
/// SAs installed between two looks at the clock: their keys and rules are written in a few system calls for all of them.
const FEW: usize = 64;

/// What was made or read beside the core loop.
pub enum Made {
    /// The copy as octets.
    Encoded { token: u64, octets: Vec<u8> },
    /// The octets as a copy, or what is wrong with them.
    Decoded {
        token: u64,
        snapshot: Result<Box<(Snapshot, Tail)>, String>,
    },
    /// SAs whose keys are in the maps now, in the snapshot's order, or why they are not.
    Keyed {
        token: u64,
        some: Result<Vec<SnapshotSa>, String>,
    },
}

/// Keys are being written beside the core loop, for as long as this lives.
struct Keying(Arc<Mutex<bool>>);

impl Drop for Keying {
    fn drop(&mut self) {
        // Waits for the few that are being written: afterwards the slots may be others'.
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }
}

/// An owner's copy under way.
pub struct Taking {
    group: GroupId,
    token: u64,
    began: Instant,
    /// The pass for caps, until no SA is without limits.
    capping: Option<Capping>,
    /// Next slot; `None`: the Child SAs are copied.
    slot: Option<u32>,
    /// With the order in which outbound traffic was switched to them.
    children: Vec<(u64, SnapshotSa)>,
    /// IKE SAs that are still to be copied.
    waiting: VecDeque<IkeSpi>,
    ike: BTreeMap<IkeSpi, SecretBytes>,
    /// The octets are being made: (IKE SAs, Child SAs).
    encoding: Option<(usize, usize)>,
    /// Commits that took effect since it began.
    tail: Vec<Vec<EntryChange>>,
}

/// A pass over the SAs that looks for those without upper limits.
#[derive(Default)]
struct Capping {
    slot: u32,
    /// Caps found in this pass.
    found: usize,
    passes: usize,
}

/// A last look of the owner's, before the joiner enters: whether every SA has limits, and its counters lie within.
pub struct Verifying {
    group: GroupId,
    token: u64,
    slot: u32,
    items: Vec<RaiseItem>,
}

/// A joiner's installation under way.
pub struct Installing {
    group: GroupId,
    token: u64,
    began: Instant,
    /// `None`: the octets are being read.
    gone: Option<VecDeque<EspSpi>>,
    /// Until `keying` begins.
    children: Vec<SnapshotSa>,
    keying: Option<Keying>,
    /// SAs whose keys are written.
    keyed: VecDeque<Vec<SnapshotSa>>,
    /// How many SAs are still to be installed.
    missing: usize,
    tail: Vec<Vec<EntryChange>>,
    epoch: Epoch,
    counts: (usize, usize),
    /// Outputs of the node about the group that came meanwhile.
    behind: VecDeque<Output>,
}

impl Installing {
    /// Whether there is something to do now: not while octets are read, or keys are written.
    fn can_go_on(&self) -> bool {
        let keys_missing = self.keying.is_some() && self.keyed.is_empty() && self.missing > 0;
        self.gone.is_some() && !keys_missing
    }
}

/// Snapshots under way.
pub struct Snapshots {
    taking: Vec<Taking>,
    verifying: Vec<Verifying>,
    installing: Vec<Installing>,
    made: mpsc::UnboundedSender<Made>,
}

impl Snapshots {
    pub fn new(made: mpsc::UnboundedSender<Made>) -> Self {
        Self {
            taking: Vec::new(),
            verifying: Vec::new(),
            installing: Vec::new(),
            made,
        }
    }

    /// Whether a turn of the loop is wanted.
    pub fn is_busy(&self) -> bool {
        let taking = self.taking.iter().any(|t| t.encoding.is_none());
        taking || !self.verifying.is_empty() || self.installing.iter().any(Installing::can_go_on)
    }

    /// A commit took effect.
    pub fn took_effect(&mut self, group: GroupId, changes: &[EntryChange]) {
        for taking in self.taking.iter_mut().filter(|t| t.group == group) {
            taking.tail.push(changes.to_vec());
        }
    }

    /// What is under way for a group is not wanted any more.
    pub fn forget(&mut self, group: GroupId) {
        self.taking.retain(|t| t.group != group);
        self.verifying.retain(|v| v.group != group);
        self.installing.retain(|i| i.group != group);
    }

    /// Keeps an output for the time after the installation; gives it back where none is under way.
    pub fn behind(&mut self, group: GroupId, output: Output) -> Option<Output> {
        match self.installing.iter_mut().find(|i| i.group == group) {
            Some(installing) => {
                installing.behind.push_back(output);
                None
            }
            None => Some(output),
        }
    }
}

impl Core {
    /// Limits for some SAs of the group that have no upper ones (or have passed them), and the slot to go on from.
    fn caps(&self, id: GroupId, from: u32, limited: Limited) -> (Vec<LimitRaise>, Option<u32>) {
        let layout = self.groups.layout;
        let ownership = self.groups.get(id).ownership;
        let of_group =
            |segment| (layout.group_of(segment) == id).then_some((ownership.epoch, ownership.alone));
        let mut slots = self.sad.slots_from(from);
        let last = slots.by_ref().take(SOME).last();
        let Some(last) = last else {
            return (Vec::new(), None);
        };
        let caps = self.sad.cap_within(from..=last, limited, of_group, |slot| {
            self.counters.counters(slot)
        });
        (caps, slots.next())
    }

    /// Owner: a member joins. From here on every SA of the group gets limits, and the snapshot says which. While there is
    /// somebody who joins, no SA is made without limits, so one pass over the others is enough.
    pub(super) fn cap_limits(&mut self, id: GroupId, token: u64) {
        self.snapshots.forget(id);
        self.snapshots.taking.push(Taking {
            group: id,
            token,
            began: clock::now(),
            capping: Some(Capping::default()),
            slot: Some(0),
            children: Vec::new(),
            waiting: VecDeque::new(),
            ike: BTreeMap::new(),
            encoding: None,
            tail: Vec::new(),
        });
    }

    /// Owner: the joiner has acknowledged everything. Answers once all SAs have been looked at.
    pub(super) fn verify_caps(&mut self, id: GroupId, token: u64) {
        self.snapshots.verifying.push(Verifying {
            group: id,
            token,
            slot: 0,
            items: Vec::new(),
        });
    }

    fn verify_some(&mut self, mut verifying: Verifying) {
        let (caps, next) = self.caps(verifying.group, verifying.slot, Limited::Compared);
        let items = caps.iter().filter_map(|raise| self.raise_item(raise));
        verifying.items.extend(items);
        if let Some(slot) = next {
            verifying.slot = slot;
            return self.snapshots.verifying.push(verifying);
        }
        let Verifying { token, items, .. } = verifying;
        self.node_input(Input::CapsVerified {
            now: clock::now(),
            token,
            items,
        });
    }

    /// A step of the pass for caps; at its end the copy begins.
    fn cap_some(&mut self, taking: &mut Taking, mut capping: Capping) {
        let id = taking.group;
        let (caps, next) = self.caps(id, capping.slot, Limited::Skipped);
        for cap in &caps {
            self.apply_raise_or_log(cap);
        }
        capping.found += caps.len();
        let plan = self.sad.known_to_standby(caps.iter().map(|cap| cap.spi));
        self.execute_or_log(&plan);
        if let Some(slot) = next {
            capping.slot = slot;
            taking.capping = Some(capping);
            return;
        }
        if capping.found > 0 {
            // Programs that run may still spend without limits.
            if let Err(error) = self.runner.drain_cpus() {
                self.log
                    .warn_of(id, "join", format!("the CPUs were not drained: {error}"));
            }
            capping.passes += 1;
            if capping.passes < CAP_PASSES {
                let passes = capping.passes;
                taking.capping = Some(Capping {
                    passes,
                    ..Capping::default()
                });
                return;
            }
        }
        taking.waiting = self.mirrored(id).map(|(spi, _)| *spi).collect();
        // What took effect so far is part of what is copied from now on.
        taking.tail.clear();
    }

    /// Works at snapshots for as long as a turn may take.
    pub(super) fn snapshot_turn(&mut self, now: Instant) {
        let until = now + TURN;
        while clock::now() <= until {
            let next = self.snapshots.taking.iter().position(|t| t.encoding.is_none());
            if let Some(at) = next {
                let mut taking = self.snapshots.taking.swap_remove(at);
                match taking.capping.take() {
                    Some(capping) => self.cap_some(&mut taking, capping),
                    None => self.copy_some(&mut taking),
                }
                self.snapshots.taking.push(taking);
                continue;
            }
            if let Some(verifying) = self.snapshots.verifying.pop() {
                self.verify_some(verifying);
                continue;
            }
            let next = self.snapshots.installing.iter().position(Installing::can_go_on);
            let Some(at) = next else { return };
            let installing = self.snapshots.installing.swap_remove(at);
            self.install_some(installing);
        }
    }

    fn copy_some(&self, taking: &mut Taking) {
        let layout = self.groups.layout;
        if let Some(slot) = taking.slot {
            let mut last = None;
            for entry in self.sad.range(slot..).take(SOME) {
                last = Some(entry.slot());
                if layout.group_of(entry.segment()) == taking.group {
                    taking
                        .children
                        .push((entry.switched(), entry.snapshot(clock::now())));
                }
            }
            taking.slot = last.and_then(|slot| slot.checked_add(1));
            return;
        }
        for spi in taking.waiting.drain(..SOME.min(taking.waiting.len())) {
            if let Some(record) = self.mirror.get(&spi) {
                taking.ike.insert(spi, record.clone());
            }
        }
        if !taking.waiting.is_empty() {
            return;
        }
        taking.encoding = Some((taking.ike.len(), taking.children.len()));
        let mut children = std::mem::take(&mut taking.children);
        let ike = std::mem::take(&mut taking.ike);
        let (token, made) = (taking.token, self.snapshots.made.clone());
        tokio::task::spawn_blocking(move || {
            children.sort_by_key(|(switched, _)| *switched);
            let children = children.into_iter().map(|(_, sa)| sa).collect();
            let octets = entry::encode_snapshot(&Snapshot { ike, children });
            // The core has gone: nobody joins any more.
            let _ = made.send(Made::Encoded { token, octets });
        });
    }

    /// Something was made beside the core loop.
    pub(super) fn snapshot_made(&mut self, made: Made) {
        match made {
            Made::Encoded { token, octets } => self.snapshot_encoded(token, octets),
            Made::Decoded { token, snapshot } => self.snapshot_decoded(token, snapshot),
            Made::Keyed { token, some } => self.snapshot_keyed(token, some),
        }
        self.settle();
    }

    fn snapshot_encoded(&mut self, token: u64, mut octets: Vec<u8>) {
        let Some(id) = self
            .snapshots
            .taking
            .iter()
            .find(|t| t.token == token)
            .map(|t| t.group)
        else {
            return;
        };
        self.take_effect(id);
        let Some(at) = self.snapshots.taking.iter().position(|t| t.token == token) else {
            return;
        };
        let mut taking = self.snapshots.taking.swap_remove(at);
        let layout = self.groups.layout;
        let counters = self.counters.clone();
        let used = self.sad.usage_of(
            |segment| layout.group_of(segment) == id,
            |slot| counters.counters(slot),
        );
        if !used.is_empty() {
            taking.tail.push(vec![EntryChange::Used(used)]);
        }
        let group = self.groups.get(id);
        let mut entries = taking.tail;
        // What the copy itself does not say. Last, since it is about SAs of the tail too.
        let layout = self.groups.layout;
        let parts = self.sad.parts_where(|segment| layout.group_of(segment) == id);
        if !parts.is_empty() {
            entries.push(parts.into_iter().map(EntryChange::Child).collect());
        }
        let tail = Tail {
            suspects: group.suspects.spis(),
            entries,
            epoch: group.ownership.epoch,
            stopped: self.stops.all(),
        };
        entry::encode_tail(&mut octets, &tail);
        let now = clock::now();
        let (ike, children) = taking.encoding.unwrap_or_default();
        self.log.note_of(
            id,
            "snapshot",
            format!(
                "snapshot of {ike} IKE and {children} Child SAs and {} commits, {} octets, {:.1} ms",
                tail.entries.len(),
                octets.len(),
                now.since(taking.began).as_secs_f64() * 1000.0
            ),
        );
        self.node.handle(Input::Snapshot {
            now,
            token,
            bytes: octets,
        });
    }

    /// Entries of the group that are committed by now take effect: the snapshot's position is behind them. Whatever else the
    /// node has put out keeps its order.
    fn take_effect(&mut self, id: GroupId) {
        let mut later = VecDeque::new();
        while let Some(output) = self.deferred.pop_front().or_else(|| self.node.poll()) {
            match output {
                Output::Committed { token } if self.groups.get(id).has_proposed(token) => {
                    self.committed(token)
                }
                other => later.push_back(other),
            }
        }
        self.deferred = later;
    }

    /// Joining: takes the owner's state of the group in place of its own.
    pub(super) fn install_snapshot(&mut self, id: GroupId, token: u64, octets: Vec<u8>) {
        self.snapshots.forget(id);
        self.snapshots.installing.push(Installing {
            group: id,
            token,
            began: clock::now(),
            gone: None,
            children: Vec::new(),
            keying: None,
            keyed: VecDeque::new(),
            missing: 0,
            tail: Vec::new(),
            epoch: Epoch::default(),
            counts: (0, 0),
            behind: VecDeque::new(),
        });
        let made = self.snapshots.made.clone();
        tokio::task::spawn_blocking(move || {
            let snapshot = entry::decode_snapshot(&octets).map(Box::new);
            let snapshot = snapshot.map_err(|error| error.to_string());
            let _ = made.send(Made::Decoded { token, snapshot });
        });
    }

    fn snapshot_decoded(&mut self, token: u64, snapshot: Result<Box<(Snapshot, Tail)>, String>) {
        let Some(at) = self.snapshots.installing.iter().position(|i| i.token == token) else {
            return;
        };
        let mut installing = self.snapshots.installing.swap_remove(at);
        let (id, layout) = (installing.group, self.groups.layout);
        let of_group = |segment| layout.group_of(segment) == id;
        let snapshot = snapshot.and_then(|snapshot| {
            let ike = snapshot.0.ike.keys().find(|spi| !of_group(spi.segment()));
            let mut children = snapshot.0.children.iter().map(|sa| sa.record.spi_in);
            let child = children.find(|spi| !of_group(spi.segment()));
            match (ike, child) {
                (Some(spi), _) => Err(format!("it names IKE SA {spi}, which is of another group")),
                (_, Some(spi)) => Err(format!("it names SA {spi}, which is of another group")),
                _ => Ok(snapshot),
            }
        });
        let (mut snapshot, tail) = match snapshot {
            Ok(both) => *both,
            Err(why) => return self.not_installed(id, &why),
        };
        installing.counts = (snapshot.ike.len(), snapshot.children.len());
        // Keys are written before the SAs are taken in.
        self.end_lingering(id);
        self.forget_mirror(id);
        self.mirror.append(&mut snapshot.ike);
        self.groups.get_mut(id).suspects = Suspects::of(tail.suspects);
        self.stops.hear(Stops::of(tail.stopped), self.groups.owns_any());
        let kept = snapshot.children.iter().map(|sa| sa.record.spi_in);
        let kept = kept.collect::<HashSet<_>>();
        let there = self.sad.iter().map(|e| e.record.spi_in);
        let gone = there.filter(|spi| of_group(spi.segment()) && !kept.contains(spi));
        installing.gone = Some(gone.collect());
        installing.missing = snapshot.children.len();
        installing.children = snapshot.children;
        (installing.tail, installing.epoch) = (tail.entries, tail.epoch);
        self.snapshots.installing.push(installing);
    }

    /// Not armed: this member must not take over. It is dropped for its silence, and asks to join again.
    fn not_installed(&mut self, id: GroupId, why: &str) {
        self.withhold(id, &format!("the snapshot was not installed: {why}"));
    }

    fn install_some(&mut self, mut installing: Installing) {
        let id = installing.group;
        match self.install_part(&mut installing) {
            Ok(false) => self.snapshots.installing.push(installing),
            Ok(true) => {
                let (ike, children) = installing.counts;
                let took = clock::now().since(installing.began).as_secs_f64() * 1000.0;
                self.log.note_of(
                    id,
                    "snapshot",
                    format!("snapshot installed: {ike} IKE and {children} Child SAs, {took:.1} ms"),
                );
                self.groups.get_mut(id).withholding = false;
                self.armed(installing.token);
                // First what came meanwhile, then what comes of the acknowledgement.
                for output in installing.behind.into_iter().rev() {
                    self.deferred.push_front(output);
                }
                self.settle();
            }
            Err(why) => self.not_installed(id, &why),
        }
    }

    /// Returns whether all is done.
    fn install_part(&mut self, installing: &mut Installing) -> Result<bool, String> {
        let text = |error: NotApplied| error.to_string();
        let gone = installing.gone.get_or_insert_default();
        if !gone.is_empty() {
            let some = gone.drain(..SOME.min(gone.len())).collect::<Vec<_>>();
            let plan = self.sad.forget(some);
            self.execute(&plan).map_err(text)?;
            return Ok(false);
        }
        if installing.keying.is_none() && installing.missing > 0 {
            // The slots are free now: from here on their keys are this snapshot's.
            let children = std::mem::take(&mut installing.children);
            installing.keying = Some(self.write_keys(installing.token, children));
            return Ok(false);
        }
        if let Some(few) = installing.keyed.pop_front() {
            installing.missing = installing.missing.saturating_sub(few.len());
            let plan = self
                .sad
                .restore_keyed(few, clock::now())
                .map_err(|e| e.to_string())?;
            self.execute(&plan).map_err(text)?;
            return Ok(false);
        }
        for changes in std::mem::take(&mut installing.tail) {
            let failed = self.apply(installing.group, &changes, installing.epoch, false);
            if let Some((spi_in, error)) = failed.into_iter().find(|(_, error)| !is_there_already(error)) {
                return Err(format!("SA {spi_in}: {error}"));
            }
            self.keep_records(&changes);
        }
        // Behind the tail: an SA of it may be among them.
        let plan = self.taint_suspects(installing.group);
        self.execute(&plan).map_err(text)?;
        Ok(true)
    }

    /// Expands and writes keys beside the core loop: that takes half of the time that an SA takes.
    fn write_keys(&self, token: u64, children: Vec<SnapshotSa>) -> Keying {
        let stop = Arc::new(Mutex::new(false));
        let (keying, made, writer) = (
            Keying(stop.clone()),
            self.snapshots.made.clone(),
            self.plane.key_writer(),
        );
        tokio::task::spawn_blocking(move || {
            let mut children = children.into_iter();
            loop {
                let few: Vec<SnapshotSa> = children.by_ref().take(FEW).collect();
                if few.is_empty() {
                    return;
                }
                let mut ops = Vec::with_capacity(2 * FEW);
                let expanded = few.iter().try_for_each(|sa| {
                    ops.extend(sad::record::keys(&sa.record).map_err(|error| error.to_string())?);
                    Ok(())
                });
                let stopped = stop.lock().unwrap_or_else(PoisonError::into_inner);
                if *stopped {
                    return;
                }
                let some = expanded.and_then(|()| writer.write(&ops)).map(|()| few);
                drop(stopped);
                let failed = some.is_err();
                // The core has gone: nobody joins any more.
                let _ = made.send(Made::Keyed { token, some });
                if failed {
                    return;
                }
            }
        });
        keying
    }

    fn snapshot_keyed(&mut self, token: u64, some: Result<Vec<SnapshotSa>, String>) {
        let Some(at) = self.snapshots.installing.iter().position(|i| i.token == token) else {
            return;
        };
        match some {
            Ok(few) => self.snapshots.installing[at].keyed.push_back(few),
            Err(why) => {
                let id = self.snapshots.installing.swap_remove(at).group;
                self.not_installed(id, &why);
            }
        }
    }

    /// Records of IKE SAs in changes of a tail: they are kept whatever the copy held already.
    fn keep_records(&mut self, changes: &[EntryChange]) {
        for change in changes {
            match change {
                EntryChange::IkePut(spi, record) => drop(self.mirror.insert(*spi, record.clone())),
                EntryChange::IkeRemove(spi) => drop(self.mirror.remove(spi)),
                _ => {}
            }
        }
    }
}

/// A change of a tail that the copy holds, or that is about an SA which a later change removes.
fn is_there_already(error: &NotApplied) -> bool {
    matches!(
        error,
        NotApplied::Refused(SadError::Installed(_) | SadError::Unknown(_))
    )
}
