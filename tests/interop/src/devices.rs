//! What an operator may have in place of a plain card: a member with such interfaces carries an SA, or says why not.
//!
//! ```text
//!   host --- lan P wan --- router === outside === A, B ... === inside === server
//!                                            ^             ^
//!                              of one member after the other, these two are of a kind
//! ```
//!
//! The members are clusters of their own, and one of them runs at a time: so the peer P (an espalier too) loads its programs once.

use crate::clock::{now_ns, patience, wait_for};
use crate::config::{Settings, configuration_with};
use crate::gateway;
use crate::member::{Member, Product, shared_secrets};
use crate::netns::Netns;
use crate::pass::PassProgram;
use crate::ping;
use crate::stage::{is_active, random_psk};
use crate::tcp::{Stream, StreamResult};
use crate::topology::{Lab, Place, Plan, addr};
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use std::time::Duration;

/// Number of the VLAN on a bond.
const VLAN: u16 = 7;
/// Packets of a trial, and the time between two of them.
const PINGS: usize = 50;
const INTERVAL_US: u64 = 10_000;
/// How long TCP runs at least, nanoseconds.
const STREAM_NS: u64 = 1_000_000_000;

/// In place of the demo's 100 and 80 ms: one member alone has nobody to yield to, and under emulation an agent may stand still for 250 ms.
const SUSPICION_FLOOR: &str = "5s";
const DEAD_MAN: &str = "4s";

/// What the interfaces of a member are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One end of a veth pair, with a program at the other end.
    Veth,
    /// One whose other end has no program, and GRO.
    VethWithGro,
    /// One whose other end has neither.
    BareVeth,
    /// One that merges what arrives (GRO).
    MergingVeth,
    /// A macvlan device on a veth.
    Macvlan,
    /// A bridge, with a veth as its port.
    Bridge,
    /// The port of a bridge.
    BridgePort,
    /// Two veths, one of which is in use.
    BondActiveBackup,
    /// Two veths in link aggregation (802.3ad), with a partner.
    BondLacp,
    /// A VLAN on an active-backup bond.
    VlanOnBond,
    /// Part of a bond.
    BondPart,
}

/// What is to come of it.
#[derive(Clone, Copy, Debug)]
pub enum Outcome {
    /// IKE and traffic, with XDP in these modes outside and inside.
    Carries([&'static str; 2]),
    /// It may not carry, and an event of this kind says all of this.
    Warned(&'static str, &'static [&'static str]),
    /// The agent does not start, and says all of this.
    Refused(&'static [&'static str]),
}

/// One kind under one setting of `data_plane.mode`.
#[derive(Clone, Copy, Debug)]
pub struct Trial {
    /// What is claimed.
    pub name: &'static str,
    /// Outside and inside.
    kinds: [Kind; 2],
    mode: &'static str,
    outcome: Outcome,
}

const DRIVER: Outcome = Outcome::Carries(["driver"; 2]);
const GENERIC: Outcome = Outcome::Carries(["generic"; 2]);

const fn trial(name: &'static str, kind: Kind, mode: &'static str, outcome: Outcome) -> Trial {
    Trial {
        name,
        kinds: [kind; 2],
        mode,
        outcome,
    }
}

/// Trials for which every kernel has what is needed.
pub const EVERYWHERE: &[Trial] = &[
    trial(
        "a veth whose far end has a program carries in the driver",
        Kind::Veth,
        "native",
        DRIVER,
    ),
    trial(
        "a veth whose far end has GRO only carries in the driver",
        Kind::VethWithGro,
        "auto",
        DRIVER,
    ),
    trial(
        "a veth whose far end has neither carries in generic mode",
        Kind::BareVeth,
        "auto",
        GENERIC,
    ),
    trial(
        "a veth whose far end has neither is warned of in native mode",
        Kind::BareVeth,
        "native",
        Outcome::Warned("device", &["takes no redirected frames", "gro on"]),
    ),
    trial(
        "in generic mode the agent keeps a veth from merging packets",
        Kind::MergingVeth,
        "generic",
        GENERIC,
    ),
    trial(
        "a macvlan carries in generic mode",
        Kind::Macvlan,
        "auto",
        GENERIC,
    ),
    Trial {
        name: "a veth outside and a macvlan inside carry in two modes",
        kinds: [Kind::Veth, Kind::Macvlan],
        mode: "auto",
        outcome: Outcome::Carries(["driver", "generic"]),
    },
    trial(
        "a macvlan is refused in native mode",
        Kind::Macvlan,
        "native",
        Outcome::Refused(&["macvlan", "name the device below it"]),
    ),
    trial("a bridge carries in generic mode", Kind::Bridge, "auto", GENERIC),
    trial(
        "the port of a bridge is refused",
        Kind::BridgePort,
        "auto",
        Outcome::Refused(&["outside is a port of the bridge esp-master"]),
    ),
];

/// Trials that want kernels with bonds and VLANs.
pub const WITH_BONDS: &[Trial] = &[
    trial(
        "an active-backup bond carries in the driver",
        Kind::BondActiveBackup,
        "native",
        DRIVER,
    ),
    trial(
        "an active-backup bond carries in generic mode",
        Kind::BondActiveBackup,
        "generic",
        GENERIC,
    ),
    trial(
        "an 802.3ad bond carries in the driver",
        Kind::BondLacp,
        "native",
        DRIVER,
    ),
    trial(
        "a VLAN on a bond carries in the driver",
        Kind::VlanOnBond,
        "native",
        DRIVER,
    ),
    trial(
        "a part of a bond is refused",
        Kind::BondPart,
        "auto",
        Outcome::Refused(&["outside is a part of the bond esp-master"]),
    ),
];

/// A lab with a peer that is up, and a member for each trial.
#[derive(Debug)]
pub struct Devices {
    trials: Vec<Trial>,
    product: Product,
    peer: Member,
    lab: Lab,
}

impl Devices {
    /// Builds it. `parent` is where the run's folder is made.
    ///
    /// # Errors
    /// The lab cannot be built, or the peer does not start.
    pub fn new(parent: &Path, trials: &[Trial]) -> Result<Self> {
        let product = Product::built()?;
        let plan = Plan {
            members: trials.len(),
            ..Plan::PAIR
        };
        let lab = Lab::planned(parent, plan)?;
        shared_secrets(&lab, &product, &random_psk()?)?;
        let mut peer = gateway::place(&lab, &product)?;
        // The members begin: each replaces what is left of the one before.
        peer.edit("start = \"initiate\"", "start = \"passive\"")?;
        let patient =
            format!("member = 1\nsuspicion_floor = \"{SUSPICION_FLOOR}\"\ndead_man = \"{DEAD_MAN}\"\n");
        peer.edit("member = 1\n", &patient)?;
        peer.start(&lab.resources)?;
        Ok(Self {
            trials: trials.to_vec(),
            product,
            peer,
            lab,
        })
    }

    /// The trials, in the order of the members.
    pub fn trials(&self) -> &[Trial] {
        &self.trials
    }

    /// Makes a trial.
    ///
    /// # Errors
    /// What did not come as it should, with all that was said about it.
    pub fn make(&self, at: usize) -> Result<()> {
        let trial = self.trials.get(at).context("no such trial")?;
        let place = self.lab.members.get(at).context("no such member")?;
        self.build(place, trial.kinds)
            .with_context(|| format!("{}: building the devices", trial.name))?;
        let mut settings = Settings {
            suspicion_floor: SUSPICION_FLOOR,
            dead_man: DEAD_MAN,
            mode: trial.mode,
            preferred: "",
            ..gateway::settings()
        };
        for connection in &mut settings.connections {
            connection.start = "initiate";
        }
        let mut member = Member::configured(&self.lab, place, &self.product, |paths| {
            configuration_with(&place.seat(), &[place.seat()], paths, &settings)
        })?;
        let started = member.start(&self.lab.resources);
        let result = match trial.outcome {
            Outcome::Refused(words) => refused(started, words),
            Outcome::Carries(modes) => started.and_then(|()| self.carries(&member, modes)),
            Outcome::Warned(kind, words) => started.and_then(|()| warned(&member, kind, words)),
        };
        let result = result.with_context(|| {
            format!(
                "{}\n{:?}\npeer {:?}\n{}",
                trial.name,
                member.verdicts(),
                self.peer.verdicts(),
                member.log_text()
            )
        });
        member.stop();
        // Nobody answers for its addresses from here on.
        for device in [
            "outside",
            "inside",
            "esp-phys0",
            "esp-phys1",
            "esp-phys2",
            "esp-phys3",
        ] {
            let _ = place.netns.ip(&format!("link set {device} down"));
        }
        result
    }

    fn carries(&self, member: &Member, modes: [&str; 2]) -> Result<()> {
        let events = member.events()?;
        for (side, mode) in ["outside", "inside"].into_iter().zip(modes) {
            let wanted = format!("{side} {side}: XDP in {mode} mode");
            let said = events.iter().any(|(_, _, text)| text.starts_with(&wanted));
            ensure!(said, "no event says \"{wanted}\"");
        }
        self.connected(member)?;
        let before = member.verdicts()?;
        let lost = self.lost(PINGS)?;
        ensure!(lost == 0, "{lost} of {PINGS} pings lost");
        let after = member.verdicts()?;
        let more = |name: &str| {
            let of = |verdicts: &std::collections::BTreeMap<String, u64>| verdicts.get(name).copied();
            of(&after).unwrap_or(0) - of(&before).unwrap_or(0)
        };
        let opened = more("esp_opened") + more("esp_opened_local");
        ensure!(
            opened >= PINGS as u64 && more("esp_sealed") >= PINGS as u64,
            "{opened} packets opened, {} sealed by the programs",
            more("esp_sealed")
        );
        self.stream(true, 7001)?;
        self.stream(false, 7002)?;
        let merged = member.verdicts()?.get("merged").copied().unwrap_or(0);
        ensure!(merged == 0, "{merged} merged packets reached the programs");
        Ok(())
    }

    /// The SA is there, and pings come through.
    fn connected(&self, member: &Member) -> Result<()> {
        let limit = patience(Duration::from_secs(20));
        let serves = wait_for(limit, Duration::from_millis(50), || {
            is_active(&member.status().ok()?).then_some(())
        });
        serves.context("the member does not serve")?;
        let through = wait_for(limit, Duration::from_millis(50), || {
            (self.lost(5).ok()? == 0).then_some(())
        });
        through.context("no five pings in a row come through")
    }

    /// TCP as fast as it goes, for a second, from the server or to it: all octets arrive, and are the same.
    fn stream(&self, from_server: bool, port: u16) -> Result<StreamResult> {
        let (server, host) = (&self.lab.server, &self.lab.host);
        let stream = if from_server {
            Stream::start(server, (host, addr::HOST_ONE), port)?
        } else {
            Stream::start(host, (server, addr::SERVER_ONE), port)?
        };
        let runs = stream.wait_arrival_after(now_ns() + STREAM_NS, patience(Duration::from_secs(10)));
        // Where an end has given up, that says more.
        stream.finish().and_then(|result| runs.map(|()| result))
    }

    fn lost(&self, count: usize) -> Result<u64> {
        let pings = ping::short(
            &self.lab.host,
            addr::HOST_ONE,
            addr::SERVER_ONE,
            INTERVAL_US,
            count,
        )?;
        Ok(pings.lost())
    }

    /// Makes the member's `outside` and `inside` what they are to be, with their addresses.
    fn build(&self, place: &Place, kinds: [Kind; 2]) -> Result<()> {
        let sides = [("outside", "br-out", "out"), ("inside", "br-in", "in")];
        for ((side, bridge, port), kind) in sides.into_iter().zip(kinds) {
            let port = format!("{port}-{}", place.letter);
            Site {
                lab: &self.lab,
                netns: &place.netns,
                side,
                bridge,
                port: &port,
            }
            .build(kind)
            .with_context(|| format!("the {side} of {}", place.letter))?;
        }
        place.netns.ip(&format!(
            "addr replace {}/24 dev {}\naddr replace {}/24 dev {}\n{}",
            place.outside,
            kinds[0].addressed("outside"),
            place.inside,
            kinds[1].addressed("inside"),
            place.routes()
        ))
    }
}

fn refused(started: Result<()>, words: &[&str]) -> Result<()> {
    let Err(error) = started else {
        bail!("the agent runs");
    };
    let text = format!("{error:#}");
    for word in words {
        ensure!(text.contains(word), "{word:?} is not in what it says: {text}");
    }
    Ok(())
}

/// Devices are looked at once a second.
fn warned(member: &Member, kind: &str, words: &[&str]) -> Result<()> {
    let said = wait_for(
        patience(Duration::from_secs(10)),
        Duration::from_millis(100),
        || {
            let events = member.events().ok()?;
            let holds = |text: &str| words.iter().all(|word| text.contains(word));
            events
                .iter()
                .any(|(_, of, text)| of == kind && holds(text))
                .then_some(())
        },
    );
    said.with_context(|| format!("no event of the kind {kind} says {words:?}"))
}

impl Kind {
    /// The device that has the addresses.
    fn addressed(self, side: &'static str) -> &'static str {
        match (self, side) {
            (Self::BridgePort | Self::BondPart, "outside") => "esp-master",
            (Self::BridgePort | Self::BondPart, _) => "esp-master-in",
            _ => side,
        }
    }
}

/// One side of a member: a veth named `side` whose other end `port` is in a bridge.
struct Site<'a> {
    lab: &'a Lab,
    netns: &'a Netns,
    side: &'static str,
    bridge: &'a str,
    port: &'a str,
}

impl Site<'_> {
    fn build(&self, kind: Kind) -> Result<()> {
        let Self {
            netns, side, port, ..
        } = *self;
        let bridges = &self.lab.bridges;
        let (first, second) = self.names();
        let master = kind.addressed(side);
        let aside = format!(
            "addr flush dev {side}\nlink set {side} down\nlink set {side} name {first}\nlink set {first} up"
        );
        match kind {
            Kind::Veth => Ok(()),
            Kind::VethWithGro => {
                self.without_program(port)?;
                bridges.run(&["ethtool", "-K", port, "gro", "on"]).map(drop)
            }
            Kind::BareVeth => self.without_program(port),
            Kind::MergingVeth => netns.run(&["ethtool", "-K", side, "gro", "on"]).map(drop),
            Kind::Macvlan => netns.ip(&format!(
                "{aside}\nlink add link {first} name {side} type macvlan mode bridge\nlink set {side} up"
            )),
            Kind::Bridge => netns.ip(&format!(
                "{aside}\nlink add {side} type bridge stp_state 0 forward_delay 0\nlink set {first} master {side}\n\
                 link set {side} up"
            )),
            Kind::BridgePort => netns.ip(&format!(
                "addr flush dev {side}\nlink add {master} type bridge stp_state 0 forward_delay 0\nlink set {side} master {master}\n\
                 link set {master} up"
            )),
            Kind::BondPart => {
                self.second_cable()?;
                netns.ip(&format!(
                    "addr flush dev {side}\nlink add {master} type bond mode active-backup miimon 50\nlink set {side} down\n\
                     link set {side} master {master}\nlink set {master} up\nlink set {side} up"
                ))
            }
            Kind::BondActiveBackup => {
                self.second_cable()?;
                netns.ip(&format!("{aside}\n{}", bond(side, "active-backup", &first, &second)))
            }
            Kind::BondLacp => {
                self.second_cable()?;
                let (there, far) = (format!("bond-{port}"), format!("{port}2"));
                // The partner is a bond as well, and has the programs in place of its parts.
                bridges.ip(&format!(
                    "link set {port} nomaster\nlink set {port} xdpdrv off\nlink set {far} nomaster\nlink set {far} xdpdrv off\n{}\n\
                     link set {there} master {}",
                    bond(&there, "802.3ad lacp_rate fast", port, &far),
                    self.bridge
                ))?;
                PassProgram::of(&self.lab.resources).attach(bridges, &there)?;
                netns.ip(&format!(
                    "{aside}\n{}",
                    bond(side, "802.3ad lacp_rate fast", &first, &second)
                ))?;
                self.wait_for_partner()
            }
            Kind::VlanOnBond => {
                self.second_cable()?;
                for far in [port.to_owned(), format!("{port}2")] {
                    bridges.run(&["ethtool", "-K", &far, "txvlan", "off"])?;
                    bridges.ip(&format!(
                        "link set {far} nomaster\nlink add link {far} name {far}v type vlan id {VLAN}\n\
                         link set {far}v master {}\nlink set {far}v up",
                        self.bridge
                    ))?;
                }
                let below = format!("esp-b-{side}");
                netns.ip(&format!(
                    "{aside}\n{}\nlink add link {below} name {side} type vlan id {VLAN}\nlink set {side} up",
                    bond(&below, "active-backup", &first, &second)
                ))
            }
        }
    }

    /// Names of the veths when something else is called `side`.
    fn names(&self) -> (String, String) {
        let at = if self.side == "outside" { 0 } else { 2 };
        (format!("esp-phys{at}"), format!("esp-phys{}", at + 1))
    }

    /// A second veth from the member to the bridge.
    fn second_cable(&self) -> Result<()> {
        let (_, second) = self.names();
        let far = format!("{}2", self.port);
        let bridges = &self.lab.bridges;
        self.netns.wire(&second, bridges, &far)?;
        bridges.ip(&format!("link set {far} master {}", self.bridge))?;
        PassProgram::of(&self.lab.resources).attach(bridges, &far)
    }

    fn without_program(&self, port: &str) -> Result<()> {
        self.lab.bridges.ip(&format!("link set {port} xdpdrv off"))
    }

    /// Until both ends have agreed no frame of an aggregated link is taken.
    fn wait_for_partner(&self) -> Result<()> {
        let path = format!("/proc/thread-self/net/bonding/{}", self.side);
        let agreed = wait_for(
            patience(Duration::from_secs(20)),
            Duration::from_millis(100),
            || {
                let path = path.clone();
                let text = self
                    .netns
                    .inside(move || std::fs::read_to_string(&path).with_context(|| path.clone()));
                // All zero: there is no partner.
                let partner = "Partner Mac Address: ";
                let known = |line: &str| {
                    line.trim()
                        .strip_prefix(partner)
                        .is_some_and(|mac| mac != "00:00:00:00:00:00")
                };
                text.ok()?.lines().any(known).then_some(())
            },
        );
        agreed.with_context(|| format!("{} finds no partner", self.side))
    }
}

/// Commands for a bond of two devices.
fn bond(name: &str, mode: &str, first: &str, second: &str) -> String {
    format!(
        "link add {name} type bond mode {mode} miimon 50\nlink set {first} down\nlink set {second} down\n\
         link set {first} master {name}\nlink set {second} master {name}\n\
         link set {name} up\nlink set {first} up\nlink set {second} up"
    )
}
