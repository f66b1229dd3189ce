//! `cargo xtask chaos`: random faults, one after the other, on a real cluster with strongSwan peers under load.

mod evidence;
mod fault;
mod inject;
mod moves;
pub mod mutants;
mod rng;
mod round;
mod scene;
pub mod tally;

use crate::steps::{detail, say, step};
use crate::{build, cargo_tools, histogram, setup};
use anyhow::{Context, Result};
use fault::{Dealer, EngineKind};
use lab::cluster::Cluster;
use lab::member::Product;
use scene::{Build, Scene};
use std::fs;
use std::time::Instant;
use tally::Tally;

/// How chaos runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// How many faults.
    #[arg(long, default_value_t = 20)]
    pub kills: u64,
    /// Repeat a run: the seed that it printed.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Members of the cluster.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=3))]
    pub members: u8,
    /// Who decides about ownership.
    #[arg(long, value_enum, default_value = "pair")]
    pub engine: EngineKind,
    /// Groups of segments: more than one is load sharing, with moves of groups between the faults that may lose no packet.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub groups: u8,
    /// Router and server spread what they send over all members (ECMP), instead of sending it to the one that answers for the
    /// address.
    #[arg(long)]
    pub ecmp: bool,
    /// Only faults of these kinds, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Print one JSON object with every figure on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
    /// Leave the lab running and print where it is.
    #[arg(long)]
    pub keep: bool,
}

impl Options {
    /// What `cargo xtask test` runs.
    pub fn short(members: u8, engine: EngineKind) -> Self {
        Self {
            kills: 6,
            seed: None,
            members,
            engine,
            groups: 1,
            ecmp: false,
            only: Vec::new(),
            json: false,
            keep: false,
        }
    }

    /// The same with several groups: faults of each sort, moves, and an ECMP router.
    pub fn sharing() -> Self {
        let only = ["host_death", "group_move", "drain"];
        Self {
            kills: 3,
            groups: 12,
            ecmp: true,
            only: only.map(str::to_owned).to_vec(),
            ..Self::short(3, EngineKind::Etcd)
        }
    }
}

pub use fault::EngineKind as Engine;

/// Runs it; true if every invariant held.
pub fn run(options: &Options) -> Result<bool> {
    Ok(judged(options)?.ok)
}

/// Runs it, and prints what it counted.
pub fn judged(options: &Options) -> Result<Tally> {
    anyhow::ensure!(
        options.engine == EngineKind::Etcd || options.members == 2,
        "--engine pair knows two members: leave out --members, or use --engine etcd"
    );
    anyhow::ensure!(
        options.groups > 1 || !options.ecmp,
        "--ecmp is about load sharing: add --groups 12"
    );
    // Before any thread: a signal must find the lab's ledger.
    lab::resources::clear_on_signal()?;
    setup::run()?;
    let built = build::run()?;
    let product = Product {
        binary: built.espalier,
        object: built.object,
    };
    let (tally, kept) = with_product(options, &product)?;
    if options.json {
        println!("{}", serde_json::to_string(&tally)?);
    } else {
        tally.print();
    }
    if let Some(scene) = kept {
        for member in &scene.cluster.members {
            member.by_hand().iter().for_each(|line| detail(line));
        }
        // The processes go on: nothing of the scene may be dropped.
        std::mem::forget(scene);
    }
    Ok(tally)
}

/// Runs it with a product, which may be a mutant.
pub fn with_product(options: &Options, product: &Product) -> Result<(Tally, Option<Box<Scene>>)> {
    let start = Instant::now();
    let seed = match options.seed {
        Some(seed) => seed,
        None => random_seed()?,
    };
    let mut tally = Tally {
        seed,
        members: usize::from(options.members),
        groups: options.groups,
        ecmp: options.ecmp,
        engine: match options.engine {
            EngineKind::Pair => "pair",
            EngineKind::Etcd => "etcd",
        },
        ..Tally::default()
    };
    let mut dealer = Dealer::new(seed, options.engine, options.groups > 1, &options.only)?;
    say(&format!(
        "{} faults, seed {seed}, {} members, engine {}, {} group(s){}",
        options.kills,
        tally.members,
        tally.engine,
        options.groups,
        if options.ecmp { ", ECMP" } else { "" }
    ));
    let build = Build {
        product,
        parent: &cargo_tools::root().join("target/lab"),
        members: tally.members,
        voters: if options.engine == EngineKind::Etcd { 3 } else { 0 },
        settings: scene::settings(options.groups),
        ecmp: options.ecmp,
    };
    let mut scene = step(
        "a cluster, three strongSwan peers, four connections, load",
        || Scene::build(&build),
    )?;
    tally.folder = scene.cluster.lab.folder.display().to_string();
    if let Err(error) = faults(options, &mut scene, &mut dealer, &mut tally) {
        tally.violate(format!("{error:#}"));
        scene.cluster.states().lines().for_each(detail);
    }
    let mut kept = None;
    if options.keep {
        scene.cluster.lab.resources.keep()?;
        kept = Some(Box::new(scene));
    } else {
        finish(scene, &mut tally);
    }
    tally.seconds = start.elapsed().as_secs_f64();
    tally.ok = tally.violations.is_empty() && tally.kills == options.kills && tally.recorded > 0;
    let picture = histogram::draw(tally.kill_times(), tally.p50_ms, tally.p99_ms);
    fs::write(format!("{}/takeovers.svg", tally.folder), picture).context("writing the histogram")?;
    fs::write(
        format!("{}/chaos.json", tally.folder),
        serde_json::to_string_pretty(&tally)?,
    )
    .context("writing the figures")?;
    Ok((tally, kept))
}

fn faults(options: &Options, scene: &mut Scene, dealer: &mut Dealer, tally: &mut Tally) -> Result<()> {
    let mut course = round::Course::default();
    for number in 1..=options.kills {
        let fault = dealer.deal();
        let may_split = options.engine == EngineKind::Pair && fault.may_split_a_pair();
        say(&format!("{number}/{}: {fault:?}", options.kills));
        let before = evidence::Before::of(scene);
        let played = round::play(scene, fault, may_split, &mut course, tally);
        if (played.is_err() || !tally.violations.is_empty()) && tally.evidence.is_empty() {
            tally.show(before.lines(scene, None));
        }
        detail(&played.with_context(|| format!("fault {number}, {fault:?}"))?);
        if !tally.violations.is_empty() {
            break;
        }
    }
    message_ids(scene, tally);
    if options.groups > 1 {
        moves::second_hops(scene, tally);
    }
    if tally.missed > 0 {
        tally.violate(format!("the recorders missed {} frames", tally.missed));
    }
    Ok(())
}

/// Message IDs of the whole run. A split may fork them, and then nothing tells its consequences from a fault.
fn message_ids(scene: &Scene, tally: &mut Tally) {
    let faults = scene.cluster.outside.read(lab::ledger::Ledger::message_id_faults);
    if tally.split.faults == 0 {
        tally.message_id_faults = faults.len() as u64;
        for fault in faults {
            tally.violate(fault);
        }
    }
}

/// Ends the load, while peers and members still carry it.
fn finish(scene: Scene, tally: &mut Tally) {
    let Scene {
        load,
        peers,
        clocks,
        cluster,
        etcd,
        trace,
        ecmp: _,
    } = scene;
    match load.stop() {
        Ok((octets, sent, lost)) => {
            (tally.tcp_octets, tally.packets_sent, tally.packets_lost) = (octets, sent, lost);
        }
        Err(error) if tally.violations.is_empty() => tally.violate(format!("{error:#}")),
        Err(_) => {}
    }
    drop((peers, clocks, trace));
    // The members first: they hand over through etcd.
    let Cluster {
        members,
        outside,
        inside,
        lab,
    } = cluster;
    drop(members);
    drop((etcd, outside, inside));
    drop(lab);
}

fn random_seed() -> Result<u64> {
    let mut octets = [0u8; 4];
    let mut file = fs::File::open("/dev/urandom").context("/dev/urandom")?;
    std::io::Read::read_exact(&mut file, &mut octets).context("/dev/urandom")?;
    Ok(u64::from(u32::from_le_bytes(octets)))
}
