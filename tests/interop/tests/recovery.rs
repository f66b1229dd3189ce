//! Total loss of state (RFC 6027 3.2): all members of a cluster are killed at once, their maps go, and they begin anew. Its peer,
//! another espalier gateway, finds out by a token (RFC 6290) and comes back by a ticket (RFC 5723); beside it the same without both.
//!
//! Needs root and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::{now_ns, wait_for};
use lab::cluster::Cluster;
use lab::gateway;
use lab::ledger::IkeMessage;
use lab::member::{Member, Product};
use lab::ping::{Ping, short};
use lab::stage::random_psk;
use lab::topology::{Lab, Plan, addr};
use std::path::Path;
use std::time::Duration;

const IKE_SA_INIT: u8 = 34;
const IKE_AUTH: u8 = 35;
const INFORMATIONAL: u8 = 37;
const IKE_SESSION_RESUME: u8 = 38;
const RESPONSE: u8 = 1 << 5;

/// How soon the gateway looks after its peer, and how long its patience is: 0.5 + 0.9 + 1.6 + 2.9 + 5.2 s.
const PATIENCE: &str = "dpd_delay = \"1s\"\nretransmit_initial = \"500ms\"\nretransmit_tries = 4";

/// Events of a recovery, each with its time, in the order in which they have to come.
struct Story {
    what: &'static str,
    since: u64,
    /// When a member of the cluster served again.
    serves: u64,
    told: Vec<(&'static str, u64)>,
}

impl Story {
    fn end(&self) -> u64 {
        self.told.last().map_or(0, |(_, at)| *at)
    }

    fn print(&self) {
        println!("{}, ms after the kill:", self.what);
        for (event, at) in &self.told {
            println!("  {:8.1}  {event}", (at - self.since) as f64 / 1e6);
        }
        println!(
            "  from a member that serves again to the first answer: {:.1} ms",
            (self.end() - self.serves) as f64 / 1e6
        );
    }
}

fn is_up(member: &Member) -> bool {
    member
        .status()
        .is_ok_and(|status| status["connections"][0]["state"] == "up")
}

fn agreed(member: &Member) -> Result<Vec<String>> {
    let status = member.status()?;
    Ok(serde_json::from_value(
        status["connections"][0]["agreed"].clone(),
    )?)
}

/// Kills everything, waits until pings are answered again, and tells what happened.
fn recover(extensions: bool) -> Result<Story> {
    let product = Product::built()?;
    let lab = Lab::planned(Path::new(env!("CARGO_TARGET_TMPDIR")), Plan::PAIR)?;
    let mut cluster = Cluster::prepare(lab, &product, &random_psk()?, &gateway::settings())?;
    let mut peer = gateway::place(&cluster.lab, &product)?;
    let keys = if extensions {
        ""
    } else {
        "crash_detection = false\nresumption = false"
    };
    for member in &cluster.members {
        member.add_keys(keys)?;
    }
    peer.add_keys(&format!("{keys}\n{PATIENCE}"))?;
    cluster.start()?;
    let owner = cluster.wait_all_in_sync(Duration::from_secs(30))?;
    peer.start(&cluster.lab.resources)?;
    let both_up = || (is_up(&peer) && is_up(&cluster.members[owner])).then_some(());
    if wait_for(Duration::from_secs(30), Duration::from_millis(50), both_up).is_none() {
        bail!(
            "no connection:\n{}\n{}",
            peer.log_text(),
            cluster.members[owner].log_text()
        );
    }
    for member in [&peer, &cluster.members[owner]] {
        let agreed = agreed(member)?;
        for name in ["crash_detection", "resumption"] {
            let has = agreed.iter().any(|agreed| agreed == name);
            ensure!(has == extensions, "{}: agreed on {agreed:?}", member.place.letter);
        }
    }
    let answered = || {
        let all = short(&cluster.lab.host, addr::HOST_ONE, addr::SERVER_ONE, 20_000, 10);
        all.is_ok_and(|pings| pings.lost() == 0).then_some(())
    };
    wait_for(Duration::from_secs(20), Duration::from_millis(50), answered)
        .context("pings are lost before anything has happened")?;

    let ping = Ping::start(
        &cluster.lab.host,
        "host to server",
        addr::HOST_ONE,
        addr::SERVER_ONE,
        5_000,
    )?;
    let since = now_ns();
    for member in &mut cluster.members {
        member.kill_agent()?;
    }
    for member in &cluster.members {
        member.remove_pins()?;
    }
    let gone = now_ns();
    for member in &mut cluster.members {
        member.start(&cluster.lab.resources)?;
    }
    let serving = || cluster.owner();
    let owner = wait_for(Duration::from_secs(30), Duration::from_millis(5), serving)
        .with_context(|| format!("nobody serves again:\n{}", cluster.states()))?;
    // An answer may still be under way when the maps go; members begin a second after their start at the earliest.
    let quiet = gone + 500_000_000;
    let back = || ping.last_answer_ns().filter(|at| *at > quiet);
    let Some(_) = wait_for(Duration::from_secs(60), Duration::from_millis(5), back) else {
        bail!(
            "no recovery:\n{}\n{}\n{:?}",
            peer.log_text(),
            cluster.members[owner].log_text(),
            peer.verdicts()
        );
    };
    let pings = ping.stop()?;
    let first_answer = pings
        .echoes
        .iter()
        .filter_map(|echo| echo.back_ns)
        .filter(|at| *at > quiet)
        .min();
    let first_answer = first_answer.context("an answer")?;
    let messages: Vec<IkeMessage> = cluster.outside.read(|ledger| {
        let later = ledger.ike.iter().filter(|m| m.at_ns > since);
        later.cloned().collect()
    });
    let wire = |from, exchange: u8, response: bool, after: u64| {
        let of = messages.iter().find(|m| {
            m.src == from
                && m.exchange == exchange
                && (m.flags & RESPONSE != 0) == response
                && m.at_ns > after
        });
        of.map(|m| m.at_ns).with_context(|| {
            format!("no exchange {exchange} from {from} (response: {response}): {messages:?}")
        })
    };
    let events = peer.events()?;
    let event = |kind: &str| {
        let found = events.iter().find(|(at, of, _)| *at > since && of == kind);
        found
            .map(|(at, ..)| *at)
            .with_context(|| format!("no event {kind}: {events:?}"))
    };
    let flipped = cluster.members[owner].events()?.into_iter();
    let serves = flipped.filter(|(at, kind, _)| kind == "flipped" && *at > since);
    let serves = serves.map(|(at, ..)| at).min().context("no event flipped")?;
    let count = |exchange: u8| messages.iter().filter(|m| m.exchange == exchange).count();
    let mut told = vec![
        ("all members killed, their maps removed", since),
        ("a member serves again", serves),
    ];
    if extensions {
        ensure!(count(IKE_SA_INIT) == 0, "a full handshake: {messages:?}");
        told.extend([
            (
                "the cluster answers: INVALID_IKE_SPI and its token",
                wire(addr::CLUSTER_OUTSIDE, INFORMATIONAL, true, gone)?,
            ),
            (
                "the token matches: the old IKE SA and its Child SA are discarded",
                event("peer_crashed")?,
            ),
            (
                "IKE_SESSION_RESUME request with the ticket",
                wire(gateway::OUTSIDE, IKE_SESSION_RESUME, false, since)?,
            ),
            (
                "IKE_SESSION_RESUME response",
                wire(addr::CLUSTER_OUTSIDE, IKE_SESSION_RESUME, true, since)?,
            ),
            (
                "IKE_AUTH response",
                wire(addr::CLUSTER_OUTSIDE, IKE_AUTH, true, since)?,
            ),
        ]);
        let resumed = cluster.members[owner].events()?;
        ensure!(
            resumed.iter().any(|(_, kind, _)| kind == "resumed"),
            "{resumed:?}"
        );
    } else {
        ensure!(count(IKE_SESSION_RESUME) == 0, "a ticket was shown: {messages:?}");
        ensure!(event("peer_crashed").is_err(), "a token was believed");
        told.extend([
            ("the gateway's patience ends", event("peer_silent")?),
            (
                "IKE_SA_INIT request",
                wire(gateway::OUTSIDE, IKE_SA_INIT, false, since)?,
            ),
            (
                "IKE_SA_INIT response",
                wire(addr::CLUSTER_OUTSIDE, IKE_SA_INIT, true, since)?,
            ),
            (
                "IKE_AUTH response",
                wire(addr::CLUSTER_OUTSIDE, IKE_AUTH, true, since)?,
            ),
        ]);
    }
    told.extend([
        ("Child SA up", event("child_up")?),
        ("first ping answered", first_answer),
    ]);
    let story = Story {
        what: if extensions {
            "With token and ticket"
        } else {
            "Without both"
        },
        since,
        serves,
        told,
    };
    story.print();
    let times: Vec<u64> = story.told.iter().map(|(_, at)| *at).collect();
    ensure!(times.is_sorted(), "not in this order");
    let (seq, iv) = cluster.outside.read(|ledger| ledger.duplicates());
    ensure!((seq, iv) == (0, 0), "numbers used twice: {seq} and {iv}");
    Ok(story)
}

#[test]
fn a_peer_comes_back_by_token_and_ticket_long_before_its_patience_ends() -> Result<()> {
    let with = recover(true)?;
    let without = recover(false)?;
    let took = |story: &Story| (story.end() - story.since) as f64 / 1e6;
    println!(
        "recovered after {:.0} ms and {:.0} ms",
        took(&with),
        took(&without)
    );
    ensure!(took(&with) < took(&without), "the extensions did not help");
    Ok(())
}
