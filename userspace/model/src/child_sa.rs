//! Child SAs and what happens to them.

use crate::{EspSpi, EspSuite, IkeSpi, SecretBytes, TrafficSelector};
use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
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
    /// Keying material ([`EspSuite::material_len`]), inbound.
    pub key_in: SecretBytes,
    /// Keying material, outbound.
    pub key_out: SecretBytes,
    /// Extended sequence numbers, tunnel or transport mode.
    pub form: SaForm,
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

/// What is between the outer IP header and the payload of the packets of an SA (RFC 4301 4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaMode {
    /// A whole IP packet.
    #[default]
    Tunnel,
    /// What follows the IP header, between the two addresses of the SA.
    Transport,
}

/// What ESP packets of an SA look like. In a record it is an octet whose lowest bit was once all there was: so members of earlier
/// releases read the records of SAs in tunnel mode, and refuse the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaForm {
    /// Extended sequence numbers.
    pub esn: bool,
    /// Tunnel or transport mode.
    pub mode: SaMode,
}

const FORM_ESN: u8 = 1 << 0;
const FORM_TRANSPORT: u8 = 1 << 1;

impl Serialize for SaForm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bits = 0;
        if self.esn {
            bits |= FORM_ESN;
        }
        if self.mode == SaMode::Transport {
            bits |= FORM_TRANSPORT;
        }
        serializer.serialize_u8(bits)
    }
}

impl<'de> Deserialize<'de> for SaForm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bits = u8::deserialize(deserializer)?;
        if bits & !(FORM_ESN | FORM_TRANSPORT) != 0 {
            let found = Unexpected::Unsigned(bits.into());
            return Err(D::Error::invalid_value(
                found,
                &"the form of an SA that this release knows",
            ));
        }
        let mode = if bits & FORM_TRANSPORT == 0 {
            SaMode::Tunnel
        } else {
            SaMode::Transport
        };
        Ok(Self {
            esn: bits & FORM_ESN != 0,
            mode,
        })
    }
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
