//! What is done about a peer whose sequence numbers are below what counts as seen after a takeover.

use ike::Command;
use model::EspSpi;

use super::Core;

impl Core {
    /// Asks the peer to raise its numbers where it can (RFC 6311), or rekeys; the engine decides. The numbers that a peer must
    /// jump over lie between the last edge that was reported and the ceiling that counts as seen.
    pub(super) fn repair(&self, slot: u32, spi_in: EspSpi) -> Command {
        let edge = self
            .counters
            .counters(slot)
            .filter(|counters| counters.inbound.spi == spi_in.0)
            .map_or(0, |counters| counters.inbound.edge);
        let delta = self.ceiling_of(slot).unwrap_or(0).saturating_sub(edge);
        Command::RepairInbound { spi_in, delta }
    }
}
