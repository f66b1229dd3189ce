//! Brings everything up, in the order in which it is needed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::path::PathBuf;
use std::rc::Rc;

use anyhow::{Context, Result};
use cluster::{Node, NodeConfig};
use dataplane::{Mode, ObjectSource, Options, Plane, XdpModeUsed};
use ike::Engine;
use maps_schema::steer::{Local, SIDE_INSIDE};
use model::{Incarnation, SecretBytes};
use rtnetlink::Handle;
use sad::{DataPlane, Sad, Settings};
use tokio::sync::mpsc;
use tun_rs::AsyncDevice;

use super::member::Facts;
use super::orders::Orders;
use super::suspects::Suspects;
use super::{Core, Ownership, around, capabilities, convert, slow, timeline};
use crate::api::InterfaceStatus;
use crate::clock;
use crate::config::{AttachMode, Config, Solo};
use crate::events::EventLog;
use crate::net::announce::Announcer;
use crate::net::ports::Ports;
use crate::net::socket::{EspSocket, IKE_PORT, IkeSockets, NAT_T_PORT};
use crate::net::{self, Interface, sysctl, tun, vlan};
use crate::pki::Identity;
use crate::synch::{LinkId, Synch, SynchConfig, SynchEvent};

/// What the event loop waits on; the core holds the rest.
pub struct Io {
    pub sockets: Rc<IkeSockets>,
    pub esp: EspSocket,
    pub tun: AsyncDevice,
    pub netlink: Handle,
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

fn local(config: &Config, steer_key: [u64; 2], ports: &Ports) -> Local {
    // ICMP errors are sent for IPv4 only.
    let inside_address = config.addresses.inside.iter().copied().find(IpAddr::is_ipv4);
    Local {
        steer_key,
        member: u32::from(config.cluster.member.0),
        cpus: 0,
        slots: 0,
        own_device: ports.own_device(),
        outside_mtu: ports.outside_mtu(),
        nat_t_port: NAT_T_PORT,
        ike_port: IKE_PORT,
        inside_address: inside_address.map_or([0; 16], model::address::mapped),
        virtual_mac: ports.virtual_mac.unwrap_or_default(),
        reserved: [0; 2],
    }
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

/// What both members must have in common, as a digest that tells nothing to one who does not know the cluster's secret.
fn digest(config: &Config, identity: &Identity) -> Result<[u8; 32]> {
    let connections = config.connections.iter().map(|c| {
        let key = identity.fingerprint("psk", &convert::read_psk(c)?);
        let shared = (
            &c.name,
            c.local,
            c.remote,
            &c.local_id,
            &c.remote_id,
            &c.ike,
            c.start,
        );
        Ok(format!("{shared:?} {key:02x?} {:?}", c.children))
    });
    let connections = connections.collect::<Result<Vec<_>>>()?.join("\n");
    let place = (&config.addresses, config.interfaces.virtual_mac);
    Ok(identity.derive(&format!("policy {place:?} {connections}")))
}

fn node_config(config: &Config, identity: &Identity, incarnation: u64, facts: Facts) -> Result<NodeConfig> {
    let cluster = &config.cluster;
    Ok(NodeConfig {
        me: cluster.member,
        incarnation: Incarnation(incarnation),
        peer: config.others().next().map(|m| m.id),
        preferred: cluster.preferred == cluster.member,
        heartbeat: cluster.heartbeat,
        suspicion_floor: cluster.suspicion_floor,
        dead_man: cluster.dead_man,
        settle: SETTLE.max(cluster.suspicion_floor * 5),
        solo: match cluster.solo {
            Solo::Continue => cluster::Solo::Continue,
            Solo::Stop => cluster::Solo::Stop,
        },
        digest: digest(config, identity)?,
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
        let device = tun::open(&config.interfaces.tun, ports.outside_mtu().min(TUN_MTU) as u16)?;
        let tun_index = net::interface(&netlink, &config.interfaces.tun).await?.index;
        sysctl::prepare_tun(&config.interfaces.tun)?;
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
                        "remote selector of all addresses: this host's own traffic stays on its default route",
                    );
                    continue;
                }
                net::route_to_tun(&netlink, tun_index, prefix, &config.addresses.inside).await?;
            }
        }

        let secret = identity.derive("steering");
        let word = |at: usize| u64::from_le_bytes(secret[at..at + 8].try_into().unwrap_or_default());
        let steer_key = [word(0), word(8)];
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
        plane.set_local(&local(&config, steer_key, &ports))?;
        plane.set_ports(&ports.table())?;
        for (key, address) in ports.addresses(&config.addresses) {
            plane.put_address(&key, &address)?;
        }

        let mut generation = [0];
        around::random(&mut generation);
        let mut sad = Sad::new(Settings {
            member: config.cluster.member,
            max_slots: options.slots,
            first_generation: generation[0],
            outside_mtu: ports.outside_mtu() as u16,
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
        let facts = Facts { macs: ports.macs() };
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
            ports,
            mirror: BTreeMap::new(),
            ownership: Ownership::default(),
            before: Ownership::default(),
            pending: VecDeque::new(),
            slow: slow::Waiting::default(),
            takeover: timeline::Takeovers::default(),
            announce_next: None,
            redial: HashMap::new(),
            reasons: HashMap::new(),
            withholding: false,
            suspects: Suspects::default(),
            policy_warned: None,
            orders: Orders::default(),
            evidence: HashSet::new(),
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
            },
        ))
    }
}

fn interface_status(interface: &Interface, side: u8, mode: XdpModeUsed) -> InterfaceStatus {
    InterfaceStatus {
        name: interface.name.clone(),
        side: if side == SIDE_INSIDE { "inside" } else { "outside" }.to_owned(),
        mode: mode_name(mode),
        mtu: interface.mtu,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn members_with_another_key_of_a_peer_have_another_policy() {
        let dir = std::env::temp_dir().join(format!("esp-digest-{}", std::process::id()));
        crate::pki::init(&dir, "lab", 1).unwrap();
        let identity = Identity::load(&dir, model::MemberId(1)).unwrap();
        let example = include_str!("../../../../docs/examples/espalier.toml");
        let mut config = Config::read_without_files(example, Path::new("/etc/espalier"))
            .ok()
            .unwrap();
        let path = dir.join("peer.psk");
        for connection in &mut config.connections {
            connection.psk_file = path.clone();
        }
        let with = |key: &str| {
            std::fs::write(&path, key).unwrap();
            digest(&config, &identity).unwrap()
        };
        assert_eq!(
            with("one key"),
            with("one key\n"),
            "the end of the line is not part of the key"
        );
        assert_ne!(with("one key"), with("another key"));
        std::fs::remove_file(&path).unwrap();
        let error = format!("{:#}", digest(&config, &identity).unwrap_err());
        assert!(error.contains("peer.psk"), "{error}");
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
