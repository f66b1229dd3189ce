//! Rekeys of both SAs, by both sides in turn, one after the other under traffic in both directions: not one packet is lost. This peer's data
//! path in user space uses an SA as soon as its answer to our request has left, where others wait for our first packet or Delete (RFC
//! 7296 2.8 lets it): what comes before that answer is read and committed waits for it (ADR 29).
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that. It takes half a minute, or as many seconds as
//! `ESPALIER_REKEYS_S` says.

use anyhow::{Context, Result, ensure};
use lab::clock::wait_for;
use lab::member::Product;
use lab::ping::Ping;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use std::path::Path;
use std::time::Duration;

/// Microseconds between two requests: 200 a second.
const PING_US: u64 = 5_000;
const TICK: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(10);
/// Where nothing else is said.
const SECONDS: u64 = 30;

/// ```text
///   peer ==== pings both ways, 200/s each ====> A
///   rekey of the Child SA by the peer, by A, of the IKE SA by the peer, by A, and so on, a second after each other
/// ```
#[test]
fn rekeys_by_both_sides_lose_nothing() -> Result<()> {
    let (product, psk) = (Product::built()?, random_psk()?);
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let stage = Stage::up(lab, peer, &product, &psk)?;
    stage.connect()?;
    let seconds = std::env::var("ESPALIER_REKEYS_S")
        .ok()
        .and_then(|s| s.parse().ok());
    let most = (seconds.unwrap_or(SECONDS) * 1_000_000 / PING_US) as usize;
    let overflows = stage.peer_overflows()?;
    let a = &stage.members[0];
    let (host, server) = (&stage.lab.host, &stage.lab.server);
    let inward = Ping::start(host, "in", addr::HOST_ONE, addr::SERVER_ONE, PING_US)?;
    let outward = Ping::start(server, "out", addr::SERVER_ONE, addr::HOST_ONE, PING_US)?;
    let goes_on = |more: usize| {
        let until = (inward.so_far().1 + more, outward.so_far().1 + more);
        wait_for(LIMIT, TICK, || {
            (inward.so_far().1 >= until.0 && outward.so_far().1 >= until.1).then_some(())
        })
        .context("the pings do not come back")
    };
    goes_on(200)?;
    let of = |verdict: &str| -> Result<u64> { Ok(a.verdicts()?.get(verdict).copied().unwrap_or(0)) };
    let mut rekeys = [0; 4];
    for kind in (0..4).cycle() {
        if inward.so_far().0 >= most {
            break;
        }
        let before = wait_for(LIMIT, TICK, || a.only_sas("one")).context("one IKE SA with one Child SA")?;
        let unknown_before = of("unknown_spi")?;
        match kind {
            0 => stage.peer.rekey_child("one")?,
            1 => drop(a.espalier(&["rekey", "one"])?),
            2 => drop(stage.peer.swanctl(&["--rekey", "--ike", "one"])?),
            _ => drop(a.espalier(&["rekey", "--ike", "one"])?),
        }
        let changed = wait_for(LIMIT, TICK, || {
            a.only_sas("one").filter(|now| match kind {
                0 | 1 => now.1 != before.1,
                _ => now.0 != before.0,
            })
        });
        changed.with_context(|| format!("rekey {kind}: {before:?} stays\n{}", a.log_text()))?;
        rekeys[kind] += 1;
        goes_on(200)?;
        let more = of("unknown_spi")? - unknown_before;
        ensure!(
            more == 0,
            "rekey {kind}: {more} packets of no SA\n{}",
            a.log_text()
        );
    }
    let (inward, outward) = (inward.stop()?, outward.stop()?);
    let overflows = stage.peer_overflows()? - overflows;
    let early = of("held_for_answer")?;
    println!(
        "Child SA rekeyed {} times by the peer, {} by A, IKE SA {} and {}; lost {} of {} in, {} of {} out; the peer dropped \
         {overflows}, and sent {early} before its answer was used",
        rekeys[0],
        rekeys[1],
        rekeys[2],
        rekeys[3],
        inward.lost(),
        inward.sent(),
        outward.lost(),
        outward.sent()
    );
    ensure!(rekeys.iter().all(|n| *n > 0), "{rekeys:?}");
    ensure!(
        inward.lost() + outward.lost() <= overflows,
        "lost beyond what the peer's own buffer dropped: {:?}\n{}",
        a.verdicts(),
        a.log_text()
    );
    ensure!(
        stage.outside.read(|l| l.duplicates()) == (0, 0),
        "(SPI, sequence number), (SPI, IV) twice"
    );
    ensure!(stage.outside.lost() == 0, "packets that the recorder missed");
    Ok(())
}
