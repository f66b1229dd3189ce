//! Journal entries and snapshots of the simulated agent: what `userspace/agent` encodes, in the simulation's own form.

use ike::{Change, IkeSaChange};
use model::{ChildSaChange, EspSpi, IkeSpi, SecretBytes};
use sad::SnapshotSa;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A change in an entry.
#[derive(Clone, Serialize, Deserialize)]
pub enum EntryChange {
    /// Record of an IKE SA.
    IkePut(IkeSpi, SecretBytes),
    /// An IKE SA is gone.
    IkeRemove(IkeSpi),
    /// Change of a Child SA.
    Child(ChildSaChange),
    /// In the brief form of an entry: what differs from the record that an IKE SA (the second) had before.
    IkePatch(IkeSpi, IkeSpi, SecretBytes),
}

/// All of a group.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Committed records of IKE SAs.
    pub ike: BTreeMap<IkeSpi, SecretBytes>,
    /// Child SAs with their limits.
    pub children: Vec<SnapshotSa>,
    /// Child SAs whose numbers a lost standby may have used.
    pub suspects: Vec<EspSpi>,
    /// What SAs are to each other (RFC 9611).
    pub parts: Vec<ChildSaChange>,
}

impl From<Change> for EntryChange {
    fn from(change: Change) -> Self {
        match change {
            Change::IkeSa(IkeSaChange::Put { spi, record }) => Self::IkePut(spi, record),
            Change::IkeSa(IkeSaChange::Remove { spi }) => Self::IkeRemove(spi),
            Change::ChildSa(change) => Self::Child(change),
        }
    }
}

/// Inbound SPI that a change is about.
pub fn spi_of(change: &ChildSaChange) -> EspSpi {
    match change {
        ChildSaChange::Install { record, .. } => record.spi_in,
        ChildSaChange::UseOutbound { spi_in }
        | ChildSaChange::MovePeer { spi_in, .. }
        | ChildSaChange::MoveIkeSa { spi_in, .. }
        | ChildSaChange::Remove { spi_in }
        | ChildSaChange::Share { spi_in }
        | ChildSaChange::Bind { spi_in, .. } => *spi_in,
    }
}

/// The brief form: records against what is known of their IKE SA, or else of another one of the entry.
pub fn brief<'a>(
    changes: &[EntryChange],
    before: impl Fn(IkeSpi) -> Option<&'a SecretBytes>,
) -> Vec<EntryChange> {
    let puts = |change: &EntryChange| match change {
        EntryChange::IkePut(spi, _) => Some(*spi),
        _ => None,
    };
    let patched = |change: &EntryChange| {
        let EntryChange::IkePut(spi, record) = change else {
            return None;
        };
        let others = changes.iter().filter_map(puts).filter(|other| other != spi);
        let (base, old) = std::iter::once(*spi)
            .chain(others)
            .find_map(|base| Some((base, before(base)?)))?;
        let patch = cluster::patch::make(old.expose(), record.expose());
        Some(EntryChange::IkePatch(*spi, base, patch))
    };
    changes
        .iter()
        .map(|change| patched(change).unwrap_or_else(|| change.clone()))
        .collect()
}

/// The brief form made whole; `None` where it was written against something else than is here.
pub fn whole(changes: Vec<EntryChange>, before: &BTreeMap<IkeSpi, SecretBytes>) -> Option<Vec<EntryChange>> {
    let whole = |change| match change {
        EntryChange::IkePatch(spi, base, patch) => {
            let record = cluster::patch::apply(before.get(&base)?.expose(), patch.expose()).ok()?;
            Some(EntryChange::IkePut(spi, record))
        }
        other => Some(other),
    };
    changes.into_iter().map(whole).collect()
}

/// As octets.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, Vec::new()).expect("plain data always has a form")
}

/// From octets; `None` where they are damaged.
pub fn decode<'a, T: Deserialize<'a>>(octets: &'a [u8]) -> Option<T> {
    postcard::from_bytes(octets).ok()
}
