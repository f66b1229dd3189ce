//! The third part of an IKE SA's record: values by number, so that further ones need no further version of the record.
//!
//! A value that is not needed is not written, and a record without any is written without the third part.

use super::IkeSa;
use super::authentication::Authentication;
use super::record::{AdoptError, octets};
use crate::tasks::follow_up::Awaited;
use crate::tasks::intermediate::Intermediate;
use crate::tasks::ppk::PpkState;
use crate::tasks::redirect::Redirected;
use model::{EspSpi, SecretBytes};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::net::{IpAddr, SocketAddr};

/// Numbers of the values. From `MAY_BE_SKIPPED` on, a member that does not know one goes on without it.
mod tag {
    pub const FRAGMENT_SIZE: u16 = 1;
    pub const INTERMEDIATE: u16 = 2;
    pub const FOLLOW_UP: u16 = 3;
    pub const PPK: u16 = 4;
    pub const VIRTUAL_ADDRESSES: u16 = 16;
    pub const MOBIKE: u16 = 17;
    pub const TRANSPORT: u16 = 32;
    pub const FURTHER_REQUESTS: u16 = 34;
    pub const OTHER_RESPONSES: u16 = 35;
    pub const PEER_WINDOW: u16 = 36;
    pub const OUR_WINDOW: u16 = 37;
    pub const PEER_ADDRESSES: u16 = 40;
    pub const CONFIRMED_PATH: u16 = 41;
    pub const MAY_BE_SKIPPED: u16 = 0x8000;
    // Most peers can be redirected: during an upgrade the IKE SA has to be one that the other members can go on with.
    pub const REDIRECTABLE: u16 = MAY_BE_SKIPPED + 38;
    pub const REDIRECTED: u16 = MAY_BE_SKIPPED + 39;
    // A member that does not know it lets an authentication last for longer, which is no worse than what it did before.
    pub const AUTHENTICATION: u16 = MAY_BE_SKIPPED + 42;
}

/// A value with its number.
pub(crate) type Tagged = (u16, SecretBytes);

/// What an initiator with MOBIKE remembers.
#[derive(Clone, Default)]
pub(crate) struct Roaming {
    /// The peer's other addresses.
    pub peer_addresses: Vec<IpAddr>,
    /// Our address and the peer's that the peer knows of, while another path is in use already.
    pub confirmed: Option<(SocketAddr, SocketAddr)>,
}

/// No `Debug`: it holds secrets.
#[derive(Default)]
pub(crate) struct More {
    /// Both sides understand fragments (RFC 7383); ours are to fit in IP packets of this size.
    pub fragment_size: Option<u16>,
    /// IKE_INTERMEDIATE exchanges so far, while the IKE SA is set up.
    pub intermediate: Option<Box<Intermediate>>,
    /// Responder: an SA that waits for further key exchanges.
    pub follow_up: Option<Box<Awaited>>,
    /// A post-quantum pre-shared key, while the IKE SA is set up.
    pub ppk: Option<PpkState>,
    /// Addresses out of our pools that the peer uses.
    pub virtual_addresses: Box<[IpAddr]>,
    /// The peer may change its address (RFC 4555).
    pub mobike: bool,
    /// Initiator with MOBIKE, where there is something to remember.
    pub roaming: Option<Box<Roaming>>,
    /// The peer initiated and can be redirected (RFC 5685).
    pub redirectable: bool,
    /// How we came to this gateway.
    pub redirected: Option<Box<Redirected>>,
    /// Size of the window that the peer has announced: so many requests it takes at a time.
    pub peer_window: Option<u32>,
    /// And of the one that we have announced.
    pub our_window: Option<u32>,
    /// When the peers authenticated each other; already while an IKE SA is set up that is to take the place of another. Written
    /// where anybody will ask for it.
    pub authentication: Option<Box<Authentication>>,
    /// Inbound SPIs of Child SAs in transport mode, also of those that are being asked for. Only between the record and the Child
    /// SAs themselves, which know it.
    pub transport: Box<[EspSpi]>,
}

impl More {
    /// What an initiator with MOBIKE remembers.
    pub fn roaming_mut(&mut self) -> &mut Roaming {
        self.roaming.get_or_insert_default()
    }

    /// The path that the peer knows of, while another one is in use already.
    pub fn confirmed_path(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.roaming.as_ref()?.confirmed
    }

    /// The values that differ from the default. `transport`: inbound SPIs of the Child SAs in transport mode.
    pub fn write(&self, transport: &[EspSpi]) -> Vec<Tagged> {
        let mut values = Vec::new();
        put(&mut values, tag::REDIRECTED, self.redirected.as_ref());
        if self.redirectable {
            values.push((tag::REDIRECTABLE, SecretBytes::default()));
        }
        let authentication = self.authentication.as_ref().filter(|a| a.is_needed);
        put(&mut values, tag::AUTHENTICATION, authentication);
        put(&mut values, tag::PEER_WINDOW, self.peer_window.as_ref());
        put(&mut values, tag::OUR_WINDOW, self.our_window.as_ref());
        put(&mut values, tag::FRAGMENT_SIZE, self.fragment_size.as_ref());
        put(&mut values, tag::INTERMEDIATE, self.intermediate.as_ref());
        put(&mut values, tag::FOLLOW_UP, self.follow_up.as_ref());
        put(&mut values, tag::PPK, self.ppk.as_ref());
        let addresses = (!self.virtual_addresses.is_empty()).then_some(&self.virtual_addresses);
        put(&mut values, tag::VIRTUAL_ADDRESSES, addresses);
        if self.mobike {
            values.push((tag::MOBIKE, SecretBytes::default()));
        }
        if let Some(roaming) = &self.roaming {
            let addresses = (!roaming.peer_addresses.is_empty()).then_some(&roaming.peer_addresses);
            put(&mut values, tag::PEER_ADDRESSES, addresses);
            put(&mut values, tag::CONFIRMED_PATH, roaming.confirmed.as_ref());
        }
        let transport = (!transport.is_empty()).then_some(&transport);
        put(&mut values, tag::TRANSPORT, transport);
        values
    }

    pub fn read(values: &[Tagged]) -> Result<Self, AdoptError> {
        let mut more = Self::default();
        for (number, value) in values {
            match *number {
                tag::FRAGMENT_SIZE => more.fragment_size = Some(get(value)?),
                tag::INTERMEDIATE => more.intermediate = Some(get(value)?),
                tag::FOLLOW_UP => more.follow_up = Some(get(value)?),
                tag::PPK => more.ppk = Some(get(value)?),
                tag::VIRTUAL_ADDRESSES => more.virtual_addresses = get(value)?,
                tag::MOBIKE => more.mobike = true,
                tag::PEER_ADDRESSES => more.roaming_mut().peer_addresses = get(value)?,
                tag::CONFIRMED_PATH => more.roaming_mut().confirmed = Some(get(value)?),
                tag::REDIRECTABLE => more.redirectable = true,
                tag::AUTHENTICATION => more.authentication = Some(get(value)?),
                tag::REDIRECTED => more.redirected = Some(get(value)?),
                tag::PEER_WINDOW => more.peer_window = Some(get(value)?),
                tag::OUR_WINDOW => more.our_window = Some(get(value)?),
                // They belong to the windows.
                tag::FURTHER_REQUESTS | tag::OTHER_RESPONSES => {}
                tag::TRANSPORT => more.transport = get(value)?,
                tag::MAY_BE_SKIPPED.. => {}
                unknown => {
                    let why = format!("value {unknown} is of a newer version of this software");
                    return Err(AdoptError::Corrupt(why));
                }
            }
        }
        Ok(more)
    }
}

/// What of the windows is written by number: requests beside the oldest one, responses beside the last one.
pub(crate) fn write_windows(sa: &IkeSa, values: &mut Vec<Tagged>) {
    let further = sa.our.further();
    put(
        values,
        tag::FURTHER_REQUESTS,
        (!further.is_empty()).then_some(&further),
    );
    let others = sa.their.others();
    put(
        values,
        tag::OTHER_RESPONSES,
        (!others.is_empty()).then_some(others),
    );
}

/// Reads that back.
pub(crate) fn read_windows(sa: &mut IkeSa, values: &[Tagged]) -> Result<(), AdoptError> {
    for (number, value) in values {
        match *number {
            tag::FURTHER_REQUESTS => sa.our.join(get(value)?),
            tag::OTHER_RESPONSES => sa.their.join(get(value)?),
            _ => {}
        }
    }
    Ok(())
}

fn put<T: Serialize>(values: &mut Vec<Tagged>, number: u16, value: Option<&T>) {
    values.extend(value.map(|value| (number, octets(&[], value))));
}

fn get<T: DeserializeOwned>(value: &SecretBytes) -> Result<T, AdoptError> {
    postcard::from_bytes(value.expose()).map_err(|error| AdoptError::Corrupt(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_for_what_is_not_used() {
        assert!(More::default().write(&[]).is_empty());
    }

    #[test]
    fn unknown_values_are_skipped_only_where_that_is_allowed() {
        let value = |number| [(number, SecretBytes::new(vec![1, 2]))];
        assert!(More::read(&value(0x8001)).is_ok());
        assert!(matches!(More::read(&value(0x7fff)), Err(AdoptError::Corrupt(_))));
    }

    #[test]
    fn virtual_addresses_and_transport_mode_come_back() {
        let more = More {
            virtual_addresses: vec!["10.9.0.1".parse().unwrap(), "fd00::1".parse().unwrap()].into(),
            ..More::default()
        };
        let again = More::read(&more.write(&[EspSpi(7)])).ok().unwrap();
        assert_eq!(again.virtual_addresses, more.virtual_addresses);
        assert_eq!(again.transport, Box::from([EspSpi(7)]));
    }
}
