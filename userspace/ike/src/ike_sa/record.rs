//! The record of an IKE SA: all that another member needs to go on.

use super::IkeSa;
use super::extras::ChildExtras;
use super::phase::Phase;
use crate::tasks::Pending;
use crate::tasks::child_create::ChildOffer;
use model::SecretBytes;

/// Raised whenever the meaning of the fields changes. Version octet, then the IKE SA, then what extensions remember.
const RECORD_VERSION: u8 = 2;
/// The IKE SA alone; can still be read, so that members are upgraded one after the other.
const VERSION_WITHOUT_EXTRAS: u8 = 1;

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
    /// The configuration differs between members.
    #[error(
        "IKE SA belongs to connection {0:?}, which this member's configuration does not have: align the files"
    )]
    UnknownConnection(String),
}

/// Serialises an IKE SA.
pub(crate) fn write(sa: &IkeSa) -> SecretBytes {
    // A buffer that is large enough does not grow, so no copies of keys stay behind.
    let parts = (sa, &sa.extras, children(sa));
    let size = postcard::experimental::serialized_size(&parts).unwrap_or(4096) + 1;
    let mut buffer = vec![0; size];
    buffer[0] = RECORD_VERSION;
    // The size was computed from the same value: this cannot fail. If it did, the record would be refused as corrupt.
    let used = postcard::to_slice(&parts, &mut buffer[1..])
        .map(|written| written.len())
        .unwrap_or(0);
    buffer.truncate(1 + used);
    SecretBytes::new(buffer)
}

/// Second parts of the Child SAs, those that have one.
fn children(sa: &IkeSa) -> Vec<ChildExtras> {
    let offer = offer(sa).map(|offer| (offer.spi_in, offer.resource, offer.multiple));
    sa.children
        .iter()
        .map(|child| (child.spi_in, child.resource, child.multiple))
        .chain(offer)
        .filter(|(_, resource, multiple)| resource.is_some() || *multiple)
        .map(|(spi_in, resource, multiple)| ChildExtras {
            spi_in,
            resource,
            multiple,
        })
        .collect()
}

/// The Child SA that is being asked for.
fn offer(sa: &IkeSa) -> Option<&ChildOffer> {
    match (&sa.phase, sa.our.outstanding.as_ref().map(|o| &o.pending)) {
        (_, Some(Pending::CreateChild(offer))) => Some(offer),
        (Phase::AwaitAuthResponse(phase), _) => phase.child.as_ref(),
        _ => None,
    }
}

fn give(sa: &mut IkeSa, extras: &ChildExtras) {
    if let Some(child) = sa.child_mut(extras.spi_in) {
        (child.resource, child.multiple) = (extras.resource, extras.multiple);
    }
    let offer = match (&mut sa.phase, sa.our.outstanding.as_mut().map(|o| &mut o.pending)) {
        (_, Some(Pending::CreateChild(offer))) => Some(&mut **offer),
        (Phase::AwaitAuthResponse(phase), _) => phase.child.as_mut(),
        _ => None,
    };
    if let Some(offer) = offer.filter(|offer| offer.spi_in == extras.spi_in) {
        (offer.resource, offer.multiple) = (extras.resource, extras.multiple);
    }
}

/// Reads one back.
pub(crate) fn read(record: &SecretBytes) -> Result<IkeSa, AdoptError> {
    let Some((&version, body)) = record.expose().split_first() else {
        return Err(AdoptError::Corrupt("empty".to_owned()));
    };
    let corrupt = |error: postcard::Error| AdoptError::Corrupt(error.to_string());
    match version {
        VERSION_WITHOUT_EXTRAS => postcard::from_bytes(body).map_err(corrupt),
        RECORD_VERSION => {
            let (mut sa, extras, children): (IkeSa, _, Vec<ChildExtras>) =
                postcard::from_bytes(body).map_err(corrupt)?;
            sa.extras = extras;
            for child in children {
                give(&mut sa, &child);
            }
            Ok(sa)
        }
        found => Err(AdoptError::Version { found }),
    }
}
