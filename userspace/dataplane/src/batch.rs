//! Runs of equal writes of a plan in one system call each: keys and policy entries, whose maps are not in memory.

use crate::execute::{lpm_key, text};
use crate::load::Plane;
use crate::sys;
use maps_schema::names::MAP_SPD;
use maps_schema::sad::{SaKey, slot_place};
use sad::port::MapOp;
use std::os::fd::{AsFd, OwnedFd};
use zerocopy::IntoBytes;
use zeroize::Zeroizing;

/// Writes in one call: what is copied for them stays small.
const MOST: usize = 64;

/// Keys and values of one map, side by side as the kernel wants them. Values may be keys of SAs.
#[derive(Default)]
struct Columns {
    keys: Vec<u8>,
    values: Zeroizing<Vec<u8>>,
    count: u32,
}

impl Columns {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        if self.count == 0 {
            // Never grows, so that no copy stays behind.
            self.values.reserve_exact(value.len() * MOST);
        }
        self.keys.extend_from_slice(key);
        self.values.extend_from_slice(value);
        self.count += 1;
    }

    fn write(&self, map: &OwnedFd) -> Result<(), String> {
        if self.count == 0 {
            return Ok(());
        }
        sys::map_update_batch(map.as_fd(), &self.keys, &self.values, self.count).map_err(text)
    }
}

fn kind(op: &MapOp) -> Option<u8> {
    match op {
        MapOp::PutKeyIn { .. } => Some(0),
        MapOp::PutKeyOut { .. } => Some(1),
        MapOp::PutSpd { .. } => Some(2),
        _ => None,
    }
}

/// How many operations at the head of `ops` can be written together: 1 where there is nothing to gain.
pub(crate) fn run_length(ops: &[MapOp]) -> usize {
    let Some(first) = ops.first().and_then(kind) else {
        return 1;
    };
    let same = ops.iter().take(MOST).take_while(|op| kind(op) == Some(first));
    same.count()
}

impl Plane {
    /// Writes a run of operations of one kind, in their order.
    pub(crate) fn run(&self, ops: &[MapOp]) -> Result<(), String> {
        let mut arrays: Vec<Columns> = (0..self.options.cpus).map(|_| Columns::default()).collect();
        let mut rules = Columns::default();
        for op in ops {
            match op {
                MapOp::PutKeyIn { slot, key } | MapOp::PutKeyOut { slot, key } => {
                    self.column(&mut arrays, *slot, key)?;
                }
                MapOp::PutSpd {
                    prefix_len,
                    key,
                    entry,
                } => rules.push(&lpm_key(*prefix_len, key), entry.as_bytes()),
                _ => {}
            }
        }
        let maps = match ops.first() {
            Some(MapOp::PutKeyIn { .. }) => &self.sa.key_in.inner,
            _ => &self.sa.key_out.inner,
        };
        for (map, columns) in maps.iter().zip(&arrays) {
            columns.write(map)?;
        }
        if rules.count > 0 {
            let map = self.map(MAP_SPD).map_err(text)?;
            sys::map_update_batch(map, &rules.keys, &rules.values, rules.count).map_err(text)?;
        }
        Ok(())
    }

    fn column(&self, arrays: &mut [Columns], slot: u32, key: &SaKey) -> Result<(), String> {
        let (cpu, index) = slot_place(slot, self.options.cpus);
        let column = arrays.get_mut(cpu as usize).ok_or_else(|| self.beyond(slot))?;
        column.push(&index.to_ne_bytes(), key.as_bytes());
        Ok(())
    }
}
