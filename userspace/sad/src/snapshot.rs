//! What a joining member gets: every SA with its current limits.

use maps_schema::sad::Limits;
use model::ChildSaRecord;
use serde::{Deserialize, Serialize};

/// One SA of a snapshot. No `Debug`: it holds keys.
#[derive(Clone, Serialize, Deserialize)]
pub struct SnapshotSa {
    /// The SA pair; its `limits` are the current ones.
    pub record: ChildSaRecord,
    /// Lease's floor and epoch (low 16 bits).
    pub lease: LimitBase,
    /// Ceiling's floor and epoch (low 16 bits).
    pub ceiling: LimitBase,
    /// Right edge last reported.
    pub reported_edge: u64,
    /// Outbound policies point at it; SAs of a snapshot are in the order in which that happened.
    pub outbound_in_use: bool,
    /// No standby has acknowledged it so far.
    pub local_only: bool,
    /// Age, milliseconds.
    pub age_ms: u64,
}

/// The part of limits that `InitialLimits` does not carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitBase {
    /// Lower bound that takeovers gave so far.
    pub floor: u64,
    /// Low 16 bits of the epoch.
    pub epoch: u16,
}

impl LimitBase {
    pub(crate) fn of(limits: &Limits) -> Self {
        Self {
            floor: limits.floor,
            epoch: limits.epoch as u16,
        }
    }

    pub(crate) fn with(self, limit: u64, step: u64) -> Limits {
        Limits {
            limit,
            step,
            floor: self.floor,
            epoch: u32::from(self.epoch),
            reserved: 0,
        }
    }
}
