//! How much the paths to the peers carry: what the configuration and the interface say, less what routers said (RFC 4301 8.2).

use crate::port::{MapOp, MapPlan};
use crate::record::suite_number;
use crate::store::{SaEntry, Sad};
use datapath::esp::header::{inner_max, outer_len};
use model::{EspSpi, SaMode};

/// No path is believed to carry less over IPv4 (RFC 791: every host takes datagrams of this size; forged errors stop here).
pub const LEAST_V4: u16 = 576;
/// No path carries less over IPv6 (RFC 8200 5).
pub const LEAST_V6: u16 = 1280;

impl Sad {
    /// The route to an SA's peer carries only this much. Answers what it is now and the plan, or `None` where nothing changes.
    pub fn learn_path_mtu(&mut self, slot: u32, mtu: u16) -> Option<(EspSpi, u16, MapPlan)> {
        let outside = self.settings.outside_mtu;
        let entry = self.entries.get_mut(&slot)?;
        let least = if entry.record.remote.is_ipv4() {
            LEAST_V4
        } else {
            LEAST_V6
        };
        let mtu = mtu.max(least);
        if mtu >= entry.path_mtu(outside) {
            return None;
        }
        entry.learnt_mtu = Some(mtu);
        Some((entry.record.spi_in, mtu, entry.path_plan(outside)))
    }

    /// What was learnt is too old: the path may carry more by now, and if not, the next large packet tells.
    pub fn forget_path_mtu(&mut self, spi_in: EspSpi) -> MapPlan {
        let outside = self.settings.outside_mtu;
        let Ok(entry) = self.entry_mut_of(spi_in) else {
            return MapPlan::default();
        };
        match entry.learnt_mtu.take() {
            Some(_) => entry.path_plan(outside),
            None => MapPlan::default(),
        }
    }

    /// Largest outer packet of an SA.
    pub fn path_mtu(&self, slot: u32) -> Option<u16> {
        Some(self.by_slot(slot)?.path_mtu(self.settings.outside_mtu))
    }

    /// Largest inner packet of an SA.
    pub fn inner_mtu(&self, slot: u32) -> Option<usize> {
        let record = &self.by_slot(slot)?.record;
        let v6 = record.remote.is_ipv6();
        let outer = outer_len(record.udp_encap, v6);
        let suite = suite_number(record.suite);
        let sealed = inner_max(suite, usize::from(self.path_mtu(slot)?), outer);
        Some(match record.form.mode {
            SaMode::Tunnel => sealed,
            // The packet's own header stays outside.
            SaMode::Transport => sealed + outer_len(false, v6),
        })
    }
}

impl SaEntry {
    pub(crate) fn path_mtu(&self, outside: u16) -> u16 {
        self.handling.path_mtu(outside, self.learnt_mtu)
    }

    pub(crate) fn path_plan(&self, outside: u16) -> MapPlan {
        MapPlan {
            ops: vec![MapOp::PutPathMtu {
                slot: self.slot(),
                spi: self.record.spi_out.0,
                mtu: self.path_mtu(outside),
            }],
        }
    }
}
