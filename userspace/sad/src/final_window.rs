//! What an owner hands over of its inbound windows in a planned takeover.

use crate::store::SaEntry;
use datapath::limits::inbound_range;
use datapath::replay;
use maps_schema::sad::{FinalWindow, InboundSaRuntime, SA_LENIENT, SA_LOCAL_ONLY};
use model::Epoch;

impl SaEntry {
    /// The window as the owner in `epoch` hands it over, when no program runs any more. `window`: as it is in the maps. `None`: it is
    /// another SA's, or the limits are of a later epoch.
    ///
    /// The programs apply the floor of an epoch with its first packet. Where none has come the window says nothing yet of what the owners
    /// before may have accepted: the floor is applied here, or the taker would accept all of that once more.
    pub fn final_window(&self, window: &InboundSaRuntime, alone: bool, epoch: Epoch) -> Option<FinalWindow> {
        let spi = self.record.spi_in.0;
        let flags = if self.local_only { SA_LOCAL_ONLY } else { 0 };
        let range = inbound_range(&self.ceiling, flags, alone, epoch.low16()).ok()?;
        if window.spi != spi {
            return None;
        }
        let floor = if self.flags & SA_LENIENT != 0 {
            range.floor.min(self.reported_edge)
        } else {
            range.floor
        };
        let mut window = *window;
        replay::prepare(&mut window, spi, epoch.low16(), floor);
        Some(FinalWindow {
            slot: self.slot(),
            spi,
            edge: window.edge,
            floor: range.ceiling,
            blocks: window.blocks,
        })
    }
}
