//! The stage of a chaos run: a cluster, strongSwan peers with four connections, and load that never stops.
//!
//! | connection | peer | begun by | suite | load |
//! |---|---|---|---|---|
//! | alpha | site one | peer | ChaCha20-Poly1305 | ping, UDP both ways |
//! | beta | site one | cluster | AES-256-GCM | ping, a TCP stream |
//! | gamma | site two | peer, which rekeys every 3 s | AES-128-GCM | ping |
//! | delta | site three | cluster | ChaCha20-Poly1305 | ping |

use anyhow::{Context, Result};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::config::{self, Settings};
use lab::etcd::{EtcdCluster, EtcdSite};
use lab::faults::WallClock;
use lab::flow::{Flow, Sending};
use lab::member::Product;
use lab::ping::Ping;
use lab::sightings::Numbered;
use lab::stage::random_psk;
use lab::strongswan::{Charon, Connection, swanctl_conf};
use lab::tcp::Stream;
use lab::topology::{Lab, Plan, Site, addr};
use lab::trace::Trace;
use std::path::Path;
use std::time::Duration;

/// 100 packets a second on every connection.
const PING_US: u64 = 10_000;
/// 500 packets a second each way.
const FLOW_US: u64 = 2_000;
/// A write of 65 521 octets this often: about 5 Mbit/s.
const TCP_INTERVAL_NS: u64 = 100_000_000;

/// Everything that runs. Fields are dropped in this order: load, peers, members, namespaces.
pub struct Scene {
    /// Load.
    pub load: Load,
    /// strongSwan at each site.
    pub peers: Vec<Charon>,
    /// The kernel's word about packets that it drops; `None` where it gives none.
    pub trace: Option<Trace>,
    /// The members' wall clocks.
    pub clocks: Vec<WallClock>,
    /// Members and recorders.
    pub cluster: Cluster,
    /// The ownership engine's servers, where it has any. The namespaces that they run in are cleared away by the kernel once they
    /// are gone, so they may outlive the lab's record.
    pub etcd: Option<EtcdCluster>,
    /// Router and server spread what they send over all members.
    pub ecmp: bool,
}

/// Traffic that runs from the first fault to the last one.
pub struct Load {
    /// A ping by connection.
    pub pings: Vec<(&'static str, Ping)>,
    flows: Vec<Flow>,
    stream: Stream,
}

/// How much each source had sent at a time.
pub type Mark = Vec<u64>;

/// A packet of the load that did not arrive, or an echo request without an answer.
pub struct Lost {
    /// Which of the load's sources.
    pub source: String,
    /// Number and time.
    pub sending: Sending,
    echo: bool,
    place: u16,
}

impl Lost {
    /// As which packets it may have been seen on its way.
    pub fn packets(&self) -> Vec<Numbered> {
        let number = self.sending.number;
        if self.echo {
            let echo = number as u32;
            vec![
                Numbered::Request(self.place, echo),
                Numbered::Answer(self.place, echo),
            ]
        } else {
            vec![Numbered::Flow(self.place, number)]
        }
    }
}

/// What a scene is built with.
pub struct Build<'a> {
    /// Binary and BPF object.
    pub product: &'a Product,
    /// Where the run's folder is made.
    pub parent: &'a Path,
    /// Members.
    pub members: usize,
    /// etcd servers.
    pub voters: usize,
    /// `solo`, engine and so on.
    pub settings: Settings,
    /// Router and server spread what they send over all members.
    pub ecmp: bool,
}

/// The settings of a chaos run.
pub fn settings(groups: u8) -> Settings {
    let mut settings = Settings {
        connections: connections().to_vec(),
        ..Settings::demo()
    };
    if groups > 1 {
        settings.preferred = "";
        settings.cluster_keys = format!("mode = \"load-sharing\"\ngroups = {groups}\n");
    }
    settings
}

impl Scene {
    /// Starts it all, and waits until traffic runs over all connections.
    pub fn build(build: &Build) -> Result<Self> {
        let psk = random_psk()?;
        let lab = Lab::planned(
            build.parent,
            Plan {
                members: build.members,
                voters: build.voters,
                sites: 2,
            },
        )?;
        crate::steps::detail(&format!("configurations and logs: {}", lab.folder.display()));
        let peers = start_peers(&lab, &psk)?;
        let etcd = start_etcd(&lab)?;
        let mut settings = build.settings.clone();
        if let Some(etcd) = &etcd {
            let endpoints = etcd
                .endpoints()
                .iter()
                .map(|e| format!("\"{e}\""))
                .collect::<Vec<_>>();
            settings.cluster_keys.push_str("engine = \"etcd\"\n");
            settings.cluster_tables = format!("\n[cluster.etcd]\nendpoints = [{}]\n", endpoints.join(", "));
        }
        let mut cluster = Cluster::prepare(lab, build.product, &psk, &settings)?;
        cluster.inside.judge_deliveries();
        let mut clocks = Vec::new();
        for member in &mut cluster.members {
            let folder = cluster.lab.folder.join(member.place.letter);
            clocks.push(WallClock::give(member, &folder)?);
        }
        cluster.start()?;
        cluster
            .wait_all_in_sync(Duration::from_secs(30))
            .context("the cluster did not form")?;
        if build.ecmp {
            cluster.lab.spread(&[])?;
        }
        connect(&peers)?;
        let load = Load::start(&cluster.lab)?;
        let trace = Trace::start(&cluster.lab.resources);
        if let Err(error) = &trace {
            crate::steps::detail(&format!("the kernel does not tell what it drops: {error:#}"));
        }
        let scene = Self {
            load,
            peers,
            trace: trace.ok(),
            clocks,
            cluster,
            etcd,
            ecmp: build.ecmp,
        };
        scene
            .load
            .wait_answers_after(lab::clock::now_ns(), Duration::from_secs(20))
            .map_err(|silent| anyhow::anyhow!("no answers over {}", silent.join(", ")))?;
        Ok(scene)
    }
}

impl Load {
    fn start(lab: &Lab) -> Result<Self> {
        let (host, server) = (&lab.host, &lab.server);
        let [gamma, delta] = sites(lab)?;
        let ping = |netns, label, from, to| Ok((label, Ping::start(netns, label, from, to, PING_US)?));
        let pings: Vec<Result<_>> = vec![
            ping(host, "alpha", addr::HOST_ONE, addr::SERVER_ONE),
            ping(server, "beta", addr::SERVER_TWO, addr::HOST_TWO),
            ping(&gamma.netns, "gamma", gamma.host, addr::SERVER_ONE),
            ping(server, "delta", addr::SERVER_ONE, delta.host),
        ];
        let (peer, behind) = ((host, addr::HOST_ONE), (server, addr::SERVER_ONE));
        Ok(Self {
            pings: pings.into_iter().collect::<Result<_>>()?,
            flows: vec![
                Flow::start(peer, behind, 7001, FLOW_US, 200)?,
                Flow::start(behind, peer, 7002, FLOW_US, 200)?,
            ],
            stream: Stream::start_paced(host, (server, addr::SERVER_TWO), 7003, TCP_INTERVAL_NS)?,
        })
    }

    /// Waits until every ping has an answer that came after a time.
    ///
    /// # Errors
    /// The connections without one.
    pub fn wait_answers_after(&self, at_ns: u64, limit: Duration) -> Result<(), Vec<&'static str>> {
        let silent = || {
            let late = |p: &Ping| p.last_answer_ns().is_none_or(|t| t <= at_ns);
            let late = self.pings.iter().filter(|(_, p)| late(p));
            late.map(|(name, _)| *name).collect::<Vec<_>>()
        };
        wait_for(limit, Duration::from_millis(5), || {
            silent().is_empty().then_some(())
        })
        .ok_or_else(silent)
    }

    /// Waits until the TCP stream has made progress after a time.
    pub fn wait_stream_after(&self, at_ns: u64, limit: Duration) -> Result<()> {
        self.stream.wait_arrival_after(at_ns, limit)
    }

    /// How much was sent so far, by each source.
    pub fn mark(&self) -> Mark {
        let pings = self.pings.iter().map(|(_, p)| p.so_far().0 as u64);
        pings.chain(self.flows.iter().map(|f| f.so_far().0)).collect()
    }

    /// Packets sent between two marks, and how many of them are lost: those that are not there a while later.
    pub fn lost_between(&self, from: &[u64], to: &[u64]) -> (u64, u64) {
        let between = |at: usize| from[at]..to[at];
        let missing = || -> u64 {
            let pings = self.pings.iter().enumerate();
            let pings: u64 = pings.map(|(at, (_, p))| p.missing(between(at))).sum();
            let flows = self.flows.iter().enumerate();
            pings
                + flows
                    .map(|(at, f)| f.missing(between(at + self.pings.len())))
                    .sum::<u64>()
        };
        wait_for(Duration::from_secs(1), Duration::from_millis(20), || {
            (missing() == 0).then_some(())
        });
        let sent = from.iter().zip(to).map(|(from, to)| to - from).sum();
        (sent, missing())
    }

    /// Which packets are lost of those that were sent between two marks.
    pub fn lost(&self, from: &Mark, to: &Mark) -> Vec<Lost> {
        let between = |at: usize| from[at]..to[at];
        let pings = self.pings.iter().enumerate().flat_map(|(at, (name, ping))| {
            let of = move |sending| Lost {
                source: format!("ping over {name}"),
                sending,
                echo: true,
                place: ping.id,
            };
            ping.lost(between(at)).into_iter().map(of)
        });
        let flows = self.flows.iter().enumerate().flat_map(|(at, flow)| {
            let of = move |sending| Lost {
                source: format!("flow to port {}", flow.port),
                sending,
                echo: false,
                place: flow.port,
            };
            flow.lost(between(at + self.pings.len())).into_iter().map(of)
        });
        pings.chain(flows).collect()
    }

    /// The longest time without an answer over any connection in a stretch of time, and over which one.
    pub fn longest_gap(&self, from_ns: u64, to_ns: u64) -> (&'static str, u64) {
        let gaps = self
            .pings
            .iter()
            .map(|(name, p)| (*name, p.longest_gap_ns(from_ns, to_ns)));
        gaps.max_by_key(|(_, gap)| *gap).unwrap_or_default()
    }

    /// Ends it; octets that the TCP stream has carried, and packets sent and lost by pings and UDP flows.
    pub fn stop(self) -> Result<(u64, u64, u64)> {
        let octets = self.stream.finish()?.sent;
        let (mut sent, mut lost) = (0, 0);
        for (_, ping) in self.pings {
            let result = ping.stop()?;
            sent += result.sent();
            lost += result.lost();
        }
        for flow in self.flows {
            let result = flow.stop()?;
            sent += result.sent;
            lost += result.lost();
        }
        Ok((octets, sent, lost))
    }
}

fn start_etcd(lab: &Lab) -> Result<Option<EtcdCluster>> {
    let site = |v: &lab::topology::Voter| EtcdSite {
        netns: Some(v.netns.clone()),
        address: v.address.into(),
    };
    let sites: Vec<EtcdSite> = lab.voters.iter().map(site).collect();
    let start = |sites| EtcdCluster::start(&lab.resources, sites, None).context("the etcd servers");
    (!sites.is_empty()).then(|| start(sites)).transpose()
}

fn sites(lab: &Lab) -> Result<[&Site; 2]> {
    match lab.sites.as_slice() {
        [one, two] => Ok([one, two]),
        _ => anyhow::bail!("a chaos run has three peer sites"),
    }
}

fn start_peers(lab: &Lab, psk: &str) -> Result<Vec<Charon>> {
    let [gamma, delta] = sites(lab)?;
    let all = peer_connections();
    let place = [
        (&lab.peer, "peer", &all[..2]),
        (&gamma.netns, "peer-gamma", &all[2..3]),
        (&delta.netns, "peer-delta", &all[3..]),
    ];
    let start = |(netns, folder, connections): (_, &str, &[Connection])| {
        let conf = swanctl_conf(connections, psk);
        Charon::start(
            netns,
            &lab.folder.join(folder),
            lab.sockets(),
            &lab.resources,
            &conf,
        )
    };
    place.into_iter().map(start).collect()
}

/// The peers bring up theirs; the cluster has begun its own.
fn connect(peers: &[Charon]) -> Result<()> {
    peers[0].initiate("alpha").context("the peer initiates alpha")?;
    peers[1].initiate("gamma").context("the peer initiates gamma")?;
    for (peer, name) in [(&peers[0], "beta"), (&peers[2], "delta")] {
        let up = wait_for(Duration::from_secs(15), Duration::from_millis(50), || {
            let sas = peer.swanctl(&["--list-sas"]).ok()?;
            let head = format!("{name}: #");
            let mut of_this = sas.split(&head).skip(1);
            of_this.any(|part| part.contains("INSTALLED")).then_some(())
        });
        up.with_context(|| format!("the cluster did not bring up {name}"))?;
    }
    Ok(())
}

/// What differs between the connections: name, site, selectors (peer, cluster), suite of IKE and ESP, begun by the cluster.
const CONNECTIONS: [(&str, u8, &str, &str, &str, &str, bool); 4] = [
    (
        "alpha",
        0,
        "10.10.1.0/24",
        "10.20.1.0/24",
        "chacha20poly1305-prfsha256-x25519",
        "chacha20poly1305",
        false,
    ),
    (
        "beta",
        0,
        "10.10.2.0/24",
        "10.20.2.0/24",
        "aes256gcm16-prfsha256-x25519",
        "aes256gcm16",
        true,
    ),
    (
        "gamma",
        1,
        "10.10.3.0/24",
        "10.20.1.0/24",
        "aes128gcm16-prfsha256-x25519",
        "aes128gcm16",
        false,
    ),
    (
        "delta",
        2,
        "10.10.4.0/24",
        "10.20.1.0/24",
        "chacha20poly1305-prfsha256-x25519",
        "chacha20poly1305",
        true,
    ),
];

fn address(site: u8) -> std::net::Ipv4Addr {
    if site == 0 {
        addr::PEER
    } else {
        std::net::Ipv4Addr::new(198, 18, site, 2)
    }
}

fn connections() -> [config::Connection; 4] {
    CONNECTIONS.map(
        |(name, site, peer, ours, ike, esp, by_cluster)| config::Connection {
            name,
            remote: address(site),
            ike,
            start: if by_cluster { "initiate" } else { "passive" },
            local_ts: ours,
            remote_ts: peer,
            esp,
        },
    )
}

fn peer_connections() -> [Connection; 4] {
    CONNECTIONS.map(|(name, site, peer, ours, ike, esp, by_cluster)| Connection {
        name,
        local: address(site).to_string(),
        remote: addr::CLUSTER_OUTSIDE.to_string(),
        local_id: format!("peer-{name}.example"),
        remote_id: format!("gw-{name}.example"),
        proposal: ike,
        esp_proposal: esp,
        local_ts: peer,
        remote_ts: ours,
        child_rekey: if name == "gamma" { "3s" } else { "0" },
        restart: !by_cluster,
    })
}
