//! Reauthentication by both sides, one after the other under traffic in both directions: the new IKE SA and its Child SA come first, then
//! the old ones end, and not one packet is lost. Afterwards there is one IKE SA with one Child SA, here and at the peer.
//!
//! As with rekeys, what this peer sends on a new Child SA before its answer to *our* request is read and committed waits for that (ADR 29).
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that. It takes a minute; `ESPALIER_REAUTHS` says
//! how many there are to be of each kind.

use anyhow::{Context, Result, ensure};
use lab::baseline::peer_connections;
use lab::clock::wait_for;
use lab::member::{Member, Product};
use lab::ping::Ping;
use lab::stage::{Stage, random_psk};
use lab::strongswan::{Charon, Daemon, swanctl_conf};
use lab::topology::{Lab, addr};
use std::path::Path;
use std::time::Duration;

/// Microseconds between two requests: 200 a second.
const PING_US: u64 = 5_000;
const TICK: Duration = Duration::from_millis(20);
const LIMIT: Duration = Duration::from_secs(20);
/// Where nothing else is said.
const TIMES: usize = 5;

/// The peer reauthenticates as we do: the new IKE SA first.
fn start_peer(lab: &Lab, psk: &str) -> Result<Charon> {
    // Without time between reauthentication and the end charon does both at once when it hears AUTH_LIFETIME.
    let conf = swanctl_conf(&peer_connections(), psk);
    let conf = conf.replace(
        "    dpd_delay = 3s\n",
        "    over_time = 5s\n    rand_time = 0s\n    dpd_delay = 3s\n",
    );
    let daemon = Daemon {
        settings: &["make_before_break = yes"],
        ..Daemon::default()
    };
    let folder = lab.folder.join("peer");
    Charon::start_daemon(&lab.peer, &folder, lab.sockets(), &lab.resources, &conf, daemon)
}

/// SPIs of the only IKE SA and Child SA of a connection at a member, if the peer has one of each as well.
fn only(a: &Member, peer: &Charon, name: &str) -> Option<(String, String)> {
    let ours = a.only_sas(name)?;
    let theirs = peer.swanctl(&["--list-sas", "--ike", name]).ok()?;
    let one_each = theirs.matches("ESTABLISHED").count() == 1 && theirs.matches("INSTALLED").count() == 1;
    one_each.then_some(ours)
}

/// ```text
///   peer ==== pings both ways through both connections, 200/s each ====> A
///   "one" by the peer (swanctl --rekey --reauth), "two" by A (espalier rekey --reauth), in turn
///   then A is told reauth_time = "10s": "two" by itself, and "one" by the peer, which heard AUTH_LIFETIME (RFC 4478)
/// ```
#[test]
fn reauthentication_by_both_sides_loses_nothing_and_leaves_one_ike_sa() -> Result<()> {
    let (product, psk) = (Product::built()?, random_psk()?);
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let stage = Stage::up(lab, peer, &product, &psk)?;
    stage.connect()?;
    let times = std::env::var("ESPALIER_REAUTHS")
        .ok()
        .and_then(|n| n.parse().ok());
    let times = times.unwrap_or(TIMES);
    let overflows = stage.peer_overflows()?;
    let a = &stage.members[0];
    let (host, server) = (&stage.lab.host, &stage.lab.server);
    let pings = [
        Ping::start(host, "in-one", addr::HOST_ONE, addr::SERVER_ONE, PING_US)?,
        Ping::start(server, "out-one", addr::SERVER_ONE, addr::HOST_ONE, PING_US)?,
        Ping::start(host, "in-two", addr::HOST_TWO, addr::SERVER_TWO, PING_US)?,
        Ping::start(server, "out-two", addr::SERVER_TWO, addr::HOST_TWO, PING_US)?,
    ];
    let goes_on = |more: usize| {
        let until = pings.each_ref().map(|ping| ping.so_far().1 + more);
        wait_for(LIMIT, TICK, || {
            let done = pings
                .iter()
                .zip(until)
                .all(|(ping, until)| ping.so_far().1 >= until);
            done.then_some(())
        })
        .context("the pings do not come back")
    };
    goes_on(200)?;
    let of = |verdict: &str| -> Result<u64> { Ok(a.verdicts()?.get(verdict).copied().unwrap_or(0)) };
    let settled = |name: &str, before: Option<&(String, String)>| {
        let now = wait_for(LIMIT, TICK, || {
            let now = only(a, &stage.peer, name)?;
            before.is_none_or(|b| b.0 != now.0 && b.1 != now.1).then_some(now)
        });
        now.with_context(|| {
            let theirs = stage.peer.swanctl(&["--list-sas"]).unwrap_or_default();
            format!("{name}: {before:?} stays\n{theirs}\n{}", a.log_text())
        })
    };
    for _ in 0..times {
        let before = settled("one", None)?;
        stage.peer.swanctl(&["--rekey", "--ike", "one", "--reauth"])?;
        settled("one", Some(&before))?;
        goes_on(100)?;

        let before = settled("two", None)?;
        a.espalier(&["rekey", "--reauth", "two"])?;
        settled("two", Some(&before))?;
        goes_on(100)?;
    }
    for member in &stage.members {
        member.add_keys("reauth_time = \"10s\"\nrekey_jitter = \"0s\"")?;
        member.espalier(&["reload"])?;
    }
    // The peer hears of it when it authenticates next.
    stage.peer.swanctl(&["--rekey", "--ike", "one", "--reauth"])?;
    let (mut one, mut two) = (settled("one", None)?, settled("two", None)?);
    for _ in 0..times {
        two = settled("two", Some(&two))?;
        one = settled("one", Some(&one))?;
    }
    goes_on(100)?;
    let [in_one, out_one, in_two, out_two] = pings;
    let results = [in_one.stop()?, out_one.stop()?, in_two.stop()?, out_two.stop()?];
    let overflows = stage.peer_overflows()? - overflows;
    let lost = results.each_ref().map(|result| result.lost());
    let sent: u64 = results.iter().map(|result| result.sent()).sum();
    let (early, unknown) = (of("held_for_answer")?, of("unknown_spi")?);
    println!(
        "reauthenticated {times} times by the peer and {times} by A on command, {times} each by time; lost {lost:?} of {sent}; the peer dropped \
         {overflows}, and sent {early} before its answer was used"
    );
    ensure!(
        lost.iter().sum::<u64>() <= overflows,
        "lost beyond what the peer's own buffer dropped: {:?}\n{}",
        a.verdicts(),
        a.log_text()
    );
    ensure!(unknown == 0, "{unknown} packets of no SA\n{}", a.log_text());
    let events = a.events()?;
    let told = |name: &str| events.iter().filter(|(_, kind, _)| kind == name).count();
    ensure!(
        told("peer_closed") == 0 && told("reauth_failed") == 0,
        "{events:?}"
    );
    ensure!(
        stage.outside.read(|l| l.duplicates()) == (0, 0),
        "(SPI, sequence number), (SPI, IV) twice"
    );
    ensure!(stage.outside.lost() == 0, "packets that the recorder missed");
    Ok(())
}
