//! `cargo xtask demo`: the main job, end to end.

mod afterwards;
mod figures;
mod report;
mod takeover;
mod throughput;
pub mod timeline;
mod traffic;

use crate::steps::{detail, say, step};
use crate::{build, cargo_tools, setup, svg};
use anyhow::{Context, Result};
use figures::Figures;
use lab::cmd;
use lab::member::{Product, label, samples};
use lab::ping;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use lab::uml::UmlPeer;
use std::fs;
use std::time::Duration;

/// How the demo runs.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Print one JSON object with every figure on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
    /// Leave the lab running and print the commands to enter it.
    #[arg(long)]
    pub keep: bool,
    /// Only the takeover: no throughput, no second peer.
    #[arg(long)]
    pub short: bool,
    /// Run it this many times and print the medians; stops at the first run in which an invariant does not hold.
    #[arg(long, default_value_t = 1, conflicts_with = "keep")]
    pub runs: u32,
}

impl Options {
    /// What `cargo xtask test` runs.
    pub fn short() -> Self {
        Self {
            short: true,
            ..Self::default()
        }
    }
}

/// Runs it; true if every invariant held.
pub fn run(options: &Options) -> Result<bool> {
    Ok(judged(options)?.is_empty())
}

/// Runs it; the invariants that did not hold.
pub fn judged(options: &Options) -> Result<Vec<String>> {
    // Before any thread: a signal must find the lab's ledger.
    lab::resources::clear_on_signal()?;
    setup::run()?;
    let built = build::run()?;
    let product = Product {
        binary: built.espalier,
        object: built.object,
    };
    let mut all = Vec::new();
    for run in 1..=options.runs {
        if options.runs > 1 {
            say(&format!("run {run} of {}", options.runs));
        }
        let figures = once(options, &product)?;
        let ok = figures.ok;
        all.push(figures);
        if !ok {
            break;
        }
    }
    if options.runs > 1 {
        report::print_medians(&all);
    }
    Ok(all.iter().flat_map(Figures::broken).collect())
}

/// One run with its report.
fn once(options: &Options, product: &Product) -> Result<Figures> {
    let mut figures = Figures::default();
    let mut kept = None;
    if let Err(error) = play(options, product, &mut figures, &mut kept) {
        figures.check("the demo ran to its end", false, format!("{error:#}"));
    }
    figures.ok = figures.all_held();
    if !figures.folder.is_empty() {
        fs::write(
            format!("{}/figures.json", figures.folder),
            serde_json::to_string_pretty(&figures)?,
        )?;
    }
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        report::print(&figures);
    }
    if let Some(stage) = kept {
        report::print_entrances(&stage);
        // The processes go on: nothing of the stage may be dropped.
        std::mem::forget(stage);
    }
    Ok(figures)
}

fn play(
    options: &Options,
    product: &Product,
    figures: &mut Figures,
    kept: &mut Option<Box<Stage>>,
) -> Result<()> {
    let psk = random_psk()?;
    let lab = step("building the lab", || {
        Lab::new(&cargo_tools::root().join("target/lab"))
    })?;
    figures.folder = lab.folder.display().to_string();
    detail(&format!("configurations and logs: {}", figures.folder));
    let peer = step("starting the peer (strongSwan)", || start_peer(&lab, &psk))?;
    if !options.short {
        figures.throughput.strongswan = Some(throughput::baseline(&lab, &peer, &psk)?);
    }
    let mut stage = step("starting members A and B", || Stage::up(lab, peer, product, &psk))?;
    let result = acts(options, &psk, &mut stage, figures);
    judge(&stage, figures);
    if options.keep {
        stage.lab.resources.keep()?;
        *kept = Some(Box::new(stage));
    }
    result
}

/// The acts in order.
fn acts(options: &Options, psk: &str, stage: &mut Stage, figures: &mut Figures) -> Result<()> {
    step(
        "connecting: one by the peer (x25519, ChaCha20-Poly1305), two by the cluster (AES-256-GCM)",
        || stage.connect(),
    )?;
    step("pinging both ways", || plain_sailing(stage, figures))?;
    let mut second = None;
    if !options.short {
        figures.throughput.espalier = Some(throughput::espalier(stage)?);
        throughput::compare(figures);
        let what = "the second peer: a Linux kernel with plain ESP and ESN";
        second = Some(step(what, || second_peer(stage, psk, figures))?);
    }
    // A's counters die with A.
    figures
        .verdicts
        .insert("A until it was killed".to_owned(), stage.members[0].verdicts()?);
    let killed = step("killing A: agent and links, under traffic", || {
        takeover::kill_host(stage, figures)
    })?;
    let picture = svg::draw(&killed.timeline, &figures.takeover_ms, figures.packets_lost);
    fs::write(stage.folder().join("takeover.svg"), picture).context("writing the timeline")?;
    if let Some(peer) = &mut second {
        step("pinging from the second peer through B", || {
            second_peer_again(peer, figures)
        })?;
    }
    // It is shut down with its SA in place, so that its packets take part in the replay.
    drop(second);
    step("replaying at B everything captured before the kill", || {
        afterwards::replay(stage, killed.at_ns, figures)
    })?;
    stage.outside.forget_frames();
    step("liveness checks and rekeys after the takeover", || {
        afterwards::ike_goes_on(stage, 1, figures)
    })?;
    step("A comes back and rejoins", || rejoin(stage, 0, 1, figures))?;
    step("moving the cluster back to A, planned", || {
        takeover::planned(stage, 1, 0, figures)
    })?;
    stage.wait_in_sync(0, Duration::from_secs(15))?;
    step("killing A's agent alone, on its living host", || {
        takeover::kill_agent(stage, 0, 1, figures)
    })?;
    if options.keep || !options.short {
        step("A comes back", || rejoin(stage, 0, 1, figures))?;
    }
    if !options.short {
        figures
            .verdicts
            .insert("B until it was killed".to_owned(), stage.members[1].verdicts()?);
        step("killing B: agent and links, under a TCP stream", || {
            takeover::kill_under_tcp(stage, 1, 0, figures)
        })?;
        if options.keep {
            step("B comes back", || rejoin(stage, 1, 0, figures))?;
        }
    }
    afterwards::message_ids(stage, figures);
    Ok(())
}

fn plain_sailing(stage: &Stage, figures: &mut Figures) -> Result<()> {
    let (host, server) = (&stage.lab.host, &stage.lab.server);
    let before = stage.members[0].verdicts()?;
    let one = ping::short(host, addr::HOST_ONE, addr::SERVER_ONE, 10_000, 100)?;
    let two = ping::short(server, addr::SERVER_TWO, addr::HOST_TWO, 10_000, 100)?;
    let lost = one.lost() + two.lost();
    let text = format!(
        "{lost} of {} lost, {:.2} and {:.2} ms",
        one.sent() + two.sent(),
        one.median_ms(),
        two.median_ms()
    );
    figures.check("pings run both ways over both connections", lost == 0, text);
    let after = stage.members[0].verdicts()?;
    let opened = afterwards::moved(&before, &after, &["esp_opened"]);
    let sealed = afterwards::moved(&before, &after, &["esp_sealed"]);
    let all = one.sent() + two.sent();
    let text = format!("{opened} opened, {sealed} sealed in XDP for {all} pings");
    let metrics = stage.members[0].metrics()?;
    let shown = samples(&metrics)
        .iter()
        .any(|(_, l, n)| label(l, "verdict") == Some("esp_opened") && *n > 0.0);
    figures.check(
        "/metrics counts packets by verdict",
        shown,
        format!("{} lines", metrics.lines().count()),
    );
    let pin = stage.members[0].pins.join("SEGMENTS").display().to_string();
    let dump = cmd::run(&["bpftool", "map", "dump", "pinned", &pin])?;
    figures.check(
        "bpftool prints pinned maps by field name",
        dump.contains("owner"),
        pin,
    );
    // The first packets of an SA may be raised through the slow path; after that XDP carries all.
    figures.check("XDP decrypts and encrypts", opened >= all && sealed >= all, text);
    Ok(())
}

fn second_peer(stage: &Stage, psk: &str, figures: &mut Figures) -> Result<UmlPeer> {
    let mut peer = UmlPeer::boot(&stage.lab, &setup::uml_folder(), psk)?;
    peer.initiate()?;
    let (sent, back) = peer.ping(200)?;
    let text = format!("{back} of {sent} pings answered");
    figures.check(
        "a Linux kernel's plain ESP runs through the cluster",
        sent == back,
        text,
    );
    let state = peer.xfrm_state()?;
    fs::write(stage.folder().join("peer-two.xfrm"), &state)?;
    let esn = state.matches("esn").count() >= 2;
    figures.check("it uses ESN in both directions", esn, "ip -s xfrm state");
    Ok(peer)
}

fn second_peer_again(peer: &mut UmlPeer, figures: &mut Figures) -> Result<()> {
    // Up to the ceiling of the old owner everything counts as seen, so a few of the first numbers are refused.
    let (first, answered) = peer.ping(50)?;
    let flow = "ping over three, from the kernel peer";
    figures
        .packets_lost_by_flow
        .insert(flow.to_owned(), first - answered);
    figures.packets_lost += first - answered;
    let (sent, back) = peer.ping(200)?;
    let text = format!(
        "{back} of {sent} pings answered; {} of the first {first} lost below the floor",
        first - answered
    );
    figures.check("the kernel's SA with ESN goes on through B", sent == back, text);
    let state = peer.xfrm_state()?;
    let complaints: Vec<&str> = state
        .lines()
        .filter(|l| l.contains("failed") && !l.contains("replay 0 failed 0"))
        .collect();
    let text = if complaints.is_empty() {
        "replay 0 failed 0".to_owned()
    } else {
        complaints.join("; ")
    };
    figures.check(
        "the kernel counts no replay and no bad ICV",
        complaints.is_empty(),
        text,
    );
    Ok(())
}

fn rejoin(stage: &mut Stage, member: usize, active: usize, figures: &mut Figures) -> Result<()> {
    stage.members[member].revive_links()?;
    stage.members[member].start(&stage.lab.resources)?;
    let joined = stage.wait_in_sync(active, Duration::from_secs(20));
    let text = joined
        .as_ref()
        .map_or_else(|e| format!("{e:#}"), |()| "in sync".to_owned());
    figures.check(
        "a restarted member rejoins from a snapshot as standby",
        joined.is_ok(),
        text,
    );
    joined
}

/// The invariants of the whole run, from the recorders.
fn judge(stage: &Stage, figures: &mut Figures) {
    let (dup_seq, dup_iv) = stage.outside.read(lab::ledger::Ledger::duplicates);
    figures.dup_seq = dup_seq;
    figures.dup_iv = dup_iv;
    figures.recorded = stage.outside.read(lab::ledger::Ledger::sent_by_cluster);
    let recorded = format!("{} ESP packets of the cluster judged", figures.recorded);
    figures.check(
        "no (SPI, sequence number) sent twice",
        dup_seq == 0 && figures.recorded > 0,
        recorded.clone(),
    );
    figures.check(
        "no (SPI, IV) sent twice",
        dup_iv == 0 && figures.recorded > 0,
        recorded,
    );
    let leaks = stage.outside.read(|l| l.plain);
    let others = stage.outside.read(|l| format!("{:?}", l.other));
    figures.check(
        "outside there is ESP only",
        leaks == 0,
        format!("{leaks} in clear; named exceptions: {others}"),
    );
    let esp_inside = stage
        .inside
        .read(|l| l.flows.values().map(|f| f.packets).sum::<u64>());
    figures.check(
        "inside there is no ESP",
        esp_inside == 0,
        format!("{esp_inside} ESP packets"),
    );
    let missed = stage.outside.lost() + stage.inside.lost();
    let not_kept = stage.outside.read(|l| l.not_kept);
    figures.check(
        "the recorders saw every packet",
        missed + not_kept == 0,
        format!("{missed} missed, {not_kept} not kept"),
    );
    for member in &stage.members {
        if let Ok(verdicts) = member.verdicts() {
            figures
                .verdicts
                .insert(member.place.letter.to_uppercase(), verdicts);
        }
    }
    if !figures.all_held() {
        say("something did not hold; the logs are in the run's folder");
    }
}
