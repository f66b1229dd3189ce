//! How a policy's packets are carried: outer headers, sizes, and what happens while there is no SA.

use maps_schema::sad::{DF_CLEAR, DF_COPY, DF_SET, MSS_OFF};

/// The "don't fragment" bit of outer IPv4 headers (RFC 4301 8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DontFragment {
    /// That of the inner packet; set around IPv6.
    #[default]
    Copy,
    /// Set.
    Set,
    /// Clear: what does not fit is cut after sealing.
    Clear,
}

impl DontFragment {
    /// As the maps have it.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Copy => DF_COPY,
            Self::Set => DF_SET,
            Self::Clear => DF_CLEAR,
        }
    }
}

/// What the configuration says of one policy's packets. Every member has its own copy of the same configuration: none of this is
/// in the records that they replicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handling {
    /// Largest outer packet where the interface would carry more, octets.
    pub mtu: Option<u16>,
    /// "Don't fragment" of outer headers.
    pub df: DontFragment,
    /// DSCP of outer headers; `None`: that of the inner packet.
    pub dscp: Option<u8>,
    /// Largest segment that TCP may announce: octets, `MSS_OFF` or `MSS_AUTO`.
    pub mss_clamp: u16,
    /// Packets that meet the policy while it has no SA wait for one; otherwise they are dropped.
    pub hold: bool,
}

impl Default for Handling {
    fn default() -> Self {
        Self {
            mtu: None,
            df: DontFragment::Copy,
            dscp: None,
            mss_clamp: MSS_OFF,
            hold: false,
        }
    }
}

impl Handling {
    /// Largest outer packet on a path whose interface carries `outside` octets, and whose routers were heard to carry `learnt`.
    pub(crate) fn path_mtu(&self, outside: u16, learnt: Option<u16>) -> u16 {
        let own = self.mtu.unwrap_or(outside).min(outside);
        learnt.map_or(own, |learnt| learnt.min(own))
    }
}
