//! strongSwan keeps its tunnels while the member that serves them dies.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result};
use lab::clock::now_ns;
use lab::esp::exchange;
use lab::member::Product;
use lab::ping;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use std::path::Path;
use std::time::Duration;

fn stage() -> Result<Stage> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let stage = Stage::up(lab, peer, &product, &psk)?;
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
    let mut stage = stage()?;
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
