//! What kind of cluster a seed stands for.

use crate::around::Clock;
use crate::check::Facts;
use crate::frames;
use crate::member::MemberConfig;
use crate::peer::PeerConfig;
use crate::plane::{Host, inside_mac, outside_mac};
use crate::rng::Rng;
use crate::sabotage::Sabotage;
use crate::world::Ways;
use cluster::{EngineKind, Layout, NodeConfig, Solo};
use ike::{ChildConfig, Connection, EndpointConfig, EngineConfig, Identity, Proposal, Resource, Retransmit};
use maps_schema::steer::{SIDE_INSIDE, SIDE_OUTSIDE};
use model::{Incarnation, InitialLimits, MemberId, SecretBytes, TrafficSelector};
use sad::{Policy, PolicyAction};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

/// The cluster's outside address.
pub const ADDRESS: u32 = 0xc000_0201;
/// Its inside address.
pub const INSIDE_ADDRESS: u32 = 0x0a01_0001;

/// CPUs of a peer.
const PEER_CPUS: u32 = 2;
/// Child SAs that a peer of a cluster with Child SAs per member takes, at most twice as many while they are rekeyed.
const PEER_RESOURCES: u32 = 16;

/// SPIs that a member keeps ready for each other one, and for each of its CPUs where they have their own: few, so that they run out.
const READY: usize = 4;
/// See [`READY`].
const READY_ON_CPU: usize = 2;

/// Outside address of a peer.
pub fn peer_address(number: u8) -> u32 {
    0xc633_6400 | u32::from(number)
}

/// Which ownership engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// The embedded one for two members.
    Pair,
    /// An external one with compare-and-swap.
    Etcd,
}

/// What Child SAs a connection has beside the one that all may use (RFC 9611).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PerResource {
    /// None.
    None,
    /// One for each CPU of whoever serves the IKE SA.
    Cpu,
    /// One for each member (ADR 11).
    Member,
    /// One for each CPU of each member.
    Both,
}

impl PerResource {
    fn has_cpus(self) -> bool {
        matches!(self, Self::Cpu | Self::Both)
    }

    /// Whether members have their own: guests.
    pub fn has_members(self) -> bool {
        matches!(self, Self::Member | Self::Both)
    }

    fn any(self) -> bool {
        self != Self::None
    }

    /// What a member with this many CPUs asks for.
    fn resources(self, cpus: u32, members: u8) -> Vec<Resource> {
        let cpus = (0..cpus).map(|cpu| cpu as u16);
        let mut all = Vec::new();
        if self.has_cpus() {
            all.extend(cpus.clone().map(Resource::of_owner));
        }
        for member in (1..=members).map(MemberId).filter(|_| self.has_members()) {
            match self {
                Self::Both => all.extend(cpus.clone().map(|cpu| Resource { member, cpu })),
                _ => all.push(Resource::of_member(member)),
            }
        }
        all
    }
}

/// What a peer is like.
#[derive(Clone, Debug)]
pub struct PeerKind {
    /// From 1.
    pub number: u8,
    /// ESP suite, as a proposal.
    pub esp: &'static str,
    /// Its replay window.
    pub window: u64,
    /// It initiates; otherwise the cluster does.
    pub initiates: bool,
    /// ESP in UDP.
    pub encap: bool,
    /// Child SAs per resource, as the cluster wants them; the peer has some per CPU then.
    pub per_resource: PerResource,
    /// After so much silence each side looks whether the other one still answers.
    pub dpd: Duration,
    /// Lifetimes.
    pub child_rekey: Option<Duration>,
    /// See `child_rekey`.
    pub ike_rekey: Option<Duration>,
    /// Whoever initiates authenticates anew after this time; both sides say so.
    pub reauth: Option<Duration>,
    /// Time between two packets in each direction, microseconds.
    pub interval_us: [u64; 2],
}

/// A whole world.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Members.
    pub members: u8,
    /// Engine.
    pub engine: Engine,
    /// For a pair.
    pub solo: Solo,
    /// How the segments are cut.
    pub groups: u8,
    /// The members' weights.
    pub weights: Vec<u32>,
    /// Groups go home by themselves.
    pub rebalance: Option<Duration>,
    /// Several ways in: an ECMP router instead of one member that holds the address.
    pub ecmp: bool,
    /// Packets from the inside come to one member after the other, whoever owns what.
    pub spread: bool,
    /// CPUs of each member.
    pub cpus: Vec<u32>,
    /// First lease and ceiling of new SAs.
    pub limits: InitialLimits,
    /// See [`MemberConfig::step_max`].
    pub step_max: u64,
    /// Questions to the ownership engine may be carried out after the member has given them up.
    pub late_writes: bool,
    /// Lenient anti-replay after a failover.
    pub lenient: bool,
    /// Peers.
    pub peers: Vec<PeerKind>,
    /// Key of the steering hash.
    pub steer_key: [u64; 2],
}

impl Setup {
    /// Draws one.
    pub fn draw(rng: &mut Rng, members: Option<u8>, engine: Option<Engine>) -> Self {
        let engine = engine.unwrap_or(match members {
            Some(3..) => Engine::Etcd,
            _ if rng.permille(500) => Engine::Pair,
            _ => Engine::Etcd,
        });
        let members = match engine {
            Engine::Pair => 2,
            Engine::Etcd => members.unwrap_or(if rng.permille(700) { 3 } else { 2 }),
        };
        let groups = if rng.permille(500) {
            1
        } else {
            rng.range(2, 6) as u8
        };
        let standby = rng.permille(300);
        let lease = rng.range(4, 64);
        let headroom = rng.range(1, 8);
        let peers: Vec<PeerKind> = (1..=rng.range(1, 2) as u8)
            .map(|number| PeerKind::draw(rng, number))
            .collect();
        Self {
            members,
            engine,
            solo: if rng.permille(750) {
                Solo::Continue
            } else {
                Solo::Stop
            },
            groups,
            weights: (0..members).map(|m| u32::from(m == 0 || !standby)).collect(),
            rebalance: rng.permille(300).then_some(Duration::from_millis(800)),
            ecmp: rng.permille(400),
            spread: false,
            cpus: (0..members).map(|_| rng.range(1, 4) as u32).collect(),
            limits: InitialLimits {
                lease,
                lease_step: lease,
                ceiling: headroom,
                headroom,
            },
            step_max: rng.range(8, 256),
            late_writes: false,
            lenient: false,
            peers,
            steer_key: [rng.word(), rng.word()],
        }
    }

    /// Whether a peer is authenticated anew now and then.
    fn authenticates_anew(&self) -> bool {
        self.peers.iter().any(|peer| peer.reauth.is_some())
    }

    /// What the checkers must know.
    pub fn facts(&self, ways: &Ways) -> Facts {
        Facts {
            pair: (self.engine == Engine::Pair).then_some(self.solo == Solo::Continue),
            layout: Layout::new(self.groups),
            address: ADDRESS,
            noise_only: ways.noise_only,
            anew_only: ways.anew_only,
            planned_from: ways.planned_from,
            may_lose: ways.may_lose,
            steer_key: self.steer_key,
        }
    }

    /// A member for its life `life`.
    pub fn member(&self, me: MemberId, life: u64, sabotage: Option<Sabotage>) -> MemberConfig {
        let at = usize::from(me.0) - 1;
        let members = (1..=self.members)
            .map(|m| (MemberId(m), self.weights[usize::from(m) - 1]))
            .collect();
        MemberConfig {
            node: NodeConfig {
                me,
                incarnation: Incarnation(life),
                members,
                layout: Layout::new(self.groups),
                engine: match self.engine {
                    Engine::Pair => EngineKind::Pair { solo: self.solo },
                    Engine::Etcd => EngineKind::External,
                },
                heartbeat: Duration::from_millis(20),
                suspicion_floor: Duration::from_millis(100),
                dead_man: Duration::from_millis(80),
                settle: Duration::from_millis(300),
                rebalance: self.rebalance,
                policy: std::collections::BTreeMap::from([("cluster".to_owned(), [7; 16])]),
                facts: vec![me.0],
            },
            engine: EngineConfig {
                connections: self
                    .peers
                    .iter()
                    .map(|peer| {
                        peer.connection(false, peer.per_resource.resources(self.cpus[at], self.members))
                    })
                    .collect(),
                endpoint: EndpointConfig::new(SecretBytes::new(vec![9; 32])),
            },
            host: Host {
                member: me.0,
                cpus: self.cpus[at],
                macs: (outside_mac(me.0), inside_mac(me.0)),
                per_cpu: self.peers.iter().any(|peer| peer.per_resource.any()),
                steer_key: self.steer_key,
                addresses: vec![(ADDRESS, SIDE_OUTSIDE, 0), (INSIDE_ADDRESS, SIDE_INSIDE, 0)],
            },
            policies: self
                .peers
                .iter()
                .map(|peer| Policy {
                    lenient: self.lenient,
                    ..peer.policy(false)
                })
                .collect(),
            limits: self.limits,
            step_max: self.step_max,
            // A member's clock is some seconds ahead of another's, and some behind.
            clock: self.authenticates_anew().then(|| Clock {
                ahead: (self.steer_key[1] >> (8 * at)) % 4,
            }),
            ready: match (
                self.peers.iter().any(|p| p.per_resource.has_members()),
                self.peers.iter().any(|p| p.per_resource == PerResource::Both),
            ) {
                (false, _) => Vec::new(),
                (true, false) => vec![(0, READY)],
                (true, true) => (0..self.cpus[at]).map(|cpu| (cpu as u16, READY_ON_CPU)).collect(),
            },
            initiates: self
                .peers
                .iter()
                .filter(|p| !p.initiates)
                .map(|p| format!("peer{}", p.number))
                .collect(),
            sabotage,
        }
    }
}

fn range(base: u32, prefix_len: u32) -> TrafficSelector {
    TrafficSelector {
        first: IpAddr::V4(Ipv4Addr::from_bits(base)),
        last: IpAddr::V4(Ipv4Addr::from_bits(base | (u32::MAX >> prefix_len))),
        protocol: 0,
        first_port: 0,
        last_port: u16::MAX,
    }
}

impl PeerKind {
    fn draw(rng: &mut Rng, number: u8) -> Self {
        let suites = [
            "chacha20poly1305",
            "chacha20poly1305-esn",
            "aes128gcm16",
            "aes128gcm16-esn",
        ];
        let rekey = |rng: &mut Rng, low, high, chance| {
            rng.permille(chance)
                .then(|| Duration::from_millis(rng.range(low, high)))
        };
        Self {
            number,
            esp: rng.pick(&suites).copied().unwrap_or(suites[0]),
            window: rng.pick(&[32, 64, 1024]).copied().unwrap_or(64),
            initiates: rng.permille(600),
            encap: rng.permille(250),
            // From a stream of its own, so that seeds of before mean what they meant.
            per_resource: if rng.fork(9611 + u64::from(number)).permille(250) {
                PerResource::Cpu
            } else {
                PerResource::None
            },
            dpd: Duration::from_millis(700),
            child_rekey: rekey(rng, 1500, 5000, 600),
            ike_rekey: rekey(rng, 2500, 8000, 400),
            reauth: None,
            interval_us: [rng.range(2_000, 40_000), rng.range(2_000, 40_000)],
        }
    }

    fn connection(&self, at_peer: bool, resources: Vec<Resource>) -> Connection {
        let addresses = [ADDRESS, peer_address(self.number)].map(|a| IpAddr::V4(Ipv4Addr::from_bits(a)));
        let ids = ["@gateway".to_owned(), format!("@peer{}", self.number)];
        let (here, there) = if at_peer { (1, 0) } else { (0, 1) };
        let psk = SecretBytes::new(format!("secret of peer {}", self.number).into_bytes());
        let name = format!("peer{}", self.number);
        let mut connection = Connection::new(&name, addresses[here], Identity::parse(&ids[here]), psk);
        connection.remotes = vec![addresses[there]];
        connection.remote_id = Some(Identity::parse(&ids[there]));
        connection.dpd_delay = Some(self.dpd);
        connection.retransmit = Retransmit {
            initial: Duration::from_millis(250),
            factor_percent: 150,
            tries: 5,
        };
        connection.ike_proposals = Proposal::parse_ike("chacha20poly1305-prfsha256-x25519")
            .into_iter()
            .collect();
        // Each side rekeys: sometimes both at once.
        connection.ike_rekey_time = self.ike_rekey.filter(|_| at_peer == self.initiates);
        connection.child_rekey_time = self.child_rekey;
        connection.reauth_time = self.reauth;
        connection.rekey_jitter = Duration::from_millis(100);
        connection.force_encap = self.encap;
        connection.resources = resources;
        let (near, far) = self.selectors(at_peer);
        let mut child = if at_peer {
            ChildConfig::new("net", far, near)
        } else {
            ChildConfig::new("net", near, far)
        };
        child.esp_proposals = Proposal::parse_esp(self.esp).into_iter().collect();
        connection.children = vec![child];
        connection
    }

    /// The peer has a part of what the cluster offers: the selectors are narrowed.
    fn selectors(&self, at_peer: bool) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
        let far = frames::far_host(self.number) & 0xffff_ff00;
        (
            vec![range(0x0a01_0000, 16)],
            vec![range(far, if at_peer { 25 } else { 24 })],
        )
    }

    fn policy(&self, at_peer: bool) -> Policy {
        let (near, far) = self.selectors(at_peer);
        let (local, remote) = if at_peer { (far, near) } else { (near, far) };
        Policy {
            connection: format!("peer{}", self.number),
            child: "net".to_owned(),
            local,
            remote,
            action: PolicyAction::Protect,
            lenient: false,
            lifetimes: None,
            handling: sad::Handling::default(),
        }
    }

    /// The peer itself.
    pub fn peer(&self) -> PeerConfig {
        let resources = match self.per_resource {
            PerResource::None => Vec::new(),
            PerResource::Cpu => PerResource::Cpu.resources(PEER_CPUS, 0),
            // It does not refuse what all members and their CPUs ask for; several of these are on one CPU.
            PerResource::Member | PerResource::Both => PerResource::Cpu.resources(PEER_RESOURCES, 0),
        };
        PeerConfig {
            number: self.number,
            address: peer_address(self.number),
            engine: EngineConfig {
                connections: vec![self.connection(true, resources)],
                endpoint: EndpointConfig::new(SecretBytes::new(vec![8; 32])),
            },
            policies: vec![self.policy(true)],
            window: self.window,
            initiates: self.initiates,
            clock: self.reauth.map(|_| Clock { ahead: 0 }),
            cpus: if self.per_resource.any() { PEER_CPUS } else { 1 },
            per_cpu: self.per_resource.any(),
        }
    }
}
