//! Brings everything up, in the order in which it is needed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result};
use cluster::{EngineKind, Layout, Node, NodeConfig};
use dataplane::{Mode, ObjectSource, Options, Plane, XdpModeUsed};
use ike::Engine;
use maps_schema::steer::{AddressKey, ClusterAddress, Local, SIDE_INSIDE, SIDE_OUTSIDE};
use model::{Incarnation, SecretBytes, SegmentId};
use rtnetlink::Handle;
use sad::{DataPlane, Sad, Settings};
use tokio::sync::mpsc;
use tun_rs::AsyncDevice;

use super::command::Wishes;
use super::groups::Groups;
use super::health::Health;
use super::limits::Scan;
use super::member::Facts;
use super::orders::Orders;
use super::{Core, around, capabilities, convert, digest, engine, slow, snapshot, timeline};
use crate::api::InterfaceStatus;
use crate::clock;
use crate::config::{self, AttachMode, ClusterMode, Config, Solo};
use crate::events::EventLog;
use crate::net::announce::Announcer;
use crate::net::socket::{EspSocket, IKE_PORT, IkeSockets, NAT_T_PORT};
use crate::net::{self, Interface, sysctl, tun};
use crate::pki::Identity;
use crate::synch::{LinkId, Synch, SynchConfig, SynchEvent};

/// What the event loop waits on; the core holds the rest.
pub struct Io {
    pub sockets: Rc<IkeSockets>,
    pub esp: EspSocket,
    pub tun: AsyncDevice,
    pub netlink: Handle,
    /// What the ownership engine says.
    pub ownership: mpsc::Receiver<ownership::Told>,
    /// How the interfaces are.
    pub links: mpsc::Receiver<net::watch::LinkNews>,
    /// What was made of snapshots beside the core loop.
    pub snapshots: mpsc::UnboundedReceiver<snapshot::Made>,
}

/// The pins of a data plane whose member does not come up are removed, and with them the programs.
struct Pins(Option<PathBuf>);

impl Pins {
    /// It has come up.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Some(folder) = &self.0
            && let Err(error) = dataplane::remove_pins(folder)
        {
            tracing::warn!(folder = %folder.display(), %error, "the pins were not removed");
        }
    }
}

/// How long a member listens for the other one before it begins alone.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(1000);
/// The MTU of the TUN device is the smallest: what this host sends itself fits without fragments.
const TUN_MTU: u32 = 1400;

fn local(config: &Config, steer_key: [u64; 2], outside: &Interface, inside: &Interface) -> Local {
    let inside_address = config.addresses.inside.first().map(|a| IpAddr::V4(*a));
    Local {
        steer_key,
        member: u32::from(config.cluster.member.0),
        cpus: 0,
        slots: 0,
        outside_ifindex: outside.index,
        inside_ifindex: inside.index,
        outside_mac: outside.mac,
        inside_mac: inside.mac,
        outside_mtu: outside.mtu,
        nat_t_port: NAT_T_PORT,
        ike_port: IKE_PORT,
        inside_address: inside_address.map_or([0; 16], model::address::mapped),
    }
}

/// Outside cluster addresses with the segments that they belong to: by their place in the configuration, which is the
/// same on all members.
pub fn outside_addresses(config: &Config) -> impl Iterator<Item = (SegmentId, Ipv4Addr)> {
    placed(0, &config.addresses.outside)
}

/// Inside cluster addresses with the segments that they belong to.
pub fn inside_addresses(config: &Config) -> impl Iterator<Item = (SegmentId, Ipv4Addr)> {
    placed(128, &config.addresses.inside)
}

fn placed(base: u8, addresses: &[Ipv4Addr]) -> impl Iterator<Item = (SegmentId, Ipv4Addr)> {
    let place = move |(at, address): (usize, &Ipv4Addr)| (SegmentId(base.wrapping_add(at as u8)), *address);
    addresses.iter().enumerate().map(place)
}

fn addresses(config: &Config) -> Vec<(AddressKey, ClusterAddress)> {
    let entry = |side: u8, (segment, address): (SegmentId, Ipv4Addr)| {
        let key = AddressKey {
            address: model::address::mapped(IpAddr::V4(address)),
        };
        let value = ClusterAddress {
            side,
            segment: segment.0,
            reserved: [0; 2],
        };
        (key, value)
    };
    let outside = outside_addresses(config).map(|placed| entry(SIDE_OUTSIDE, placed));
    let inside = inside_addresses(config).map(|placed| entry(SIDE_INSIDE, placed));
    outside.chain(inside).collect()
}

fn mode_name(mode: XdpModeUsed) -> String {
    format!("{mode:?}").to_lowercase()
}

/// Raises the priority of this thread and locks memory, as far as it is permitted.
fn privileges(log: &mut EventLog) {
    let parameter = libc::sched_param { sched_priority: 10 };
    // SAFETY: the parameter lives through the call; 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameter) } != 0 {
        let error = std::io::Error::last_os_error();
        log.warn(
            "priority",
            format!("no real-time priority ({error}): a busy host may delay heartbeats"),
        );
    }
    // SAFETY: plain system call without pointers.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "memory is not locked");
    }
}

fn node_config(config: &Config, identity: &Identity, incarnation: u64, facts: Facts) -> Result<NodeConfig> {
    let cluster = &config.cluster;
    let weight = |m: &crate::config::MemberConfig| match cluster.mode {
        ClusterMode::HotStandby => u32::from(m.id == cluster.preferred),
        ClusterMode::LoadSharing => m.weight,
    };
    Ok(NodeConfig {
        me: cluster.member,
        incarnation: Incarnation(incarnation),
        members: cluster.members.iter().map(|m| (m.id, weight(m))).collect(),
        layout: Layout::new(cluster.groups),
        engine: match cluster.engine {
            config::Engine::Pair => EngineKind::Pair {
                solo: match cluster.solo {
                    Solo::Continue => cluster::Solo::Continue,
                    Solo::Stop => cluster::Solo::Stop,
                },
            },
            config::Engine::Etcd => EngineKind::External,
        },
        heartbeat: cluster.heartbeat,
        suspicion_floor: cluster.suspicion_floor,
        dead_man: cluster.dead_man,
        settle: SETTLE.max(cluster.suspicion_floor * 5),
        rebalance: cluster.rebalance,
        policy: digest::policy(config, identity)?,
        facts: postcard::to_stdvec(&facts).context("cannot encode this member's facts")?,
    })
}

fn synch_config(config: &Config) -> SynchConfig {
    let me = config.me();
    let mut listen = vec![(LinkId::Synch, me.synch)];
    listen.extend(me.outside.map(|address| (LinkId::Outside, address)));
    let mut peers = Vec::new();
    for other in config.others() {
        peers.push((other.id, LinkId::Synch, other.synch));
        peers.extend(other.outside.map(|address| (other.id, LinkId::Outside, address)));
    }
    SynchConfig {
        cluster: config.cluster.name.clone(),
        me: me.id,
        listen,
        peers,
        // Suspicion is the detector's business; this only cleans up.
        idle: std::time::Duration::from_secs(2).max(config.cluster.suspicion_floor * 4),
    }
}

impl Core {
    /// Brings the member up; it owns nothing yet.
    pub(super) async fn start(
        config: Config,
        identity: &Identity,
        events: mpsc::Sender<SynchEvent>,
    ) -> Result<(Self, Io)> {
        let now = clock::now();
        let mut log = EventLog::default();
        capabilities::check()?;
        privileges(&mut log);
        let netlink = net::netlink()?;
        let outside = net::interface(&netlink, &config.interfaces.outside).await?;
        let inside = net::interface(&netlink, &config.interfaces.inside).await?;
        sysctl::prepare(&[&outside.name, &inside.name])?;
        for address in config.addresses.outside.iter().chain(&config.addresses.inside) {
            net::add_cluster_address(&netlink, *address).await?;
        }
        for interface in [&outside, &inside] {
            if !net::has_own_address(&netlink, interface).await {
                log.warn(
                    "address",
                    format!(
                        "{} has no address of its own: its neighbours cannot be resolved",
                        interface.name
                    ),
                );
            }
        }
        let device = tun::open(&config.interfaces.tun, outside.mtu.min(TUN_MTU) as u16)?;
        let tun_index = net::interface(&netlink, &config.interfaces.tun).await?.index;
        sysctl::prepare_tun(&config.interfaces.tun)?;
        let source = config.addresses.inside.first().copied();
        for selector in config
            .connections
            .iter()
            .flat_map(|c| &c.children)
            .flat_map(|c| &c.remote_ts)
        {
            for prefix in crate::config::prefixes(selector) {
                if prefix.1 == 0 {
                    log.note(
                        "route",
                        "remote selector 0.0.0.0/0: this host's own traffic stays on its default route",
                    );
                    continue;
                }
                net::route_to_tun(&netlink, tun_index, prefix, source).await?;
            }
        }

        let secret = identity.derive("steering");
        let word = |at: usize| u64::from_le_bytes(secret[at..at + 8].try_into().unwrap_or_default());
        let steer_key = [word(0), word(8)];
        let mut options = Options::new(
            ObjectSource::Path(config.data_plane.object.clone()),
            &config.data_plane.pin_dir,
            outside.index,
            inside.index,
        );
        options.slots = config.data_plane.slots;
        if let Some(cpus) = config.data_plane.cpus {
            options.cpus = cpus;
        }
        options.mode = match config.data_plane.mode {
            AttachMode::Native => Mode::Driver,
            AttachMode::Generic => Mode::Generic,
            AttachMode::Auto => Mode::DriverPreferred,
        };
        // Before the data plane, so that it goes after it.
        let mut pins = Pins(None);
        let mut plane = Plane::load(&options).with_context(|| {
            format!(
                "cannot load the data plane {}",
                config.data_plane.object.display()
            )
        })?;
        pins.0 = Some(options.pin_dir.clone());
        plane.set_local(&local(&config, steer_key, &outside, &inside))?;
        for (key, address) in addresses(&config) {
            plane.put_address(&key, &address)?;
        }

        let mut generation = [0];
        around::random(&mut generation);
        let mut sad = Sad::new(Settings {
            member: config.cluster.member,
            max_slots: options.slots,
            first_generation: generation[0],
            outside_mtu: outside.mtu as u16,
            detection: config.cluster.suspicion_floor + config.cluster.heartbeat,
            lifetimes: sad::lifetime::Lifetimes::default(),
        });
        let plan = sad
            .configure(convert::policies(&config))
            .context("the connections' selectors do not fit")?;
        plane.execute(&plan).context("cannot write the policies")?;

        let cookie = SecretBytes::new(identity.derive("ike cookie").to_vec());
        let engine = Engine::new(convert::engine(&config, cookie)?);
        let sockets = Rc::new(IkeSockets::open(&config.addresses.outside)?);
        let esp = EspSocket::open()?;
        let announcer =
            Announcer::open().context("cannot open a raw socket for announcements; run as root")?;

        let synch = Synch::start(&synch_config(&config), identity, events)
            .context("cannot start the synch channel")?;

        // Last: from here on packets meet the programs.
        let report = plane.attach().context("cannot attach the programs")?;
        let attached = vec![
            interface_status(&outside, "outside", report.outside),
            interface_status(&inside, "inside", report.inside),
        ];
        for interface in &attached {
            log.note(
                "attached",
                format!(
                    "{} {}: XDP in {} mode",
                    interface.side, interface.name, interface.mode
                ),
            );
        }
        // New at every start, and rising, whatever happens to the host's uptime.
        let incarnation = clock::wall_ns();
        let facts = Facts {
            outside_mac: outside.mac,
            inside_mac: inside.mac,
        };
        let (told, ownership) = mpsc::channel(256);
        let ownership_engine = engine::start(&config, told)?;
        let (made, snapshots) = mpsc::unbounded_channel();
        let (told, links) = mpsc::channel(16);
        net::watch::start(vec![outside.index, inside.index], told)?;
        let groups = Groups::new(Layout::new(config.cluster.groups), config.cluster.member);
        let node = Node::new(node_config(&config, identity, incarnation, facts)?, clock::now());
        pins.keep();
        let core = Core {
            me: config.cluster.member,
            steer_key,
            started: now,
            incarnation,
            log,
            engine,
            sad,
            runner: plane.runner(),
            counters: plane.reader(),
            segments: plane.segments(),
            node,
            synch,
            facts: HashMap::new(),
            deferred: VecDeque::new(),
            settling: false,
            next_token: 0,
            plane,
            attached,
            sockets: sockets.clone(),
            announcer,
            outside,
            inside,
            mirror: BTreeMap::new(),
            groups,
            slow: slow::Waiting::default(),
            takeover: timeline::Takeovers::default(),
            wishes: Wishes::default(),
            merging: VecDeque::new(),
            snapshots: snapshot::Snapshots::new(made),
            scan: Scan::default(),
            health: Health::default(),
            ownership_engine,
            listings: Vec::new(),
            contacts: HashMap::new(),
            late: Vec::new(),
            acquired: HashMap::new(),
            redial: HashMap::new(),
            reasons: HashMap::new(),
            policy_warned: BTreeMap::new(),
            orders: Orders::default(),
            refused: HashMap::new(),
            reported: HashMap::new(),
            ike_events: BTreeMap::new(),
            config,
        };
        Ok((
            core,
            Io {
                sockets,
                esp,
                tun: device,
                netlink,
                ownership,
                links,
                snapshots,
            },
        ))
    }
}

fn interface_status(interface: &Interface, side: &str, mode: XdpModeUsed) -> InterfaceStatus {
    InterfaceStatus {
        name: interface.name.clone(),
        side: side.to_owned(),
        mode: mode_name(mode),
        mtu: interface.mtu,
    }
}
