//! Child SAs per CPU (RFC 9611) between two espalier gateways: each CPU's traffic has an SA of its own, in both directions.
//!
//! Needs root, two CPUs and the built product: `cargo xtask test` sees to the rest.

use anyhow::{Context, Result, bail, ensure};
use lab::clock::wait_for;
use lab::cluster::Cluster;
use lab::gateway;
use lab::member::{Member, Product};
use lab::netns::Netns;
use lab::ping;
use lab::stage::random_psk;
use lab::topology::{Lab, Plan, addr};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

const CPUS: [u64; 2] = [0, 1];

/// Pings on each CPU at the same time. How many were lost.
fn pings(from: &Netns, count: u32) -> Result<u32> {
    ping::on_cpus(from, &CPUS, (addr::HOST_ONE, addr::SERVER_ONE), count)
}

/// A Child SA as `espalier sas` shows it.
#[derive(Clone, Debug, PartialEq)]
struct Sa {
    spi_in: String,
    spi_out: String,
    cpu: u64,
    bound: bool,
    packets_in: u64,
    packets_out: u64,
}

fn sas(member: &Member) -> Result<Vec<Sa>> {
    let all = member.sas()?;
    let children = all.as_array().context("a list")?.iter();
    let children = children.filter_map(|ike| ike["children"].as_array()).flatten();
    let of = |child: &Value| {
        let text = |key: &str| child[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| child[key].as_u64().unwrap_or(0);
        Sa {
            spi_in: text("spi_in"),
            spi_out: text("spi_out"),
            cpu: number("cpu"),
            bound: child["bound"].as_bool().unwrap_or(false),
            packets_in: number("packets_in"),
            packets_out: number("packets_out"),
        }
    };
    Ok(children.map(of).collect())
}

/// CPUs that have SAs of their own.
fn own_cpus(sas: &[Sa]) -> BTreeSet<u64> {
    sas.iter().filter(|sa| sa.bound).map(|sa| sa.cpu).collect()
}

#[test]
fn the_traffic_of_each_cpu_has_an_sa_of_its_own_in_both_directions() -> Result<()> {
    ensure!(
        std::thread::available_parallelism()?.get() >= CPUS.len(),
        "this test needs two CPUs"
    );
    let began = Instant::now();
    let at = |what: &str| println!("{:5.1} s: {what}", began.elapsed().as_secs_f64());
    let product = Product::built()?;
    let lab = Lab::planned(Path::new(env!("CARGO_TARGET_TMPDIR")), Plan::PAIR)?;
    let mut cluster = Cluster::prepare(lab, &product, &random_psk()?, &gateway::settings())?;
    let mut peer = gateway::place(&cluster.lab, &product)?;
    for side in cluster.members.iter().chain([&peer]) {
        side.add_keys("per_cpu = true")?;
    }
    cluster.start()?;
    let owner = cluster.wait_all_in_sync(Duration::from_secs(30))?;
    peer.start(&cluster.lab.resources)?;
    let member = &cluster.members[owner];
    let host = &cluster.lab.host;
    let complain = |what: &str| -> String {
        format!(
            "{what}\n{:#?}\n{:#?}\n{:?}\n{:?}\n{}\n{}",
            sas(&peer).unwrap_or_default(),
            sas(member).unwrap_or_default(),
            peer.verdicts(),
            member.verdicts(),
            peer.log_text(),
            member.log_text()
        )
    };

    // On demand: traffic on a CPU without one brings it up.
    let all: BTreeSet<u64> = CPUS.into();
    let grown = wait_for(Duration::from_secs(40), Duration::from_millis(50), || {
        let lost = pings(host, 20).ok()?;
        let both = [&peer, member].map(|side| sas(side).map(|sas| own_cpus(&sas)).unwrap_or_default());
        (lost == 0 && both.iter().all(|cpus| *cpus == all)).then_some(())
    });
    if grown.is_none() {
        bail!(complain("no SA for each CPU on both sides"));
    }
    for side in [&peer, member] {
        let status = side.status()?;
        let agreed = status["connections"][0]["agreed"].to_string();
        ensure!(agreed.contains("per_resource"), "{agreed}");
    }

    at("each CPU has its own on both sides");
    let before = [sas(&peer)?, sas(member)?];
    let lost = pings(host, 200)?;
    ensure!(lost == 0, complain(&format!("{lost} pings lost")));
    for (side, before) in [&peer, member].into_iter().zip(&before) {
        let after = sas(side)?;
        let mut sent: BTreeMap<u64, u64> = BTreeMap::new();
        let mut received: BTreeMap<u64, u64> = BTreeMap::new();
        for sa in after.iter().filter(|sa| sa.bound) {
            let old = before.iter().find(|old| old.spi_in == sa.spi_in);
            let (was_in, was_out) = old.map_or((0, 0), |old| (old.packets_in, old.packets_out));
            *sent.entry(sa.cpu).or_default() += sa.packets_out - was_out;
            *received.entry(sa.cpu).or_default() += sa.packets_in - was_in;
        }
        println!(
            "{}: sent by CPU {sent:?}, received by CPU {received:?}",
            side.place.letter
        );
        // Each CPU pinged 200 times. The scheduler may run a softirq of one elsewhere now and then.
        ensure!(
            CPUS.iter().all(|cpu| sent.get(cpu).is_some_and(|n| *n >= 100)),
            complain(&format!("not both CPUs sent with their own SAs: {sent:?}"))
        );
        ensure!(
            CPUS.iter()
                .all(|cpu| received.get(cpu).is_some_and(|n| *n >= 100)),
            complain(&format!("not both CPUs received on their own SAs: {received:?}"))
        );
    }

    // A rekey of one: it stays on its CPU, the others are as they were, nothing is lost.
    let before = sas(&peer)?;
    let old = before
        .iter()
        .find(|sa| sa.bound && sa.cpu == 1)
        .context("the SA of CPU 1")?
        .clone();
    let running = {
        let host = host.clone();
        std::thread::spawn(move || pings(&host, 400))
    };
    let said = peer.espalier(&["rekey", "--spi", &old.spi_in])?;
    println!("{}", said.trim());
    let lost = running.join().map_err(|_| anyhow::anyhow!("pings panicked"))??;
    ensure!(lost == 0, complain(&format!("{lost} pings lost in the rekey")));
    let spis = |sas: &[Sa]| sas.iter().map(|sa| sa.spi_in.clone()).collect::<BTreeSet<_>>();
    let replaced = wait_for(Duration::from_secs(10), Duration::from_millis(50), || {
        let after = sas(&peer).ok()?;
        (!spis(&after).contains(&old.spi_in)).then_some(after)
    });
    let after = replaced.with_context(|| complain("the old SA stays"))?;
    let new: Vec<&Sa> = after
        .iter()
        .filter(|sa| !spis(&before).contains(&sa.spi_in))
        .collect();
    ensure!(
        new.len() == 1 && new[0].bound && new[0].cpu == 1,
        complain(&format!("in its place: {new:?}"))
    );
    ensure!(own_cpus(&sas(member)?) == all, complain("the member's CPUs"));

    // The standby knows which SA is whose: after a takeover each CPU goes on with its own.
    let kept = spis(&sas(member)?);
    cluster.members[owner].kill_host()?;
    let taker = cluster.wait_other_serves(owner, Duration::from_secs(20))?;
    at("a member has taken over");
    let member = &cluster.members[taker];
    let carried = wait_for(Duration::from_secs(40), Duration::from_millis(50), || {
        let before = sas(member).ok()?;
        let lost = pings(host, 50).ok()?;
        let after = sas(member).ok()?;
        let more = |sa: &&Sa| {
            let old = before.iter().find(|old| old.spi_in == sa.spi_in);
            old.is_some_and(|old| sa.packets_out >= old.packets_out + 25)
        };
        let sending: BTreeSet<u64> = after
            .iter()
            .filter(|sa| sa.bound)
            .filter(more)
            .map(|sa| sa.cpu)
            .collect();
        (lost == 0 && sending == all).then_some(after)
    });
    let Some(carried) = carried else {
        bail!(
            "not both CPUs go on after the takeover: {:#?}\n{:?}\n{}",
            sas(member)?,
            member.verdicts()?,
            member.log_text()
        );
    };
    println!(
        "after the takeover {} of {} SAs are the same",
        spis(&carried).intersection(&kept).count(),
        kept.len()
    );

    // And so does a member that joins by a snapshot.
    cluster.members[owner].revive_links()?;
    cluster.members[owner].start(&cluster.lab.resources)?;
    cluster.wait_all_in_sync(Duration::from_secs(60))?;
    at("the other one has joined again");
    let (joiner, there) = (sas(&cluster.members[owner])?, sas(&cluster.members[taker])?);
    let parts = |sas: &[Sa]| {
        let parts = sas.iter().map(|sa| (sa.spi_in.clone(), sa.cpu, sa.bound));
        parts.collect::<BTreeSet<_>>()
    };
    ensure!(
        parts(&joiner) == parts(&there),
        "the joiner has other SAs: {joiner:#?}\n{there:#?}"
    );
    // Its neighbour entries went with its links, and its agent asks for them every few seconds only.
    for next in [addr::ROUTER_OUTSIDE, addr::SERVER_ONE] {
        let netns = &cluster.members[owner].place.netns;
        netns.run(&["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", &next.to_string()])?;
    }
    // It has what it takes: in a planned takeover nothing is lost.
    let running = {
        let host = host.clone();
        std::thread::spawn(move || pings(&host, 400))
    };
    let to = cluster.members[owner].place.id.to_string();
    println!(
        "{}",
        cluster.members[owner]
            .espalier(&["takeover", "--to", &to])?
            .trim()
    );
    let lost = running.join().map_err(|_| anyhow::anyhow!("pings panicked"))??;
    ensure!(lost == 0, "{lost} pings lost in a planned takeover");
    let carried = sas(&cluster.members[owner])?;
    let sending = carried
        .iter()
        .filter(|sa| sa.bound && sa.packets_out > 0)
        .map(|sa| sa.cpu);
    ensure!(
        sending.collect::<BTreeSet<_>>() == all,
        "after the joiner has taken over: {carried:#?}"
    );

    let (flows, duplicates) = cluster.outside.read(|ledger| {
        let twice = |flow: &lab::ledger::Flow| flow.dup_seq + flow.dup_iv;
        let duplicates: u64 = ledger.flows.values().map(twice).sum();
        let from = |address| ledger.flows.keys().filter(|key| key.0 == address).count();
        ((from(gateway::OUTSIDE), from(addr::CLUSTER_OUTSIDE)), duplicates)
    });
    println!("SAs seen on the wire: {flows:?} (peer, cluster), numbers or IVs used twice: {duplicates}");
    ensure!(duplicates == 0, "{duplicates} numbers or IVs were used twice");
    ensure!(flows.0 >= 3 && flows.1 >= 3, "the wire shows {flows:?} SAs");
    ensure!(cluster.outside.lost() == 0, "the recorder lost packets");
    Ok(())
}
