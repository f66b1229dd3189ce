//! strongSwan keeps its tunnels while the member that serves them dies.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::baseline::peer_connections;
use lab::clock::now_ns;
use lab::config::Settings;
use lab::esp::exchange;
use lab::member::Product;
use lab::ping;
use lab::stage::{Stage, random_psk};
use lab::strongswan::{Charon, swanctl_conf};
use lab::topology::{Lab, addr};
use std::path::Path;
use std::time::Duration;

/// The peer and the cluster with these ESP proposals for `one` and `two`; the demo's where there are none.
fn stage(esp: Option<[&'static str; 2]>) -> Result<Stage> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let mut settings = Settings::demo();
    let mut theirs = peer_connections();
    for (at, esp) in esp.into_iter().flatten().enumerate() {
        settings.connections[at].esp = esp;
        theirs[at].esp_proposal = esp;
    }
    let conf = swanctl_conf(&theirs, &psk);
    let folder = lab.folder.join("peer");
    let peer = Charon::start(&lab.peer, &folder, lab.sockets(), &lab.resources, &conf)?;
    let stage = Stage::with(lab, peer, &product, &psk, &settings)?;
    stage.connect()?;
    Ok(stage)
}

/// The peer initiates `one`, the cluster initiates `two`; then A dies, and B goes on with both:
///
/// ```text
///   peer ---- IKE_SA_INIT, IKE_AUTH ---> A      (ChaCha20-Poly1305)
///   peer <--- IKE_SA_INIT, IKE_AUTH ---- A      (AES-256-GCM)
///   peer <==== ping both ways =========> A      A is killed, its links go down
///   peer <==== ping both ways =========> B      no IKE_SA_INIT, no CREATE_CHILD_SA, no number twice
///   peer ---- CREATE_CHILD_SA ---------> B
///   peer <--- CREATE_CHILD_SA ---------- B
/// ```
#[test]
fn a_peer_keeps_both_tunnels_over_a_takeover_and_rekeys_with_the_survivor() -> Result<()> {
    keeps_both_tunnels(stage(None)?)
}

/// The same with an old peer's suites, AES-CBC and HMAC-SHA2-256-128, with a key exchange of its own in the rekeys of `one` (ADR 24).
#[test]
fn an_old_peer_without_aead_keeps_both_tunnels_too() -> Result<()> {
    let stage = stage(Some(["aes128-sha256-x25519", "aes256-sha256"]))?;
    let sas = stage.peer.swanctl(&["--list-sas"])?;
    for suite in ["AES_CBC-128/HMAC_SHA2_256_128", "AES_CBC-256/HMAC_SHA2_256_128"] {
        ensure!(
            sas.contains(suite),
            "the peer has no Child SA with {suite}:\n{sas}"
        );
    }
    // From both sides, with the member that made the SAs.
    stage.peer.rekey_child("two").context("the peer rekeys")?;
    stage.members[0].espalier(&["rekey", "one"]).context("A rekeys")?;
    keeps_both_tunnels(stage)
}

fn keeps_both_tunnels(mut stage: Stage) -> Result<()> {
    let both_ways = |stage: &Stage| -> Result<u64> {
        let one = ping::short(&stage.lab.host, addr::HOST_ONE, addr::SERVER_ONE, 10_000, 50)?;
        let two = ping::short(&stage.lab.server, addr::SERVER_TWO, addr::HOST_TWO, 10_000, 50)?;
        Ok(one.lost() + two.lost())
    };
    assert_eq!(both_ways(&stage)?, 0, "pings lost before the takeover");

    let killed = stage.members[0].kill_host()?;
    stage.wait_active(1, Duration::from_secs(10))?;
    // The peer did not send during the outage, so its next numbers lie below the old ceilings and count as seen. They
    // are fewer than the headroom of a flow of 100 packets a second; after them nothing is lost.
    let below_floor = both_ways(&stage)?;
    assert!(
        below_floor < 2 * 40,
        "{below_floor} of 100 pings lost below the floor"
    );
    assert_eq!(both_ways(&stage)?, 0, "pings lost after the takeover");
    let inits = stage
        .outside
        .read(|l| l.requests(exchange::IKE_SA_INIT, killed, now_ns()));
    let rekeys = stage
        .outside
        .read(|l| l.requests(exchange::CREATE_CHILD_SA, killed, now_ns()));
    assert_eq!((inits, rekeys), (0, 0), "new IKE SAs, rekeys");

    stage.peer.rekey_child("one").context("the peer rekeys")?;
    stage.members[1].espalier(&["rekey", "two"]).context("B rekeys")?;
    assert_eq!(both_ways(&stage)?, 0, "pings lost after the rekeys");
    assert_eq!(
        stage.outside.read(|l| l.message_id_faults()),
        Vec::<String>::new()
    );
    assert_eq!(
        stage.outside.read(|l| l.duplicates()),
        (0, 0),
        "(SPI, sequence number), (SPI, IV) twice"
    );
    assert_eq!(stage.outside.lost(), 0, "packets that the recorder missed");
    Ok(())
}
