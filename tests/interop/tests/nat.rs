//! strongSwan behind a NAT that forgets its mapping: the first packet through the new one is ESP, and the cluster follows it
//! (RFC 7296 2.23). Needs root, strongSwan, nftables, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::clock::{now_ns, wait_for};
use lab::config::Settings;
use lab::esp::exchange;
use lab::member::{Member, Product};
use lab::nat::translate;
use lab::ping;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

/// Where the cluster's members have the peer, by their lists of SAs.
fn peer_at(member: &Member) -> Result<Vec<String>> {
    let sas = member.sas()?;
    let all = sas.as_array().context("a list")?;
    let remote = |sa: &serde_json::Value| sa["remote"].as_str().unwrap_or_default().to_owned();
    Ok(all
        .iter()
        .filter(|sa| sa["connection"] == "one")
        .map(remote)
        .collect())
}

fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(LIMIT, Duration::from_millis(20), || {
        is_so().unwrap_or(false).then_some(())
    })
    .with_context(|| format!("not within {LIMIT:?}: {what}"))
}

/// ```text
///   peer --- NAT :14500 --- A (B in sync)    connection one is up, MOBIKE is off
///   the NAT forgets the mapping, and gives the next packet :24500
///   peer ==== ESP ====> NAT :24500 ====> A   newer than all before: the peer is there now, B knows it too
///   peer <=== ESP ===== NAT :24500 <==== A   no IKE message was needed
///   B takes over                             and sends there
/// ```
#[test]
fn a_new_mapping_is_learnt_from_the_first_esp_packet_and_known_to_the_standby() -> Result<()> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    translate(&lab, addr::PEER, addr::ROUTER_OUTSIDE, 10500, 14500)?;
    let peer = start_peer(&lab, &psk)?;
    // No liveness checks and no keepalives: nothing of IKE tells the new mapping.
    let quiet = std::fs::read_to_string(lab.folder.join("peer/swanctl/swanctl.conf"))?
        .replace("dpd_delay = 3s", "dpd_delay = 0s");
    std::fs::write(lab.folder.join("peer/swanctl/swanctl.conf"), quiet)?;
    peer.swanctl(&["--load-all"])?;
    // The other connection goes the other way through the router's tables.
    let mut settings = Settings::demo();
    settings.connections.truncate(1);
    // Which is where the peer seems to be.
    settings.connections[0].remote = addr::ROUTER_OUTSIDE;
    let stage = Stage::with(lab, peer, &product, &psk, &settings)?;
    let (a, b) = (&stage.members[0], &stage.members[1]);
    let lab = &stage.lab;
    stage.peer.initiate("one")?;
    let old = format!("{}:14500", addr::ROUTER_OUTSIDE);
    let new = format!("{}:24500", addr::ROUTER_OUTSIDE);
    until("both members have the peer at the first mapping", || {
        Ok(peer_at(a)? == [old.clone()] && peer_at(b)? == [old.clone()])
    })?;
    let pings = ping::short(&lab.host, addr::HOST_ONE, addr::SERVER_ONE, 20_000, 20)?;
    ensure!(
        pings.lost() == 0,
        "{} pings lost through the first mapping",
        pings.lost()
    );

    translate(lab, addr::PEER, addr::ROUTER_OUTSIDE, 20500, 24500)?;
    let since = now_ns();
    let pings = ping::short(&lab.host, addr::HOST_ONE, addr::SERVER_ONE, 20_000, 100)?;
    ensure!(
        pings.lost() <= 5,
        "{} of 100 pings lost while the cluster follows",
        pings.lost()
    );
    until("both members have the peer at the second mapping", || {
        Ok(peer_at(a)? == [new.clone()] && peer_at(b)? == [new.clone()])
    })?;
    let told = a.events()?;
    let moved = told.iter().find(|(_, kind, _)| kind == "peer_moved");
    ensure!(moved.is_some_and(|(_, _, text)| text.contains("ESP")), "{told:?}");
    let asked = stage
        .outside
        .read(|l| l.requests(exchange::INFORMATIONAL, since, now_ns()));
    ensure!(asked == 0, "{asked} INFORMATIONAL requests");

    b.espalier(&["takeover"])?;
    let pings = ping::short(&lab.host, addr::HOST_ONE, addr::SERVER_ONE, 20_000, 50)?;
    ensure!(
        pings.lost() == 0,
        "{} pings lost after the takeover",
        pings.lost()
    );
    b.espalier(&["liveness", "one"])
        .context("IKE reaches the peer there too")?;
    let twice = stage.outside.read(|l| l.duplicates());
    ensure!(twice == (0, 0), "{twice:?}");
    Ok(())
}
