//! Runs of equal writes of a plan in one system call each: keys, whose maps are not in memory.

use crate::execute::{beyond, text};
use crate::load::Plane;
use crate::maps::SaMaps;
use crate::sys;
use maps_schema::sad::slot_place;
use sad::port::MapOp;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
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

    fn write(&self, map: BorrowedFd<'_>) -> Result<(), String> {
        if self.count == 0 {
            return Ok(());
        }
        sys::map_update_batch(map, &self.keys, &self.values, self.count).map_err(text)
    }
}

fn kind(op: &MapOp) -> Option<u8> {
    match op {
        MapOp::PutKeyIn { .. } => Some(0),
        MapOp::PutKeyOut { .. } => Some(1),
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

/// Writes keys, usable from any thread.
#[derive(Clone)]
pub struct KeyWriter {
    sa: Arc<SaMaps>,
    cpus: u32,
    slots: u32,
}

impl KeyWriter {
    /// Writes the keys of a plan's operations; others are left out.
    ///
    /// # Errors
    /// The kernel's answer, or a slot that is beyond this member's maps.
    pub fn write(&self, ops: &[MapOp]) -> Result<(), String> {
        let columns = || -> Vec<Columns> { (0..self.cpus).map(|_| Columns::default()).collect() };
        let (mut inbound, mut outbound) = (columns(), columns());
        for op in ops {
            let (columns, slot, key) = match op {
                MapOp::PutKeyIn { slot, key } => (&mut inbound, *slot, key),
                MapOp::PutKeyOut { slot, key } => (&mut outbound, *slot, key),
                _ => continue,
            };
            let (cpu, index) = slot_place(slot, self.cpus);
            let column = columns.get_mut(cpu as usize).filter(|_| slot < self.slots);
            column
                .ok_or_else(|| beyond(slot, self.slots))?
                .push(&index.to_ne_bytes(), key.as_bytes());
        }
        let maps = self.sa.key_in.inner.iter().zip(&inbound);
        let both = maps.chain(self.sa.key_out.inner.iter().zip(&outbound));
        for (map, columns) in both {
            columns.write(map.as_fd())?;
        }
        Ok(())
    }
}

impl Plane {
    /// A writer of keys that does not borrow the plane.
    pub fn key_writer(&self) -> KeyWriter {
        KeyWriter {
            sa: self.sa.clone(),
            cpus: self.options.cpus,
            slots: self.options.slots,
        }
    }

    /// Writes a run of keys of one kind, in their order.
    pub(crate) fn run(&self, ops: &[MapOp]) -> Result<(), String> {
        self.key_writer().write(ops)
    }
}
