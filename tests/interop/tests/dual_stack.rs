//! strongSwan over IPv6, with IPv4 and IPv6 inside one Child SA, over a takeover.
//!
//! ```text
//!   2001:db8:10::2 -- peer 2001:db8:51::2 -- router -- 2001:db8:a::10 A and B -- server 2001:db8:20::100
//! ```
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::wait_for;
use lab::member::{Member, Product, shared_secrets};
use lab::netns::Netns;
use lab::stage::{in_sync_members, is_active, random_psk};
use lab::strongswan::{Charon, Connection, swanctl_conf};
use lab::topology::Lab;
use std::path::Path;
use std::time::Duration;

const CLUSTER: &str = "2001:db8:a::10";
const PEER: &str = "2001:db8:51::2";
const HOST_V6: &str = "2001:db8:10::2";
const SERVER_V6: &str = "2001:db8:20::100";
const PINGS: u32 = 20;

/// Gives the lab, which is built for IPv4, the other family as well.
fn add_v6(lab: &Lab) -> Result<()> {
    let [a, b] = &lab.members[..] else {
        bail!("the lab has two members")
    };
    for netns in [&lab.host, &lab.peer, &lab.router, &lab.server, &a.netns, &b.netns] {
        netns.sysctl(&[
            "net.ipv6.conf.all.disable_ipv6=0",
            "net.ipv6.conf.default.disable_ipv6=0",
        ])?;
    }
    for netns in [&lab.peer, &lab.router] {
        netns.sysctl(&["net.ipv6.conf.all.forwarding=1"])?;
    }
    lab.host.ip(&format!(
        "addr add {HOST_V6}/64 dev lan nodad\nroute add ::/0 via 2001:db8:10::1"
    ))?;
    lab.peer.ip(&format!(
        "addr add 2001:db8:10::1/64 dev lan nodad\naddr add {PEER}/64 dev wan nodad\n\
         route add ::/0 via 2001:db8:51::1"
    ))?;
    lab.router
        .ip("addr add 2001:db8:51::1/64 dev peer1 nodad\naddr add 2001:db8:a::1/64 dev outside nodad")?;
    lab.server.ip(&format!(
        "addr add {SERVER_V6}/64 dev eth0 nodad\nroute add ::/0 via 2001:db8:20::1"
    ))?;
    for place in &lab.members {
        let id = place.id;
        place.netns.ip(&format!(
            "addr add 2001:db8:a::1{id}/64 dev outside nodad\naddr add 2001:db8:20::1{id}/64 dev inside nodad\n\
             route add ::/0 via 2001:db8:a::1"
        ))?;
    }
    Ok(())
}

/// The lab's configuration with addresses of both families and one connection over IPv6.
fn dual_stack(member: &Member) -> Result<()> {
    let text = std::fs::read_to_string(&member.config)?;
    let (head, _) = text
        .split_once("\n[[connections]]")
        .context("connections in the configuration")?;
    let head = head
        .replace(
            "outside = [\"203.0.113.10\"]",
            &format!("outside = [\"203.0.113.10\", \"{CLUSTER}\"]"),
        )
        .replace(
            "inside = [\"10.20.1.1\"]",
            "inside = [\"10.20.1.1\", \"2001:db8:20::1\"]",
        );
    ensure!(head.contains(CLUSTER), "the addresses are another text: {head}");
    let text = format!(
        "{head}
[[connections]]
name = \"six\"
local = \"{CLUSTER}\"
remote = \"{PEER}\"
local_id = \"gw-six.example\"
remote_id = \"peer-six.example\"
psk_file = \"../psk\"
ike = [\"chacha20poly1305-prfsha256-x25519\"]

[[connections.children]]
name = \"six\"
local_ts = [\"10.20.1.0/24\", \"2001:db8:20::/64\"]
remote_ts = [\"10.10.1.0/24\", \"2001:db8:10::/64\"]
esp = [\"chacha20poly1305\"]
"
    );
    Ok(std::fs::write(&member.config, text)?)
}

fn peer_connection() -> Connection {
    Connection {
        name: "six",
        local: PEER.into(),
        remote: CLUSTER.into(),
        local_id: "peer-six.example".into(),
        remote_id: "gw-six.example".into(),
        proposal: "chacha20poly1305-prfsha256-x25519",
        esp_proposal: "chacha20poly1305",
        local_ts: "10.10.1.0/24,2001:db8:10::/64",
        remote_ts: "10.20.1.0/24,2001:db8:20::/64",
        child_rekey: "0",
        restart: false,
    }
}

fn active(member: &Member, in_sync: usize) -> Result<()> {
    let done = wait_for(Duration::from_secs(20), Duration::from_millis(20), || {
        let status = member.status().ok()?;
        (is_active(&status) && in_sync_members(&status) >= in_sync).then_some(())
    });
    done.with_context(|| format!("member {} is not active", member.place.letter))
}

/// How many of [`PINGS`] came back.
fn ping(from: &Netns, source: &str, to: &str) -> Result<u32> {
    let count = PINGS.to_string();
    let output = from
        .command("ping")
        .args(["-n", "-c", &count, "-i", "0.02", "-W", "1", "-I", source, to])
        .output()
        .context("ping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let received = text
        .split(", ")
        .find_map(|part| part.strip_suffix(" received"))
        .with_context(|| format!("ping says: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(received.parse()?)
}

#[test]
fn a_peer_over_ipv6_keeps_its_tunnel_for_both_families_over_a_takeover() -> Result<()> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    add_v6(&lab)?;
    let peer = Charon::start(
        &lab.peer,
        &lab.folder.join("peer"),
        lab.sockets(),
        &lab.resources,
        &swanctl_conf(&[peer_connection()], &psk),
    )?;
    shared_secrets(&lab, &product, &psk)?;
    let [a, b] = &lab.members[..] else {
        bail!("the lab has two members")
    };
    let mut members = [Member::new(&lab, a, &product)?, Member::new(&lab, b, &product)?];
    for member in &mut members {
        dual_stack(member)?;
        member.start(&lab.resources)?;
    }
    active(&members[0], 2)?;
    if let Err(error) = peer.initiate("six") {
        bail!("{error:#}\n{}\n{}", peer.log(), members[0].log_text());
    }
    let pairs = [
        (&lab.host, HOST_V6, SERVER_V6),
        (&lab.host, "10.10.1.2", "10.20.1.100"),
        (&lab.server, SERVER_V6, HOST_V6),
    ];
    // Neighbours may have to be asked for first.
    let settled = |what: &str, members: &[Member; 2]| -> Result<()> {
        for (from, source, to) in pairs {
            let done = wait_for(Duration::from_secs(20), Duration::from_millis(10), || {
                (ping(from, source, to).ok()? == PINGS).then_some(())
            });
            if done.is_none() {
                bail!(
                    "{what}: pings from {source} to {to} are lost\n{:?}\n{:?}\n{}",
                    members[0].verdicts(),
                    members[1].verdicts(),
                    peer.swanctl(&["--list-sas"])?
                );
            }
        }
        Ok(())
    };
    settled("before the takeover", &members)?;
    let verdicts = members[0].verdicts()?;
    for name in ["neighbour_answered", "ike_to_agent", "esp_opened", "esp_sealed"] {
        assert!(
            verdicts.get(name).is_some_and(|n| *n > 0),
            "no {name} in {verdicts:?}"
        );
    }
    assert_eq!(verdicts.get("internal_error"), None, "{verdicts:?}");
    let before = peer.swanctl(&["--list-sas"])?;
    assert!(before.contains(CLUSTER), "{before}");

    members[0].kill_host()?;
    active(&members[1], 1)?;
    settled("after the takeover", &members)?;
    let after = peer.swanctl(&["--list-sas"])?;
    let ike_spis = |text: &str| {
        let line = text.lines().find(|line| line.starts_with("six: #"));
        line.and_then(|line| line.split_once("IKEv2, ").map(|(_, spis)| spis.to_owned()))
    };
    assert_eq!(
        ike_spis(&after).context("an IKE SA")?,
        ike_spis(&before).context("an IKE SA")?,
        "the IKE SA is another one"
    );
    let verdicts = members[1].verdicts()?;
    for name in ["esp_opened", "esp_sealed"] {
        assert!(
            verdicts.get(name).is_some_and(|n| *n > 0),
            "B: no {name} in {verdicts:?}"
        );
    }
    Ok(())
}
