//! Security Parameter Indexes. ESP SPIs have 32 bits, IKE SPIs 64; the types never mix.

use serde::{Deserialize, Serialize};
use std::fmt;

/// ESP SPI (RFC 4303 2.1). One that this cluster allocated is generation 8 | member - 1 in 4 | slot 20.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EspSpi(pub u32);

impl EspSpi {
    /// Segment of an SPI that this cluster allocated: slot mod 256.
    pub const fn segment(self) -> super::SegmentId {
        super::SegmentId(self.0 as u8)
    }
}

/// IKE SPI (RFC 7296 3.1). One that this cluster allocated is segment 8 | member 8 | 48 random bits, never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IkeSpi(pub u64);

impl IkeSpi {
    /// Segment of an SPI that this cluster allocated.
    pub const fn segment(self) -> super::SegmentId {
        super::SegmentId((self.0 >> 56) as u8)
    }

    /// Member that allocated it.
    pub const fn member(self) -> u8 {
        (self.0 >> 48) as u8
    }
}

impl fmt::Display for EspSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}
impl fmt::Debug for EspSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EspSpi({self})")
    }
}
impl fmt::Display for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for IkeSpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IkeSpi({self})")
    }
}
