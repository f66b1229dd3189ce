//! The record of an IKE SA: all that another member needs to go on.

use super::IkeSa;
use super::extras::{ChildExtras, Extras};
use super::more::{More, Tagged, read_windows, write_windows};
use super::phase::Phase;
use crate::tasks::Pending;
use crate::tasks::child_create::ChildOffer;
use crate::tasks::transport;
use model::SecretBytes;
use serde::Serialize;
use std::ops::RangeInclusive;

/// Raised whenever the meaning of the fields changes. Version octet, then the IKE SA, then what extensions remember, then values
/// by number ([`super::more`]).
pub(crate) const RECORD_VERSION: u8 = 3;
/// Without values by number; still written where there are none.
const VERSION_WITHOUT_MORE: u8 = 2;
/// The IKE SA alone; can still be read, so that members are upgraded one after the other.
const VERSION_WITHOUT_EXTRAS: u8 = 1;

/// Versions of the record that this software reads and can write, for members to agree on one.
pub const RECORD_VERSIONS: RangeInclusive<u8> = VERSION_WITHOUT_EXTRAS..=RECORD_VERSION;

/// Why a record cannot be taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// Another version of the software wrote it.
    #[error(
        "IKE SA record has version {found}, this member reads {VERSION_WITHOUT_EXTRAS} to {RECORD_VERSION}: bring all members to one version"
    )]
    Version {
        /// Version in the record.
        found: u8,
    },
    /// It cannot be read.
    #[error("IKE SA record is corrupt ({0}): the peer has to connect again")]
    Corrupt(String),
    /// The record is of another IKE SA.
    #[error("IKE SA record is that of SPI {found}, not {asked}")]
    WrongSpi {
        /// SPI in the record.
        found: model::IkeSpi,
        /// SPI that was asked for.
        asked: model::IkeSpi,
    },
}

/// Serialises an IKE SA in a version that the other members can read.
pub(crate) fn write(sa: &IkeSa, version: u8) -> SecretBytes {
    if version == VERSION_WITHOUT_EXTRAS {
        return octets(&[version], sa);
    }
    let mut more = sa.more.write(&transport::of(sa));
    write_windows(sa, &mut more);
    if version == VERSION_WITHOUT_MORE || more.is_empty() {
        return octets(&[VERSION_WITHOUT_MORE], &(sa, &sa.extras, children(sa)));
    }
    octets(&[RECORD_VERSION], &(sa, &sa.extras, children(sa), more))
}

/// Serialises something secret, without copies that stay behind. `front` stands before it.
pub(crate) fn octets<T: Serialize>(front: &[u8], value: &T) -> SecretBytes {
    // A buffer that is large enough does not grow.
    let size = postcard::experimental::serialized_size(value).unwrap_or(4096) + front.len();
    let mut buffer = vec![0; size];
    let (head, body) = buffer.split_at_mut(front.len());
    head.copy_from_slice(front);
    // The size was computed from the same value: this cannot fail. If it did, the record would be refused as corrupt.
    let used = postcard::to_slice(value, body)
        .map(|written| written.len())
        .unwrap_or(0);
    buffer.truncate(front.len() + used);
    SecretBytes::new(buffer)
}

/// Second parts of the Child SAs, those that have one.
fn children(sa: &IkeSa) -> Vec<ChildExtras> {
    let offers = offers(sa).map(|offer| (offer.spi_in, offer.resource, offer.multiple));
    sa.children
        .iter()
        .map(|child| (child.spi_in, child.resource, child.multiple))
        .chain(offers)
        .filter(|(_, resource, multiple)| resource.is_some() || *multiple)
        .map(|(spi_in, resource, multiple)| ChildExtras {
            spi_in,
            resource,
            multiple,
        })
        .collect()
}

/// The Child SAs that are being asked for.
fn offers(sa: &IkeSa) -> impl Iterator<Item = &ChildOffer> {
    let asked = sa.our.pending().filter_map(|pending| match pending {
        Pending::CreateChild(offer) => Some(&**offer),
        _ => None,
    });
    let first = match &sa.phase {
        Phase::AwaitAuthResponse(phase) => phase.child.as_ref(),
        _ => None,
    };
    asked.chain(first)
}

fn give(sa: &mut IkeSa, extras: &ChildExtras) {
    if let Some(child) = sa.child_mut(extras.spi_in) {
        (child.resource, child.multiple) = (extras.resource, extras.multiple);
    }
    let asked = sa.our.all_mut().filter_map(|o| match &mut o.pending {
        Pending::CreateChild(offer) => Some(&mut **offer),
        _ => None,
    });
    let first = match &mut sa.phase {
        Phase::AwaitAuthResponse(phase) => phase.child.as_mut(),
        _ => None,
    };
    for offer in asked.chain(first).filter(|offer| offer.spi_in == extras.spi_in) {
        (offer.resource, offer.multiple) = (extras.resource, extras.multiple);
    }
}

fn joined(mut sa: IkeSa, extras: Extras, children: Vec<ChildExtras>) -> IkeSa {
    sa.extras = extras;
    for child in &children {
        give(&mut sa, child);
    }
    sa
}

/// Reads one back.
pub(crate) fn read(record: &SecretBytes) -> Result<IkeSa, AdoptError> {
    let sa = decode(record)?;
    // What waits for a signature is a message that does not exist yet: there is no request beside it.
    if matches!(sa.phase, Phase::AwaitSignature(_)) && !sa.our.is_idle() {
        return Err(AdoptError::Corrupt(
            "it waits for a signature and for a response".to_owned(),
        ));
    }
    Ok(sa)
}

fn decode(record: &SecretBytes) -> Result<IkeSa, AdoptError> {
    let Some((&version, body)) = record.expose().split_first() else {
        return Err(AdoptError::Corrupt("empty".to_owned()));
    };
    let corrupt = |error: postcard::Error| AdoptError::Corrupt(error.to_string());
    match version {
        VERSION_WITHOUT_EXTRAS => postcard::from_bytes(body).map_err(corrupt),
        VERSION_WITHOUT_MORE => {
            let (sa, extras, children) = postcard::from_bytes(body).map_err(corrupt)?;
            Ok(joined(sa, extras, children))
        }
        RECORD_VERSION => {
            let (sa, extras, children, more): (_, _, _, Vec<Tagged>) =
                postcard::from_bytes(body).map_err(corrupt)?;
            let mut sa: IkeSa = sa;
            read_windows(&mut sa, &more)?;
            let mut sa = joined(sa, extras, children);
            sa.more = More::read(&more)?;
            transport::give(&mut sa);
            Ok(sa)
        }
        found => Err(AdoptError::Version { found }),
    }
}
