//! Maps that a planned restart leaves in service: a token beside their pins says which state belongs to them, once.

use crate::error::PlaneError;
use crate::load::Plane;
use crate::sys;
use maps_schema::sad::spi_slot;
use maps_schema::spd::SpdKey;
use sad::port::{DataPlane, MapOp, MapPlan, PlanError};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// Name of the pinned map that holds the token.
pub(crate) const KEPT: &str = "KEPT";
/// Octets of a token.
pub const TOKEN: usize = 16;

impl Plane {
    /// Leaves the token for the next life, which takes over these very maps.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn keep(&self, token: [u8; TOKEN]) -> Result<(), PlaneError> {
        let error = |cause| PlaneError::new("pin the token of a planned restart", cause);
        take_kept(&self.options.pin_dir).map_err(error)?;
        let spec = sys::MapSpec {
            kind: sys::TYPE_ARRAY,
            key_size: 4,
            value_size: TOKEN as u32,
            max_entries: 1,
            flags: 0,
            name: KEPT,
            inner: None,
            btf: None,
        };
        let map = sys::map_create(&spec).map_err(error)?;
        sys::map_update(map.as_fd(), &0u32.to_ne_bytes(), &token).map_err(error)?;
        sys::pin(map.as_fd(), &self.options.pin_dir.join(KEPT)).map_err(error)
    }

    /// Brings adopted maps to what a whole plan says ([`sad::Sad::full_plan`]) while packets go through them: what the plan does
    /// not name is removed, live counters stay, and keys of SAs that are there are not touched.
    ///
    /// # Errors
    /// As [`DataPlane::execute`].
    pub fn reconcile(&mut self, plan: &MapPlan) -> Result<(), PlanError> {
        let live = |slot: u32| {
            self.records(slot)
                .map(|(i, o)| (i.spi, o.spi))
                .unwrap_or_default()
        };
        let mut wanted: HashMap<u32, (u32, u32)> = HashMap::new();
        let mut rules: HashSet<(u32, [u8; 16])> = HashSet::new();
        for op in &plan.ops {
            match op {
                MapOp::PutInbound { slot, record } => wanted.entry(*slot).or_default().0 = record.spi,
                MapOp::PutOutbound { slot, record } => wanted.entry(*slot).or_default().1 = record.spi,
                MapOp::PutSpd { prefix_len, key, .. } => {
                    rules.insert((*prefix_len, key.destination));
                }
                _ => {}
            }
        }
        let same: HashSet<u32> = wanted
            .iter()
            .filter(|(slot, spis)| live(**slot) == **spis)
            .map(|(slot, _)| *slot)
            .collect();
        let mut ops: Vec<MapOp> = (0..self.options.slots)
            .filter(|slot| !same.contains(slot) && live(*slot) != (0, 0))
            .map(|slot| MapOp::ClearSlot { slot })
            .collect();
        let there = |op: &&MapOp| match op {
            MapOp::PutKeyIn { slot, .. } | MapOp::PutKeyOut { slot, .. } => !same.contains(slot),
            MapOp::ResetRuntime { slot, spi } => !same.contains(slot) || spi_slot(*spi) != *slot,
            _ => true,
        };
        ops.extend(plan.ops.iter().filter(there).cloned());
        let stale = self.policies.prefixes().filter(|rule| !rules.contains(rule));
        ops.extend(stale.map(|(prefix_len, destination)| MapOp::DeleteSpd {
            prefix_len,
            key: SpdKey { destination },
        }));
        self.execute(&MapPlan { ops })
    }
}

/// The token that the life before left in a folder of pins. It is gone after this: whatever belongs to it counts once.
///
/// # Errors
/// The kernel's; a token that is not there is none.
pub fn take_kept(pin_dir: &Path) -> io::Result<Option<[u8; TOKEN]>> {
    let path = pin_dir.join(KEPT);
    let map = match sys::get_pinned(&path) {
        Ok(map) => map,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    std::fs::remove_file(&path)?;
    let mut token = [0; TOKEN];
    sys::map_lookup(map.as_fd(), &0u32.to_ne_bytes(), &mut token)?;
    Ok(Some(token))
}
