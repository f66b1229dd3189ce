//! Brings everything up, in the order in which it is needed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result};
use cluster::{EngineKind, Layout, Node, NodeConfig};
use dataplane::{ObjectSource, Options, Plane, XdpModeUsed};
use ike::Engine;
use maps_schema::steer::{Local, SIDE_INSIDE};
use model::{Incarnation, SaMode, TrafficSelector};
use rtnetlink::Handle;
use sad::{DataPlane, Sad, Settings};
use tokio::sync::mpsc;
use tun_rs::AsyncDevice;

use super::certificates::Certificates;
use super::children::Children;
use super::command::Wishes;
use super::groups::Groups;
use super::guests::MemberSas;
use super::health::Health;
use super::keep::{self, Kept, NotTakenUp};
use super::member::Facts;
use super::names::Names;
use super::orders::Orders;
use super::reload::{self, Reload};
use super::scan::Scan;
use super::stops::Stops;
use super::suspects::Suspects;
use super::{
    Core, around, capabilities, convert, devices, early, engine, forks, held, path, secrets, slow, snapshot,
    timeline,
};
use crate::api::InterfaceStatus;
use crate::clock;
use crate::config::{self, ClusterMode, Config, Solo};
use crate::credentials::signer::{Done, Signer};
use crate::events::EventLog;
use crate::exchange::Computers;
use crate::net::announce::Announcer;
use crate::net::ports::Ports;
use crate::net::resolve::{Answer, Resolver};
use crate::net::socket::{EspSocket, IKE_PORT, IkeSockets, NAT_T_PORT};
use crate::net::{self, Interface, sysctl, tun, vlan};
use crate::pki::Identity;
use crate::synch::{LinkId, Synch, SynchConfig, SynchEvent};

/// What the event loop waits on; the core holds the rest.
pub struct Io {
    pub sockets: Rc<IkeSockets>,
    pub esp: EspSocket,
    pub tun: Rc<AsyncDevice>,
    pub netlink: Handle,
    /// What the ownership engine says.
    pub ownership: mpsc::Receiver<ownership::Told>,
    /// How the interfaces are.
    pub network: mpsc::Receiver<net::hints::NetEvent>,
    /// What was made of snapshots beside the core loop.
    pub snapshots: mpsc::UnboundedReceiver<snapshot::Made>,
    /// What comes back of reloads.
    pub reloads: mpsc::UnboundedReceiver<reload::Told>,
    /// What the kernel says of interfaces and programs.
    pub seen: mpsc::UnboundedReceiver<dataplane::Seen>,
    /// Signatures that the engine waits for.
    pub signed: mpsc::UnboundedReceiver<Done>,
    /// Key exchanges that the engine waits for.
    pub computed: mpsc::UnboundedReceiver<Vec<ike::Computed>>,
    /// What names of peers lead to.
    pub named: mpsc::UnboundedReceiver<Answer>,
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

pub fn local(config: &Config, steer_key: [u64; 2], ports: &Ports) -> Local {
    let inside = |v6: bool| {
        let mut inside = config.addresses.inside.iter().copied();
        let found = inside.find(|address| address.is_ipv6() == v6);
        found.map_or([0; 16], model::address::mapped)
    };
    Local {
        steer_key,
        member: u32::from(config.cluster.member.0),
        cpus: 0,
        slots: 0,
        own_device: ports.own_device(),
        outside_mtu: ports.outside_mtu(),
        nat_t_port: NAT_T_PORT,
        ike_port: IKE_PORT,
        inside_address: inside(false),
        inside_address_v6: inside(true),
        virtual_mac: ports.virtual_mac.unwrap_or_default(),
        reserved: [0; 2],
    }
}

fn mode_name(mode: XdpModeUsed) -> String {
    format!("{mode:?}").to_lowercase()
}

/// Real-time priority of the core loop: below the workers that run frames, whose answer it waits for.
const PRIORITY: i32 = dataplane::WORKER_PRIORITY - 1;

/// Raises the priority of this thread and locks memory, as far as it is permitted.
fn privileges(log: &mut EventLog) {
    if let Err(error) = dataplane::real_time(PRIORITY) {
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

fn node_config(config: &Config, incarnation: u64) -> NodeConfig {
    let cluster = &config.cluster;
    let weight = |m: &crate::config::MemberConfig| match cluster.mode {
        ClusterMode::HotStandby => u32::from(m.id == cluster.preferred),
        ClusterMode::LoadSharing => m.weight,
    };
    NodeConfig {
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
        // Given to the node once it is there.
        policy: BTreeMap::new(),
        facts: Vec::new(),
    }
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
        file: &Path,
        identity: &Identity,
        events: mpsc::Sender<SynchEvent>,
    ) -> Result<(Self, Io)> {
        let now = clock::now();
        let mut log = EventLog::default();
        capabilities::check()?;
        let netlink = net::netlink()?;
        let ports = Ports::find(&netlink, &config.interfaces).await?;
        sysctl::prepare(ports.all())?;
        if config.carries_v6() {
            sysctl::prepare_v6()?;
        }
        for address in config.addresses.outside.iter().chain(&config.addresses.inside) {
            net::add_cluster_address(&netlink, *address).await?;
        }
        for interface in ports.all() {
            if let Err(problem) = vlan::prepare(interface) {
                log.warn("vlan", problem);
            }
            if interface.networks.is_empty() {
                log.warn(
                    "address",
                    format!(
                        "{} has no address of its own: its neighbours cannot be resolved",
                        interface.name
                    ),
                );
            }
        }
        let device = Rc::new(tun::open(
            &config.interfaces.tun,
            ports.outside_mtu().min(TUN_MTU) as u16,
        )?);
        let tun_index = net::interface(&netlink, &config.interfaces.tun).await?.index;
        sysctl::prepare_tun(&config.interfaces.tun)?;
        for selector in config
            .connections
            .iter()
            .flat_map(|c| &c.children)
            .filter(|child| child.mode == SaMode::Tunnel)
            .flat_map(|c| &c.remote_ts)
        {
            for prefix in crate::config::prefixes(selector) {
                if prefix.1 == 0 {
                    log.note(
                        "route",
                        "remote selector of all addresses: this host's own traffic stays on its default route",
                    );
                    continue;
                }
                net::route_to_tun(&netlink, tun_index, prefix, &config.addresses.inside).await?;
            }
        }
        let transport = transport_pairs(&config);
        net::own::route(&netlink, tun_index, &transport).await?;

        let steer_key = secrets::steer_key(&identity.secrets.active);
        let mut options = Options::new(
            ObjectSource::Path(config.data_plane.object.clone()),
            &config.data_plane.pin_dir,
            0,
            0,
        );
        (options.outside, options.inside) = ports.devices();
        options.slots = config.data_plane.slots;
        if let Some(cpus) = config.data_plane.cpus {
            options.cpus = cpus;
        }
        options.mode = ports.mode(config.data_plane.mode)?;
        // Before the data plane, so that it goes after it.
        let mut pins = Pins(None);
        let mut groups = Groups::new(Layout::new(config.cluster.groups), config.cluster.member);
        let (mut plane, mut kept) = load(&config, identity, &mut options, &groups, &mut log)?;
        pins.0 = Some(options.pin_dir.clone());
        plane.set_local(&local(&config, steer_key, &ports))?;
        plane.set_ports(&ports.table())?;
        for (key, address) in ports.addresses(&config.addresses) {
            plane.put_address(&key, &address)?;
        }
        let addresses = ports.addresses(&config.addresses);
        plane.clear_tables(&addresses.into_iter().map(|(key, _)| key).collect::<Vec<_>>())?;

        let mut generation = [0];
        around::random(&mut generation);
        let mut sad = Sad::new(Settings {
            member: config.cluster.member,
            max_slots: options.slots,
            cpus: options.cpus,
            first_generation: generation[0],
            outside_mtu: ports.outside_mtu() as u16,
            detection: config.cluster.suspicion_floor + config.cluster.heartbeat,
            lifetimes: sad::lifetime::Lifetimes::default(),
        });
        let plan = sad
            .configure(convert::policies(&config))
            .context("the connections' selectors do not fit")?;
        match &mut kept {
            // Packets go through these maps: they get what is new, and lose what is gone, in one pass.
            Some(kept) => kept
                .restore(&mut sad, &mut plane)
                .context("cannot go on with the SAs of the life before")?,
            None => plane.execute(&plan).context("cannot write the policies")?,
        }

        let policies = secrets::Policies::of(&config, &identity.secrets)?;
        let made = convert::make(&config, secrets::endpoint(&identity.secrets), options.cpus)?;
        let mut engine = Engine::new(made.engine);
        engine.exchange_beside();
        let (done, signed) = mpsc::unbounded_channel();
        let signer = Signer::start(made.keys, made.tls, done)?;
        let (done, computed) = mpsc::unbounded_channel();
        let computers = Computers::start(done)?;
        let sockets = Rc::new(IkeSockets::open(&config.addresses.outside)?);
        let esp = EspSocket::open()?;
        let mut announcer =
            Announcer::open().context("cannot open a raw socket for announcements; run as root")?;
        ports
            .join(&mut announcer, &config.addresses)
            .context("cannot join the groups that neighbour solicitations go to")?;
        ports.accept_virtual(&netlink, &config.addresses).await?;

        let synch = Synch::start(&synch_config(&config), identity, events)
            .context("cannot start the synch channel")?;

        // Last: from here on packets meet the programs.
        let report = plane.attach().context("cannot attach the programs")?;
        let attached = ports
            .numbered()
            .map(|(_, side, port)| interface_status(port, side, report.mode(port.parent)))
            .collect::<Vec<_>>();
        let is_generic = |port: &&Interface| report.mode(port.parent) == XdpModeUsed::Generic;
        let generic = ports.all().filter(is_generic).map(|port| port.parent).collect();
        for interface in &attached {
            let text = format!(
                "{} {}: XDP in {} mode",
                interface.side, interface.name, interface.mode
            );
            if interface.mode == "generic" {
                log.warn("attached", format!("{text}, which is slow: see data_plane.mode"));
            } else {
                log.note("attached", text);
            }
        }
        for (_, _, port) in ports.numbered() {
            devices::prepare(port, report.mode(port.parent), &mut log);
        }
        // Not before: the kernel takes half a second of a CPU to verify the programs, and nobody waits for that.
        privileges(&mut log);
        // New at every start, and rising, whatever happens to the host's uptime.
        let incarnation = clock::wall_ns();
        let facts = Facts {
            macs: ports.macs(),
            secrets: identity.secrets.ids(),
            fates: BTreeMap::new(),
        };
        let (told, ownership) = mpsc::channel(256);
        let ownership_engine = engine::start(&config, told)?;
        let (copies, snapshots) = mpsc::unbounded_channel();
        let (devices, seen) =
            devices::start(plane.watch()).context("cannot start the thread that watches interfaces")?;
        let (told_of_reload, reloads) = mpsc::unbounded_channel();
        let reload = Reload::new(
            file,
            &config,
            told_of_reload,
            netlink.clone(),
            tun_index,
            options.cpus,
        )?;
        let peers = config.peers();
        let outside_addresses = config.addresses.outside.iter().copied();
        let health = Health::watching(peers.len());
        let wanted = net::hints::Watch {
            interfaces: ports.all().map(|port| port.name.clone()).collect(),
            addresses: outside_addresses
                .chain(config.addresses.inside.iter().copied())
                .collect(),
            destinations: peers.into_iter().collect(),
        };
        let network = net::hints::watch_changing(wanted, reload.peers()).await?;
        let mut node = Node::new(node_config(&config, incarnation), clock::now());
        let shared = policies.shared(&identity.secrets);
        node.share(shared, facts.encode());
        node.speak_at_most(config.cluster.record_format);
        let mut mirror = BTreeMap::new();
        let mut tenures = Vec::new();
        let mut stops = Stops::default();
        if let Some(kept) = kept {
            stops = Stops::of(kept.stopped);
            for (id, spis) in kept.suspects {
                groups.get_mut(id).suspects = Suspects::of(spis);
            }
            mirror = kept.snapshot.ike;
            let all = node.go_on(clock::now(), &kept.tenures);
            debug_assert!(all, "the tenures were judged before");
            let text = format!(
                "goes on where the life before ended: {} IKE and {} Child SAs, traffic has not stopped",
                mirror.len(),
                sad.len()
            );
            log.note("taken_up", text);
            tenures = kept.tenures;
        }
        pins.keep();
        let (kept_forks, left) = forks::KeptForks::open(&config, &mut log);
        let (done, named) = mpsc::unbounded_channel();
        let names = Names::new(&config, Resolver::new(done));
        let guests = MemberSas::new(&config, groups.layout, options.cpus);
        let mut core = Core {
            me: config.cluster.member,
            steer_key,
            secrets: identity.secrets.clone(),
            policies,
            started: now,
            incarnation,
            log,
            engine,
            signer,
            computers,
            outgoing: Vec::new(),
            certificates: Certificates::new(made.certificates),
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
            devices,
            attached,
            generic,
            sockets: sockets.clone(),
            announcer,
            tun: device.clone(),
            ports,
            mirror,
            groups,
            onward: super::onward::Onward::default(),
            slow: slow::Waiting::of(transport.iter().map(|(l, r)| (l.first, r.first)).collect()),
            held: held::Held::default(),
            early: held::Held::default(),
            early_again: early::AGAIN,
            paths: path::Paths::open(),
            takeover: timeline::Takeovers::default(),
            wishes: Wishes::default(),
            merging: VecDeque::new(),
            snapshots: snapshot::Snapshots::new(copies),
            scan: Scan::default(),
            health,
            ownership_engine,
            listings: Vec::new(),
            contacts: HashMap::new(),
            late: Vec::new(),
            acquired: HashMap::new(),
            redial: HashMap::new(),
            wanted: HashMap::new(),
            children: Children::default(),
            told: BTreeMap::new(),
            names,
            reload,
            stops,
            reasons: HashMap::new(),
            policy_warned: BTreeMap::new(),
            orders: Orders::default(),
            advancing: BTreeMap::new(),
            refused: HashMap::new(),
            asked: BTreeMap::new(),
            guests,
            forked: VecDeque::new(),
            forks: forks::Forks::default(),
            kept_forks,
            reported: HashMap::new(),
            ike_events: BTreeMap::new(),
            stopping: None,
            config,
        };
        core.take_up_forks(left, !tenures.is_empty());
        for tenure in &tenures {
            let plan = core.taint_suspects(tenure.group);
            core.execute_or_log(&plan);
        }
        Ok((
            core,
            Io {
                sockets,
                esp,
                tun: device,
                netlink,
                ownership,
                network,
                snapshots,
                reloads,
                seen,
                signed,
                computed,
                named,
            },
        ))
    }
}

/// Pairs of selectors of the children in transport mode.
fn transport_pairs(config: &Config) -> Vec<(TrafficSelector, TrafficSelector)> {
    let children = config.connections.iter().flat_map(|c| &c.children);
    children
        .filter(|child| child.mode == SaMode::Transport)
        .flat_map(|child| sad::selector_pairs(&child.local_ts, &child.remote_ts))
        .collect()
}

/// The data plane: with the maps of the life before where it left them for this one, else with new ones.
fn load(
    config: &Config,
    identity: &Identity,
    options: &mut Options,
    groups: &Groups,
    log: &mut EventLog,
) -> Result<(Plane, Option<Kept>)> {
    let mut load_with = |adopt: bool| {
        options.adopt = adopt;
        Plane::load(options)
    };
    let kept = keep::take(config, identity).and_then(|kept| {
        let Some(kept) = kept else { return Ok(None) };
        let plane = load_with(true).map_err(|error| NotTakenUp::Maps(error.to_string()))?;
        kept.is_served(groups, &plane.segments())?;
        Ok(Some((plane, kept)))
    });
    match kept {
        Ok(Some((plane, kept))) => return Ok((plane, Some(kept))),
        Ok(None) => {}
        Err(why) => log.warn(
            "not_taken_up",
            format!("{why}: this life begins anew, and the peers establish their SAs again"),
        ),
    }
    let plane = load_with(false).with_context(|| {
        let object = config.data_plane.object.display();
        format!("cannot load the data plane {object}")
    })?;
    Ok((plane, None))
}

fn interface_status(interface: &Interface, side: u8, mode: XdpModeUsed) -> InterfaceStatus {
    InterfaceStatus {
        name: interface.name.clone(),
        side: if side == SIDE_INSIDE { "inside" } else { "outside" }.to_owned(),
        mode: mode_name(mode),
        mtu: interface.mtu,
    }
}
