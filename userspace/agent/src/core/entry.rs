//! Journal entries and snapshots as octets. One entry is one commit of the IKE engine.

use std::collections::BTreeMap;

use cluster::patch::{self, PatchError};
use ike::{Change, IkeSaChange};
use model::{ChildSaChange, Epoch, EspSpi, IkeSpi, SecretBytes};
use sad::{SnapshotSa, Usage};
use serde::{Deserialize, Serialize};

/// Version of the format; a member refuses another one.
const VERSION: u8 = 2;
/// Entries in which a record may be a patch of an earlier one: [`Written`] instead of [`EntryChange`].
const BRIEF: u8 = 3;

/// Shorter records are not written against those of other IKE SAs: there is nothing in them to be handed down but names.
const HANDED_DOWN: usize = 1500;
/// Octets of a patched record beside the patch: two SPIs in place of one, and the length of each.
const PATCH_OVERHEAD: usize = 16;

/// A change in an entry. No `Debug`: it holds keys.
#[derive(Clone, Serialize, Deserialize)]
pub enum EntryChange {
    /// Record of an IKE SA.
    IkePut(IkeSpi, SecretBytes),
    /// An IKE SA is gone.
    IkeRemove(IkeSpi),
    /// Change of a Child SA.
    Child(ChildSaChange),
    /// A peer began anew (INITIAL_CONTACT) by this IKE SA. Owners of other groups forget what they have of it; the owner of
    /// this group has done so.
    Contact {
        /// Connection.
        connection: String,
        /// The peer's identity.
        remote_id: String,
        /// The IKE SA that stays.
        ike_spi: IkeSpi,
    },
    /// Traffic of this connection met no SA here: whoever initiates the connection does so now.
    Acquire(String),
    /// What SAs with lifetimes in octets or packets have carried so far, on all members together. Written only where such
    /// lifetimes are configured, which releases before this one cannot be: so the format's version stays.
    Used(Vec<(EspSpi, Usage)>),
    /// An operator has stopped this connection: nobody initiates it, and these IKE SAs of the group are to end. From [`STOPS_SINCE`] on.
    Stop {
        /// Connection.
        connection: String,
        /// Our SPIs.
        ending: Vec<IkeSpi>,
    },
    /// The end of that. From [`STOPS_SINCE`] on.
    Start(String),
}

/// Format of the synch channel's records since which members read what an operator has stopped.
pub const STOPS_SINCE: u8 = 5;

/// A snapshot: all IKE SAs and all Child SAs of a group. No `Debug`: it holds keys.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Snapshot {
    /// Committed records of IKE SAs.
    pub ike: BTreeMap<IkeSpi, SecretBytes>,
    /// Child SAs with their limits.
    pub children: Vec<SnapshotSa>,
}

/// What follows a snapshot. No `Debug`: it holds keys.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Tail {
    /// Child SAs (by inbound SPI) whose numbers a lost standby may have used, and that are still to be rekeyed.
    pub suspects: Vec<EspSpi>,
    /// Commits that took effect while the snapshot was made, in their order. The snapshot may hold what they say.
    pub entries: Vec<Vec<EntryChange>>,
    /// The epoch that they were written in.
    pub epoch: Epoch,
    /// Connections that an operator has stopped, with their IKE SAs that are to end. Written behind the others, where releases that do not
    /// know of it do not look.
    #[serde(skip)]
    pub stopped: Vec<(String, Vec<IkeSpi>)>,
}

/// A change in a brief entry. No `Debug`: it holds keys.
#[derive(Serialize, Deserialize)]
enum Written<T> {
    /// As it is.
    Whole(T),
    /// Record of an IKE SA: what differs from the one that another (or the same) IKE SA had before this entry.
    Patch {
        spi: IkeSpi,
        base: IkeSpi,
        patch: SecretBytes,
    },
}

/// Why octets are no entry.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// What is here is not what the owner wrote it against.
    #[error("record of IKE SA {spi}, against that of {base}: {why}")]
    Patch {
        /// Whose record it would become.
        spi: IkeSpi,
        /// Against whose it was written.
        base: IkeSpi,
        /// What does not fit.
        why: PatchError,
    },
    /// Another version.
    #[error(
        "entry of version {0}, this member understands {VERSION} and {BRIEF}: run the same version on all members"
    )]
    Version(u8),
    /// Damaged.
    #[error("entry cannot be read: {0}")]
    Damaged(#[from] postcard::Error),
}

impl EntryChange {
    /// A record that is written, with its IKE SA.
    pub fn as_put(&self) -> Option<(IkeSpi, &SecretBytes)> {
        match self {
            Self::IkePut(spi, record) => Some((*spi, record)),
            _ => None,
        }
    }
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

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // Growing a vector cannot fail, and every type here has a postcard form.
    postcard::to_extend(value, vec![VERSION]).expect("serialises")
}

fn decode<'a, T: Deserialize<'a>>(octets: &'a [u8]) -> Result<T, DecodeError> {
    decode_part(octets).map(|(value, _)| value)
}

/// A value, and what stands behind it.
fn decode_part<'a, T: Deserialize<'a>>(octets: &'a [u8]) -> Result<(T, &'a [u8]), DecodeError> {
    match octets.split_first() {
        Some((&VERSION, rest)) => Ok(postcard::take_from_bytes(rest)?),
        Some((version, _)) => Err(DecodeError::Version(*version)),
        None => Err(DecodeError::Damaged(postcard::Error::DeserializeUnexpectedEnd)),
    }
}

/// An entry as octets.
pub fn encode_entry(changes: &[EntryChange]) -> Vec<u8> {
    encode(&changes)
}

/// An entry as octets, with records as patches where that is shorter: of the record that the same IKE SA has before this entry,
/// or (a new one's) that of a neighbour in this entry: one that it replaces stands beside it. `None`: no record is worth it.
pub fn encode_brief<'a>(
    changes: &[EntryChange],
    before: impl Fn(IkeSpi) -> Option<&'a SecretBytes>,
) -> Option<Vec<u8>> {
    let puts = changes.iter().filter_map(EntryChange::as_put).map(|(spi, _)| spi);
    let puts = puts.collect::<Vec<_>>();
    let base_of = |at: usize, length: usize| {
        let neighbours = [Some(at), at.checked_sub(1), at.checked_add(1)];
        let worth = if length < HANDED_DOWN { 1 } else { neighbours.len() };
        let neighbours = neighbours.into_iter().take(worth).flatten();
        let bases = neighbours.filter_map(|at| puts.get(at));
        bases.copied().find_map(|base| Some((base, before(base)?)))
    };
    let mut any = false;
    let mut nth = 0..;
    let written = changes.iter().map(|change| {
        let patched = change.as_put().and_then(|(spi, record)| {
            let (base, old) = base_of(nth.next()?, record.len())?;
            let patch = patch::make(old.expose(), record.expose());
            (patch.len() + PATCH_OVERHEAD < record.len()).then_some(Written::Patch { spi, base, patch })
        });
        any |= patched.is_some();
        patched.unwrap_or(Written::Whole(change))
    });
    let written = written.collect::<Vec<_>>();
    // Growing a vector cannot fail, and every type here has a postcard form.
    any.then(|| postcard::to_extend(&written, vec![BRIEF]).expect("serialises"))
}

/// The changes of an entry. `before`: records of IKE SAs as the entries before it have left them.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_entry(
    octets: &[u8],
    before: &BTreeMap<IkeSpi, SecretBytes>,
) -> Result<Vec<EntryChange>, DecodeError> {
    let Some((&BRIEF, rest)) = octets.split_first() else {
        return decode(octets);
    };
    let written: Vec<Written<EntryChange>> = postcard::from_bytes(rest)?;
    let whole = |written| match written {
        Written::Whole(change) => Ok(change),
        Written::Patch { spi, base, patch } => {
            let old = before.get(&base).ok_or(PatchError::OtherBase);
            let record = old.and_then(|old| patch::apply(old.expose(), patch.expose()));
            let record = record.map_err(|why| DecodeError::Patch { spi, base, why })?;
            Ok(EntryChange::IkePut(spi, record))
        }
    };
    written.into_iter().map(whole).collect()
}

/// A snapshot as octets; [`encode_tail`] completes them.
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    encode(snapshot)
}

/// Adds what follows a snapshot.
pub fn encode_tail(octets: &mut Vec<u8>, tail: &Tail) {
    octets.extend(encode(tail));
    if !tail.stopped.is_empty() {
        octets.extend(encode(&tail.stopped));
    }
}

/// A snapshot and what follows it, from octets.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_snapshot(octets: &[u8]) -> Result<(Snapshot, Tail), DecodeError> {
    match octets.split_first() {
        Some((&VERSION, rest)) => {
            let (snapshot, rest) = postcard::take_from_bytes(rest)?;
            let (mut tail, rest) = decode_part::<Tail>(rest)?;
            if !rest.is_empty() {
                tail.stopped = decode(rest)?;
            }
            Ok((snapshot, tail))
        }
        Some((version, _)) => Err(DecodeError::Version(*version)),
        None => Err(DecodeError::Damaged(postcard::Error::DeserializeUnexpectedEnd)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_the_order_of_its_changes() {
        let changes = vec![
            EntryChange::IkePut(IkeSpi(0x0501_0000_0000_0001), SecretBytes::new(vec![1, 2, 3])),
            EntryChange::Child(ChildSaChange::UseOutbound {
                spi_in: EspSpi(0x0100_0005),
            }),
            EntryChange::IkeRemove(IkeSpi(7)),
        ];
        let octets = encode_entry(&changes);
        let again = decode_entry(&octets, &BTreeMap::new()).unwrap();
        assert!(
            matches!(&again[0], EntryChange::IkePut(IkeSpi(0x0501_0000_0000_0001), r) if r.expose() == [1, 2, 3])
        );
        assert!(matches!(
            &again[1],
            EntryChange::Child(ChildSaChange::UseOutbound {
                spi_in: EspSpi(0x0100_0005)
            })
        ));
        assert!(matches!(&again[2], EntryChange::IkeRemove(IkeSpi(7))));
    }

    #[test]
    fn another_version_and_damage_are_told_apart() {
        let mut octets = encode_entry(&[EntryChange::IkeRemove(IkeSpi(7))]);
        let cut = &octets[..octets.len() - 1];
        let nothing = BTreeMap::new();
        assert!(matches!(
            decode_entry(cut, &nothing),
            Err(DecodeError::Damaged(_))
        ));
        octets[0] = 9;
        assert!(matches!(
            decode_entry(&octets, &nothing),
            Err(DecodeError::Version(9))
        ));
        assert!(matches!(
            decode_entry(&[], &nothing),
            Err(DecodeError::Damaged(_))
        ));
    }

    fn record(seed: u8, length: usize) -> SecretBytes {
        let octets = (0..length).map(|at| crypto::sha256(&[&[seed], &(at / 32).to_be_bytes()])[at % 32]);
        SecretBytes::new(octets.collect())
    }

    /// A rekey of an IKE SA with many Child SAs: what it hands down to its successor is not said again.
    #[test]
    fn a_record_is_written_against_what_its_ike_sa_or_the_one_before_it_had() {
        let (old, new) = (IkeSpi(5), IkeSpi(6));
        let before = BTreeMap::from([(old, record(1, 3000))]);
        let longer = [record(1, 3000).expose(), record(2, 100).expose()].concat();
        let moved = [record(3, 80).expose(), record(1, 3000).expose()].concat();
        let changes = [
            EntryChange::IkePut(old, SecretBytes::new(longer)),
            EntryChange::IkeRemove(IkeSpi(7)),
            EntryChange::IkePut(new, SecretBytes::new(moved)),
        ];
        let octets = encode_brief(&changes, |spi| before.get(&spi)).unwrap();
        assert!(octets.len() < 180 + 100, "{}", octets.len());
        let again = decode_entry(&octets, &before).unwrap();
        let same = |(a, b): (&EntryChange, &EntryChange)| match (a.as_put(), b.as_put()) {
            (Some((spi, a)), Some((other, b))) => spi == other && a.expose() == b.expose(),
            (None, None) => {
                matches!((a, b), (EntryChange::IkeRemove(a), EntryChange::IkeRemove(b)) if a == b)
            }
            _ => false,
        };
        assert!(changes.len() == again.len() && changes.iter().zip(&again).all(same));

        for wrong in [BTreeMap::new(), BTreeMap::from([(old, record(4, 3000))])] {
            let error = decode_entry(&octets, &wrong).err().unwrap();
            assert!(
                matches!(error, DecodeError::Patch { spi, why: PatchError::OtherBase, .. } if spi == old),
                "{error}"
            );
        }
        // Nothing to write against, or nothing in common: there is no brief form.
        assert!(encode_brief(&changes, |_| None).is_none());
        let other = record(9, 3000);
        assert!(encode_brief(&changes[1..], |_| Some(&other)).is_none());
    }

    /// Handshakes of many peers in one entry: their records have nothing in common that is worth looking for.
    #[test]
    fn a_short_record_is_written_against_its_own_ike_sas_alone() {
        let before = BTreeMap::from([(IkeSpi(5), record(1, 600))]);
        let put = |spi| EntryChange::IkePut(IkeSpi(spi), record(1, 600));
        let alone = encode_brief(&[put(5)], |spi| before.get(&spi)).unwrap();
        let two = [put(5), put(6)];
        let octets = encode_brief(&two, |spi| before.get(&spi)).unwrap();
        assert!(
            alone.len() < 60 && octets.len() > 600,
            "{} {}",
            alone.len(),
            octets.len()
        );
        assert_eq!(decode_entry(&octets, &before).unwrap().len(), 2);
    }

    #[test]
    fn a_snapshot_is_read_with_what_follows_it_and_not_without() {
        let mut snapshot = Snapshot::default();
        snapshot.ike.insert(IkeSpi(5), SecretBytes::new(vec![1]));
        let mut octets = encode_snapshot(&snapshot);
        assert!(matches!(decode_snapshot(&octets), Err(DecodeError::Damaged(_))));
        let tail = Tail {
            suspects: vec![EspSpi(3)],
            entries: vec![vec![EntryChange::IkeRemove(IkeSpi(5))]],
            epoch: Epoch(9),
            stopped: Vec::new(),
        };
        let alone = octets.clone();
        encode_tail(&mut octets, &tail);
        let stopped = vec![("branch".to_owned(), vec![IkeSpi(5)])];
        let more = Tail {
            stopped: stopped.clone(),
            ..tail.clone()
        };
        let mut longer = alone;
        encode_tail(&mut longer, &more);
        assert!(
            longer.starts_with(&octets),
            "an older release reads the same of it"
        );
        assert_eq!(decode_snapshot(&longer).unwrap().1.stopped, stopped);
        assert!(decode_snapshot(&longer[..longer.len() - 1]).is_err());
        let (snapshot, tail) = decode_snapshot(&octets).unwrap();
        assert!(tail.stopped.is_empty());
        assert_eq!(snapshot.ike.len(), 1);
        assert_eq!((tail.epoch, tail.suspects), (Epoch(9), vec![EspSpi(3)]));
        assert!(matches!(tail.entries[0][..], [EntryChange::IkeRemove(IkeSpi(5))]));
    }
}
