//! What a packet meets in a case: one member's maps, as plain data.

use datapath::aead;
use datapath::limits;
use maps_schema::sad::{
    DF_COPY, InboundSa, InboundSaRuntime, Limits, LimitsCell, MSS_OFF, OutboundSa, OutboundSaRuntime, SA_ESN,
    SA_TRANSPORT, SA_UDP_ENCAP, SUITE_AES128_CBC_SHA256, SUITE_AES128_GCM, SUITE_AES256_CBC_SHA256,
    SUITE_AES256_GCM, SUITE_CHACHA20_POLY1305, SaKey, SelectorPair,
};
use maps_schema::segment::{OwnerWord, SideWord};
use maps_schema::spd::{ACTION_PROTECT, ACTION_PROTECT_PER_CPU, SpdEntry, SpdRule};
use maps_schema::steer::{
    Local, MAX_PORTS, Member, PORT_NO_REDIRECT, PORT_TAKES_PIECES, PORTS_PER_SIDE, Port, SIDE_INSIDE,
    SIDE_OUTSIDE,
};

/// This member.
pub const ME: u8 = 1;
/// The other member.
pub const OTHER: u8 = 2;
/// Epoch of all segments in the base world.
pub const EPOCH: u16 = 7;
/// CPUs of the base world.
pub const CPUS: u32 = 2;
/// Slots of the base world.
pub const SLOTS: u32 = 1024;
/// Outside cluster address.
pub const CLUSTER: u32 = 0xc0a8_0a01;
/// Inside cluster address.
pub const INSIDE: u32 = 0x0a01_0001;
/// The peer's outside address.
pub const PEER: u32 = 0xc0a8_0a64;
/// A peer to which the kernel's route carries [`NARROW_MTU`] octets.
pub const PEER_NARROW: u32 = 0xc0a8_0a65;
/// See [`PEER_NARROW`].
pub const NARROW_MTU: u64 = 1400;
/// A host behind the peer.
pub const FAR_HOST: u32 = 0x0a02_0005;
/// A host on the inside network.
pub const NEAR_HOST: u32 = 0x0a01_0005;
/// An inside address that no route leads to.
pub const NO_NEIGHBOUR: u32 = 0x0a01_00c8;
/// This member's MAC addresses, the other's, the peer's, the inside host's.
pub const OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// This member, inside.
pub const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
/// The other member, outside.
pub const OTHER_OUTSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The other member, inside.
pub const OTHER_INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];
/// The peer.
pub const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x64];
/// The host on the inside network.
pub const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 1, 5];
/// An IPv6 address in 2001:db8::/32: third group, last group.
pub const fn v6(third: u16, last: u16) -> [u8; 16] {
    let ([a, b], [c, d]) = (third.to_be_bytes(), last.to_be_bytes());
    [0x20, 1, 0x0d, 0xb8, a, b, 0, 0, 0, 0, 0, 0, 0, 0, c, d]
}
/// Outside cluster address.
pub const CLUSTER_V6: [u8; 16] = v6(0xa, 1);
/// The peer's outside address.
pub const PEER_V6: [u8; 16] = v6(0xa, 0x64);
/// The link-local address of whoever is next on the outside link.
pub const PEER_LINK: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64];
/// Inside cluster address.
pub const INSIDE_V6: [u8; 16] = v6(1, 1);
/// A host on the inside network.
pub const NEAR_HOST_V6: [u8; 16] = v6(1, 5);
/// A host behind the peer.
pub const FAR_HOST_V6: [u8; 16] = v6(2, 5);
/// Prefix of [`World::policy_v6`], of 48 bits.
pub const POLICY_PREFIX_V6: [u8; 16] = v6(2, 0);

/// MTU of the interfaces; what goes out is limited by `outside_mtu` before.
pub const DEVICE_MTU: u16 = 9000;
/// Interface indexes that the kernel run makes.
pub const OUTSIDE_IFINDEX: u32 = 1001;
/// Inside interface.
pub const INSIDE_IFINDEX: u32 = 1002;
/// A second outside interface.
pub const OUTSIDE_2_IFINDEX: u32 = 1003;
/// A second inside interface.
pub const INSIDE_2_IFINDEX: u32 = 1004;
/// VLAN 10 on the second outside interface.
pub const OUTSIDE_VLAN_IFINDEX: u32 = 1005;
/// VLAN 20 on the first inside interface.
pub const INSIDE_VLAN_IFINDEX: u32 = 1006;
/// The outside VLAN.
pub const OUTSIDE_VLAN: u16 = 10;
/// The inside VLAN.
pub const INSIDE_VLAN: u16 = 20;
/// The second outside interface and its VLAN.
pub const OUTSIDE_2_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
/// The second inside interface.
pub const INSIDE_2_MAC: [u8; 6] = [2, 0, 0, 0, 3, 1];
/// The other member on the second outside network.
pub const OTHER_OUTSIDE_2_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];
/// The other member in the inside VLAN.
pub const OTHER_INSIDE_VLAN_MAC: [u8; 6] = [2, 0, 0, 0, 4, 2];
/// Cluster address on the second outside network.
pub const CLUSTER_2: u32 = 0xc633_6401;
/// A peer there.
pub const PEER_2: u32 = 0xc633_6464;
/// Its MAC address.
pub const PEER_2_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0x64];
/// Cluster address in the outside VLAN.
pub const CLUSTER_VLAN: u32 = 0xcb00_7101;
/// A peer there.
pub const PEER_VLAN: u32 = 0xcb00_7164;
/// Its MAC address.
pub const PEER_VLAN_MAC: [u8; 6] = [2, 0, 0, 0, 5, 0x64];
/// A host on the second inside network.
pub const NEAR_2_HOST: u32 = 0x0a01_0205;
/// Its MAC address.
pub const NEAR_2_MAC: [u8; 6] = [2, 0, 0, 0, 3, 5];
/// A host in the inside VLAN.
pub const NEAR_VLAN_HOST: u32 = 0x0a01_0305;
/// Its MAC address.
pub const NEAR_VLAN_MAC: [u8; 6] = [2, 0, 0, 0, 4, 5];
/// Slot of the SA pair: segment 0x04, CPU 0.
pub const SLOT: u32 = 0x204;
/// Our SPI: generation 3, member 1, the slot.
pub const SPI_IN: u32 = 0x0300_0204;
/// Slots of the same segment for SAs beside it, by the CPU that serves them.
pub const OWN_SLOTS: [u32; 2] = [0x004, 0x304];
/// A shared SA of another segment, which is never there itself.
pub const GUEST_OF: u32 = 0x205;
/// The peer's SPI.
pub const SPI_OUT: u32 = 0xc0ff_ee01;
/// Connection index.
pub const CONNECTION: u16 = 9;
/// Every suite, and a name.
pub const SUITES: [(u8, &str); 5] = [
    (SUITE_CHACHA20_POLY1305, "chacha20"),
    (SUITE_AES128_GCM, "aes128"),
    (SUITE_AES256_GCM, "aes256"),
    (SUITE_AES128_CBC_SHA256, "aes128-sha256"),
    (SUITE_AES256_CBC_SHA256, "aes256-sha256"),
];
/// Salt of both keys.
pub const SALT: [u8; 4] = [0xa1, 0xb2, 0xc3, 0xd4];
/// Steering key.
pub const STEER_KEY: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];

/// Key octets of a direction.
pub fn key_octets(suite: u8, direction: u8) -> Vec<u8> {
    let len = aead::key_len(suite).unwrap_or(32);
    (0..len as u8).map(|i| i.wrapping_mul(7) ^ direction).collect()
}

/// Direction octet of [`key_octets`]: towards this gateway.
pub const IN: u8 = 0x10;
/// Away from it.
pub const OUT: u8 = 0x80;

/// An address in map form.
pub fn mapped(address: u32) -> [u8; 16] {
    datapath::headers::mapped(address)
}

/// Last address of a network of 48 bits.
pub fn last_of_48(mut first: [u8; 16]) -> [u8; 16] {
    first[6..].fill(0xff);
    first
}

/// State of one member, small enough to copy.
#[derive(Clone)]
pub struct World {
    /// This host.
    pub local: Local,
    /// Owner, epoch, milliseconds for which the word is still valid, side word; of every segment.
    pub owner: u8,
    /// Epoch in the owner words.
    pub epoch: u16,
    /// Validity from now on, milliseconds (negative: expired).
    pub valid_for_ms: i64,
    /// Side word.
    pub side: SideWord,
    /// Inbound record in [`SLOT`].
    pub inbound: InboundSa,
    /// Its window.
    pub window: InboundSaRuntime,
    /// Its key.
    pub key_in: SaKey,
    /// Outbound record.
    pub outbound: OutboundSa,
    /// Its counters.
    pub counters: OutboundSaRuntime,
    /// Its key.
    pub key_out: SaKey,
    /// Rules for destination 10.2.0.0/16; further prefixes have none.
    pub policy: SpdEntry,
    /// Rules for destination 2001:db8:2::/48.
    pub policy_v6: SpdEntry,
    /// Rules for the peers themselves, [`PEER`] and [`PEER_V6`].
    pub policy_peer: [SpdEntry; 2],
    /// SA pairs in [`OWN_SLOTS`], with the suite and key octets of the one in [`SLOT`].
    pub own: [Option<Own>; 2],
    /// Whether each CPU is told to use its own in place of the one in [`SLOT`].
    pub uses_own: [bool; 2],
    /// No interface takes redirected frames.
    pub no_redirect: bool,
    /// Which of [`OWN_SLOTS`] all CPUs are told to use in place of the one in [`GUEST_OF`].
    pub guest: Option<usize>,
}

/// An SA pair beside the one in [`SLOT`].
#[derive(Clone, Copy)]
pub struct Own {
    /// Inbound record.
    pub inbound: InboundSa,
    /// Its window.
    pub window: InboundSaRuntime,
    /// Its key.
    pub key_in: SaKey,
    /// Outbound record.
    pub outbound: OutboundSa,
    /// Its key.
    pub key_out: SaKey,
}

/// Our SPI of the SA in [`OWN_SLOTS`].
pub const fn own_spi_in(cpu: usize) -> u32 {
    0x0500_0000 | OWN_SLOTS[cpu]
}

/// The peer's SPI of the SA in [`OWN_SLOTS`].
pub const fn own_spi_out(cpu: usize) -> u32 {
    SPI_OUT + 1 + cpu as u32
}

/// Prefix of [`World::policy`] in bits of the mapped address.
pub const POLICY_PREFIX_LEN: u32 = 96 + 16;
/// The prefix.
pub const POLICY_PREFIX: u32 = 0x0a02_0000;

/// Cluster addresses: value, side, segment, ports.
pub const ADDRESSES: [([u8; 16], u8, u8, u16); 6] = [
    (datapath::headers::mapped(CLUSTER), SIDE_OUTSIDE, 0, 1),
    (datapath::headers::mapped(CLUSTER_2), SIDE_OUTSIDE, 1, 1 << 1),
    (datapath::headers::mapped(CLUSTER_VLAN), SIDE_OUTSIDE, 2, 1 << 2),
    (CLUSTER_V6, SIDE_OUTSIDE, 3, 1 | 1 << 2),
    (
        datapath::headers::mapped(INSIDE),
        SIDE_INSIDE,
        0,
        1 << 8 | 1 << 10,
    ),
    (INSIDE_V6, SIDE_INSIDE, 4, 1 << 8),
];

const fn port(index: u8, ifindex: u32, device: u32, vlan: u16, mac: [u8; 6]) -> Port {
    Port {
        ifindex,
        device,
        vlan,
        mac,
        side: if (index as usize) < PORTS_PER_SIDE {
            SIDE_OUTSIDE
        } else {
            SIDE_INSIDE
        },
        index,
        flags: if ifindex == OUTSIDE_IFINDEX || ifindex == INSIDE_IFINDEX {
            PORT_TAKES_PIECES
        } else {
            0
        },
        reserved: 0,
    }
}

/// This member's interfaces. The first of each side takes frames in several buffers.
pub const PORTS: [Port; 6] = [
    port(0, OUTSIDE_IFINDEX, OUTSIDE_IFINDEX, 0, OUTSIDE_MAC),
    port(1, OUTSIDE_2_IFINDEX, OUTSIDE_2_IFINDEX, 0, OUTSIDE_2_MAC),
    port(
        2,
        OUTSIDE_2_IFINDEX,
        OUTSIDE_VLAN_IFINDEX,
        OUTSIDE_VLAN,
        OUTSIDE_2_MAC,
    ),
    port(8, INSIDE_IFINDEX, INSIDE_IFINDEX, 0, INSIDE_MAC),
    port(9, INSIDE_2_IFINDEX, INSIDE_2_IFINDEX, 0, INSIDE_2_MAC),
    port(10, INSIDE_IFINDEX, INSIDE_VLAN_IFINDEX, INSIDE_VLAN, INSIDE_MAC),
];

const fn member(reached: &[(usize, [u8; 6])]) -> Member {
    let mut macs = [[0; 6]; MAX_PORTS];
    let mut at = 0;
    while at < reached.len() {
        macs[reached[at].0] = reached[at].1;
        at += 1;
    }
    Member::reached_at(macs)
}

/// MAC addresses of the other member.
pub const OTHER_MACS: [[u8; 6]; 4] = [
    OTHER_OUTSIDE_MAC,
    OTHER_OUTSIDE_2_MAC,
    OTHER_INSIDE_MAC,
    OTHER_INSIDE_VLAN_MAC,
];

/// Both members as second hops. The other one is not reached in the outside VLAN, nor on the second inside network; member 4
/// is reached in the VLANs only.
pub const MEMBERS: [(u8, Member); 3] = [
    (ME, member(&[(0, OUTSIDE_MAC), (8, INSIDE_MAC)])),
    (
        OTHER,
        member(&[
            (0, OTHER_OUTSIDE_MAC),
            (1, OTHER_OUTSIDE_2_MAC),
            (8, OTHER_INSIDE_MAC),
            (10, OTHER_INSIDE_VLAN_MAC),
        ]),
    ),
    (
        FAR_MEMBER,
        member(&[(2, OTHER_OUTSIDE_2_MAC), (10, OTHER_INSIDE_VLAN_MAC)]),
    ),
];

/// A member that is reached through VLANs only.
pub const FAR_MEMBER: u8 = 4;

/// Limits in force from the start.
pub fn cell(limit: u64, step: u64, floor: u64, epoch: u16) -> LimitsCell {
    let mut cell = LimitsCell::default();
    limits::publish(
        &mut cell,
        Limits {
            limit,
            step,
            floor,
            epoch: epoch as u32,
            reserved: 0,
        },
    );
    cell
}

impl World {
    /// This member's interfaces in this world.
    pub fn ports(&self) -> [Port; 6] {
        let flags = if self.no_redirect { PORT_NO_REDIRECT } else { 0 };
        PORTS.map(|port| Port {
            flags: port.flags | flags,
            ..port
        })
    }

    /// This member owns everything; one SA pair with room in lease and ceiling, nothing sent or received so far.
    pub fn base(suite: u8, esn: bool, encap: bool) -> Self {
        let flags = if esn { SA_ESN } else { 0 } | if encap { SA_UDP_ENCAP } else { 0 };
        let any = SelectorPair {
            remote_first: mapped(0x0a02_0000),
            remote_last: mapped(0x0a02_ffff),
            local_first: mapped(0x0a01_0000),
            local_last: mapped(0x0a01_ffff),
            remote_ports: [0, 0xffff],
            local_ports: [0, 0xffff],
            protocol: 0,
            reserved: 0,
        };
        let key = |direction, spi| {
            aead::expand(suite, &key_octets(suite, direction), SALT, spi)
                .expect("a suite with its key length")
        };
        let mut policy = SpdEntry::default();
        policy.rules[0] = SpdRule {
            source_first: mapped(0x0a01_0000),
            source_last: mapped(0x0a01_ffff),
            source_ports: [0, 0xffff],
            destination_ports: [0, 0xffff],
            slot: SLOT,
            connection: CONNECTION,
            protocol: 0,
            action: ACTION_PROTECT,
        };
        let mut policy_v6 = policy;
        policy_v6.rules[0].source_first = v6(1, 0);
        policy_v6.rules[0].source_last = last_of_48(v6(1, 0));
        let mut selectors = [SelectorPair::default(); 4];
        selectors[0] = any;
        selectors[1] = SelectorPair {
            remote_first: v6(2, 0),
            remote_last: last_of_48(v6(2, 0)),
            local_first: v6(1, 0),
            local_last: last_of_48(v6(1, 0)),
            ..any
        };
        Self {
            local: Local {
                steer_key: STEER_KEY,
                member: ME as u32,
                cpus: CPUS,
                slots: SLOTS,
                own_device: OUTSIDE_IFINDEX,
                outside_mtu: 1500,
                nat_t_port: 4500,
                ike_port: 500,
                inside_address: mapped(INSIDE),
                inside_address_v6: INSIDE_V6,
                virtual_mac: [0; 6],
                reserved: [0; 2],
            },
            owner: ME,
            epoch: EPOCH,
            valid_for_ms: 60_000,
            side: SideWord::default(),
            inbound: InboundSa {
                spi: SPI_IN,
                connection: CONNECTION,
                suite,
                flags,
                limits: cell(1000, 1000, 0, EPOCH),
                reported_edge: 0,
                life_bytes: 0,
                life_packets: 0,
                selector_count: 2,
                awaited: SPI_IN,
                selectors,
            },
            window: InboundSaRuntime {
                spi: SPI_IN,
                floor_epoch: EPOCH as u32,
                ..InboundSaRuntime::default()
            },
            key_in: key(IN, SPI_IN),
            outbound: OutboundSa {
                spi: SPI_OUT,
                connection: CONNECTION,
                suite,
                flags,
                limits: cell(1000, 1000, 0, EPOCH),
                outer_src: mapped(CLUSTER),
                outer_dst: mapped(PEER),
                encap_ports: [4500, 4500],
                path_mtu: 1500,
                mss_clamp: MSS_OFF,
                df: DF_COPY,
                dscp: 0,
                reserved: [0; 6],
                life_bytes: 0,
                life_packets: 0,
            },
            counters: OutboundSaRuntime::default(),
            key_out: key(OUT, SPI_OUT),
            policy,
            policy_v6,
            policy_peer: [SpdEntry::default(); 2],
            own: [None; 2],
            uses_own: [false; 2],
            no_redirect: false,
            guest: None,
        }
    }

    /// Child SAs per CPU: the rules say that CPUs may have their own, and these have.
    pub fn per_cpu(cpus: &[usize]) -> Self {
        let mut world = Self::plain();
        world.policy.rules[0].action = ACTION_PROTECT_PER_CPU;
        for cpu in cpus {
            let (spi_in, spi_out) = (own_spi_in(*cpu), own_spi_out(*cpu));
            world.uses_own[*cpu] = true;
            world.own[*cpu] = Some(Own {
                inbound: InboundSa {
                    spi: spi_in,
                    ..world.inbound
                },
                window: InboundSaRuntime {
                    spi: spi_in,
                    ..world.window
                },
                key_in: SaKey {
                    spi: spi_in,
                    ..world.key_in
                },
                outbound: OutboundSa {
                    spi: spi_out,
                    ..world.outbound
                },
                key_out: SaKey {
                    spi: spi_out,
                    ..world.key_out
                },
            });
        }
        world
    }

    /// A Child SA for this member, on a CPU of it, beside a shared one of another segment.
    pub fn guest(at: usize) -> Self {
        let mut world = Self::per_cpu(&[0, 1]);
        world.policy.rules[0].slot = GUEST_OF;
        world.guest = Some(at);
        world
    }

    /// The base world with ChaCha20-Poly1305, 32-bit numbers, no encapsulation.
    pub fn plain() -> Self {
        Self::base(SUITE_CHACHA20_POLY1305, false, false)
    }

    /// The base world with an SA pair between IPv6 addresses.
    pub fn over_v6(suite: u8, esn: bool, encap: bool) -> Self {
        let mut world = Self::base(suite, esn, encap);
        world.outbound.outer_src = CLUSTER_V6;
        world.outbound.outer_dst = PEER_V6;
        world
    }

    /// An SA pair in transport mode between the gateway and the peer, over IPv4 or IPv6, for GRE.
    pub fn transport(suite: u8, esn: bool, encap: bool, v6: bool) -> Self {
        let mut world = if v6 {
            Self::over_v6(suite, esn, encap)
        } else {
            Self::base(suite, esn, encap)
        };
        world.inbound.flags |= SA_TRANSPORT;
        world.outbound.flags |= SA_TRANSPORT;
        let (ours, peer) = (world.outbound.outer_src, world.outbound.outer_dst);
        world.inbound.selector_count = 1;
        world.inbound.selectors[0] = SelectorPair {
            remote_first: peer,
            remote_last: peer,
            local_first: ours,
            local_last: ours,
            protocol: 47,
            ..world.inbound.selectors[0]
        };
        world.policy_peer[usize::from(v6)].rules[0] = SpdRule {
            source_first: ours,
            source_last: ours,
            protocol: 47,
            ..world.policy.rules[0]
        };
        world
    }

    /// The owner word, for a clock that shows `now_ms`.
    pub fn owner_word(&self, now_ms: u64) -> u64 {
        let valid_until_ms = now_ms.saturating_add_signed(self.valid_for_ms);
        OwnerWord {
            owner: self.owner,
            epoch: self.epoch,
            valid_until_ms,
        }
        .pack()
    }
}
