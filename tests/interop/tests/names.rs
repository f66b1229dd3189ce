//! Peers with names: looked up before each attempt, and again when a stranger comes; what a name leads to changes.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::baseline::peer_connections;
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::config::Settings;
use lab::member::{Member, Product};
use lab::ping;
use lab::stage::random_psk;
use lab::strongswan::{Charon, swanctl_conf};
use lab::topology::{Lab, addr};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// Where the peer is later.
const ELSEWHERE: &str = "198.51.100.3";
/// The names in the connections.
const NAMES: [(&str, &str); 2] = [("one", "one.peer.example"), ("two", "two.peer.example")];

/// A lab whose members have a hosts file of their own, and nobody to ask about anything else.
struct Scene {
    cluster: Cluster,
    peer: Charon,
    psk: String,
}

impl Scene {
    fn new() -> Result<Self> {
        let product = Product::built()?;
        let psk = random_psk()?;
        let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
        lab.peer.ip(&format!("addr add {ELSEWHERE}/25 dev wan"))?;
        let (hosts, resolv) = (lab.folder.join("hosts"), lab.folder.join("resolv.conf"));
        fs::write(&hosts, "")?;
        fs::write(&resolv, "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")?;
        let peer = Charon::start(
            &lab.peer,
            &lab.folder.join("peer"),
            lab.sockets(),
            &lab.resources,
            &conf(&addr::PEER.to_string(), &psk),
        )?;
        let mut settings = Settings::demo();
        settings.connections.truncate(2);
        let mut cluster = Cluster::prepare(lab, &product, &psk, &settings)?;
        for member in &mut cluster.members {
            for (connection, name) in NAMES {
                let here = format!(
                    "name = \"{connection}\"\nlocal = \"{}\"\nremote = ",
                    addr::CLUSTER_OUTSIDE
                );
                member.edit(&format!("{here}\"{}\"", addr::PEER), &format!("{here}\"{name}\""))?;
            }
            member.add_keys(
                "dpd_delay = \"1s\"\nretransmit_initial = \"300ms\"\nretransmit_tries = 2\nretry_first = \"500ms\"\nretry_most = \"2s\"",
            )?;
            member.files = vec![
                ("/etc/hosts", hosts.clone()),
                ("/etc/resolv.conf", resolv.clone()),
            ];
        }
        cluster.start()?;
        let owner = cluster.wait_all_in_sync(LIMIT)?;
        ensure!(owner == 0, "member A is the preferred one");
        Ok(Self { cluster, peer, psk })
    }

    /// The names lead to these addresses from now on. The file is written in place: the members see it through a mount.
    fn hosts(&self, lines: &[(&str, &str)]) -> Result<()> {
        let text: String = lines
            .iter()
            .map(|(name, address)| format!("{address} {name}\n"))
            .collect();
        fs::write(self.cluster.lab.folder.join("hosts"), text).context("hosts")
    }

    /// The peer is at another address: the one that it had is gone.
    fn move_peer(&self) -> Result<()> {
        let conf = conf(ELSEWHERE, &self.psk);
        fs::write(self.cluster.lab.folder.join("peer/swanctl/swanctl.conf"), conf)?;
        let site = &self.cluster.lab.peer;
        site.sysctl(&["net.ipv4.conf.all.promote_secondaries=1"])?;
        site.ip(&format!(
            "addr del {}/25 dev wan\nroute replace default via 198.51.100.1",
            addr::PEER
        ))?;
        for name in ["one", "two"] {
            // Without a word to the cluster, since that would come from the address that is gone; and whether it is up or not.
            let _ = self
                .peer
                .swanctl(&["--terminate", "--ike", name, "--force", "--timeout", "-1"]);
        }
        self.peer.swanctl(&["--load-all"]).map(drop)
    }

    fn members(&self) -> (&Member, &Member) {
        (&self.cluster.members[0], &self.cluster.members[1])
    }
}

/// The peer's file with its own address.
fn conf(own: &str, psk: &str) -> String {
    let mut connections = peer_connections();
    for connection in &mut connections {
        connection.local = own.to_owned();
    }
    swanctl_conf(&connections[..2], psk)
}

fn connection(member: &Member, name: &str) -> Result<Value> {
    let status = member.status()?;
    let all = status["connections"].as_array().context("connections")?;
    let found = all.iter().find(|c| c["name"] == name);
    found.cloned().with_context(|| format!("no connection {name}"))
}

fn wait_connection(member: &Member, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let found = wait_for(LIMIT, Duration::from_millis(20), || {
        connection(member, name).ok().filter(|c| is(c))
    });
    found.with_context(|| {
        format!(
            "{name} of {} is never {what}: {:?}\n{}",
            member.place.letter,
            connection(member, name),
            member.log_text()
        )
    })
}

fn is_up_at(address: &str) -> impl Fn(&Value) -> bool {
    move |c| {
        c["state"] == "up"
            && c["remote"]
                .as_str()
                .is_some_and(|remote| remote.contains(address))
    }
}

/// ```text
///   two, which A initiates:  nobody knows the name          tried again, said why
///                            it leads to .2                 up
///                            the peer is at .3, and says nothing
///                            its silence is noticed         looked up again: up at .3
///   one, which the peer initiates from .3:
///                            the name leads to .2           no answer, but looked up again
///                            it leads to .3                 the repetition is answered
///   B, which takes over:     knows where both are
/// ```
#[test]
fn a_peer_is_where_its_name_leads() -> Result<()> {
    let scene = Scene::new()?;
    let (a, b) = scene.members();
    let lab = &scene.cluster.lab;

    let lost = wait_connection(a, "two", "given up for its name", |c| {
        c["reason"]
            .as_str()
            .is_some_and(|why| why.contains("two.peer.example leads nowhere"))
    })?;
    ensure!(lost["state"] == "down", "{lost}");
    ensure!(
        lost["remote"] == "two.peer.example (unknown)" && lost["retry"]["attempts"].as_u64() >= Some(1),
        "{lost}"
    );
    let said = a.events()?;
    ensure!(
        said.iter()
            .any(|(_, kind, text)| kind == "name_failed" && text.contains("two.peer.example")),
        "{said:?}"
    );
    let refused = a.espalier(&["connection", "start", "two"]);
    let why = format!("{:#}", refused.err().context("it has nowhere to go")?);
    ensure!(why.contains("two.peer.example leads nowhere"), "{why}");

    let here = addr::PEER.to_string();
    scene.hosts(&[("one.peer.example", &here), ("two.peer.example", &here)])?;
    wait_connection(a, "two", "up", is_up_at(&here))?;
    let pings = ping::short(&lab.server, addr::SERVER_TWO, addr::HOST_TWO, 20_000, 20)?;
    ensure!(pings.lost() == 0, "{} pings lost", pings.lost());
    // The standby looks names up for itself.
    for name in ["one", "two"] {
        wait_connection(b, name, "known to B", |c| {
            c["remote"].as_str().is_some_and(|r| r.contains(&here))
        })?;
    }

    scene.move_peer()?;
    scene.hosts(&[("one.peer.example", &here), ("two.peer.example", ELSEWHERE)])?;
    wait_connection(a, "two", "up elsewhere", is_up_at(ELSEWHERE))?;
    let pings = ping::short(&lab.server, addr::SERVER_TWO, addr::HOST_TWO, 20_000, 20)?;
    ensure!(pings.lost() == 0, "{} pings lost elsewhere", pings.lost());

    // At that address A knows the other connection only, whose proposals do not suit. charon sends its first message again after half a second.
    let from_there = std::thread::scope(|scope| -> Result<()> {
        let initiated = scope.spawn(|| scene.peer.initiate("one"));
        let strange = wait_for(LIMIT, Duration::from_millis(20), || {
            let events = a.events().ok()?;
            events
                .iter()
                .any(|(_, kind, text)| kind == "no_proposal" && text.contains(ELSEWHERE))
                .then_some(())
        });
        strange.context("A never met a stranger")?;
        scene.hosts(&[("one.peer.example", ELSEWHERE), ("two.peer.example", ELSEWHERE)])?;
        initiated
            .join()
            .map_err(|_| anyhow::anyhow!("the thread panicked"))?
    });
    from_there.context("the peer is refused at its new address")?;
    wait_connection(a, "one", "up", is_up_at(ELSEWHERE))?;
    let pings = ping::short(&lab.host, addr::HOST_ONE, addr::SERVER_ONE, 20_000, 20)?;
    ensure!(pings.lost() == 0, "{} pings lost on connection one", pings.lost());

    b.espalier(&["takeover"])?;
    for name in ["one", "two"] {
        wait_connection(b, name, "served by B", |c| c["state"] == "up")?;
    }
    scene.peer.swanctl(&["--terminate", "--ike", "two"])?;
    wait_connection(b, "two", "up again by B", |c| {
        is_up_at(ELSEWHERE)(c) && c["children"].as_u64() >= Some(1)
    })?;
    let twice = scene.cluster.outside.read(|l| l.duplicates());
    ensure!(twice == (0, 0), "{twice:?}");
    Ok(())
}
