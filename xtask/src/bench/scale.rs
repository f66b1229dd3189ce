//! `cargo xtask bench scale`: whether a packet costs the same with one SA and with a million, with one policy and with a hundred
//! thousand.

use super::dataplane::datagram;
use super::figures::{Cells, median, table};
use crate::steps::{say, step};
use crate::{build, setup};
use anyhow::Result;
use maps_schema::sad::SUITE_CHACHA20_POLY1305;
use maps_schema::spd::spd_places;
use maps_schema::verdict::Verdict;
use serde::Serialize;
use std::collections::BTreeMap;
use test_packet::case::Program;
use test_packet::frames::{Sealer, ethernet};
use test_packet::kernel::Kernel;
use test_packet::kernel::crowd::{destination, spi_of};
use test_packet::kernel::touch::Touch;
use test_packet::world::*;

/// How it runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Numbers of SAs, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000, 10_000, 100_000, 1_000_000])]
    pub sas: Vec<u32>,
    /// Numbers of policies, each a network of 28 bits, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1000, 10_000, 100_000])]
    pub policies: Vec<u32>,
    /// Octets of the inner packets. Small ones show look-ups best.
    #[arg(long, default_value_t = 64)]
    pub size: usize,
    /// Rounds over all numbers; a figure is the median of them.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Print one JSON object with every figure on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// One number of SAs or policies. Times are nanoseconds by packet.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// `sa`: the whole way in, each packet to an SA at random. `policy`: the whole way out, each packet to a destination at
    /// random. `length`: the whole way out to the shortest of so many prefix lengths.
    pub what: String,
    /// SAs, policies or lengths.
    pub n: u32,
    /// In the program.
    pub ns: f64,
    /// Octets of map memory for one.
    pub bytes_per_entry: f64,
    /// What a program that only reads the lines of a random SA or policy costs more than with one: caches and page tables.
    pub cache_ns: f64,
    /// How much `ns` is above that of the first row, less `cache_ns`, per cent.
    pub excess_percent: f64,
}

/// Everything that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// By kind and number.
    pub rows: Vec<Row>,
    /// Octets of the inner packets.
    pub size: usize,
    /// Rounds behind each median.
    pub rounds: usize,
}

/// Slots of the maps: as many as SPIs have room for.
const SLOTS_ALL: u32 = 1 << 20;
/// Numbers of prefix lengths.
const LENGTHS: [u32; 5] = [1, 2, 5, 9, 17];
/// Packets of a round.
const PACKETS: usize = 2000;
/// Numbers that one SA may come to.
const LIMIT: u64 = 1 << 30;
/// xorshift64*: what is random here must be the same again, not unforeseeable.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) * u64::from(n)) >> 32) as u32
    }
}

/// Runs it.
pub fn run(options: &Options) -> Result<bool> {
    anyhow::ensure!(options.rounds > 0, "--rounds must be at least 1");
    anyhow::ensure!(
        options.sas.iter().all(|n| (1..SLOTS_ALL).contains(n)),
        "--sas must be from 1 to 1048575"
    );
    anyhow::ensure!(
        options.policies.iter().all(|n| (1..=1 << 17).contains(n)),
        "--policies must be from 1 to 131072"
    );
    anyhow::ensure!(
        (28..=1400).contains(&options.size),
        "--size must be from 28 to 1400"
    );
    setup::run()?;
    let object = build::bpf()?;
    let mut kernel = step("loading the programs, with maps for a million SAs", || {
        Kernel::load_with(&object, 1, SLOTS_ALL)
    })?;
    let mut world = World::base(SUITE_CHACHA20_POLY1305, false, false);
    world.inbound.limits = cell(LIMIT, LIMIT, 0, EPOCH);
    world.outbound.limits = world.inbound.limits;
    world.valid_for_ms = 3_600_000;
    (world.local.cpus, world.local.slots) = (1, SLOTS_ALL);
    let mut figures = Figures {
        size: options.size,
        rounds: options.rounds,
        ..Figures::default()
    };
    sas(&mut kernel, &world, options, &mut figures)?;
    policies(&mut kernel, &world, options, &mut figures)?;
    lengths(&mut kernel, &world, options, &mut figures)?;
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print(&figures);
    }
    Ok(true)
}

fn sas(kernel: &mut Kernel, world: &World, options: &Options, figures: &mut Figures) -> Result<()> {
    let most = options.sas.iter().copied().max().unwrap_or(0);
    kernel.arrange(world)?;
    step(&format!("{most} SAs"), || kernel.fill_inbound(world, 1..most + 1))?;
    let bytes_per_entry = kernel.sa_memory()? as f64 / f64::from(SLOTS_ALL);
    let inner = datagram(FAR_HOST, NEAR_HOST, options.size);
    let mut numbers: BTreeMap<u32, u64> = BTreeMap::new();
    let mut random = Random(7);
    let mut times: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    let control = Touch::sas(kernel)?;
    let mut touches: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    for round in 0..options.rounds {
        say(&format!("SAs, round {} of {}", round + 1, options.rounds));
        for n in &options.sas {
            let frames: Vec<Vec<u8>> = (0..PACKETS)
                .map(|_| {
                    let slot = 1 + random.below(*n);
                    let number = numbers.entry(slot).or_default();
                    *number += 1;
                    let peer = Sealer {
                        spi: spi_of(slot),
                        ..Sealer::peer(SUITE_CHACHA20_POLY1305, false, false)
                    };
                    peer.frame(*number, &inner)
                })
                .collect();
            let ns = kernel.time(Program::Steer, OUTSIDE_IFINDEX, &frames, Verdict::EspOpened)?;
            times.entry(*n).or_default().push(median(&ns));
            let picks: Vec<u32> = (0..PACKETS).map(|_| 1 + random.below(*n)).collect();
            touches
                .entry(*n)
                .or_default()
                .push(median(&control.time_slots(&picks)?));
        }
    }
    let rows = options
        .sas
        .iter()
        .map(|n| (*n, median(&times[n]), median(&touches[n])));
    conclude("sa", rows.collect(), bytes_per_entry, figures);
    Ok(())
}

fn policies(kernel: &mut Kernel, world: &World, options: &Options, figures: &mut Figures) -> Result<()> {
    let mut random = Random(11);
    let mut times: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    let bytes_per_entry = kernel.policy_memory()? as f64 / f64::from(spd_places(SLOTS_ALL));
    let control = Touch::policies(kernel)?;
    let mut touches: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    let mut sizes = options.policies.clone();
    sizes.sort_unstable();
    sizes.dedup();
    for round in 0..options.rounds {
        say(&format!("policies, round {} of {}", round + 1, options.rounds));
        kernel.arrange(world)?;
        let mut filled = 0;
        for n in &sizes {
            kernel.fill_policies(world, filled..*n)?;
            filled = *n;
            let frames: Vec<Vec<u8>> = (0..PACKETS)
                .map(|_| {
                    let to = destination(random.below(*n)) + 5;
                    ethernet(
                        INSIDE_MAC,
                        NEAR_MAC,
                        0x0800,
                        &datagram(NEAR_HOST, to, options.size),
                    )
                })
                .collect();
            let ns = kernel.time(Program::Inside, INSIDE_IFINDEX, &frames, Verdict::EspSealed)?;
            times.entry(*n).or_default().push(median(&ns));
            let picks = (0..PACKETS).map(|_| kernel.policy_place(random.below(*n)));
            let picks = picks.collect::<Result<Vec<_>>>()?;
            touches
                .entry(*n)
                .or_default()
                .push(median(&control.time(&picks)?));
        }
        kernel.clear_policies(0..filled)?;
    }
    let rows = sizes.iter().map(|n| (*n, median(&times[n]), median(&touches[n])));
    conclude("policy", rows.collect(), bytes_per_entry, figures);
    Ok(())
}

/// A destination in the shortest of so many lengths: the worst place to be.
fn lengths(kernel: &mut Kernel, world: &World, options: &Options, figures: &mut Figures) -> Result<()> {
    let bytes_per_entry = kernel.policy_memory()? as f64 / f64::from(spd_places(SLOTS_ALL));
    let mut times: BTreeMap<u32, Vec<f64>> = BTreeMap::new();
    let frames = vec![
        ethernet(
            INSIDE_MAC,
            NEAR_MAC,
            0x0800,
            &datagram(NEAR_HOST, FAR_HOST, options.size)
        );
        PACKETS
    ];
    for round in 0..options.rounds {
        say(&format!("lengths, round {} of {}", round + 1, options.rounds));
        kernel.arrange(world)?;
        for n in LENGTHS {
            kernel.other_lengths(world, n - 1, true)?;
            let ns = kernel.time(Program::Inside, INSIDE_IFINDEX, &frames, Verdict::EspSealed)?;
            times.entry(n).or_default().push(median(&ns));
        }
        kernel.other_lengths(world, LENGTHS[LENGTHS.len() - 1] - 1, false)?;
    }
    let rows = LENGTHS.iter().map(|n| (*n, median(&times[n]), 0.0));
    conclude("length", rows.collect(), bytes_per_entry, figures);
    Ok(())
}

fn conclude(what: &str, rows: Vec<(u32, f64, f64)>, bytes_per_entry: f64, figures: &mut Figures) {
    let Some((_, first, touch)) = rows.first().copied() else {
        return;
    };
    for (n, ns, touched) in rows {
        let cache_ns = (touched - touch).max(0.0);
        figures.rows.push(Row {
            what: what.to_owned(),
            n,
            ns,
            bytes_per_entry,
            cache_ns,
            excess_percent: ((ns - cache_ns) / first - 1.0) * 100.0,
        });
    }
}

fn print(figures: &Figures) {
    let mut cells: Cells = Vec::new();
    for row in &figures.rows {
        cells.push(vec![
            row.what.clone(),
            row.n.to_string(),
            format!("{:.0}", row.ns),
            format!("{:.0}", row.cache_ns),
            format!("{:+.1} %", row.excess_percent),
            format!("{:.0}", row.bytes_per_entry),
        ]);
    }
    println!(
        "{}",
        table(
            &[
                "what",
                "n",
                "ns by packet",
                "of it cache",
                "beyond the cache",
                "octets by entry"
            ],
            cells
        )
    );
    println!(
        "inner packets of {} octets, medians of {} rounds of {PACKETS} packets, each a run of its own and to an SA or a \
         destination at random; of it cache: how much more a program costs that only reads the same lines of the same maps",
        figures.size, figures.rounds
    );
}
