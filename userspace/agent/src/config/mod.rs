//! The configuration file: TOML, read with the place of every value, checked as a whole.
//!
//! [`Config::read`] gives either a configuration that can be run or every problem of the file at once.

mod auth;
mod check;
pub mod diff;
mod extensions;
mod read;
mod read_auth;
mod read_child;
mod read_cluster;
mod read_dial;
mod read_policy;
mod read_pools;
mod reader;
mod remote;
mod selector;

pub(crate) use selector::prefixes;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ike::{Childless, MidSync, Proposal, Retransmit};
use ipnet::IpNet;
use model::{MemberId, SaMode, TrafficSelector};
use sad::lifetime::Lifetimes;
use sad::{Handling, PolicyAction};

pub use auth::{AuthKind, AuthorityFiles, CertificateFiles, KeySource, TokenKeyConfig};
pub use reader::Problem;
pub use remote::Remote;

/// What the owner does when its standby is gone (design: pair engine).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Solo {
    /// Serve on alone.
    Continue,
    /// Stop serving what needs a new acknowledgement.
    Stop,
}

/// How the segments are spread (RFC 6027 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterMode {
    /// One member owns all of them.
    HotStandby,
    /// Groups of segments are spread over the members by weight.
    LoadSharing,
}

impl ClusterMode {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::HotStandby => "hot-standby",
            Self::LoadSharing => "load-sharing",
        }
    }
}

/// Who settles ownership (design section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Two members among themselves.
    Pair,
    /// etcd.
    Etcd,
}

impl Engine {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pair => "pair",
            Self::Etcd => "etcd",
        }
    }
}

/// `[cluster.etcd]`.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// URLs with port.
    pub endpoints: Vec<String>,
    /// For https.
    pub tls: Option<EtcdTls>,
    /// Under which the keys are, without a slash at the end.
    pub prefix: String,
    /// A request that takes longer is given up.
    pub timeout: Duration,
}

/// Certificates for etcd.
#[derive(Clone, Debug)]
pub struct EtcdTls {
    /// Certificate authority of the etcd servers.
    pub ca: PathBuf,
    /// This member's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// Native XDP or nothing.
    Native,
    /// Generic XDP (slow; for drivers without native XDP).
    Generic,
    /// Native where the driver has it, else generic; the log says which.
    Auto,
}

/// `[[cluster.members]]`.
#[derive(Clone, Debug)]
pub struct MemberConfig {
    /// 1 to 16, also the first octet of every IV that this member sends.
    pub id: MemberId,
    /// For logs and tables.
    pub name: String,
    /// Synch link: address and UDP port.
    pub synch: SocketAddr,
    /// Heartbeat link over the outside network.
    pub outside: Option<SocketAddr>,
    /// Share in load sharing; 0: a pure standby.
    pub weight: u32,
}

/// `[cluster]`.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Name of the cluster; names pins and sockets.
    pub name: String,
    /// This member.
    pub member: MemberId,
    /// How the segments are spread.
    pub mode: ClusterMode,
    /// Who settles ownership.
    pub engine: Engine,
    /// Groups of segments: 1 in hot standby.
    pub groups: u8,
    /// Groups go home by themselves, this long after their member is in sync; `None`: by command.
    pub rebalance: Option<Duration>,
    /// The ownership engine, where it is etcd.
    pub etcd: Option<EtcdConfig>,
    /// Behaviour without a standby (pair engine).
    pub solo: Solo,
    /// Interval of heartbeats.
    pub heartbeat: Duration,
    /// Suspicion never comes sooner after the last heartbeat.
    pub suspicion_floor: Duration,
    /// Dead-man's switch T.
    pub dead_man: Duration,
    /// Newest format of the records on the synch channel that this member speaks.
    pub record_format: u8,
    /// The member that takes an unowned cluster (hot standby).
    pub preferred: MemberId,
    /// Folder with ca.crt, member-N.crt, member-N.key and cluster.secret.
    pub pki: PathBuf,
    /// All members, by id.
    pub members: Vec<MemberConfig>,
}

/// `[interfaces]`.
#[derive(Clone, Debug)]
pub struct InterfaceConfig {
    /// Interfaces towards the peers.
    pub outside: Vec<String>,
    /// Interfaces towards the protected networks.
    pub inside: Vec<String>,
    /// Virtual MAC address of the cluster addresses but for the last octet, which is the address's segment.
    pub virtual_mac: Option<[u8; 6]>,
    /// TUN device for what this host itself sends to a protected network.
    pub tun: String,
}

/// `[addresses]`.
#[derive(Clone, Debug)]
pub struct AddressConfig {
    /// Cluster addresses that peers talk to.
    pub outside: Vec<IpAddr>,
    /// Next hops of the protected networks.
    pub inside: Vec<IpAddr>,
}

/// `[data_plane]`.
#[derive(Clone, Debug)]
pub struct DataPlaneConfig {
    /// The BPF object.
    pub object: PathBuf,
    /// bpffs folder.
    pub pin_dir: PathBuf,
    /// SA slots of the cluster.
    pub slots: u32,
    /// How to attach.
    pub mode: AttachMode,
    /// CPUs that serve SAs; all online CPUs where not given.
    pub cpus: Option<u32>,
}

/// `[control]`.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Unix socket of the control interface.
    pub socket: PathBuf,
    /// Where /metrics is served; nowhere if not given.
    pub metrics: Option<SocketAddr>,
}

/// Who begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The owner initiates at once.
    Initiate,
    /// The owner initiates when a packet meets a policy without SA.
    Trap,
    /// The peer initiates.
    Passive,
}

/// What becomes of a connection that was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLoss {
    /// Its SAs go; the peer, or an operator, begins again.
    Clear,
    /// The next packet that meets one of its policies begins again.
    Trap,
    /// It is begun again at once.
    Restart,
}

impl AfterLoss {
    /// As in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clear => "clear",
            Self::Trap => "trap",
            Self::Restart => "restart",
        }
    }
}

/// Pauses between attempts to set up a connection: they double with every round over the peer's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// After the first round.
    pub first: Duration,
    /// The longest.
    pub most: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            first: Duration::from_secs(2),
            most: Duration::from_secs(60),
        }
    }
}

/// Who begins, and what happens after a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Who begins.
    pub start: Start,
    /// Liveness check after this much silence; none where not given.
    pub dpd_delay: Option<Duration>,
    /// After the peer fell silent.
    pub dpd_action: AfterLoss,
    /// After the peer deleted the IKE SA.
    pub close_action: AfterLoss,
    /// Pauses between attempts.
    pub retry: Retry,
}

/// Extensions of IKEv2, keys of `[[connections]]` (docs/IKE.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extensions {
    /// Quick crash detection (RFC 6290).
    pub crash_detection: bool,
    /// Session resumption (RFC 5723).
    pub resumption: bool,
    /// Synchronisation after a failover, of this cluster or of the peer's (RFC 6311).
    pub cluster_sync: bool,
    /// When the peer is asked to synchronise Message IDs.
    pub mid_sync: MidSync,
    /// Further Child SAs beside the one that all may use (RFC 9611).
    pub per_resource: PerResource,
    /// IKE SAs that are set up without a Child SA (RFC 6023).
    pub childless: Childless,
    /// IKE requests under way at the same time, in each direction.
    pub window: u32,
    /// New clients are sent to this gateway (RFC 5685).
    pub redirect: Option<IpAddr>,
    /// As a client, the gateway is followed to where it sends us (RFC 5685).
    pub follow_redirects: bool,
}

/// What a connection has Child SAs of its own for (RFC 9611).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PerResource {
    /// Nothing: one Child SA for all.
    #[default]
    None,
    /// Each CPU that has traffic.
    Cpu,
    /// Each other member that owns segments.
    Member,
    /// Each CPU that has traffic, and each CPU of each other member.
    Both,
}

impl PerResource {
    /// Whether other members get some.
    pub const fn has_members(self) -> bool {
        matches!(self, Self::Member | Self::Both)
    }

    /// Whether CPUs get some.
    pub const fn has_cpus(self) -> bool {
        matches!(self, Self::Cpu | Self::Both)
    }
}

impl Default for Extensions {
    fn default() -> Self {
        Self {
            crash_detection: true,
            resumption: true,
            cluster_sync: true,
            mid_sync: MidSync::Never,
            per_resource: PerResource::None,
            childless: Childless::Allow,
            window: 1,
            redirect: None,
            follow_redirects: true,
        }
    }
}

/// `[[pools]]`: virtual addresses for peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Unique name.
    pub name: String,
    /// All addresses of it but for its own and broadcasts.
    pub network: IpNet,
}

impl PoolConfig {
    /// All its addresses as a selector.
    pub fn selector(&self) -> TrafficSelector {
        TrafficSelector {
            first: self.network.network(),
            last: self.network.broadcast(),
            protocol: 0,
            first_port: 0,
            last_port: u16::MAX,
        }
    }
}

/// A post-quantum pre-shared key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PpkConfig {
    /// Its name, which the peer knows.
    pub id: String,
    /// File with the key.
    pub file: PathBuf,
    /// A peer that does not use it is refused.
    pub required: bool,
}

/// `[[connections]]`.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Unique name.
    pub name: String,
    /// Cluster address.
    pub local: IpAddr,
    /// Further ones, which it may change to while it is up (RFC 4555), where we initiate it.
    pub further_locals: Vec<IpAddr>,
    /// Where the peer is, in the order in which it is tried; empty for anywhere.
    pub remotes: Vec<Remote>,
    /// How we prove who we are.
    pub local_auth: AuthKind,
    /// How the peer has to.
    pub remote_auth: AuthKind,
    /// Our identity; `None`: the subject of our certificate.
    pub local_id: Option<String>,
    /// The peer's identity, `any`, or a pattern.
    pub remote_id: String,
    /// File with the pre-shared key, where a side uses one.
    pub psk_file: Option<PathBuf>,
    /// Our certificate, where we prove ourselves by one.
    pub certificate: Option<CertificateFiles>,
    /// Whose certificates are believed, where the peer proves itself by one.
    pub authorities: Option<AuthorityFiles>,
    /// Names and passwords, where the peer proves itself by EAP.
    pub eap_users: Option<PathBuf>,
    /// IKE proposals, best first.
    pub ike: Vec<Proposal>,
    /// Who begins, and what happens after a loss.
    pub dial: Dial,
    /// IKE SA rekey; none where not given.
    pub rekey_time: Option<Duration>,
    /// Reauthentication; none where not given.
    pub reauth_time: Option<Duration>,
    /// Both happen up to this much earlier, at random.
    pub rekey_jitter: Duration,
    /// Retransmission of requests.
    pub retransmit: Retransmit,
    /// UDP encapsulation even without a NAT.
    pub force_encap: bool,
    /// Post-quantum pre-shared key (RFC 8784).
    pub ppk: Option<PpkConfig>,
    /// What is used beyond RFC 7296, where the peer has it too.
    pub extensions: Extensions,
    /// IKE fragmentation (RFC 7383).
    pub fragmentation: bool,
    /// Longest IP packets of fragmented IKE messages.
    pub fragment_size: u16,
    /// A peer that initiated may change its address (RFC 4555).
    pub mobike: bool,
    /// Pools that the peer gets virtual addresses of; empty: it has addresses of its own.
    pub pools: Vec<PoolConfig>,
    /// Name servers for such a peer.
    pub dns: Vec<IpAddr>,
    /// Domains that they are for; empty: all.
    pub dns_domains: Vec<String>,
    /// Child SAs.
    pub children: Vec<ChildConfig>,
}

/// `[[connections.children]]`.
#[derive(Clone)]
pub struct ChildConfig {
    /// Name, unique in the connection.
    pub name: String,
    /// Our side.
    pub local_ts: Vec<TrafficSelector>,
    /// The peer's side.
    pub remote_ts: Vec<TrafficSelector>,
    /// ESP proposals, best first.
    pub esp: Vec<Proposal>,
    /// Rekey after this time; none where not given.
    pub rekey_time: Option<Duration>,
    /// Outer headers, sizes, and what happens while there is no SA.
    pub handling: Handling,
    /// End by age; rekey and end by octets and packets.
    pub lifetimes: Lifetimes,
    /// Tunnel, or transport between the connection's two addresses.
    pub mode: SaMode,
    /// After a takeover, what came above the last edge that the old owner has told of is accepted, though it may be a replay.
    pub lenient: bool,
    /// Whether the peer may pad packets against traffic analysis (RFC 4303 2.7); never in transport mode.
    pub tfc_padding: bool,
}

/// Members compare what this says. The mode is said only where it is not tunnel, anti-replay only where it is not strict, padding only where
/// it is refused: members that are still to be upgraded know no other.
impl fmt::Debug for ChildConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("ChildConfig");
        out.field("name", &self.name)
            .field("local_ts", &self.local_ts)
            .field("remote_ts", &self.remote_ts)
            .field("esp", &self.esp)
            .field("rekey_time", &self.rekey_time)
            .field("handling", &self.handling)
            .field("lifetimes", &self.lifetimes);
        if self.mode != SaMode::Tunnel {
            out.field("mode", &self.mode);
        }
        if self.lenient {
            out.field("anti_replay", &"lenient");
        }
        if !self.tfc_padding && self.mode == SaMode::Tunnel {
            out.field("tfc_padding", &"refuse");
        }
        out.finish()
    }
}

/// `[[policies]]`: what is neither protected nor left to the host.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// Unique name.
    pub name: String,
    /// Bypass or discard.
    pub action: PolicyAction,
    /// Inner sources; ports are source ports.
    pub source: Vec<TrafficSelector>,
    /// Inner destinations; ports are destination ports.
    pub destination: Vec<TrafficSelector>,
}

/// A configuration that passed every check.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[cluster]`.
    pub cluster: ClusterConfig,
    /// `[interfaces]`.
    pub interfaces: InterfaceConfig,
    /// `[addresses]`.
    pub addresses: AddressConfig,
    /// `[data_plane]`.
    pub data_plane: DataPlaneConfig,
    /// `[control]`.
    pub control: ControlConfig,
    /// `[[pools]]`.
    pub pools: Vec<PoolConfig>,
    /// `[[connections]]`, in the order of the file; the index plus one is the counter index.
    pub connections: Vec<ConnectionConfig>,
    /// `[[policies]]`, in the order of the file.
    pub policies: Vec<PolicyConfig>,
}

impl Config {
    /// Reads `source`; relative paths count from `base`. Files that the configuration names are checked too.
    ///
    /// # Errors
    /// Every problem, by place.
    pub fn read(source: &str, base: &Path) -> Result<Config, Vec<Problem>> {
        read::read(source, base, check::Files::Check)
    }

    /// As [`Config::read`], without looking at the files that the configuration names (keys, object).
    ///
    /// # Errors
    /// Every problem, by place.
    pub fn read_without_files(source: &str, base: &Path) -> Result<Config, Vec<Problem>> {
        read::read(source, base, check::Files::Trust)
    }

    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or all its problems, one a line with `path:line:column`.
    pub fn load(path: &Path) -> anyhow::Result<Config> {
        let source = std::fs::read_to_string(path).map_err(|error| {
            anyhow::anyhow!(
                "cannot read the configuration {}: {error}; check the path and its mode",
                path.display()
            )
        })?;
        let base = path.parent().unwrap_or(Path::new("."));
        Config::read(&source, base).map_err(|problems| {
            let lines = problems
                .iter()
                .map(|p| format!("{}:{p}", path.display()))
                .collect::<Vec<_>>();
            anyhow::anyhow!("{}", lines.join("\n"))
        })
    }

    /// This member.
    pub fn me(&self) -> &MemberConfig {
        self.cluster
            .members
            .iter()
            .find(|m| m.id == self.cluster.member)
            .expect("checked when read")
    }

    /// The other members.
    pub fn others(&self) -> impl Iterator<Item = &MemberConfig> {
        self.cluster
            .members
            .iter()
            .filter(|m| m.id != self.cluster.member)
    }

    /// Addresses of peers, each once; those that have names not among them.
    pub fn peers(&self) -> std::collections::BTreeSet<IpAddr> {
        let remotes = self.connections.iter().flat_map(|c| &c.remotes);
        remotes.filter_map(Remote::address).collect()
    }

    /// Whether any address or selector is IPv6.
    pub fn carries_v6(&self) -> bool {
        let children = self.connections.iter().flat_map(|c| &c.children);
        let policies = self.policies.iter();
        let selectors = children
            .flat_map(|c| c.local_ts.iter().chain(&c.remote_ts))
            .chain(policies.flat_map(|p| p.source.iter().chain(&p.destination)));
        let addresses = self.addresses.outside.iter().chain(&self.addresses.inside);
        addresses
            .copied()
            .chain(selectors.map(|ts| ts.first))
            .any(|a| a.is_ipv6())
    }

    /// Counter index of a connection (0 where the name is not configured).
    pub fn connection_index(&self, name: &str) -> u16 {
        self.connections
            .iter()
            .position(|c| c.name == name)
            .map_or(0, |i| i as u16 + 1)
    }
}

#[cfg(test)]
mod tests;
