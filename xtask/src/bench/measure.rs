//! What is measured with one number of SAs.

use super::Row;
use super::scene::Scene;
use crate::chaos::tally::percentile;
use anyhow::{Context, Result};
use lab::clock::{now_ns, sleep_until, wait_for};
use lab::probe::Probe;
use lab::tcp::Stream;
use lab::topology::{Lab, addr};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Probes a second, over all probed SAs.
const PROBES_PER_S: u64 = 1000;
/// SAs that carry probes.
const PROBED: usize = 8;
/// Limit of every wait for something that must come.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long rates are measured.
const RATE_SECONDS: u64 = 5;

/// One takeover.
#[derive(Default)]
struct Takeover {
    total_ms: f64,
    phases: BTreeMap<String, f64>,
    lost: u64,
    snapshot_s: f64,
}

/// Brings up so many SAs and kills the owner several times.
pub fn row(scene: &mut Scene, sas: usize, runs: u32) -> Result<Row> {
    let mut row = Row {
        sas,
        packets_per_s: PROBES_PER_S,
        ..Row::default()
    };
    let before = scene.fleet.installed();
    let start = Instant::now();
    scene
        .fleet
        .grow(sas + scene.fleet.removed(), Duration::from_secs(900))
        .inspect_err(|_| scene.cluster.states().lines().for_each(crate::steps::detail))?;
    row.setup_per_s = (scene.fleet.installed() - before) as f64 / start.elapsed().as_secs_f64();
    crate::steps::detail(&format!("set up in {:.1} s", start.elapsed().as_secs_f64()));
    let owner = scene.cluster.wait_all_in_sync(PATIENCE)?;
    mirrored(scene, owner, sas)?;
    idle(scene, owner, &mut row)?;
    let removed = scene.fleet.removed();
    let mut takeovers = Vec::new();
    for _ in 0..runs {
        takeovers.push(takeover(scene)?);
    }
    row.child_sas_replaced = (scene.fleet.removed() - removed) as u64;
    row.runs = takeovers.len();
    let of = |f: &dyn Fn(&Takeover) -> f64| takeovers.iter().map(f).collect::<Vec<_>>();
    let totals = of(&|t| t.total_ms);
    row.p50_ms = percentile(&totals, 50.0).context("no takeover")?;
    row.p99_ms = percentile(&totals, 99.0).context("no takeover")?;
    row.packets_lost = percentile(&of(&|t| t.lost as f64), 50.0).unwrap_or_default() as u64;
    row.snapshot_s = percentile(&of(&|t| t.snapshot_s), 50.0).unwrap_or_default();
    let names: std::collections::BTreeSet<&String> = takeovers.iter().flat_map(|t| t.phases.keys()).collect();
    for name in names {
        let values: Vec<f64> = takeovers
            .iter()
            .filter_map(|t| t.phases.get(name).copied())
            .collect();
        if let Some(median) = percentile(&values, 50.0) {
            row.phases.insert(name.clone(), median);
        }
    }
    Ok(row)
}

/// Waits until the standby has as many Child SAs as there are.
fn mirrored(scene: &Scene, owner: usize, sas: usize) -> Result<()> {
    let standby = 1 - owner;
    wait_for(PATIENCE, Duration::from_millis(200), || {
        let status = scene.cluster.members[standby].status().ok()?;
        let children = status["connections"]
            .as_array()?
            .iter()
            .filter_map(|c| c["children"].as_u64());
        (children.sum::<u64>() >= sas as u64).then_some(())
    })
    .context("the standby does not have all Child SAs")
}

/// Memory, and what the agents do while nothing happens.
fn idle(scene: &Scene, owner: usize, row: &mut Row) -> Result<()> {
    let members = &scene.cluster.members;
    row.owner_octets = members[owner].anonymous_octets()?;
    row.standby_octets = members[1 - owner].anonymous_octets()?;
    let (from, octets, cpu) = (
        now_ns(),
        synch_octets(scene, owner)?,
        members[owner].cpu_seconds()?,
    );
    sleep_until(from + RATE_SECONDS * 1_000_000_000);
    let seconds = (now_ns() - from) as f64 / 1e9;
    row.synch_bytes_per_s_idle = (synch_octets(scene, owner)? - octets) as f64 / seconds;
    row.owner_idle_cpu = (members[owner].cpu_seconds()? - cpu) / seconds;
    Ok(())
}

/// Octets that a member has sent and received on the synch channel.
fn synch_octets(scene: &Scene, member: usize) -> Result<u64> {
    let status = scene.cluster.members[member].status()?;
    let of = |key: &str| {
        status["journal"][key]
            .as_u64()
            .with_context(|| format!("no {key} in the status"))
    };
    Ok(of("synch_bytes_sent")? + of("synch_bytes_received")?)
}

/// Kills the owner's host under probes, and brings it back.
fn takeover(scene: &mut Scene) -> Result<Takeover> {
    let owner = scene.cluster.wait_all_in_sync(PATIENCE)?;
    let records = scene.fleet.records();
    let records = &records[..records.len().min(PROBED)];
    let base = scene.probed;
    let lab = &scene.cluster.lab;
    let probe = Probe::start(
        &lab.sites[0].netns,
        (scene.ends.local, scene.ends.remote),
        (&lab.server, addr::SERVER_ONE),
        records,
        1_000_000 / PROBES_PER_S,
        base,
    )?;
    probe
        .wait_back_after(now_ns(), 500, PATIENCE)
        .context("before the kill")?;
    let killed = scene.cluster.members[owner].kill_host()?;
    let taker = scene.cluster.wait_other_serves(owner, PATIENCE)?;
    probe
        .wait_back_after(now_ns(), 500, PATIENCE)
        .context("after the kill")?;
    let (_, lost, used) = probe.finish(records.len(), base)?;
    scene.probed = used;
    let first = scene
        .cluster
        .first_through(taker, killed)?
        .context("the taker carried no packet")?;
    let phases = phases(scene, taker, killed, first)?;
    let since = now_ns();
    let cluster = &mut scene.cluster;
    cluster.members[owner].revive_links()?;
    cluster.members[owner].start(&cluster.lab.resources)?;
    cluster.wait_all_in_sync(PATIENCE)?;
    let snapshot_s = snapshot_s(scene, taker, since)?;
    let cluster = &scene.cluster;
    cluster.outside.forget_before(now_ns());
    cluster.inside.forget_before(now_ns());
    Ok(Takeover {
        total_ms: (first - killed) as f64 / 1e6,
        phases,
        lost,
        snapshot_s,
    })
}

/// The phases, each since the one before: the taker's own account, announcement and first packet from the recorders.
fn phases(scene: &Scene, taker: usize, killed: u64, first: u64) -> Result<BTreeMap<String, f64>> {
    let status = scene.cluster.members[taker].status()?;
    let report = &status["last_takeover"];
    let started = report["started_ns"]
        .as_u64()
        .context("no last takeover in the status")?;
    let of = |key: &str| {
        let ms = report["phases_ms"][key].as_f64()?;
        Some(started + (ms * 1e6) as u64)
    };
    let mac = Lab::mac(&scene.cluster.lab.members[taker].netns, "outside")?;
    let announced = scene.cluster.outside.read(|l| {
        let own = l
            .announcements
            .iter()
            .filter(|(t, from, _)| *t > killed && *from == mac);
        own.map(|a| a.0).min()
    });
    let moments = [
        ("detect", of("suspected")),
        ("claim", of("claimed")),
        ("flip", of("flipped")),
        ("announce", announced),
        ("first_packet", Some(first)),
    ];
    let mut phases = BTreeMap::new();
    let mut before = killed;
    for (name, at) in moments {
        if let Some(at) = at {
            phases.insert(name.to_owned(), (at as f64 - before as f64) / 1e6);
            before = at;
        }
    }
    if let Some(resumed) = of("resumed") {
        phases.insert(
            "resumed_after_kill".to_owned(),
            (resumed as f64 - killed as f64) / 1e6,
        );
    }
    Ok(phases)
}

/// From the joiner's request until it was in sync, by the owner's log.
fn snapshot_s(scene: &Scene, owner: usize, since: u64) -> Result<f64> {
    let text = scene.cluster.members[owner].espalier(&["events", "--json"])?;
    let events: Value = serde_json::from_str(&text).context("espalier events --json")?;
    let moments = |kind: &str| -> Vec<u64> {
        let all = events.as_array().map_or(&[][..], Vec::as_slice);
        let own = all.iter().filter(|e| e["kind"] == kind);
        own.filter_map(|e| e["monotonic_ns"].as_u64())
            .filter(|t| *t >= since)
            .collect()
    };
    let end = *moments("in_sync").last().context("no in_sync in the events")?;
    let start = *moments("joining")
        .iter()
        .rfind(|t| **t <= end)
        .context("no joining in the events")?;
    Ok((end - start) as f64 / 1e9)
}

/// One TCP stream at full speed over strongSwan's connection: octets a second of data, and on the synch channel.
pub fn line_rate(scene: &Scene) -> Result<(f64, f64)> {
    let owner = scene.cluster.wait_all_in_sync(PATIENCE)?;
    let lab = &scene.cluster.lab;
    scene.cluster.outside.rest()?;
    scene.cluster.inside.rest()?;
    let stream = Stream::start(&lab.host, (&lab.server, addr::SERVER_ONE), 7003)?;
    // Ceilings and leases have found the rate after a second or two.
    stream.wait_arrival_after(now_ns() + 3_000_000_000, PATIENCE)?;
    let (from, octets) = (now_ns(), synch_octets(scene, owner)?);
    sleep_until(from + RATE_SECONDS * 1_000_000_000);
    let (to, synch) = (now_ns(), synch_octets(scene, owner)? - octets);
    let result = stream.finish()?;
    scene.cluster.outside.wake()?;
    scene.cluster.inside.wake()?;
    let carried = |until: u64| {
        let before = result.arrivals.iter().rfind(|(t, _)| *t <= until);
        before.map_or(0, |(_, octets)| *octets)
    };
    let seconds = (to - from) as f64 / 1e9;
    Ok((
        (carried(to) - carried(from)) as f64 / seconds,
        synch as f64 / seconds,
    ))
}
