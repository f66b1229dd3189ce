//! What a packet meets: maps, clock, CPU, its own octets. Implemented by the XDP programs over helpers and by host tests
//! in memory, so that both run the same rules.

use core::mem::{offset_of, size_of};

use maps_schema::sad::{InboundSa, InboundSaRuntime, OutboundSa, OutboundSaRuntime, SaKey};
use maps_schema::steer::{ClusterAddress, Local, Member, Port, SLOW_PATH_MAC};
use maps_schema::verdict::Verdict;

use crate::aead::{Scratch, TEXT_MAX};
use crate::bytes::Bounded;
use crate::counter::Counter;
use crate::headers::{Address, Ip};
use crate::selectors::Flow;
use crate::spd::{Changing, Policy};

/// [`OutboundSaRuntime`] as the programs use it: every field changes by atomic operations only.
#[derive(Debug, Default)]
#[repr(C)]
pub struct OutboundCounters {
    /// Last sequence number given out.
    pub seq: Counter,
    /// Packets sent.
    pub packets: Counter,
    /// Inner octets sent.
    pub bytes: Counter,
    /// Milliseconds of the last packet.
    pub last_ms: Counter,
    /// For which lease exhaustion was last reported: (limits version + 1) << 16, and the epoch.
    pub exhausted_version: Counter,
}

const _: () = {
    assert!(size_of::<OutboundCounters>() == size_of::<OutboundSaRuntime>());
    assert!(offset_of!(OutboundCounters, seq) == offset_of!(OutboundSaRuntime, seq));
    assert!(offset_of!(OutboundCounters, packets) == offset_of!(OutboundSaRuntime, packets));
    assert!(offset_of!(OutboundCounters, bytes) == offset_of!(OutboundSaRuntime, bytes));
    assert!(offset_of!(OutboundCounters, last_ms) == offset_of!(OutboundSaRuntime, last_ms));
    assert!(
        offset_of!(OutboundCounters, exhausted_version) == offset_of!(OutboundSaRuntime, exhausted_version)
    );
};

/// A question to the routing table.
pub struct RouteQuery {
    /// Source; of the same family as the destination.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Octets of the datagram.
    pub length: u16,
    /// Type of service.
    pub tos: u8,
    /// IP protocol.
    pub protocol: u8,
    /// Source and destination port; 0 where the protocol has none, or nobody asks.
    pub ports: [u16; 2],
    /// The packet is this host's own; otherwise it is forwarded.
    pub own: bool,
    /// Device on which a forwarded packet arrived.
    pub device: u32,
}

/// Where a packet goes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Next hop's MAC address.
    pub destination: [u8; 6],
    /// The sending interface's MAC address.
    pub source: [u8; 6],
    /// The sending interface.
    pub ifindex: u32,
    /// VLAN whose tag the frame gets there, 0 for none.
    pub vlan: u16,
    /// 0; or the route is there but does not carry the packet: what it carries, octets. Then nothing else counts.
    pub mtu: u16,
    /// The interface takes no frame that lies in several buffers.
    pub whole: bool,
}

impl Route {
    /// In place of a route that is not known.
    pub const NONE: Self = Self {
        destination: [0; 6],
        source: [0; 6],
        ifindex: 0,
        vlan: 0,
        mtu: 0,
        whole: false,
    };
}

/// What a packet meets. All methods take `&self`: the implementations are views of maps that others change too.
pub trait Env {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    fn now_ns(&self) -> u64;
    /// The CPU that runs this.
    fn cpu(&self) -> u32;
    /// This host's facts.
    fn local(&self) -> Option<&Local>;
    /// The port at which a frame with this tag (0 for none) arrived; `None` where it is none of the cluster's.
    fn arrived_at(&self, vlan: u16) -> Option<&Port>;
    /// A port by its number.
    fn port(&self, index: u8) -> Option<&Port>;
    /// Owner word and side word of a segment.
    fn segment(&self, segment: u8) -> Option<(u64, u64)>;
    /// A member's addresses.
    fn member(&self, member: u8) -> Option<&Member>;
    /// Whether a MAC address is a member's.
    fn is_member_mac(&self, mac: [u8; 6]) -> bool;
    /// The cluster address with this value (mapped form).
    fn address(&self, address: [u8; 16]) -> Option<ClusterAddress>;
    /// Inbound SA record.
    fn inbound(&self, cpu: u32, index: u32) -> Option<&InboundSa>;
    /// Runs `f` on an inbound SA's window. Only on the SA's CPU, and not nested.
    fn window<R>(&self, cpu: u32, index: u32, f: impl FnOnce(&mut InboundSaRuntime) -> R) -> Option<R>;
    /// Key of an inbound SA.
    fn key_in(&self, cpu: u32, index: u32) -> Option<&SaKey>;
    /// Outbound SA record.
    fn outbound(&self, cpu: u32, index: u32) -> Option<&OutboundSa>;
    /// Counters of an outbound SA.
    fn counters(&self, cpu: u32, index: u32) -> Option<&OutboundCounters>;
    /// Key of an outbound SA.
    fn key_out(&self, cpu: u32, index: u32) -> Option<&SaKey>;
    /// One more than the slot of the outbound SA that a CPU uses in place of the shared one in `slot`; 0 for none.
    fn own_slot(&self, cpu: u32, slot: u32) -> u32;
    /// Rules of the longest prefix of a destination.
    ///
    /// # Errors
    /// Where they are being changed all the time.
    fn policy(&self, destination: Address) -> Result<Option<Policy<'_>>, Changing>;
    /// Whether what was read of these rules was whole. Not asked where nobody changes them.
    fn policy_holds(&self, _policy: &Policy<'_>) -> bool {
        true
    }
    /// Routing and neighbour look-up; `None` where the host's stack must deal with the packet.
    fn route(&self, query: &RouteQuery) -> Option<Route>;
    /// Reports an event (`EVENT_*`).
    fn event(&self, kind: u32, slot: u32, spi: u32, epoch: u16, seq: u64);
    /// Gives the whole frame, as it is, to the slow path (`SLOW_*`).
    ///
    /// # Errors
    /// `SlowPathFull`, or `SlowTooLong` for a frame longer than the ring's records.
    fn slow(&self, kind: u32, slot: u32, spi: u32, seq: u64) -> Result<(), Verdict>;
    /// Whether a packet without SA may be reported for this connection now (a few per second).
    fn acquire_due(&self, connection: u16, now_ns: u64) -> bool;
    /// Whether one more ICMP error may be sent now; then it counts ([`crate::ttl::due`]).
    fn tell_due(&self, now_ns: u64) -> bool;

    /// Time ([`Env::now_ns`]) of the last packet that was moved to `cpu`; 0 for none.
    fn last_hop(&self, cpu: u32, outbound: bool) -> u64;
    /// A packet is being moved to `cpu`.
    fn note_hop(&self, cpu: u32, outbound: bool, now_ns: u64);

    /// Whether a packet is longer than the MTU of the device that the frame arrived on. Nobody sends that: it was merged (GRO, TSO).
    fn exceeds_device(&self, packet_len: u32) -> bool;

    /// Octets of the frame, in all its buffers.
    fn frame_len(&self) -> usize;
    /// Octets of the frame's first buffer. A frame that is larger than what a driver puts into one page lies in several; every
    /// method here reaches all of them, but not every device takes such a frame.
    fn first_buffer(&self) -> usize;
    /// Copies the frame's first octets to `head` and returns how many.
    fn load_head(&self, head: &mut [u8; HEAD_LEN]) -> usize;
    /// Copies `len` octets (1 to [`TEXT_MAX`]) from `offset` of the frame to the text.
    fn load(&self, offset: usize, text: &mut [u8; TEXT_MAX], len: usize) -> bool;
    /// One's complement sum (RFC 1071), folded to 16 bits, of the text's first `len` octets: even, at most [`TEXT_MAX`].
    fn sum(&self, text: &[u8; TEXT_MAX], len: usize) -> u16;
    /// Copies 16 octets from `offset` of the frame.
    fn load_16(&self, offset: usize, out: &mut [u8; 16]) -> bool;
    /// Copies `len` octets (1 to [`TEXT_MAX`]) of the text to `offset` of the frame.
    fn store(&self, offset: usize, text: &[u8; TEXT_MAX], len: usize) -> bool;
    /// Copies `len` octets from `from` (below half of [`HEAD_LEN`]) of the frame's front, as it came, to `offset` of the frame. `false`, and
    /// nothing written, for none, or more than there are.
    fn store_head(&self, offset: usize, head: &[u8; HEAD_LEN], from: usize, len: usize) -> bool;
    /// Writes octets at `offset` of the frame.
    fn write<const N: usize>(&self, offset: usize, octets: &[u8; N]) -> bool;
    /// Removes `delta` octets at the front (adds, where negative).
    fn cut_head(&self, delta: i32) -> bool;
    /// Makes the frame end after `len` octets; it is at least as long now.
    fn truncate(&self, len: usize) -> bool;
}

/// A full cpumap queue is worked off within this time.
const HOP_BACKLOG_NS: u64 = 20_000_000;

/// Whether a packet for `cpu` has to go through the cpumap: from another CPU always; on `cpu` itself as long as packets that
/// were moved there may still wait. Otherwise it would overtake them, and a peer with a replay window of 32 numbers would drop
/// what comes late (ADR 3). What the agent runs on the right CPU has no place to keep: it has waited, or has been put together.
#[inline(always)]
pub fn must_hop(env: &impl Env, work: &Work, cpu: u32, outbound: bool) -> bool {
    if env.cpu() != cpu {
        env.note_hop(cpu, outbound, work.now_ns);
        return true;
    }
    work.source_mac != SLOW_PATH_MAC
        && work.now_ns.saturating_sub(env.last_hop(cpu, outbound)) < HOP_BACKLOG_NS
}

/// Octets of a frame's front that rules look at: link, IP with options, UDP, IKE header.
pub const HEAD_LEN: usize = 128;

/// Leave the frame to the host's stack.
pub const ACTION_PASS: u32 = 0;
/// Drop it.
pub const ACTION_DROP: u32 = 1;
/// Send it out of the interface that it came from.
pub const ACTION_TRANSMIT: u32 = 2;
/// Send it out of interface `target`.
pub const ACTION_REDIRECT: u32 = 3;
/// Move it to CPU `target`.
pub const ACTION_CPU: u32 = 4;
/// A neighbour solicitation: the next stage is [`crate::nd::answer`].
pub const ACTION_NEIGHBOUR: u32 = 5;
/// It arrived in clear and goes to the stack unless a policy minds: the next stage is [`crate::clear::judge`].
pub const ACTION_CLEAR: u32 = 6;
/// Its TTL is used up: the next stage is [`crate::ttl::exceeded`].
pub const ACTION_TTL: u32 = 7;

/// What is known of the packet so far. It lies in a per-CPU map: BPF's stack is too small.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Work {
    /// The frame's front.
    pub head: [u8; HEAD_LEN],
    /// Octets of `head` that count.
    pub head_len: u32,
    /// Octets of the frame.
    pub frame_len: u32,
    /// Outcome: a [`Verdict`]'s number.
    pub verdict: u32,
    /// Connection that the verdict is counted for.
    pub connection: u32,
    /// Outcome: `ACTION_*`.
    pub action: u32,
    /// Interface or CPU that goes with `action`.
    pub target: u32,
    /// Octets before the network layer.
    pub link_len: u32,
    /// Where the frame arrived.
    pub port: Port,
    /// Out: octets of IP options or extension headers that stay before ESP; 0 in tunnel mode.
    pub options_len: u32,
    /// Where they begin in `head`.
    pub options_at: u32,
    /// IPv6: where in `head` the next header is that will be ESP's.
    pub esp_named_at: u32,
    /// Transport mode, in: octets of extension headers in the text, before the upper layer's.
    pub upper_at: u32,
    /// Offset of the ESP header.
    pub esp_at: u32,
    /// Octets from the ESP header to the end of the ICV.
    pub esp_len: u32,
    /// SPI of the SA.
    pub spi: u32,
    /// Slot of the SA.
    pub slot: u32,
    /// CPU of the SA.
    pub cpu: u32,
    /// Index of the SA in that CPU's arrays.
    pub index: u32,
    /// Low half of the sequence number.
    pub seq_low: u32,
    /// Sequence number, inferred with ESN.
    pub seq: u64,
    /// Ceiling in force.
    pub ceiling: u64,
    /// Where `EVENT_CEILING_SOFT` is due.
    pub soft: u64,
    /// Time of the packet, nanoseconds.
    pub now_ns: u64,
    /// The packet's IP header: of the outer packet, then of the inner one.
    pub ip: Ip,
    /// What selectors look at.
    pub flow: Flow,
    /// Epoch in which the segment is served here.
    pub epoch: u16,
    /// Number at or below the floor: `FLOOR_*` of [`crate::esp::inbound`].
    pub floor_rule: u8,
    /// The segment's owner is alone.
    pub alone: u8,
    /// Role in a planned handover, `ROLE_*` of [`crate::steer`].
    pub role: u8,
    /// The other member in a planned handover.
    pub other: u8,
    /// Source MAC address of the frame.
    pub source_mac: [u8; 6],
    /// What the frame carries, behind a tag.
    pub ethertype: u16,
    /// Type of service of the outer packet.
    pub outer_tos: u8,
    /// The sealed packet is larger than the path, and is cut.
    pub cut: u8,
    /// The SA is in transport mode.
    pub transport: u8,
    /// Transport mode, out: next header of what is sealed.
    pub sealed_as: u8,
    /// Largest segment that the TCP SYN in the text may announce; 0: nothing to do.
    pub mss: u16,
    /// Largest outer packet of the path.
    pub path_mtu: u16,
    /// The SA's peer may be elsewhere at any time ([`maps_schema::sad::SA_MAY_MOVE`]).
    pub may_move: u8,
    /// The packet comes from another source than the SA's peer was at.
    pub moved: u8,
}

impl Work {
    /// All zero.
    pub const EMPTY: Self = Self {
        head: [0; HEAD_LEN],
        head_len: 0,
        frame_len: 0,
        verdict: 0,
        connection: 0,
        action: 0,
        target: 0,
        link_len: 0,
        port: Port {
            ifindex: 0,
            device: 0,
            vlan: 0,
            mac: [0; 6],
            side: 0,
            index: 0,
            flags: 0,
            reserved: 0,
        },
        options_len: 0,
        options_at: 0,
        esp_named_at: 0,
        upper_at: 0,
        esp_at: 0,
        esp_len: 0,
        spi: 0,
        slot: 0,
        cpu: 0,
        index: 0,
        seq_low: 0,
        seq: 0,
        ceiling: 0,
        soft: 0,
        now_ns: 0,
        ip: Ip {
            source: [0; 2],
            destination: [0; 2],
            header_len: 0,
            total_len: 0,
            fragment: 0,
            checksum: 0,
            tos: 0,
            ttl: 0,
            protocol: 0,
            version: 0,
        },
        flow: Flow {
            source: [0; 2],
            destination: [0; 2],
            ports: [0; 2],
            protocol: 0,
            has_ports: 0,
            reserved: [0; 2],
        },
        epoch: 0,
        floor_rule: 0,
        alone: 0,
        role: 0,
        other: 0,
        source_mac: [0; 6],
        ethertype: 0,
        outer_tos: 0,
        cut: 0,
        transport: 0,
        sealed_as: 0,
        mss: 0,
        path_mtu: 0,
        may_move: 0,
        moved: 0,
    };

    /// Whether the frame, as it came, lies in several buffers.
    #[inline(always)]
    pub fn in_pieces(&self, env: &impl Env) -> bool {
        self.frame_len as usize > env.first_buffer()
    }

    /// Makes the frame `len` octets long; all of them are written anew afterwards. Where it lies in several buffers the first one may hold
    /// no more than the headers, so what is too much is cut at its end. Otherwise at its head: in generic mode the kernel (up to 6.18 at
    /// least) sets the end of an skb that was cut there too far by the link header's length, and TCP appends to what it has received at
    /// that end: octets of nobody's reach the application.
    #[inline(always)]
    pub fn resize(&self, env: &impl Env, len: usize) -> bool {
        if self.frame_len as usize > len && self.in_pieces(env) {
            return env.truncate(len);
        }
        env.cut_head(self.frame_len as i32 - len as i32)
    }

    /// The frame's front, bounded by what is there.
    #[inline(always)]
    pub fn front(&self) -> Bounded<'_, HEAD_LEN> {
        Bounded {
            octets: &self.head,
            len: self.head_len as usize,
        }
    }

    /// Sets the outcome. Always `false`, "no further stage", so that a stage can end with it.
    #[inline(always)]
    pub fn end(&mut self, verdict: Verdict, action: u32) -> bool {
        self.verdict = verdict as u32;
        self.action = action;
        false
    }

    /// The outcome is: dropped.
    #[inline(always)]
    pub fn drop(&mut self, verdict: Verdict) -> bool {
        self.end(verdict, ACTION_DROP)
    }

    /// The outcome is: left to the host's stack.
    #[inline(always)]
    pub fn pass(&mut self, verdict: Verdict) -> bool {
        self.end(verdict, ACTION_PASS)
    }

    /// The outcome is `verdict` where the slow path took the frame.
    #[inline(always)]
    pub fn slow(&mut self, env: &impl Env, kind: u32, verdict: Verdict) -> bool {
        match env.slow(kind, self.slot, self.spi, self.seq) {
            Ok(()) => self.drop(verdict),
            Err(full) => self.drop(full),
        }
    }
}

/// Value of the per-CPU scratch map: the cipher's area and the packet's.
#[repr(C)]
pub struct Area {
    /// Text and state of the cipher.
    pub cipher: Scratch,
    /// What is known of the packet.
    pub work: Work,
}

const _: () = assert!(size_of::<Area>().is_multiple_of(8) && size_of::<Area>() <= 32768);

/// Fills `work` for a new frame.
#[inline(always)]
pub fn begin(env: &impl Env, work: &mut Work) {
    work.head_len = env.load_head(&mut work.head) as u32;
    work.frame_len = env.frame_len() as u32;
    work.now_ns = env.now_ns();
    work.connection = 0;
    work.target = 0;
    work.action = ACTION_DROP;
    work.slot = 0;
    work.spi = 0;
    work.seq = 0;
    work.cut = 0;
    work.transport = 0;
    work.options_len = 0;
    work.mss = 0;
    work.may_move = 0;
    work.moved = 0;
}
