//! Every map, and nowhere else. Names are those of `maps_schema::names`; the loader makes the per-CPU arrays of the SA maps
//! and those of policies, and sets the sizes that depend on the host.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, CpuMap, HashMap, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use datapath::env::Area;
use maps_schema::event::{Event, SlowFrame};
use maps_schema::sad::{CpuSlot, InboundSa, InboundSaRuntime, OutboundSa, OutboundSaRuntime, SaKey};
use maps_schema::segment::{SEGMENTS as SEGMENT_COUNT, Segment};
use maps_schema::spd::{SpdBucket, SpdHead, SpdPlace};
use maps_schema::steer::{
    AddressKey, ClusterAddress, Local, MAX_CONNECTIONS, MAX_MEMBERS, MAX_PORTS, MacKey, Member, Port, PortKey,
};
use maps_schema::verdict::VERDICT_STRIDE;

/// Upper bound of CPUs; the loader sets the real number.
pub const CPUS: usize = 64;
/// `BPF_F_MMAPABLE`.
const MMAPABLE: usize = 1 << 10;
/// Octets of the event ring.
const EVENT_RING: usize = 256 * 1024;
/// Octets of the slow path's ring: about 600 frames, or 125 of more than a page.
const SLOW_RING: usize = 2 * 1024 * 1024;

#[btf_map]
pub static SA_IN: ArrayOfMaps<Array<InboundSa, 1, MMAPABLE>, CPUS> = ArrayOfMaps::new();
#[btf_map]
pub static SA_IN_RT: ArrayOfMaps<Array<InboundSaRuntime, 1, MMAPABLE>, CPUS> = ArrayOfMaps::new();
#[btf_map]
pub static SA_OUT: ArrayOfMaps<Array<OutboundSa, 1, MMAPABLE>, CPUS> = ArrayOfMaps::new();
#[btf_map]
pub static SA_OUT_RT: ArrayOfMaps<Array<OutboundSaRuntime, 1, MMAPABLE>, CPUS> = ArrayOfMaps::new();
#[btf_map]
pub static KEY_IN: ArrayOfMaps<Array<SaKey, 1>, CPUS> = ArrayOfMaps::new();
#[btf_map]
pub static KEY_OUT: ArrayOfMaps<Array<SaKey, 1>, CPUS> = ArrayOfMaps::new();
/// Inner arrays are as long as there are slots; the loader makes them.
#[btf_map]
pub static CPU_SLOT: ArrayOfMaps<Array<CpuSlot, 1, MMAPABLE>, CPUS> = ArrayOfMaps::new();
#[btf_map]
pub static SPD: Array<SpdPlace, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static SPD_INDEX: Array<SpdBucket, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static SPD_HEAD: Array<SpdHead, 1, MMAPABLE> = Array::new();
#[btf_map]
pub static SEGMENTS: Array<Segment, SEGMENT_COUNT, MMAPABLE> = Array::new();
#[btf_map]
pub static MEMBERS: Array<Member, { MAX_MEMBERS + 1 }> = Array::new();
#[btf_map]
pub static MEMBER_MACS: HashMap<MacKey, u32, { MAX_MEMBERS * MAX_PORTS }> = HashMap::new();
#[btf_map]
pub static ADDRESSES: HashMap<AddressKey, ClusterAddress, 1024> = HashMap::new();
#[btf_map]
pub static PORTS: Array<Port, MAX_PORTS> = Array::new();
#[btf_map]
pub static PORT_OF: HashMap<PortKey, u32, { 2 * MAX_PORTS }> = HashMap::new();
#[btf_map]
pub static LOCAL: Array<Local, 1> = Array::new();
#[btf_map]
pub static VERDICTS: PerCpuArray<u64, { MAX_CONNECTIONS * VERDICT_STRIDE }> = PerCpuArray::new();
#[btf_map]
pub static SCRATCH: PerCpuArray<Area, 1> = PerCpuArray::new();
/// When a packet without SA was last reported, per connection, nanoseconds. Not pinned.
#[btf_map]
pub static ACQUIRED: PerCpuArray<u64, MAX_CONNECTIONS> = PerCpuArray::new();
/// Until when the ICMP errors so far are paid for, nanoseconds. Not pinned.
#[btf_map]
pub static TOLD: PerCpuArray<u64, 1> = PerCpuArray::new();
/// When a packet was last moved to a CPU, nanoseconds: inbound by CPU, then outbound. Not pinned.
#[btf_map]
pub static HOPS: Array<u64, { 2 * CPUS }> = Array::new();
#[btf_map]
pub static CPUS_IN: CpuMap<CPUS> = CpuMap::new();
#[btf_map]
pub static CPUS_OUT: CpuMap<CPUS> = CpuMap::new();
#[btf_map]
pub static EVENTS: RingBuf<Event, EVENT_RING> = RingBuf::new();
#[btf_map]
pub static SLOW: RingBuf<SlowFrame, SLOW_RING> = RingBuf::new();
