//! Journal entries and snapshots as octets. One entry is one commit of the IKE engine.

use std::collections::BTreeMap;

use ike::{Change, IkeSaChange};
use model::{ChildSaChange, Epoch, EspSpi, IkeSpi, SecretBytes};
use sad::{SnapshotSa, Usage};
use serde::{Deserialize, Serialize};

/// Version of the format; a member refuses another one.
const VERSION: u8 = 2;

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
}

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
}

/// Why octets are no entry.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Another version.
    #[error("entry of version {0}, this member understands {VERSION}: run the same version on all members")]
    Version(u8),
    /// Damaged.
    #[error("entry cannot be read: {0}")]
    Damaged(#[from] postcard::Error),
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
    match octets.split_first() {
        Some((&VERSION, rest)) => Ok(postcard::from_bytes(rest)?),
        Some((version, _)) => Err(DecodeError::Version(*version)),
        None => Err(DecodeError::Damaged(postcard::Error::DeserializeUnexpectedEnd)),
    }
}

/// An entry as octets.
pub fn encode_entry(changes: &[EntryChange]) -> Vec<u8> {
    encode(&changes)
}

/// The changes of an entry.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_entry(octets: &[u8]) -> Result<Vec<EntryChange>, DecodeError> {
    decode(octets)
}

/// A snapshot as octets; [`encode_tail`] completes them.
pub fn encode_snapshot(snapshot: &Snapshot) -> Vec<u8> {
    encode(snapshot)
}

/// Adds what follows a snapshot.
pub fn encode_tail(octets: &mut Vec<u8>, tail: &Tail) {
    octets.extend(encode(tail));
}

/// A snapshot and what follows it, from octets.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_snapshot(octets: &[u8]) -> Result<(Snapshot, Tail), DecodeError> {
    match octets.split_first() {
        Some((&VERSION, rest)) => {
            let (snapshot, rest) = postcard::take_from_bytes(rest)?;
            Ok((snapshot, decode(rest)?))
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
        let again = decode_entry(&octets).unwrap();
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
        assert!(matches!(decode_entry(cut), Err(DecodeError::Damaged(_))));
        octets[0] = 9;
        assert!(matches!(decode_entry(&octets), Err(DecodeError::Version(9))));
        assert!(matches!(decode_entry(&[]), Err(DecodeError::Damaged(_))));
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
        };
        encode_tail(&mut octets, &tail);
        let (snapshot, tail) = decode_snapshot(&octets).unwrap();
        assert_eq!(snapshot.ike.len(), 1);
        assert_eq!((tail.epoch, tail.suspects), (Epoch(9), vec![EspSpi(3)]));
        assert!(matches!(tail.entries[0][..], [EntryChange::IkeRemove(IkeSpi(5))]));
    }
}
