//! What `sad` asks of a data plane: plans of plain data in, counters out.

use maps_schema::sad::{InboundSa, InboundSaRuntime, Limits, OutboundSa, OutboundSaRuntime, SaKey};
use maps_schema::spd::{SpdEntry, SpdKey};
use thiserror::Error;

/// Direction of an SA, seen from this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From the peer: ceiling C, headroom H.
    Inbound,
    /// To the peer: lease L, its size S.
    Outbound,
}

/// One write to the maps. Executing the same operation twice has the effect of executing it once.
#[derive(Clone)]
pub enum MapOp {
    /// Expanded key of an inbound SA.
    PutKeyIn {
        /// Slot of the SA.
        slot: u32,
        /// The key.
        key: Box<SaKey>,
    },
    /// Expanded key of an outbound SA.
    PutKeyOut {
        /// Slot of the SA.
        slot: u32,
        /// The key.
        key: Box<SaKey>,
    },
    /// Fresh counters and a fresh window. Does nothing where `SA_IN` already holds `spi` in this slot: live counters
    /// are never written again.
    ResetRuntime {
        /// Slot of the SA pair.
        slot: u32,
        /// Our inbound SPI.
        spi: u32,
    },
    /// Inbound record; its `spi` is stored last.
    PutInbound {
        /// Slot of the SA.
        slot: u32,
        /// The record.
        record: Box<InboundSa>,
    },
    /// Outbound record; its `spi` is stored last.
    PutOutbound {
        /// Slot of the SA.
        slot: u32,
        /// The record.
        record: Box<OutboundSa>,
    },
    /// New limits by the two-slot version of `LimitsCell`; skipped where the slot holds another SPI.
    PublishLimits {
        /// Which record.
        direction: Direction,
        /// Slot of the SA.
        slot: u32,
        /// SPI in the record of that direction (ours inbound, the peer's outbound).
        spi: u32,
        /// The limits.
        limits: Limits,
    },
    /// Base of the evidence rule of an inbound SA.
    PutReportedEdge {
        /// Slot of the SA.
        slot: u32,
        /// Our inbound SPI.
        spi: u32,
        /// Right edge that the owner reported.
        edge: u64,
    },
    /// Which SPI is awaited in a slot, installed or not.
    PutAwaited {
        /// The slot.
        slot: u32,
        /// The SPI.
        spi: u32,
    },
    /// The SPI is awaited no more, unless another one is by now.
    ClearAwaited {
        /// The slot.
        slot: u32,
        /// The SPI.
        spi: u32,
    },
    /// `SA_*` flags of one direction.
    PutFlags {
        /// Which record.
        direction: Direction,
        /// Slot of the SA.
        slot: u32,
        /// SPI in the record of that direction.
        spi: u32,
        /// The flags.
        flags: u8,
    },
    /// The peer's outer address and ports.
    PutPath {
        /// Slot of the SA.
        slot: u32,
        /// The peer's SPI.
        spi: u32,
        /// Outer destination address.
        outer_dst: [u8; 16],
        /// UDP source and destination port, host order.
        encap_ports: [u16; 2],
    },
    /// Largest outer packet of an outbound SA.
    PutPathMtu {
        /// Slot of the SA.
        slot: u32,
        /// The peer's SPI.
        spi: u32,
        /// Octets.
        mtu: u16,
    },
    /// What one direction may carry, counted on this member.
    PutLife {
        /// Which record.
        direction: Direction,
        /// Slot of the SA.
        slot: u32,
        /// SPI in the record of that direction.
        spi: u32,
        /// Inner octets, 0 for no limit.
        bytes: u64,
        /// Packets, 0 for no limit.
        packets: u64,
    },
    /// The outbound SA of a slot ends: its SPI, then its key. What the way in asks of the rest (the size that a TCP SYN may announce) stays.
    ClearOutbound {
        /// The slot.
        slot: u32,
    },
    /// Empties both records of a slot, then both keys. Counters stay for a last look.
    ClearSlot {
        /// The slot.
        slot: u32,
    },
    /// The SA that a CPU uses in place of a shared outbound one.
    PutCpuSlot {
        /// The CPU.
        cpu: u32,
        /// Slot of the shared SA.
        slot: u32,
        /// Slot of the CPU's own; `None`: it uses the shared one.
        own: Option<u32>,
    },
    /// All rules of one destination prefix.
    PutSpd {
        /// Prefix length in bits of the mapped address (96 + n for an IPv4 /n).
        prefix_len: u32,
        /// The prefix.
        key: SpdKey,
        /// The rules.
        entry: Box<SpdEntry>,
    },
    /// Removes a destination prefix; its absence is no error.
    DeleteSpd {
        /// Prefix length in bits.
        prefix_len: u32,
        /// The prefix.
        key: SpdKey,
    },
}

impl MapOp {
    /// Name for errors and logs; never the content, which may be a key.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PutKeyIn { .. } => "put inbound key",
            Self::PutKeyOut { .. } => "put outbound key",
            Self::ResetRuntime { .. } => "reset runtime",
            Self::PutInbound { .. } => "put inbound SA",
            Self::PutOutbound { .. } => "put outbound SA",
            Self::PublishLimits { .. } => "publish limits",
            Self::PutReportedEdge { .. } => "put reported edge",
            Self::PutAwaited { .. } => "put awaited SPI",
            Self::ClearAwaited { .. } => "clear awaited SPI",
            Self::PutFlags { .. } => "put flags",
            Self::PutPath { .. } => "put outer path",
            Self::PutPathMtu { .. } => "put path MTU",
            Self::PutLife { .. } => "put lifetime",
            Self::ClearOutbound { .. } => "clear outbound SA",
            Self::ClearSlot { .. } => "clear slot",
            Self::PutCpuSlot { .. } => "put a CPU's own SA",
            Self::PutSpd { .. } => "put policy",
            Self::DeleteSpd { .. } => "delete policy",
        }
    }
}

/// Writes in the order in which they must happen.
#[derive(Clone, Default)]
pub struct MapPlan {
    /// The writes.
    pub ops: Vec<MapOp>,
}

impl MapPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Appends another plan.
    pub fn extend(&mut self, other: MapPlan) {
        self.ops.extend(other.ops);
    }
}

/// A plan that stopped half-way. Operations are idempotent: repeat the plan once the cause is gone.
#[derive(Debug, Error)]
#[error("{operation} (operation {done} of the plan) failed: {cause}")]
pub struct PlanError {
    /// Operations carried out before.
    pub done: usize,
    /// The one that failed.
    pub operation: &'static str,
    /// Why, with what to do about it.
    pub cause: String,
}

/// Both directions' counters of one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SaCounters {
    /// Window, evidence and counters.
    pub inbound: InboundSaRuntime,
    /// Sequence number and counters.
    pub outbound: OutboundSaRuntime,
}

/// A data plane: obeys plans, decides nothing.
pub trait DataPlane {
    /// Carries the operations out in their order.
    fn execute(&mut self, plan: &MapPlan) -> Result<(), PlanError>;

    /// Counters of a slot; `None` where the slot does not exist.
    fn counters(&self, slot: u32) -> Option<SaCounters>;

    /// The records of a slot as the programs see them, for reconciliation after a restart; `None` where the slot does not exist.
    fn records(&self, slot: u32) -> Option<(InboundSa, OutboundSa)>;
}
