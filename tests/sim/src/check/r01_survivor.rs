//! R1: every SA that took effect while a standby was in sync exists at that standby before the fault, with equal selectors.

use crate::entry::{self, EntryChange};
use crate::rng::digest;
use model::{ChildSaChange, ChildSaRecord, EspSpi, GroupId, MemberId};
use sad::SaEntry;
use std::collections::{BTreeMap, BTreeSet};

/// What the record says that must survive.
fn essence(record: &ChildSaRecord) -> u64 {
    let part = (
        &record.ts_local,
        &record.ts_remote,
        record.spi_out,
        record.suite,
        record.form,
        (record.key_in.expose(), record.key_out.expose()),
    );
    digest(&entry::encode(&part))
}

#[derive(Default)]
pub(super) struct Survivor {
    /// SAs in effect at an owner: what they are, and whether a standby has to know them.
    effective: BTreeMap<(GroupId, MemberId), BTreeMap<EspSpi, (u64, bool)>>,
    /// Deletions that a standby knows although the owner has not carried them out.
    removed: BTreeMap<(GroupId, MemberId), BTreeSet<EspSpi>>,
    /// From whom a member takes over.
    from: BTreeMap<(GroupId, MemberId), MemberId>,
}

impl Survivor {
    pub(super) fn holds(&self, spi: EspSpi) -> bool {
        self.effective.values().any(|all| all.contains_key(&spi))
    }

    pub(super) fn effective(&mut self, me: MemberId, group: GroupId, changes: &[EntryChange], known: bool) {
        let all = self.effective.entry((group, me)).or_default();
        for change in changes {
            match change {
                EntryChange::Child(ChildSaChange::Install { record, .. }) => {
                    all.insert(record.spi_in, (essence(record), known));
                }
                EntryChange::Child(ChildSaChange::Remove { spi_in }) => drop(all.remove(spi_in)),
                _ => {}
            }
        }
    }

    pub(super) fn mirrored(&mut self, me: MemberId, group: GroupId, changes: &[EntryChange]) {
        let removed = self.removed.entry((group, me)).or_default();
        for change in changes {
            match change {
                EntryChange::Child(ChildSaChange::Remove { spi_in }) => drop(removed.insert(*spi_in)),
                EntryChange::Child(ChildSaChange::Install { record, .. }) => {
                    removed.remove(&record.spi_in);
                }
                _ => {}
            }
        }
    }

    /// A standby is in sync: it has to know everything from here on.
    pub(super) fn known(&mut self, me: MemberId, group: GroupId) {
        for (_, known) in self.effective.entry((group, me)).or_default().values_mut() {
            *known = true;
        }
    }

    pub(super) fn claimed(&mut self, me: MemberId, group: GroupId, from: MemberId) {
        self.from.insert((group, me), from);
    }

    /// A group begins with nothing.
    pub(super) fn fresh(&mut self, group: GroupId) {
        self.effective.retain(|(g, _), _| *g != group);
    }

    pub(super) fn forget(&mut self, me: MemberId, group: GroupId) {
        self.effective.remove(&(group, me));
        self.removed.remove(&(group, me));
    }

    pub(super) fn resumed<'a>(
        &mut self,
        me: MemberId,
        group: GroupId,
        children: impl Iterator<Item = &'a SaEntry>,
    ) -> Result<(), String> {
        let here: BTreeMap<EspSpi, u64> = children.map(|e| (e.record.spi_in, essence(&e.record))).collect();
        let removed = self.removed.remove(&(group, me)).unwrap_or_default();
        let from = self
            .from
            .remove(&(group, me))
            .filter(|from| from.0 != 0 && *from != me);
        let mut found = Ok(());
        if let Some(expected) = from.and_then(|from| self.effective.remove(&(group, from))) {
            for (spi, (essence, known)) in expected {
                if known && !removed.contains(&spi) && here.get(&spi) != Some(&essence) {
                    let what = if here.contains_key(&spi) {
                        "differs"
                    } else {
                        "is missing"
                    };
                    found = Err(format!(
                        "member {me} took group {group} over: SA {spi}, in effect before, {what} ({} SAs here)",
                        here.len()
                    ));
                }
            }
        }
        let all = here
            .into_iter()
            .map(|(spi, essence)| (spi, (essence, false)))
            .collect();
        self.effective.insert((group, me), all);
        found
    }
}
