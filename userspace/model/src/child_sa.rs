//! Child SAs and what happens to them.

use crate::{EspSpi, EspSuite, IkeSpi, SecretBytes, TrafficSelector};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Everything another member needs to serve a Child SA. No `Debug`: it holds keys.
#[derive(Clone, Serialize, Deserialize)]
pub struct ChildSaRecord {
    /// Connection's name in the configuration.
    pub connection: String,
    /// Child's name in the configuration.
    pub child: String,
    /// Our SPI of the IKE SA that it belongs to.
    pub ike_spi: IkeSpi,
    /// Our inbound SPI; its slot is the slot of both directions.
    pub spi_in: EspSpi,
    /// The peer's SPI.
    pub spi_out: EspSpi,
    /// Suite of both directions.
    pub suite: EspSuite,
    /// Cipher key and 4-octet salt, inbound.
    pub key_in: SecretBytes,
    /// Cipher key and 4-octet salt, outbound.
    pub key_out: SecretBytes,
    /// Extended sequence numbers.
    pub esn: bool,
    /// UDP encapsulation (RFC 3948).
    pub udp_encap: bool,
    /// Our outer address and port (port 4500 matters with encapsulation only).
    pub local: SocketAddr,
    /// The peer's outer address and port.
    pub remote: SocketAddr,
    /// Narrowed selectors, our side.
    pub ts_local: Vec<TrafficSelector>,
    /// Narrowed selectors, the peer's side.
    pub ts_remote: Vec<TrafficSelector>,
    /// Limits that become valid with the journal entry's acknowledgement.
    pub limits: InitialLimits,
}

/// Lease and ceiling that the journal entry of a new SA carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitialLimits {
    /// Outbound lease L.
    pub lease: u64,
    /// Its size S.
    pub lease_step: u64,
    /// Inbound ceiling C.
    pub ceiling: u64,
    /// Its headroom H.
    pub headroom: u64,
}

/// Whether a new SA carries outbound traffic at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutboundUse {
    /// Policies point at it as soon as it is installed.
    Now,
    /// Only after [`ChildSaChange::UseOutbound`] (responder of a rekey).
    Later,
}

/// A change of the SA database. The order within a batch matters.
#[derive(Clone, Serialize, Deserialize)]
pub enum ChildSaChange {
    /// Install both directions.
    Install {
        /// The SA pair.
        record: Box<ChildSaRecord>,
        /// Whether outbound policies switch to it now.
        outbound: OutboundUse,
        /// The SA that it replaces, in a rekey.
        replaces: Option<EspSpi>,
    },
    /// Outbound policies switch to this SA (named by our inbound SPI).
    UseOutbound {
        /// Our inbound SPI.
        spi_in: EspSpi,
    },
    /// The peer's outer address or port changed (NAT rebinding).
    MovePeer {
        /// Our inbound SPI.
        spi_in: EspSpi,
        /// New address and port.
        remote: SocketAddr,
    },
    /// The IKE SA was rekeyed: the Child SA belongs to the new one.
    MoveIkeSa {
        /// Our inbound SPI.
        spi_in: EspSpi,
        /// Our SPI of the new IKE SA.
        ike_spi: IkeSpi,
    },
    /// Remove both directions.
    Remove {
        /// Our inbound SPI.
        spi_in: EspSpi,
    },
    /// Both sides want further Child SAs with the selectors of this one, which all CPUs may use (RFC 9611).
    Share {
        /// Our inbound SPI.
        spi_in: EspSpi,
    },
    /// This SA is one of those: outbound it is used by its own CPU only, in place of the shared one.
    Bind {
        /// Our inbound SPI.
        spi_in: EspSpi,
        /// Whether it is used at once, or only after [`ChildSaChange::UseOutbound`] (responder of a rekey).
        now: bool,
    },
}

impl ChildSaChange {
    /// Our inbound SPI of the SA that it is about.
    pub fn spi_in(&self) -> EspSpi {
        match self {
            Self::Install { record, .. } => record.spi_in,
            Self::UseOutbound { spi_in }
            | Self::MovePeer { spi_in, .. }
            | Self::MoveIkeSa { spi_in, .. }
            | Self::Remove { spi_in }
            | Self::Share { spi_in }
            | Self::Bind { spi_in, .. } => *spi_in,
        }
    }
}
