//! A data plane in memory, for tests and simulations: the rules of `port::MapOp`, without a kernel.

use crate::port::{DataPlane, Direction, MapOp, MapPlan, PlanError, SaCounters};
use datapath::limits::publish;
use maps_schema::sad::{InboundSa, InboundSaRuntime, OutboundSa, OutboundSaRuntime, SaKey};
use maps_schema::spd::SpdEntry;
use std::collections::BTreeMap;

/// Maps in memory.
pub struct MemoryPlane {
    /// Inbound records by slot.
    pub inbound: Vec<InboundSa>,
    /// Outbound records by slot.
    pub outbound: Vec<OutboundSa>,
    /// Counters by slot; a test writes them as the programs would.
    pub runtime: Vec<SaCounters>,
    /// Keys by slot, inbound.
    pub keys_in: Vec<SaKey>,
    /// Keys by slot, outbound.
    pub keys_out: Vec<SaKey>,
    /// Own SAs of CPUs, by CPU and slot of the shared SA.
    pub cpu_slots: BTreeMap<(u32, u32), u32>,
    /// Policy entries.
    pub spd: BTreeMap<(u32, [u8; 16]), SpdEntry>,
}

impl MemoryPlane {
    /// Empty maps of `slots` slots.
    pub fn new(slots: u32) -> Self {
        let slots = slots as usize;
        Self {
            inbound: vec![InboundSa::default(); slots],
            outbound: vec![OutboundSa::default(); slots],
            runtime: vec![SaCounters::default(); slots],
            keys_in: vec![SaKey::EMPTY; slots],
            keys_out: vec![SaKey::EMPTY; slots],
            cpu_slots: BTreeMap::new(),
            spd: BTreeMap::new(),
        }
    }

    fn one(&mut self, op: &MapOp) -> Result<(), String> {
        let missing = |slot: u32| format!("slot {slot} does not exist");
        match op {
            MapOp::PutKeyIn { slot, key } => {
                *self
                    .keys_in
                    .get_mut(*slot as usize)
                    .ok_or_else(|| missing(*slot))? = **key
            }
            MapOp::PutKeyOut { slot, key } => {
                *self
                    .keys_out
                    .get_mut(*slot as usize)
                    .ok_or_else(|| missing(*slot))? = **key;
            }
            MapOp::ResetRuntime { slot, spi } => {
                let runtime = self
                    .runtime
                    .get_mut(*slot as usize)
                    .ok_or_else(|| missing(*slot))?;
                if self.inbound[*slot as usize].spi != *spi {
                    *runtime = SaCounters {
                        inbound: InboundSaRuntime {
                            spi: *spi,
                            ..InboundSaRuntime::default()
                        },
                        outbound: OutboundSaRuntime::default(),
                    };
                }
            }
            MapOp::PutInbound { slot, record } => {
                *self
                    .inbound
                    .get_mut(*slot as usize)
                    .ok_or_else(|| missing(*slot))? = **record;
            }
            MapOp::PutOutbound { slot, record } => {
                *self
                    .outbound
                    .get_mut(*slot as usize)
                    .ok_or_else(|| missing(*slot))? = **record;
            }
            MapOp::PublishLimits {
                direction,
                slot,
                spi,
                limits,
            } => match direction {
                Direction::Inbound => {
                    let sa = self
                        .inbound
                        .get_mut(*slot as usize)
                        .ok_or_else(|| missing(*slot))?;
                    if sa.spi == *spi {
                        publish(&mut sa.limits, *limits);
                    }
                }
                Direction::Outbound => {
                    let sa = self
                        .outbound
                        .get_mut(*slot as usize)
                        .ok_or_else(|| missing(*slot))?;
                    if sa.spi == *spi {
                        publish(&mut sa.limits, *limits);
                    }
                }
            },
            MapOp::PutReportedEdge { slot, spi, edge } => {
                let sa = self
                    .inbound
                    .get_mut(*slot as usize)
                    .ok_or_else(|| missing(*slot))?;
                if sa.spi == *spi {
                    sa.reported_edge = *edge;
                }
            }
            MapOp::PutAwaited { slot, spi } => {
                let at = *slot as usize;
                self.inbound.get_mut(at).ok_or_else(|| missing(*slot))?.awaited = *spi;
            }
            MapOp::ClearAwaited { slot, spi } => {
                let at = *slot as usize;
                let sa = self.inbound.get_mut(at).ok_or_else(|| missing(*slot))?;
                if sa.awaited == *spi {
                    sa.awaited = 0;
                }
            }
            MapOp::PutFlags {
                direction,
                slot,
                spi,
                flags,
            } => match direction {
                Direction::Inbound => {
                    let sa = self
                        .inbound
                        .get_mut(*slot as usize)
                        .ok_or_else(|| missing(*slot))?;
                    if sa.spi == *spi {
                        sa.flags = *flags;
                    }
                }
                Direction::Outbound => {
                    let sa = self
                        .outbound
                        .get_mut(*slot as usize)
                        .ok_or_else(|| missing(*slot))?;
                    if sa.spi == *spi {
                        sa.flags = *flags;
                    }
                }
            },
            MapOp::PutPath {
                slot,
                spi,
                outer_dst,
                encap_ports,
            } => {
                let sa = self
                    .outbound
                    .get_mut(*slot as usize)
                    .ok_or_else(|| missing(*slot))?;
                if sa.spi == *spi {
                    (sa.outer_dst, sa.encap_ports) = (*outer_dst, *encap_ports);
                }
            }
            MapOp::PutPathMtu { slot, spi, mtu } => {
                let sa = self
                    .outbound
                    .get_mut(*slot as usize)
                    .ok_or_else(|| missing(*slot))?;
                if sa.spi == *spi {
                    sa.path_mtu = *mtu;
                }
            }
            MapOp::PutLife {
                direction,
                slot,
                spi,
                bytes,
                packets,
            } => {
                let at = *slot as usize;
                let inbound = self.inbound.get_mut(at).ok_or_else(|| missing(*slot))?;
                match direction {
                    Direction::Inbound if inbound.spi == *spi => {
                        (inbound.life_bytes, inbound.life_packets) = (*bytes, *packets);
                    }
                    Direction::Outbound if self.outbound[at].spi == *spi => {
                        let sa = &mut self.outbound[at];
                        (sa.life_bytes, sa.life_packets) = (*bytes, *packets);
                    }
                    _ => {}
                }
            }
            MapOp::ClearOutbound { slot } => {
                let at = *slot as usize;
                self.outbound.get_mut(at).ok_or_else(|| missing(*slot))?.spi = 0;
                self.keys_out[at] = SaKey::EMPTY;
            }
            MapOp::ClearSlot { slot } => {
                let at = *slot as usize;
                *self.inbound.get_mut(at).ok_or_else(|| missing(*slot))? = InboundSa::default();
                self.outbound[at] = OutboundSa::default();
                self.keys_in[at] = SaKey::EMPTY;
                self.keys_out[at] = SaKey::EMPTY;
            }
            MapOp::PutCpuSlot { cpu, slot, own } => {
                match own {
                    Some(own) => self.cpu_slots.insert((*cpu, *slot), *own),
                    None => self.cpu_slots.remove(&(*cpu, *slot)),
                };
            }
            MapOp::PutSpd {
                prefix_len,
                key,
                entry,
            } => {
                self.spd.insert((*prefix_len, key.destination), **entry);
            }
            MapOp::DeleteSpd { prefix_len, key } => {
                self.spd.remove(&(*prefix_len, key.destination));
            }
        }
        Ok(())
    }
}

impl DataPlane for MemoryPlane {
    fn execute(&mut self, plan: &MapPlan) -> Result<(), PlanError> {
        for (done, op) in plan.ops.iter().enumerate() {
            self.one(op).map_err(|cause| PlanError {
                done,
                operation: op.name(),
                cause,
            })?;
        }
        Ok(())
    }

    fn counters(&self, slot: u32) -> Option<SaCounters> {
        self.runtime.get(slot as usize).copied()
    }

    fn records(&self, slot: u32) -> Option<(InboundSa, OutboundSa)> {
        Some((
            *self.inbound.get(slot as usize)?,
            *self.outbound.get(slot as usize)?,
        ))
    }
}
