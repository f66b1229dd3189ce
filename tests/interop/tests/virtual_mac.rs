//! Neighbours keep one MAC address of the cluster, whichever member serves (ADR 8). The lab's devices are veth pairs, so the
//! programs run in generic mode here.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::config::Settings;
use lab::member::Product;
use lab::netns::Netns;
use lab::ping::{self, Ping};
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

fn stage() -> Result<Stage> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let settings = Settings {
        interface_keys: "virtual_mac = \"auto\"\n".to_owned(),
        mode: "auto",
        ..Settings::demo()
    };
    let stage = Stage::with(lab, peer, &product, &psk, &settings)?;
    stage.connect()?;
    Ok(stage)
}

/// What a neighbour believes to be the MAC address of one of ours.
fn believed(netns: &Netns, address: Ipv4Addr) -> Result<String> {
    let entry = netns.run(&["ip", "neigh", "show", &address.to_string()])?;
    let mut words = entry.split_whitespace();
    words
        .find(|w| *w == "lladdr")
        .and_then(|_| words.next())
        .map(str::to_owned)
        .with_context(|| format!("no neighbour entry for {address}: {entry:?}"))
}

/// The router's and the server's entries.
fn entries(stage: &Stage) -> Result<[String; 2]> {
    Ok([
        believed(&stage.lab.router, addr::CLUSTER_OUTSIDE)?,
        believed(&stage.lab.server, addr::CLUSTER_INSIDE)?,
    ])
}

/// ```text
///   router: 203.0.113.10 is at V     server: 10.20.1.1 is at W     V, W are no member's own
///   A serves ---- planned ----> B serves       V and W as before, 0 pings lost
///   B is killed, its links go down, A serves   V and W as before, pings answered
/// ```
#[test]
fn neighbours_keep_one_mac_address_over_a_planned_takeover_and_a_kill() -> Result<()> {
    let mut stage = stage()?;
    let answered = |stage: &Stage| -> Result<u64> {
        let one = ping::short(&stage.lab.host, addr::HOST_ONE, addr::SERVER_ONE, 10_000, 50)?;
        Ok(one.lost())
    };
    assert_eq!(answered(&stage)?, 0, "pings lost before anything happened");
    let before = entries(&stage)?;
    for (member, interface) in [(0, "outside"), (1, "outside"), (0, "inside"), (1, "inside")] {
        let own = Lab::mac(&stage.lab.members[member].netns, interface)?;
        let own = own.map(|o| format!("{o:02x}")).join(":");
        ensure!(
            !before.contains(&own),
            "{own} is the own address of a member's {interface}"
        );
    }

    let running = Ping::start(
        &stage.lab.host,
        "planned",
        addr::HOST_ONE,
        addr::SERVER_ONE,
        5_000,
    )?;
    stage.members[0]
        .espalier(&["takeover"])
        .context("planned takeover")?;
    stage.wait_in_sync(1, Duration::from_secs(10))?;
    assert_eq!(answered(&stage)?, 0, "pings lost after the planned takeover");
    let planned = running.stop()?;
    assert_eq!(
        planned.lost(),
        0,
        "pings lost in the planned takeover, of {}",
        planned.sent()
    );
    assert_eq!(
        entries(&stage)?,
        before,
        "the neighbours' entries after the planned takeover"
    );

    stage.members[1].kill_host()?;
    stage.wait_active(0, Duration::from_secs(10))?;
    // Numbers up to the old ceiling count as seen; see takeover.rs.
    let below_floor = answered(&stage)?;
    assert!(below_floor < 40, "{below_floor} of 50 pings lost below the floor");
    assert_eq!(answered(&stage)?, 0, "pings lost after the kill");
    assert_eq!(entries(&stage)?, before, "the neighbours' entries after the kill");
    assert_eq!(
        stage.outside.read(|l| l.duplicates()),
        (0, 0),
        "(SPI, sequence number), (SPI, IV) twice"
    );
    Ok(())
}
