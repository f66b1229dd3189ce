//! Who is where.
//!
//! ```text
//!  host --- gateway --- router ===== outside ===== A ===== inside ===== server
//!  (peer site one)        |          bridge    \   |   /   bridge
//!  UML kernel peer -------+                     \= B =/
//!  (peer site two)        |                      \ .. /
//!  further sites ---------+          A, B, ... and the etcd voters: synch bridge
//! ```
//!
//! Two members in the demo, up to sixteen elsewhere ([`Plan`]). The three bridges live in a namespace of their own, so a
//! member never sees loss of carrier when another one dies.

use crate::config::Seat;
use crate::netns::{FORWARDS, NO_OFFLOADS, Netns};
use crate::pass::PassProgram;
use crate::resources::Resources;
use anyhow::{Context, Result};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Addresses. Documentation ranges outside, private ones inside.
pub mod addr {
    use std::net::Ipv4Addr;
    /// Peer site one: its gateway on the wide area side.
    pub const PEER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    /// Peer site two: a Linux kernel in User Mode Linux.
    pub const PEER_TWO: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 130);
    /// The cluster's one outside address.
    pub const CLUSTER_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    /// The router on the outside network.
    pub const ROUTER_OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    /// The inside network's next hop.
    pub const CLUSTER_INSIDE: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 1);
    /// The host behind the peer, in the selectors of connection one.
    pub const HOST_ONE: Ipv4Addr = Ipv4Addr::new(10, 10, 1, 2);
    /// The same host, in the selectors of connection two.
    pub const HOST_TWO: Ipv4Addr = Ipv4Addr::new(10, 10, 2, 2);
    /// The server, in the selectors of connections one and three.
    pub const SERVER_ONE: Ipv4Addr = Ipv4Addr::new(10, 20, 1, 100);
    /// The server, in the selectors of connection two.
    pub const SERVER_TWO: Ipv4Addr = Ipv4Addr::new(10, 20, 2, 100);
    /// The address behind peer two.
    pub const HOST_THREE: Ipv4Addr = Ipv4Addr::new(10, 30, 1, 2);
}

/// A member's place in the lab.
#[derive(Clone, Debug)]
pub struct Place {
    /// 1 for A, 2 for B and so on.
    pub id: u8,
    /// `a`, `b` and so on.
    pub letter: &'static str,
    /// Its namespace; interfaces `outside`, `inside`, `synch`.
    pub netns: Netns,
    /// Its own address on the outside network.
    pub outside: Ipv4Addr,
    /// Its own address on the inside network.
    pub inside: Ipv4Addr,
    /// Its address on the synch network.
    pub synch: Ipv4Addr,
}

/// How large a lab is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Members of the cluster, 1 to 16.
    pub members: usize,
    /// Namespaces for etcd servers on the synch bridge.
    pub voters: usize,
    /// Peer sites beside the first one, each a gateway that is its own host.
    pub sites: usize,
}

impl Plan {
    /// The demo's: a pair.
    pub const PAIR: Self = Self {
        members: 2,
        voters: 0,
        sites: 0,
    };
}

/// Names of the members by id.
const LETTERS: [&str; 16] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p",
];

/// A further peer site.
#[derive(Clone, Debug)]
pub struct Site {
    /// Its gateway, which is its own host.
    pub netns: Netns,
    /// The gateway's address on the wide area side.
    pub address: Ipv4Addr,
    /// The address in the selectors of its connection.
    pub host: Ipv4Addr,
}

/// Where an etcd server runs.
#[derive(Clone, Debug)]
pub struct Voter {
    /// Its namespace.
    pub netns: Netns,
    /// Its address on the synch network.
    pub address: Ipv4Addr,
}

/// The places of so many members, as their configurations name them.
pub fn seats(members: usize) -> Vec<Seat> {
    let seat = |(letter, id): (&&'static str, u8)| Seat {
        id,
        letter,
        outside: Ipv4Addr::new(203, 0, 113, 10 + id),
        synch: Ipv4Addr::new(10, 255, 0, id),
    };
    LETTERS.iter().zip(1..).take(members).map(seat).collect()
}

impl Place {
    /// As the configurations name it.
    pub fn seat(&self) -> Seat {
        Seat {
            id: self.id,
            letter: self.letter,
            outside: self.outside,
            synch: self.synch,
        }
    }

    /// The `ip` commands for its routes, which go away when its links go down.
    pub fn routes(&self) -> String {
        format!(
            "route replace default via {}\nroute replace 10.20.2.0/24 via {}",
            addr::ROUTER_OUTSIDE,
            addr::SERVER_ONE
        )
    }
}

/// The whole lab, without the programs that run in it.
#[derive(Debug)]
pub struct Lab {
    /// Host behind the peer.
    pub host: Netns,
    /// The peer's gateway.
    pub peer: Netns,
    /// The router; the second peer's tap is here too.
    pub router: Netns,
    /// Where the bridges are: `br-out`, `br-in`, `br-synch`.
    pub bridges: Netns,
    /// The server behind the cluster.
    pub server: Netns,
    /// The members.
    pub members: Vec<Place>,
    /// Places for etcd servers.
    pub voters: Vec<Voter>,
    /// Peer sites beside the first one.
    pub sites: Vec<Site>,
    /// Where strongSwan runs in the cluster's place, for comparison.
    pub baseline: Netns,
    /// Configuration files, logs, results. Kept after the run.
    pub folder: PathBuf,
    /// Name of the second peer's tap in the router.
    pub tap: String,
    /// What has to be removed. Last field: dropped last.
    pub resources: Resources,
}

impl Lab {
    /// The demo's lab. `parent` is where the run's folder is made.
    pub fn new(parent: &Path) -> Result<Self> {
        Self::planned(parent, Plan::PAIR)
    }

    /// Builds namespaces, bridges, links, addresses and routes. `parent` is where the run's folder is made.
    pub fn planned(parent: &Path, plan: Plan) -> Result<Self> {
        anyhow::ensure!(
            (1..=LETTERS.len()).contains(&plan.members),
            "a lab has 1 to {} members, not {}",
            LETTERS.len(),
            plan.members
        );
        let resources = Resources::new()?;
        let folder = parent.join(&resources.id);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let netns = |what: &str| Netns::create(&resources, what, &FORWARDS);
        let place = |seat: Seat| -> Result<Place> {
            Ok(Place {
                id: seat.id,
                letter: seat.letter,
                netns: netns(seat.letter)?,
                outside: seat.outside,
                inside: Ipv4Addr::new(10, 20, 1, 10 + seat.id),
                synch: seat.synch,
            })
        };
        let site = |n: u8| -> Result<Site> {
            Ok(Site {
                netns: netns(&format!("site{n}"))?,
                address: Ipv4Addr::new(198, 18, n, 2),
                host: Ipv4Addr::new(10, 10, 2 + n, 2),
            })
        };
        let voter = |n: u8| -> Result<Voter> {
            Ok(Voter {
                netns: netns(&format!("etcd{n}"))?,
                address: Ipv4Addr::new(10, 255, 0, 100 + n),
            })
        };
        let lab = Lab {
            host: netns("host")?,
            peer: netns("peer")?,
            router: netns("router")?,
            bridges: netns("net")?,
            server: netns("server")?,
            members: seats(plan.members)
                .into_iter()
                .map(place)
                .collect::<Result<_>>()?,
            voters: (1..=plan.voters as u8).map(voter).collect::<Result<_>>()?,
            sites: (1..=plan.sites as u8).map(site).collect::<Result<_>>()?,
            baseline: netns("base")?,
            tap: "uml0".to_owned(),
            folder,
            resources,
        };
        lab.wire().context("building the lab")?;
        Ok(lab)
    }

    /// Folder for the sockets of a daemon, gone after the run.
    pub fn sockets(&self) -> &Path {
        &self.resources.folder
    }

    /// Every namespace in which packets of the load are carried, with the name that it is shown by.
    pub fn places(&self) -> Vec<(String, &Netns)> {
        let fixed = [
            ("host", &self.host),
            ("peer", &self.peer),
            ("router", &self.router),
            ("bridges", &self.bridges),
            ("server", &self.server),
        ];
        let fixed = fixed.map(|(name, netns)| (name.to_owned(), netns));
        let members = self
            .members
            .iter()
            .map(|m| (format!("member {}", m.letter), &m.netns));
        let sites = self
            .sites
            .iter()
            .zip(1..)
            .map(|(s, n)| (format!("site {n}"), &s.netns));
        fixed.into_iter().chain(members).chain(sites).collect()
    }

    fn wire(&self) -> Result<()> {
        let pass = PassProgram::load(&self.resources)?;
        for bridge in ["br-out", "br-in", "br-synch"] {
            self.bridges.ip(&format!(
                "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {bridge} up"
            ))?;
        }
        self.host.wire("lan", &self.peer, "lan")?;
        self.peer.wire("wan", &self.router, "peer1")?;
        let mut ports: Vec<(&Netns, &str, &str, String)> = vec![
            (&self.router, "outside", "br-out", "out-router".into()),
            (&self.server, "eth0", "br-in", "in-server".into()),
            (&self.baseline, "outside", "br-out", "out-base".into()),
            (&self.baseline, "inside", "br-in", "in-base".into()),
            (&self.baseline, "synch", "br-synch", "synch-base".into()),
        ];
        for place in &self.members {
            let port = |side: &str| format!("{side}-{}", place.letter);
            ports.push((&place.netns, "outside", "br-out", port("out")));
            ports.push((&place.netns, "inside", "br-in", port("in")));
            ports.push((&place.netns, "synch", "br-synch", port("synch")));
        }
        for (voter, n) in self.voters.iter().zip(1..) {
            ports.push((&voter.netns, "synch", "br-synch", format!("synch-etcd{n}")));
        }
        for (netns, interface, bridge, port) in ports {
            netns.wire(interface, &self.bridges, &port)?;
            self.bridges.ip(&format!("link set {port} master {bridge}"))?;
            pass.attach(&self.bridges, &port)?;
        }

        self.host.ip(
            "addr add 10.10.1.2/24 dev lan\naddr add 10.10.2.2/24 dev lan\n\
             route add 10.20.1.0/24 via 10.10.1.1 src 10.10.1.2\nroute add 10.20.2.0/24 via 10.10.2.1 src 10.10.2.2",
        )?;
        self.peer.sysctl(&["net.ipv4.ip_forward=1"])?;
        self.peer.ip(
            "addr add 10.10.1.1/24 dev lan\naddr add 10.10.2.1/24 dev lan\naddr add 198.51.100.2/25 dev wan\n\
             route add default via 198.51.100.1",
        )?;
        self.router.sysctl(&["net.ipv4.ip_forward=1"])?;
        self.router.ip(&format!(
            "addr add 198.51.100.1/25 dev peer1\naddr add {}/24 dev outside\n\
             tuntap add dev {} mode tap\naddr add 198.51.100.129/25 dev {}\nlink set {} up",
            addr::ROUTER_OUTSIDE,
            self.tap,
            self.tap,
            self.tap
        ))?;
        self.router
            .command("ethtool")
            .args(["-K", &self.tap])
            .args(NO_OFFLOADS)
            .output()?;
        self.server.ip(&format!(
            "addr add {}/24 dev eth0\naddr add {}/32 dev lo\nroute add default via {}\n\
             route add 10.10.2.0/24 via {} src {}",
            addr::SERVER_ONE,
            addr::SERVER_TWO,
            addr::CLUSTER_INSIDE,
            addr::CLUSTER_INSIDE,
            addr::SERVER_TWO
        ))?;
        for place in &self.members {
            place.netns.sysctl(&["net.ipv4.ip_forward=1"])?;
            place.netns.ip(&format!(
                "addr add {}/24 dev outside\naddr add {}/24 dev inside\naddr add {}/24 dev synch\n{}",
                place.outside,
                place.inside,
                place.synch,
                place.routes()
            ))?;
        }
        for voter in &self.voters {
            voter
                .netns
                .ip(&format!("addr add {}/24 dev synch", voter.address))?;
        }
        for (site, n) in self.sites.iter().zip(1..) {
            let port = format!("site{n}");
            site.netns.wire("wan", &self.router, &port)?;
            let [a, b, c, d] = site.address.octets();
            let router = Ipv4Addr::new(a, b, c, d - 1);
            self.router.ip(&format!("addr add {router}/30 dev {port}"))?;
            site.netns.ip(&format!(
                "addr add {}/30 dev wan\naddr add {}/32 dev lo\nroute add default via {router}",
                site.address, site.host
            ))?;
        }
        self.baseline.sysctl(&["net.ipv4.ip_forward=1"])
    }

    /// From here on what the bridges get on the outside and synch networks is carried by threads of the kernel's own (threaded NAPI). Else a frame goes
    /// all the way, over bridge and router to the receiver's socket, in the time of whoever sends it; behind a network card that is not so.
    pub fn carry_beside(&self) -> Result<()> {
        let members = self.members.iter().map(|place| place.letter);
        for letter in members.chain(["base"]) {
            for side in ["out", "synch"] {
                // `nsenter` would leave /sys that of the host.
                let set = format!("echo 1 > /sys/class/net/{side}-{letter}/threaded");
                crate::cmd::run(&["ip", "netns", "exec", &self.bridges.name, "sh", "-c", &set])?;
            }
        }
        Ok(())
    }

    /// Router and server spread what they send over all members but those `without`, by source and destination, as an ECMP
    /// router does: packets come to members that own nothing of it.
    pub fn spread(&self, without: &[usize]) -> Result<()> {
        let hops = |address: fn(&Place) -> Ipv4Addr, device: &str| -> String {
            let members = self.members.iter().enumerate();
            let there = members.filter(|(index, _)| !without.contains(index));
            there
                .map(|(_, place)| format!(" nexthop via {} dev {device}", address(place)))
                .collect()
        };
        let policy = ["net.ipv4.fib_multipath_hash_policy=0"];
        self.router.sysctl(&policy)?;
        self.server.sysctl(&policy)?;
        self.router.ip(&format!(
            "route replace {}/32{}",
            addr::CLUSTER_OUTSIDE,
            hops(|p| p.outside, "outside")
        ))?;
        let inside = hops(|p| p.inside, "eth0");
        self.server.ip(&format!(
            "route replace default{inside}\nroute replace 10.10.2.0/24 src {}{inside}",
            addr::SERVER_TWO
        ))
    }

    /// Makes neighbours forget the MAC address of a cluster address (after the baseline has left it).
    pub fn forget_neighbours(&self) -> Result<()> {
        self.router.ip("neigh flush all")?;
        self.server.ip("neigh flush all")
    }

    /// MAC address of an interface.
    pub fn mac(netns: &Netns, interface: &str) -> Result<[u8; 6]> {
        let text = netns.run(&["ip", "-json", "link", "show", "dev", interface])?;
        let json: serde_json::Value = serde_json::from_str(&text).context("ip -json")?;
        let mac = json[0]["address"]
            .as_str()
            .context("no address in `ip -json link`")?;
        let mut out = [0u8; 6];
        for (octet, part) in out.iter_mut().zip(mac.split(':')) {
            *octet = u8::from_str_radix(part, 16).with_context(|| format!("MAC address {mac}"))?;
        }
        Ok(out)
    }
}
