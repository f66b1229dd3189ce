//! What becomes of a connection after a loss, with strongSwan as the peer: `start`, `dpd_action` and `close_action`, before and after a
//! takeover.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::clock::{now_ns, wait_for};
use lab::config::{Connection, Settings};
use lab::member::{Member, Product};
use lab::ping;
use lab::stage::{Stage, random_psk};
use lab::strongswan::{self, Charon, swanctl_conf};
use lab::topology::{Lab, addr};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// So long nothing happens where nothing is to happen: five rounds of what initiates.
const QUIET: Duration = Duration::from_millis(2500);
const SUITE: &str = "chacha20poly1305-prfsha256-x25519";

/// A connection whose peer is lost.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    start: &'static str,
    /// Both `dpd_action` and `close_action`.
    action: &'static str,
    /// The network behind the peer.
    behind: &'static str,
    /// A host in it.
    host: Ipv4Addr,
}

/// Each action, on a connection whose `start` would do something else.
const CASES: [Case; 3] = [
    Case {
        name: "again",
        start: "passive",
        action: "restart",
        behind: "10.10.11.0/24",
        host: Ipv4Addr::new(10, 10, 11, 2),
    },
    Case {
        name: "wait",
        start: "initiate",
        action: "trap",
        behind: "10.10.12.0/24",
        host: Ipv4Addr::new(10, 10, 12, 2),
    },
    Case {
        name: "rest",
        start: "initiate",
        action: "clear",
        behind: "10.10.13.0/24",
        host: Ipv4Addr::new(10, 10, 13, 2),
    },
];

struct Scene {
    stage: Stage,
}

impl Scene {
    fn new() -> Result<Self> {
        let product = Product::built()?;
        let psk = random_psk()?;
        let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        for case in &CASES {
            let [a, b, c, _] = case.host.octets();
            lab.host.ip(&format!("addr add {}/24 dev lan", case.host))?;
            lab.peer.ip(&format!("addr add {a}.{b}.{c}.1/24 dev lan"))?;
        }
        lab.host.ip("route replace 10.20.1.0/24 via 10.10.1.1")?;
        let peer = start_peer(&lab, &psk)?;
        let settings = Settings {
            connections: CASES.iter().map(ours).collect(),
            ..Settings::demo()
        };
        let mut cluster = lab::cluster::Cluster::prepare(lab, &product, &psk, &settings)?;
        for member in &cluster.members {
            for case in &CASES {
                let start = format!(
                    "start = \"{}\"\n\n[[connections.children]]\nname = \"{}\"",
                    case.start, case.name
                );
                let keys = format!(
                    "dpd_action = \"{0}\"\nclose_action = \"{0}\"\n{start}",
                    case.action
                );
                member.edit(&start, &keys)?;
            }
            member.add_keys(
                "dpd_delay = \"1s\"\nretransmit_initial = \"200ms\"\nretransmit_tries = 2\nretry_first = \"200ms\"\nretry_most = \"500ms\"",
            )?;
        }
        cluster.start()?;
        let lab::cluster::Cluster {
            members,
            outside,
            inside,
            lab,
        } = cluster;
        let stage = Stage {
            members,
            peer,
            outside,
            inside,
            lab,
        };
        stage.wait_in_sync(0, LIMIT)?;
        // What the cluster does not begin by itself, the peer does.
        stage.peer.initiate("again")?;
        let scene = Self { stage };
        for case in &CASES {
            scene.wait(0, case, "up", |c| c["state"] == "up")?;
        }
        Ok(scene)
    }

    fn member(&self, member: usize) -> &Member {
        &self.stage.members[member]
    }

    /// Waits until a member says this of a connection.
    fn wait(&self, member: usize, case: &Case, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = wait_for(LIMIT, Duration::from_millis(20), || {
            connection(self.member(member), case.name).ok().filter(|c| is(c))
        });
        found.with_context(|| {
            format!(
                "{} of member {} is never {what}: {:?}\n{}",
                case.name,
                member,
                connection(self.member(member), case.name),
                self.member(member).log_text()
            )
        })
    }

    /// A packet from inside asks for a connection.
    fn knock(&self, case: &Case) -> Result<()> {
        ping::short(&self.stage.lab.server, addr::SERVER_ONE, case.host, 20_000, 3).map(drop)
    }

    fn pings(&self, case: &Case) -> Result<()> {
        let pings = ping::short(&self.stage.lab.server, addr::SERVER_ONE, case.host, 20_000, 20)?;
        ensure!(pings.lost() == 0, "{}: {} pings lost", case.name, pings.lost());
        Ok(())
    }

    /// What each connection does by itself, and then with a packet, after its peer was lost to a member.
    fn nothing_but_what_the_action_says(&self, member: usize, lost: impl Fn(&Value) -> bool) -> Result<()> {
        let [again, wait, rest] = &CASES;
        self.wait(member, again, "tried again", |c| {
            c["retry"]["attempts"].as_u64() >= Some(2)
        })?;
        for case in [wait, rest] {
            self.wait(member, case, "lost", &lost)?;
        }
        let attempts = |case: &Case| -> Result<u64> {
            let now = connection(self.member(member), case.name)?;
            Ok(now["retry"]["attempts"].as_u64().unwrap_or(0))
        };
        let tried = wait_for(QUIET, Duration::from_millis(50), || {
            let all = attempts(wait).and_then(|n| Ok(n + attempts(rest)?));
            all.ok().filter(|n| *n > 0)
        });
        ensure!(tried.is_none(), "initiated without a packet: {tried:?}");
        self.knock(rest)?;
        self.knock(wait)?;
        self.wait(member, wait, "tried for a packet", |c| {
            c["retry"]["attempts"].as_u64() >= Some(1)
        })?;
        ensure!(attempts(rest)? == 0, "initiated though it was to rest");
        Ok(())
    }

    fn signal_peer(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.stage.peer.pid() as i32), signal).context("signal to charon")
    }

    /// The peer is back: what tries comes up, and what rests comes up when the peer begins.
    fn back(&self, member: usize) -> Result<()> {
        let [again, wait, rest] = &CASES;
        self.signal_peer(Signal::SIGCONT)?;
        self.wait(member, again, "up again", |c| c["state"] == "up")?;
        // Attempts for a packet end; another packet makes another one.
        let up = wait_for(LIMIT, Duration::from_millis(200), || {
            self.knock(wait).ok()?;
            (connection(self.member(member), wait.name).ok()?["state"] == "up").then_some(())
        });
        up.context("a packet does not bring it up again")?;
        ensure!(connection(self.member(member), rest.name)?["state"] == "down");
        // charon may still hold what it had before it was stopped.
        let _ = self
            .stage
            .peer
            .swanctl(&["--terminate", "--ike", rest.name, "--force", "--timeout", "1"]);
        self.stage.peer.initiate(rest.name)?;
        for case in &CASES {
            self.wait(member, case, "up", |c| c["state"] == "up")?;
            self.pings(case)?;
        }
        Ok(())
    }
}

fn start_peer(lab: &Lab, psk: &str) -> Result<Charon> {
    Charon::start(
        &lab.peer,
        &lab.folder.join("peer"),
        lab.sockets(),
        &lab.resources,
        &swanctl_conf(&CASES.map(|case| theirs(&case)), psk),
    )
}

fn ours(case: &Case) -> Connection {
    Connection {
        name: case.name,
        remote: addr::PEER,
        ike: SUITE,
        start: case.start,
        local_ts: "10.20.1.0/24",
        remote_ts: case.behind,
        esp: "chacha20poly1305",
    }
}

fn theirs(case: &Case) -> strongswan::Connection {
    strongswan::Connection {
        name: case.name,
        local: addr::PEER.to_string(),
        remote: addr::CLUSTER_OUTSIDE.to_string(),
        local_id: format!("peer-{}.example", case.name),
        remote_id: format!("gw-{}.example", case.name),
        proposal: SUITE,
        esp_proposal: "chacha20poly1305",
        local_ts: case.behind,
        remote_ts: "10.20.1.0/24",
        child_rekey: "0",
        restart: false,
    }
}

fn connection(member: &Member, name: &str) -> Result<Value> {
    let status = member.status()?;
    let all = status["connections"].as_array().context("connections")?;
    let found = all.iter().find(|c| c["name"] == name);
    found.cloned().with_context(|| format!("no connection {name}"))
}

fn is_down(connection: &Value) -> bool {
    connection["state"] == "down"
}

/// ```text
///   the peer stops in the middle:  again   tried until the peer is back
///                                  wait    nothing, until a packet asks for it
///                                  rest    nothing, whatever asks for it, until the peer begins
/// ```
#[test]
fn a_peer_that_falls_silent_is_begun_again_waited_for_or_left() -> Result<()> {
    let scene = Scene::new()?;
    scene.signal_peer(Signal::SIGSTOP)?;
    scene.nothing_but_what_the_action_says(0, is_down)?;
    scene.back(0)?;
    let twice = scene.stage.outside.read(|l| l.duplicates());
    ensure!(twice == (0, 0), "{twice:?}");
    Ok(())
}

/// ```text
///   the peer stops, A sees it and does what it is to do, and dies with its host
///   B takes over:                  each connection is what the loss has made of it, as it was on A
/// ```
#[test]
fn a_taker_goes_on_with_what_a_loss_has_made_of_each_connection() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.signal_peer(Signal::SIGSTOP)?;
    scene.nothing_but_what_the_action_says(0, is_down)?;
    scene.stage.members[0].kill_host()?;
    scene.stage.wait_active(1, LIMIT)?;
    scene.nothing_but_what_the_action_says(1, is_down)?;
    scene.back(1)?;
    let twice = scene.stage.outside.read(|l| l.duplicates());
    ensure!(twice == (0, 0), "{twice:?}");
    Ok(())
}

/// ```text
///   the peer deletes     its Child SA         its IKE SA
///   again                made again           begun again
///   wait                 made for a packet    begun for a packet
///   rest                 not made             not begun             until the peer begins
///   the same once more with B, after A has died
/// ```
#[test]
fn what_the_peer_ends_is_made_again_waited_for_or_left() -> Result<()> {
    let mut scene = Scene::new()?;
    for member in [0, 1] {
        for kind in ["--child", "--ike"] {
            scene
                .ended(member, kind)
                .with_context(|| format!("{kind}, member {member}"))?;
        }
        if member == 0 {
            scene.stage.members[0].kill_host()?;
            scene.stage.wait_active(1, LIMIT)?;
            for case in &CASES {
                scene.wait(1, case, "up with B", |c| c["state"] == "up")?;
            }
        }
    }
    let twice = scene.stage.outside.read(|l| l.duplicates());
    ensure!(twice == (0, 0), "{twice:?}");
    Ok(())
}

impl Scene {
    /// The peer ends everything of one kind.
    fn ended(&self, member: usize, kind: &str) -> Result<()> {
        let [again, wait, rest] = &CASES;
        let before = self.spis(member, again)?;
        for case in &CASES {
            self.stage.peer.swanctl(&["--terminate", kind, case.name])?;
        }
        let made = wait_for(LIMIT, Duration::from_millis(20), || {
            let now = self.spis(member, again).ok()?;
            let new = now.iter().any(|spi| !before.contains(spi));
            (new && connection(self.member(member), again.name).ok()?["state"] == "up").then_some(())
        });
        made.with_context(|| format!("not made again:\n{}", self.member(member).log_text()))?;
        for case in [wait, rest] {
            self.wait(member, case, "without its Child SA", |c| c["children"] == 0)?;
        }
        let made = wait_for(QUIET, Duration::from_millis(50), || {
            let children = |case| connection(self.member(member), case).ok()?["children"].as_u64();
            (children(wait.name)? + children(rest.name)? > 0).then_some(())
        });
        ensure!(made.is_none(), "made without a packet");
        let since = now_ns();
        self.knock(rest)?;
        let up = wait_for(LIMIT, Duration::from_millis(200), || {
            self.knock(wait).ok()?;
            (connection(self.member(member), wait.name).ok()?["state"] == "up").then_some(())
        });
        up.with_context(|| {
            format!(
                "a packet does not make it again:\n{}",
                self.member(member).log_text()
            )
        })?;
        let events = self.member(member).events()?;
        let made = events.iter().find(|(at, kind, text)| {
            *at > since && ["child_up", "established"].contains(&kind.as_str()) && text.starts_with(rest.name)
        });
        ensure!(made.is_none(), "made though it was to rest: {made:?}");
        self.stage.peer.initiate(rest.name)?;
        for case in &CASES {
            self.wait(member, case, "up", |c| c["state"] == "up")?;
            self.pings(case)?;
        }
        Ok(())
    }

    fn spis(&self, member: usize, case: &Case) -> Result<Vec<String>> {
        let sas = self.member(member).sas()?;
        let of_it = sas
            .as_array()
            .context("a list")?
            .iter()
            .filter(|sa| sa["connection"] == case.name);
        let children = of_it.flat_map(|sa| sa["children"].as_array().cloned().unwrap_or_default());
        let text = |child: Value| child["spi_in"].as_str().unwrap_or_default().to_owned();
        Ok(children.map(text).collect())
    }
}

/// ```text
///   an operator stops a connection that `start` would bring up       A leaves it alone, whatever asks for it
///   the cluster moves to B                                           and so does B, until an operator starts it
/// ```
#[test]
fn what_an_operator_has_stopped_stays_down_over_a_takeover() -> Result<()> {
    let scene = Scene::new()?;
    let [_, case, _] = &CASES;
    scene.member(0).espalier(&["connection", "stop", case.name])?;
    for member in [0, 1] {
        if member == 1 {
            scene.member(1).espalier(&["takeover"])?;
            scene.stage.wait_active(1, LIMIT)?;
        }
        scene.wait(member, case, "down", is_down)?;
        let begun = wait_for(QUIET, Duration::from_millis(100), || {
            scene.knock(case).ok()?;
            let now = connection(scene.member(member), case.name).ok()?;
            (!is_down(&now) || now["retry"]["attempts"].as_u64() > Some(0)).then_some(now)
        });
        ensure!(
            begun.is_none(),
            "member {member} begins what was stopped: {begun:?}"
        );
    }
    scene.member(1).espalier(&["connection", "start", case.name])?;
    scene.wait(1, case, "up", |c| c["state"] == "up")?;
    scene.pings(case)
}
