//! `datapath::env::Env` over helpers and maps. Packets are reached by `bpf_xdp_load_bytes` and `bpf_xdp_store_bytes` only, so
//! no rule meets a packet pointer, and no bound check has to convince the verifier.

use core::ffi::c_void;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{
    bpf_check_mtu, bpf_csum_diff, bpf_fib_lookup, bpf_get_smp_processor_id, bpf_ktime_get_ns,
    bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;
use datapath::aead::TEXT_MAX;
use datapath::env::{Env, HEAD_LEN, OutboundCounters, Route, RouteQuery};
use datapath::headers::{Address, is_v4, to_v4};
use datapath::opaque::opaque;
use datapath::spd::{self, Changing, Policy, Table};
use maps_schema::event::{Event, SLOW_FRAME_MAX, SLOW_LONG_MAX, SlowHead, SlowRecord};
use maps_schema::sad::{InboundSa, InboundSaRuntime, OutboundSa, SaKey};
use maps_schema::spd::{SpdBucket, SpdHead, SpdPlace};
use maps_schema::steer::{
    AddressKey, ClusterAddress, Local, MacKey, Member, NO_VLAN, PORT_NO_REDIRECT, PORT_TAKES_PIECES, Port,
    PortKey,
};
use maps_schema::verdict::Verdict;

use crate::maps;

/// One run of a program.
#[derive(Clone, Copy)]
pub struct Xdp {
    ctx: *mut xdp_md,
}

impl Xdp {
    /// Puts the frame into the slow path's ring, in a record for `N` octets. `M`: the power of two above `N`.
    #[inline(always)]
    fn put<const N: usize, const M: usize>(&self, head: SlowHead) -> Result<(), Verdict> {
        let Some(mut entry) = maps::SLOW.reserve_untyped::<SlowRecord<N>>(0) else {
            return Err(Verdict::SlowPathFull);
        };
        let len = head.length as usize;
        let record: *mut SlowRecord<N> = entry.as_mut_ptr();
        // SAFETY: a reserved record of that type; the head is written, and the frame from here on.
        let to = unsafe {
            (*record).head = head;
            (&raw mut (*record).frame).cast::<u8>()
        };
        // Once more for the verifier, which must see both bounds on what the helper gets.
        let len = visibly::<M>(len);
        if len > N as u32 || !self.load_raw(0, to, len) {
            entry.discard(0);
            return Err(Verdict::InternalError);
        }
        entry.submit(0);
        Ok(())
    }

    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self {
            ctx: ctx.as_ptr().cast(),
        }
    }

    #[inline(always)]
    pub fn from_raw(ctx: *mut xdp_md) -> Self {
        Self { ctx }
    }

    #[inline(always)]
    pub fn raw(self) -> *mut xdp_md {
        self.ctx
    }

    /// Interface on which the frame arrived.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: the kernel's context is valid for the run.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    #[inline(always)]
    pub fn load_raw(self, offset: usize, to: *mut u8, len: u32) -> bool {
        // SAFETY: `to` has room for `len` octets, by the callers; the verifier proves it again.
        unsafe { bpf_xdp_load_bytes(self.ctx, offset as u32, to.cast::<c_void>(), len) == 0 }
    }

    #[inline(always)]
    fn store_raw(self, offset: usize, from: *const u8, len: u32) -> bool {
        // SAFETY: `from` holds `len` octets, by the callers; the verifier proves it again. The helper only reads.
        unsafe { bpf_xdp_store_bytes(self.ctx, offset as u32, from.cast_mut().cast::<c_void>(), len) == 0 }
    }
}

#[inline(always)]
fn hop_cell(cpu: u32, outbound: bool) -> Option<*mut u64> {
    let at = if outbound {
        cpu.wrapping_add(maps::CPUS as u32)
    } else {
        cpu
    };
    maps::HOPS.get_ptr_mut(at)
}

/// An address as a route look-up wants it: network order, IPv4 in the first word.
#[inline(always)]
fn fib_address(address: Address) -> [u32; 4] {
    let [high, low] = address;
    if is_v4(address) {
        return [to_v4(address).to_be(), 0, 0, 0];
    }
    [
        ((high >> 32) as u32).to_be(),
        (high as u32).to_be(),
        ((low >> 32) as u32).to_be(),
        (low as u32).to_be(),
    ]
}

#[inline(always)]
fn port_of(ifindex: u32, vlan: u16) -> Option<&'static Port> {
    let key = PortKey {
        ifindex,
        vlan: vlan as u32,
    };
    // SAFETY: copied at once; entries change with the configuration only.
    let index = unsafe { maps::PORT_OF.get(key).copied() }?;
    maps::PORTS.get(index)
}

/// `struct bpf_fib_lookup`.
#[repr(C)]
struct Fib {
    family: u8,
    protocol: u8,
    ports: [u16; 2],
    length: u16,
    ifindex: u32,
    tos: u32,
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
}
const _: () = assert!(size_of::<Fib>() == 64);

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Look up as for an own packet that leaves on `ifindex`.
const FIB_LOOKUP_OUTPUT: u32 = 2;
/// The route does not carry a packet of this length; what it carries is where the length was.
const FIB_LOOKUP_FRAG_NEEDED: i64 = 8;
/// The packet is longer than the device's MTU (`BPF_MTU_CHK_RET_FRAG_NEEDED`).
const MTU_CHECK_TOO_LONG: i64 = 1;
/// Index of `lo`, in every network namespace: a look-up as the stack does it for its own packets.
const LOOPBACK: u32 = 1;
/// Least time between two reports of packets without SA, per connection and CPU.
const ACQUIRE_INTERVAL_NS: u64 = 250_000_000;
/// Octets that older kernels sum up in one call.
const SUM_MAX: usize = 512;

/// `len` within `1..=M`, for a power of two `M`, in a way that the verifier sees. Callers checked the length; the compiler
/// must not know that, or it removes the mask.
#[inline(always)]
fn visibly<const M: usize>(len: usize) -> u32 {
    const { assert!(M.is_power_of_two()) };
    let masked = opaque(len as u64).wrapping_sub(1) & (M as u64 - 1);
    (opaque(masked) + 1) as u32
}

/// The arrays of the policy table.
struct Policies;

impl Table for Policies {
    #[inline(always)]
    fn head(&self) -> Option<&SpdHead> {
        maps::SPD_HEAD.get(0)
    }

    #[inline(always)]
    fn bucket(&self, at: u32) -> Option<&SpdBucket> {
        maps::SPD_INDEX.get(at)
    }

    #[inline(always)]
    fn place(&self, at: u32) -> Option<&SpdPlace> {
        maps::SPD.get(at)
    }

    #[inline(always)]
    fn probe(&self, destination: Address, half: u32, lengths: u64) -> u32 {
        spd_probe(destination[0], destination[1], half, lengths)
    }
}

/// [`spd::probe`], which the verifier walks once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn spd_probe(high: u64, low: u64, half: u32, lengths: u64) -> u32 {
    spd::probe(&Policies, [high, low], half, lengths)
}

/// [`Env::sum`], which the verifier walks once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn text_sum(text: *const [u8; TEXT_MAX], len: u32) -> u32 {
    // BTF cannot say that it is not.
    if text.is_null() {
        return 0;
    }
    let mut sum = 0u32;
    let mut at = 0usize;
    // The compiler must keep the first bound, which is the one that verifiers up to Linux 6.7 understand.
    let len = opaque(len as u64) as usize;
    while at < TEXT_MAX {
        if at >= len {
            break;
        }
        let piece = visibly::<SUM_MAX>((len - at).min(SUM_MAX));
        // SAFETY: within the text: a piece begins at a multiple of its greatest length.
        let from = unsafe { text.cast::<u8>().add(at) };
        // SAFETY: the helper reads `piece` octets; texts are multiples of four.
        sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from.cast_mut().cast(), piece & !3, sum) }
            as u32;
        at += SUM_MAX;
    }
    // The helper adds words as this host reads them.
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::from_be(sum as u16) as u32
}

impl Env for Xdp {
    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn cpu(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_smp_processor_id() }
    }

    #[inline(always)]
    fn local(&self) -> Option<&Local> {
        maps::LOCAL.get(0)
    }

    #[inline(always)]
    fn arrived_at(&self, vlan: u16) -> Option<&Port> {
        port_of(self.ifindex(), vlan)
    }

    #[inline(always)]
    fn port(&self, index: u8) -> Option<&Port> {
        maps::PORTS.get(index as u32)
    }

    #[inline(always)]
    fn segment(&self, segment: u8) -> Option<(u64, u64)> {
        let segment = maps::SEGMENTS.get_ptr(segment as u32)?;
        // SAFETY: a map value; the agent writes each word at once.
        unsafe {
            Some((
                core::ptr::read_volatile(&raw const (*segment).owner),
                core::ptr::read_volatile(&raw const (*segment).side),
            ))
        }
    }

    #[inline(always)]
    fn member(&self, member: u8) -> Option<&Member> {
        maps::MEMBERS.get(member as u32)
    }

    #[inline(always)]
    fn is_member_mac(&self, mac: [u8; 6]) -> bool {
        // SAFETY: the value is not used.
        unsafe { maps::MEMBER_MACS.get(MacKey { mac, zero: [0; 2] }).is_some() }
    }

    #[inline(always)]
    fn address(&self, address: [u8; 16]) -> Option<ClusterAddress> {
        // SAFETY: copied at once; entries change with the configuration only.
        unsafe { maps::ADDRESSES.get(AddressKey { address }).copied() }
    }

    #[inline(always)]
    fn inbound(&self, cpu: u32, index: u32) -> Option<&InboundSa> {
        maps::SA_IN.get_value(cpu, &index)
    }

    #[inline(always)]
    fn window<R>(&self, cpu: u32, index: u32, f: impl FnOnce(&mut InboundSaRuntime) -> R) -> Option<R> {
        let window = maps::SA_IN_RT.get_value_ptr_mut(cpu, &index)?;
        // SAFETY: a map value that only this CPU's programs change, one run at a time.
        Some(f(unsafe { &mut *window }))
    }

    #[inline(always)]
    fn key_in(&self, cpu: u32, index: u32) -> Option<&SaKey> {
        maps::KEY_IN.get_value(cpu, &index)
    }

    #[inline(always)]
    fn outbound(&self, cpu: u32, index: u32) -> Option<&OutboundSa> {
        maps::SA_OUT.get_value(cpu, &index)
    }

    #[inline(always)]
    fn counters(&self, cpu: u32, index: u32) -> Option<&OutboundCounters> {
        let counters = maps::SA_OUT_RT.get_value_ptr_mut(cpu, &index)?;
        // SAFETY: same layout (asserted where it is declared), and changed by atomic operations only.
        Some(unsafe { &*counters.cast::<OutboundCounters>() })
    }

    #[inline(always)]
    fn key_out(&self, cpu: u32, index: u32) -> Option<&SaKey> {
        maps::KEY_OUT.get_value(cpu, &index)
    }

    #[inline(always)]
    fn own_slot(&self, cpu: u32, slot: u32) -> u32 {
        maps::CPU_SLOT.get_value(cpu, &slot).map_or(0, |own| {
            // SAFETY: an aligned word of a map value that the agent writes at once.
            unsafe { core::ptr::read_volatile(&raw const own.number) }
        })
    }

    #[inline(always)]
    fn policy(&self, destination: Address) -> Result<Option<Policy<'_>>, Changing> {
        spd::look_up(&Policies, destination)
    }

    #[inline(always)]
    fn policy_holds(&self, policy: &Policy<'_>) -> bool {
        spd::holds(&Policies, policy)
    }

    #[inline(always)]
    fn route(&self, query: &RouteQuery) -> Option<Route> {
        let local = self.local()?;
        let v4 = is_v4(query.destination);
        let mut fib = Fib {
            family: if v4 { AF_INET } else { AF_INET6 },
            protocol: query.protocol,
            ports: [query.ports[0].to_be(), query.ports[1].to_be()],
            length: query.length,
            ifindex: if !query.own {
                query.device
            } else if local.own_device != 0 {
                local.own_device
            } else {
                LOOPBACK
            },
            // Type of service, or what an IPv6 header begins with but for the version.
            tos: if v4 {
                query.tos as u32
            } else {
                ((query.tos as u32) << 20).to_be()
            },
            source: fib_address(query.source),
            destination: fib_address(query.destination),
            vlan: 0,
            source_mac: [0; 6],
            destination_mac: [0; 6],
        };
        let flags = if query.own && local.own_device != 0 {
            FIB_LOOKUP_OUTPUT
        } else {
            0
        };
        // SAFETY: `fib` is a `struct bpf_fib_lookup`.
        let found = unsafe {
            bpf_fib_lookup(
                self.ctx.cast(),
                (&raw mut fib).cast(),
                size_of::<Fib>() as i32,
                flags,
            )
        };
        if found == FIB_LOOKUP_FRAG_NEEDED && fib.length != 0 {
            return Some(Route {
                mtu: fib.length,
                ..Route::NONE
            });
        }
        if found != 0 {
            return None;
        }
        // Other interfaces may not take redirected frames: theirs go through the stack. A VLAN device takes none at all; its
        // port names the device below it.
        let port = port_of(fib.ifindex, NO_VLAN)?;
        if port.flags & PORT_NO_REDIRECT != 0 {
            return None;
        }
        Some(Route {
            destination: fib.destination_mac,
            source: fib.source_mac,
            ifindex: port.ifindex,
            vlan: port.vlan,
            mtu: 0,
            whole: port.flags & PORT_TAKES_PIECES == 0,
        })
    }

    #[inline(always)]
    fn last_hop(&self, cpu: u32, outbound: bool) -> u64 {
        hop_cell(cpu, outbound).map_or(0, |cell| {
            // SAFETY: an aligned word of a map value; an old value costs at most the order of one packet.
            unsafe { cell.read_volatile() }
        })
    }

    #[inline(always)]
    fn note_hop(&self, cpu: u32, outbound: bool, now_ns: u64) {
        if let Some(cell) = hop_cell(cpu, outbound) {
            // SAFETY: as above; the latest of several writers may lose by nanoseconds.
            unsafe { cell.write_volatile(now_ns) }
        }
    }

    #[inline(always)]
    fn event(&self, kind: u32, slot: u32, spi: u32, epoch: u16, seq: u64) {
        let event = Event {
            kind,
            slot,
            spi,
            epoch: epoch as u32,
            seq,
            time_ns: self.now_ns(),
        };
        // A full ring loses the event; the agent reads the counters as well.
        let _ = maps::EVENTS.output(event, 0);
        crate::report::rare_event(self.ctx, &event);
    }

    #[inline(always)]
    fn slow(&self, kind: u32, slot: u32, spi: u32, seq: u64) -> Result<(), Verdict> {
        let len = self.frame_len();
        if len == 0 || len > SLOW_LONG_MAX {
            return Err(Verdict::SlowTooLong);
        }
        let head = SlowHead {
            kind,
            ifindex: self.ifindex(),
            slot,
            spi,
            seq,
            length: len as u32,
            reserved: 0,
        };
        if len > SLOW_FRAME_MAX {
            self.put::<SLOW_LONG_MAX, { SLOW_LONG_MAX.next_power_of_two() }>(head)
        } else {
            self.put::<SLOW_FRAME_MAX, { SLOW_FRAME_MAX.next_power_of_two() }>(head)
        }
    }

    #[inline(always)]
    fn acquire_due(&self, connection: u16, now_ns: u64) -> bool {
        let Some(last) = maps::ACQUIRED.get_ptr_mut(connection as u32) else {
            return false;
        };
        // SAFETY: this CPU's value.
        unsafe {
            if *last != 0 && now_ns.wrapping_sub(*last) < ACQUIRE_INTERVAL_NS {
                return false;
            }
            *last = now_ns;
        }
        true
    }

    #[inline(always)]
    fn tell_due(&self, now_ns: u64) -> bool {
        let Some(until) = maps::TOLD.get_ptr_mut(0) else {
            return false;
        };
        // SAFETY: this CPU's value.
        datapath::ttl::due(unsafe { &mut *until }, now_ns)
    }

    #[inline(always)]
    fn exceeds_device(&self, packet_len: u32) -> bool {
        // In: the length to look at, without the link header. 0 is the device of arrival.
        let mut length = packet_len;
        // SAFETY: the kernel's context, and a word that lives through the call.
        let found = unsafe { bpf_check_mtu(self.ctx.cast(), 0, &raw mut length, 0, 0) };
        found == MTU_CHECK_TOO_LONG
    }

    #[inline(always)]
    fn frame_len(&self) -> usize {
        // SAFETY: the kernel's context.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }

    #[inline(always)]
    fn first_buffer(&self) -> usize {
        // SAFETY: the kernel's context; both are addresses, of which only the distance is used.
        unsafe { ((*self.ctx).data_end as usize).wrapping_sub((*self.ctx).data as usize) }
    }

    #[inline(always)]
    fn load_head(&self, head: &mut [u8; HEAD_LEN]) -> usize {
        let len = self.frame_len().min(HEAD_LEN);
        if len == 0 || !self.load_raw(0, head.as_mut_ptr(), visibly::<HEAD_LEN>(len)) {
            return 0;
        }
        len
    }

    #[inline(always)]
    fn load(&self, offset: usize, text: &mut [u8; TEXT_MAX], len: usize) -> bool {
        self.load_raw(offset, text.as_mut_ptr(), visibly::<TEXT_MAX>(len))
    }

    #[inline(always)]
    fn sum(&self, text: &[u8; TEXT_MAX], len: usize) -> u16 {
        text_sum(text, len as u32) as u16
    }

    #[inline(always)]
    fn load_16(&self, offset: usize, out: &mut [u8; 16]) -> bool {
        self.load_raw(offset, out.as_mut_ptr(), 16)
    }

    #[inline(always)]
    fn store(&self, offset: usize, text: &[u8; TEXT_MAX], len: usize) -> bool {
        self.store_raw(offset, text.as_ptr(), visibly::<TEXT_MAX>(len))
    }

    #[inline(always)]
    fn store_head(&self, offset: usize, head: &[u8; HEAD_LEN], from: usize, len: usize) -> bool {
        if len == 0 || from >= HEAD_LEN / 2 || from + len > HEAD_LEN {
            return false;
        }
        let from = opaque(from as u64) as usize & (HEAD_LEN / 2 - 1);
        // SAFETY: `from` and `len` octets from there are within the array.
        let octets = unsafe { head.as_ptr().add(from) };
        self.store_raw(offset, octets, visibly::<HEAD_LEN>(len))
    }

    #[inline(always)]
    fn write<const N: usize>(&self, offset: usize, octets: &[u8; N]) -> bool {
        self.store_raw(offset, octets.as_ptr(), N as u32)
    }

    #[inline(always)]
    fn cut_head(&self, delta: i32) -> bool {
        // SAFETY: the kernel's context; no packet pointer is kept.
        delta == 0 || unsafe { bpf_xdp_adjust_head(self.ctx, delta) == 0 }
    }

    #[inline(always)]
    fn truncate(&self, len: usize) -> bool {
        let delta = len as i32 - self.frame_len() as i32;
        // SAFETY: the kernel's context; no packet pointer is kept.
        delta == 0 || (delta < 0 && unsafe { bpf_xdp_adjust_tail(self.ctx, delta) == 0 })
    }
}
