//! One list of verdicts: the number, the counter's name and the text come from here and nowhere else.

macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $metric:literal, $class:ident, $text:literal;)*) => {
        /// Outcome of one packet. Every packet ends in exactly one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Verdict {
            $(#[doc = $text] $name = $number,)*
        }

        impl Verdict {
            /// Every verdict, by rising number.
            pub const ALL: &'static [Verdict] = &[$(Verdict::$name,)*];

            /// Name used as a label and in tables.
            pub const fn name(self) -> &'static str {
                match self { $(Verdict::$name => $metric,)* }
            }

            /// One sentence for an operator.
            pub const fn text(self) -> &'static str {
                match self { $(Verdict::$name => $text,)* }
            }

            /// What became of the packet.
            pub const fn class(self) -> Class {
                match self { $(Verdict::$name => Class::$class,)* }
            }
        }
    };
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Carried by the kernel lane.
    Carried,
    /// Given to this host's stack.
    Passed,
    /// Given to the agent's slow path.
    Slow,
    /// Sent to another member.
    SecondHop,
    /// Answered by the program.
    Answered,
    /// Dropped.
    Dropped,
}

/// Room for verdicts in the counter map, per connection.
pub const VERDICT_STRIDE: usize = 128;

verdicts! {
    NotForCluster = 0, "not_for_cluster", Passed, "not for a cluster address: left to the host";
    EspOpened = 1, "esp_opened", Carried, "ESP decrypted and forwarded";
    EspSealed = 2, "esp_sealed", Carried, "packet encrypted and sent";
    EspOpenedLocal = 3, "esp_opened_local", Passed, "ESP decrypted and given to this host's stack (no route, no neighbour, or local)";
    OtherCpu = 4, "other_cpu", Carried, "moved to the CPU of the SA (counted again there)";
    IkeToAgent = 5, "ike_to_agent", Passed, "IKE message for this member's agent";
    ArpAnswered = 6, "arp_answered", Answered, "ARP request for a cluster address answered";
    ArpNotOwner = 7, "arp_not_owner", Dropped, "ARP request for a cluster address that another member owns";
    SecondHop = 8, "second_hop", SecondHop, "sent to the member that owns the segment";
    FragmentNeeded = 9, "fragment_needed", Answered, "too big for the path with DF set: ICMP fragmentation needed sent";
    AboveCeiling = 10, "above_ceiling", Slow, "authentic but above the acknowledged ceiling: waits for a raise";
    HeldForWindow = 11, "held_for_window", Slow, "held until the old owner's final window is merged";
    OutFragment = 12, "out_fragment", Slow, "too big for the path with DF clear: fragmented by the slow path";
    OuterFragment = 13, "outer_fragment", Passed, "fragment of an outer packet: reassembled by the stack";
    NatKeepalive = 14, "nat_keepalive", Dropped, "NAT keepalive (RFC 3948 2.3): nothing to do";
    Bypassed = 15, "bypassed", Passed, "policy says: in clear";
    LocalTraffic = 16, "local_traffic", Passed, "for a cluster address but neither IKE nor ESP: left to the host";
    UnknownSpi = 20, "unknown_spi", Dropped, "no SA with this SPI";
    ReplayDuplicate = 21, "replay_duplicate", Dropped, "sequence number already seen";
    ReplayTooOld = 22, "replay_too_old", Dropped, "sequence number left of the replay window";
    BelowTakeoverFloor = 23, "below_takeover_floor", Dropped, "authentic, but up to the ceiling of the old owner: counts as seen";
    IcvBad = 24, "icv_bad", Dropped, "integrity check failed";
    EspTruncated = 25, "esp_truncated", Dropped, "too short for an ESP packet of this suite";
    PaddingBad = 26, "padding_bad", Dropped, "padding or next header wrong after decryption";
    SelectorMismatch = 27, "selector_mismatch", Dropped, "inner packet outside the SA's traffic selectors";
    InnerMalformed = 28, "inner_malformed", Dropped, "inner packet is no valid IP packet";
    NotOwner = 29, "not_owner", Dropped, "came from a member, and this member does not own the segment";
    OwnerExpired = 30, "owner_expired", Dropped, "owner word expired (dead-man's switch) and no successor is known";
    LeaseExhausted = 31, "lease_exhausted", Dropped, "no acknowledged sequence number left for this SA";
    SequenceExhausted = 32, "sequence_exhausted", Dropped, "sequence number space of the SA used up";
    NoSa = 33, "no_sa", Dropped, "policy wants protection but no SA is up";
    Discarded = 34, "discarded", Dropped, "policy says: discard";
    Malformed = 35, "malformed", Dropped, "outer headers malformed";
    TooBig = 36, "too_big", Dropped, "larger than this lane can carry";
    EpochBehind = 37, "epoch_behind", Dropped, "SA record is of a later epoch than the owner word";
    Contended = 38, "contended", Dropped, "limits or counter changed under the program too often";
    SuiteUnknown = 39, "suite_unknown", Dropped, "SA with a suite that this program does not carry";
    InternalError = 40, "internal_error", Dropped, "a helper failed or a map is missing";
    TtlExceeded = 41, "ttl_exceeded", Dropped, "inner TTL used up";
    SlowPathFull = 42, "slow_path_full", Dropped, "the slow path's ring buffer is full";
    InnerUnsupported = 43, "inner_unsupported", Dropped, "inner protocol that this version does not carry in the kernel lane";
    NoPolicy = 44, "no_policy", Passed, "no policy for this inside packet: left to the host";
    SecondHopUnknown = 45, "second_hop_unknown", Dropped, "the owner's MAC address is not known";
    StackedVlan = 46, "stacked_vlan", Passed, "more than one VLAN tag: left to the host";
    NeighbourAnswered = 47, "neighbour_answered", Answered, "neighbour solicitation for a cluster address answered";
    NeighbourNotOwner = 48, "neighbour_not_owner", Dropped, "neighbour solicitation for a cluster address that another member owns";
    OuterExtension = 49, "outer_extension", Passed, "outer IPv6 packet with extension headers: its payload comes back through the agent";
    InnerExtension = 50, "inner_extension", Dropped, "inner IPv6 packet with more extension headers than are looked behind, or in transport mode a fragment";
    PacketTooBig = 52, "packet_too_big", Answered, "IPv6 packet too big for the path: ICMPv6 Packet Too Big sent";
    EcnDropped = 53, "ecn_dropped", Dropped, "congestion was met on the way by an inner packet that cannot say so (RFC 6040 4.2)";
    PathTooSmall = 54, "path_too_small", Dropped, "sealed, but the route to the peer carries less: the SA's path MTU is lowered";
    LifetimeExpired = 55, "lifetime_expired", Dropped, "the SA's lifetime in octets or packets is used up";
    HeldForSa = 56, "held_for_sa", Slow, "policy wants protection but no SA is up: held until one is";
    OuterCut = 57, "outer_cut", Slow, "sealed, larger than the path and may be cut: fragmented by the slow path";
    TimeExceeded = 64, "time_exceeded", Answered, "inner TTL used up: the sender is told by ICMP Time Exceeded";
    TimeExceededFar = 65, "time_exceeded_far", Slow, "inner TTL of an opened packet used up: the slow path tells the sender through the tunnel";
    ClearText = 66, "clear_text", Dropped, "arrived in clear where a policy wants protection (RFC 4301 5.2)";
    TransportHeader = 67, "transport_header", Dropped, "transport mode: a fragment, another family than the peer's address, or extension headers that cannot stay before ESP, which are not sealed";
    PathError = 68, "path_error", Passed, "a router says that a sealed packet was too large: the stack and the other members hear of it";
    PiecesToStack = 70, "pieces_to_stack", Passed, "opened or sealed, but in several buffers, which the device of the route does not take: given to this host's stack";
    SlowTooLong = 71, "slow_too_long", Dropped, "needs the slow path, and is longer than that carries: what it asks for is on its way";
    ExitRefuses = 72, "exit_refuses", Dropped, "the device of the second hop takes no redirected frames, or none in several buffers";
    EspRagged = 73, "esp_ragged", Dropped, "the ciphertext is no whole number of the cipher's blocks";
    HeldForAnswer = 74, "held_for_answer", Slow, "of an SA that a peer was asked for, and whose answer is not used yet: held until it is";
    Merged = 76, "merged", Dropped, "longer than the MTU of the device: several packets that GRO or TSO has merged (ethtool -K)";
    OpenedLenient = 77, "opened_lenient", Carried, "ESP decrypted and forwarded by a lenient policy, although up to the ceiling of the old owner: it may be a replay";
}

impl Verdict {
    /// The verdict with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.iter().copied().find(|v| *v as u32 == number)
    }
}

const _: () = {
    let mut i = 0;
    while i < Verdict::ALL.len() {
        assert!((Verdict::ALL[i] as usize) < VERDICT_STRIDE);
        if i > 0 {
            assert!((Verdict::ALL[i] as u32) > (Verdict::ALL[i - 1] as u32));
        }
        i += 1;
    }
};
