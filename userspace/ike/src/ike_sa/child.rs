//! Child SAs as their IKE SA knows them: no keys, those are with the SA database.

use crate::config::Resource;
use crate::proposal::Proposal;
use model::{EspSpi, Instant, SaMode, TrafficSelector};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ChildPhase {
    /// In use.
    Installed,
    /// Responder of a rekey: this one replaces `replaces` for outbound as soon as that is deleted.
    AwaitsSwitch { replaces: EspSpi },
    /// The peer's rekey replaced it; the peer will delete it.
    Rekeyed { by: EspSpi },
    /// Our Delete is queued or sent.
    Deleting,
}

impl ChildPhase {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::AwaitsSwitch { .. } => "installing",
            Self::Rekeyed { .. } => "rekeyed",
            Self::Deleting => "deleting",
        }
    }
}

/// A Child SA pair.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ChildSa {
    /// Name in the configuration.
    pub name: String,
    pub spi_in: EspSpi,
    pub spi_out: EspSpi,
    pub suite: Proposal,
    pub ts_local: Vec<TrafficSelector>,
    pub ts_remote: Vec<TrafficSelector>,
    pub phase: ChildPhase,
    /// What it is bound to; any CPU may use one that is not. In the record's second part, as is the next.
    #[serde(skip)]
    pub resource: Option<Resource>,
    /// Both sides want Child SAs per resource beside this one.
    #[serde(skip)]
    pub multiple: bool,
    /// Tunnel or transport mode; in the record's third part.
    #[serde(skip)]
    pub mode: SaMode,
    #[serde(skip)]
    pub rekey_at: Option<Instant>,
    #[serde(skip)]
    pub since: Instant,
}
