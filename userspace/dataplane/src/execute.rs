//! Carries map plans out on the mapped arrays. It decides nothing; the order within an operation is what the
//! programs rely on.

use crate::batch::run_length;
use crate::load::Plane;
use crate::mapped::MappedArray;
use crate::sys;
use maps_schema::sad::{
    CpuSlot, InboundSa, InboundSaRuntime, Limits, LimitsCell, OutboundSa, OutboundSaRuntime, SaKey,
    slot_place,
};
use sad::port::{DataPlane, Direction, MapOp, MapPlan, PlanError, SaCounters};
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Octets of the first word of both records: SPI, connection, suite, flags.
const HEAD: usize = 8;

const _: () = {
    assert!(offset_of!(InboundSa, spi) == 0 && offset_of!(InboundSa, flags) == 7);
    assert!(offset_of!(OutboundSa, spi) == 0 && offset_of!(OutboundSa, flags) == 7);
    assert!(offset_of!(InboundSa, limits) == HEAD && offset_of!(OutboundSa, limits) == HEAD);
    assert!(offset_of!(LimitsCell, version) == 0);
    assert!(size_of::<Limits>().is_multiple_of(8));
    assert!(offset_of!(OutboundSa, encap_ports).is_multiple_of(8));
    assert!(offset_of!(OutboundSa, path_mtu) < offset_of!(OutboundSa, encap_ports) + 8);
    assert!(offset_of!(InboundSa, life_packets) == offset_of!(InboundSa, life_bytes) + 8);
    assert!(offset_of!(OutboundSa, life_packets) == offset_of!(OutboundSa, life_bytes) + 8);
};

impl DataPlane for Plane {
    fn execute(&mut self, plan: &MapPlan) -> Result<(), PlanError> {
        let mut done = 0;
        while let Some(op) = plan.ops.get(done) {
            let run = run_length(&plan.ops[done..]);
            let written = match run {
                1 => match self.policies.execute(op) {
                    Some(written) => written,
                    None => self.one(op),
                },
                _ => self.run(&plan.ops[done..done + run]),
            };
            written.map_err(|cause| PlanError {
                done,
                operation: op.name(),
                cause,
            })?;
            done += run;
        }
        Ok(())
    }

    fn counters(&self, slot: u32) -> Option<SaCounters> {
        self.reader().counters(slot)
    }

    fn records(&self, slot: u32) -> Option<(InboundSa, OutboundSa)> {
        let (array, index) = self.sa.sa_in.place(slot)?;
        let inbound = array.read(index)?;
        let (array, index) = self.sa.sa_out.place(slot)?;
        Some((inbound, array.read(index)?))
    }
}

/// Words of an SA's counters that tell whether anything has happened: equal ones, nothing has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// The word that begins with the inbound SPI.
    pub spi: u64,
    /// Right edge of the window.
    pub edge: u64,
    /// Last sequence number given out.
    pub seq: u64,
}

/// Reads counters without system calls; clones are cheap and usable from any thread.
#[derive(Clone)]
pub struct CounterReader {
    sa: std::sync::Arc<crate::maps::SaMaps>,
}

impl CounterReader {
    /// SPI of an inbound window and `CLOCK_MONOTONIC` milliseconds of its last packet: two words, for rounds over many SAs.
    pub fn last_inbound(&self, slot: u32) -> Option<(u32, u64)> {
        let (array, index) = self.sa.sa_in_rt.place(slot)?;
        let first = array.word(index, offset_of!(InboundSaRuntime, spi))?;
        let last_ms = array.word(index, offset_of!(InboundSaRuntime, last_ms))?;
        // The SPI is the first half of its word in memory.
        let octets = first.load(Ordering::Relaxed).to_ne_bytes();
        let spi = u32::from_ne_bytes([octets[0], octets[1], octets[2], octets[3]]);
        Some((spi, last_ms.load(Ordering::Relaxed)))
    }

    /// What changes with every packet of a slot's SA, and with its SPI: three words, for rounds over many SAs.
    pub fn activity(&self, slot: u32) -> Option<Activity> {
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let (inbound, index) = self.sa.sa_in_rt.place(slot)?;
        let spi = inbound.word(index, offset_of!(InboundSaRuntime, spi)).map(load)?;
        let edge = inbound
            .word(index, offset_of!(InboundSaRuntime, edge))
            .map(load)?;
        let (outbound, index) = self.sa.sa_out_rt.place(slot)?;
        let seq = outbound
            .word(index, offset_of!(OutboundSaRuntime, seq))
            .map(load)?;
        Some(Activity { spi, edge, seq })
    }

    /// Counters of a slot; `None` where the slot does not exist.
    pub fn counters(&self, slot: u32) -> Option<SaCounters> {
        let (array, index) = self.sa.sa_in_rt.place(slot)?;
        let inbound = array.read(index)?;
        let (array, index) = self.sa.sa_out_rt.place(slot)?;
        Some(SaCounters {
            inbound,
            outbound: array.read(index)?,
        })
    }
}

impl Plane {
    /// A reader of counters that does not borrow the plane.
    pub fn reader(&self) -> CounterReader {
        CounterReader { sa: self.sa.clone() }
    }

    fn one(&self, op: &MapOp) -> Result<(), String> {
        match op {
            MapOp::PutKeyIn { slot, key } => self.put_key(&self.sa.key_in.inner, *slot, key),
            MapOp::PutKeyOut { slot, key } => self.put_key(&self.sa.key_out.inner, *slot, key),
            MapOp::ResetRuntime { slot, spi } => self.reset(*slot, *spi),
            MapOp::PutInbound { slot, record } => {
                let (array, index) = self.sa.sa_in.place(*slot).ok_or_else(|| self.beyond(*slot))?;
                put_record(array, index, &**record, record.limits).ok_or_else(|| self.beyond(*slot))
            }
            MapOp::PutOutbound { slot, record } => {
                let (array, index) = self.sa.sa_out.place(*slot).ok_or_else(|| self.beyond(*slot))?;
                put_record(array, index, &**record, record.limits).ok_or_else(|| self.beyond(*slot))
            }
            MapOp::PublishLimits {
                direction,
                slot,
                spi,
                limits,
            } => self.publish(*direction, *slot, *spi, limits),
            MapOp::PutReportedEdge { slot, spi, edge } => {
                let (array, index) = self.sa.sa_in.place(*slot).ok_or_else(|| self.beyond(*slot))?;
                if spi_of(array, index) == Some(*spi)
                    && let Some(word) = array.word(index, offset_of!(InboundSa, reported_edge))
                {
                    word.store(*edge, Ordering::Relaxed);
                }
                Ok(())
            }
            MapOp::PutAwaited { slot, spi } => {
                put_awaited(self.sa.sa_in.place(*slot), *spi, |_| true).ok_or_else(|| self.beyond(*slot))
            }
            MapOp::ClearAwaited { slot, spi } => {
                put_awaited(self.sa.sa_in.place(*slot), 0, |there| there == *spi)
                    .ok_or_else(|| self.beyond(*slot))
            }
            MapOp::PutFlags {
                direction,
                slot,
                spi,
                flags,
            } => match direction {
                Direction::Inbound => put_flags(self.sa.sa_in.place(*slot), *spi, *flags),
                Direction::Outbound => put_flags(self.sa.sa_out.place(*slot), *spi, *flags),
            }
            .ok_or_else(|| self.beyond(*slot)),
            MapOp::PutPath {
                slot,
                spi,
                outer_dst,
                encap_ports,
            } => {
                let (array, index) = self.sa.sa_out.place(*slot).ok_or_else(|| self.beyond(*slot))?;
                if spi_of(array, index) == Some(*spi)
                    && let Some(mut record) = array.read(index)
                {
                    (record.outer_dst, record.encap_ports) = (*outer_dst, *encap_ports);
                    array.write(
                        index,
                        &record,
                        offset_of!(OutboundSa, outer_dst),
                        size_of::<OutboundSa>(),
                    );
                }
                Ok(())
            }
            MapOp::PutPathMtu { slot, spi, mtu } => {
                let (array, index) = self.sa.sa_out.place(*slot).ok_or_else(|| self.beyond(*slot))?;
                if spi_of(array, index) == Some(*spi)
                    && let Some(mut record) = array.read(index)
                {
                    record.path_mtu = *mtu;
                    let at = offset_of!(OutboundSa, encap_ports);
                    array.write(index, &record, at, at + 8);
                }
                Ok(())
            }
            MapOp::PutLife {
                direction,
                slot,
                spi,
                bytes,
                packets,
            } => match direction {
                Direction::Inbound => {
                    let at = offset_of!(InboundSa, life_bytes);
                    put_life(self.sa.sa_in.place(*slot), *spi, at, *bytes, *packets)
                }
                Direction::Outbound => {
                    let at = offset_of!(OutboundSa, life_bytes);
                    put_life(self.sa.sa_out.place(*slot), *spi, at, *bytes, *packets)
                }
            }
            .ok_or_else(|| self.beyond(*slot)),
            MapOp::ClearOutbound { slot } => {
                let (array, index) = self.sa.sa_out.place(*slot).ok_or_else(|| self.beyond(*slot))?;
                put_spi(array, index, 0).ok_or_else(|| self.beyond(*slot))?;
                self.put_key(&self.sa.key_out.inner, *slot, &SaKey::EMPTY)
            }
            MapOp::ClearSlot { slot } => self.clear(*slot),
            MapOp::PutCpuSlot { cpu, slot, own } => {
                let array = self.sa.cpu_slot.arrays.get(*cpu as usize);
                let value = CpuSlot {
                    number: own.map_or(0, |own| own + 1),
                    reserved: 0,
                };
                array
                    .and_then(|array| array.write(*slot, &value, 0, size_of::<CpuSlot>()))
                    .ok_or_else(|| self.beyond(*slot))
            }
            // Done by `Policies`.
            MapOp::PutSpd { .. } | MapOp::DeleteSpd { .. } => Ok(()),
        }
    }

    fn put_key(&self, arrays: &[OwnedFd], slot: u32, key: &SaKey) -> Result<(), String> {
        if slot >= self.options.slots {
            return Err(self.beyond(slot));
        }
        let (cpu, index) = slot_place(slot, self.options.cpus);
        let array = arrays.get(cpu as usize).ok_or_else(|| self.beyond(slot))?;
        sys::map_update(array.as_fd(), &index.to_ne_bytes(), key.as_bytes()).map_err(text)
    }

    /// Live counters are never written again: an SPI whose record is there keeps its window and its numbers.
    fn reset(&self, slot: u32, spi: u32) -> Result<(), String> {
        let (array, index) = self.sa.sa_in.place(slot).ok_or_else(|| self.beyond(slot))?;
        if spi_of(array, index) == Some(spi) {
            return Ok(());
        }
        let beyond = || self.beyond(slot);
        let (array, index) = self.sa.sa_out_rt.place(slot).ok_or_else(beyond)?;
        array
            .write(
                index,
                &OutboundSaRuntime::default(),
                0,
                size_of::<OutboundSaRuntime>(),
            )
            .ok_or_else(beyond)?;
        let (array, index) = self.sa.sa_in_rt.place(slot).ok_or_else(beyond)?;
        let fresh = InboundSaRuntime {
            spi,
            ..InboundSaRuntime::default()
        };
        array
            .write(index, &fresh, 0, size_of::<InboundSaRuntime>())
            .ok_or_else(beyond)?;
        fence(Ordering::SeqCst);
        Ok(())
    }

    fn publish(&self, direction: Direction, slot: u32, spi: u32, limits: &Limits) -> Result<(), String> {
        match direction {
            Direction::Inbound => publish_in(self.sa.sa_in.place(slot), spi, limits),
            Direction::Outbound => publish_in(self.sa.sa_out.place(slot), spi, limits),
        }
        .ok_or_else(|| self.beyond(slot))
    }

    /// Records first, so that no program starts with an SA whose key is going away.
    fn clear(&self, slot: u32) -> Result<(), String> {
        let beyond = || self.beyond(slot);
        let (array, index) = self.sa.sa_out.place(slot).ok_or_else(beyond)?;
        array
            .word(index, 0)
            .ok_or_else(beyond)?
            .store(0, Ordering::SeqCst);
        array
            .write(index, &OutboundSa::default(), HEAD, size_of::<OutboundSa>())
            .ok_or_else(beyond)?;
        let (array, index) = self.sa.sa_in.place(slot).ok_or_else(beyond)?;
        array
            .word(index, 0)
            .ok_or_else(beyond)?
            .store(0, Ordering::SeqCst);
        array
            .write(index, &InboundSa::default(), HEAD, size_of::<InboundSa>())
            .ok_or_else(beyond)?;
        self.put_key(&self.sa.key_in.inner, slot, &SaKey::EMPTY)?;
        self.put_key(&self.sa.key_out.inner, slot, &SaKey::EMPTY)
    }

    fn beyond(&self, slot: u32) -> String {
        beyond(slot, self.options.slots)
    }
}

pub(crate) fn beyond(slot: u32, slots: u32) -> String {
    format!("slot {slot} is beyond this member's {slots} slots: raise `slots` on this member")
}

type Place<'a, T> = Option<(&'a MappedArray<T>, u32)>;

fn spi_of<T: FromBytes + IntoBytes + Immutable>(array: &MappedArray<T>, index: u32) -> Option<u32> {
    let head = array.word(index, 0)?.load(Ordering::Acquire).to_ne_bytes();
    Some(u32::from_ne_bytes([head[0], head[1], head[2], head[3]]))
}

/// All words but the first, then the first, which holds the SPI. A record that is live under the same SPI gets its
/// limits by publication, so that a reader never sees a cell whose version went back.
fn put_record<T>(array: &MappedArray<T>, index: u32, record: &T, limits: LimitsCell) -> Option<()>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let head = u64::from_ne_bytes(record.as_bytes().get(..HEAD)?.try_into().ok()?);
    let spi = u32::from_ne_bytes(record.as_bytes().get(..4)?.try_into().ok()?);
    if spi_of(array, index)? == spi {
        publish_in(
            Some((array, index)),
            spi,
            &limits.slots[(limits.version & 1) as usize],
        )?;
    } else {
        array.word(index, 0)?.store(0, Ordering::SeqCst);
        array.write(index, record, HEAD, HEAD + size_of::<LimitsCell>())?;
    }
    array.write(index, record, HEAD + size_of::<LimitsCell>(), size_of::<T>())?;
    array.word(index, 0)?.store(head, Ordering::SeqCst);
    Some(())
}

/// The slot that no reader uses is filled first; raising the version then puts it into use.
fn publish_in<T>(place: Place<'_, T>, spi: u32, limits: &Limits) -> Option<()>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let (array, index) = place?;
    if spi_of(array, index)? != spi {
        return Some(());
    }
    let version = array.word(index, HEAD)?;
    let next = version.load(Ordering::Acquire).wrapping_add(1);
    let slot = HEAD + offset_of!(LimitsCell, slots) + (next & 1) as usize * size_of::<Limits>();
    for (at, chunk) in limits.as_bytes().chunks_exact(8).enumerate() {
        array
            .word(index, slot + at * 8)?
            .store(u64::from_ne_bytes(chunk.try_into().ok()?), Ordering::Relaxed);
    }
    fence(Ordering::SeqCst);
    version.store(next, Ordering::SeqCst);
    Some(())
}

fn put_flags<T>(place: Place<'_, T>, spi: u32, flags: u8) -> Option<()>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let (array, index) = place?;
    let word = array.word(index, 0)?;
    let mut head = word.load(Ordering::Acquire).to_ne_bytes();
    if head[..4] == spi.to_ne_bytes() {
        head[7] = flags;
        word.store(u64::from_ne_bytes(head), Ordering::SeqCst);
    }
    Some(())
}

/// The awaited SPI of an inbound record alone, where the one that is there gives way.
fn put_awaited(place: Place<'_, InboundSa>, spi: u32, gives_way: impl Fn(u32) -> bool) -> Option<()> {
    const AT: usize = offset_of!(InboundSa, awaited);
    const _: () = assert!(AT % 8 == 4);
    let (array, index) = place?;
    let word = array.word(index, AT - 4)?;
    let mut octets = word.load(Ordering::Acquire).to_ne_bytes();
    let there = u32::from_ne_bytes([octets[4], octets[5], octets[6], octets[7]]);
    if gives_way(there) {
        octets[4..].copy_from_slice(&spi.to_ne_bytes());
        word.store(u64::from_ne_bytes(octets), Ordering::SeqCst);
    }
    Some(())
}

/// The record's SPI alone; what else it says stays.
fn put_spi<T>(array: &MappedArray<T>, index: u32, spi: u32) -> Option<()>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let word = array.word(index, 0)?;
    let mut head = word.load(Ordering::Acquire).to_ne_bytes();
    head[..4].copy_from_slice(&spi.to_ne_bytes());
    word.store(u64::from_ne_bytes(head), Ordering::SeqCst);
    Some(())
}

/// Octets, then packets, beside each other from `at` on.
fn put_life<T>(place: Place<'_, T>, spi: u32, at: usize, bytes: u64, packets: u64) -> Option<()>
where
    T: FromBytes + IntoBytes + Immutable,
{
    let (array, index) = place?;
    if spi_of(array, index)? == spi {
        array.word(index, at)?.store(bytes, Ordering::Relaxed);
        array.word(index, at + 8)?.store(packets, Ordering::Relaxed);
    }
    Some(())
}

pub(crate) fn text(error: io::Error) -> String {
    error.to_string()
}
