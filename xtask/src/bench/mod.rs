//! `cargo xtask bench ...`. Here `takeover`: what a takeover costs with ten SAs and with a hundred thousand.

mod dataplane;
mod figures;
mod ike;
mod measure;
mod plot;
mod scale;
mod scene;
mod tunnel;

use crate::steps::{detail, say, step};
use crate::{build, cargo_tools, setup};
use anyhow::{Context, Result};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use lab::member::Product;
use scene::Scene;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs;

/// Benchmarks.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Kill the owner with more and more SAs: phases, packets lost, synch traffic, snapshot, memory.
    Takeover(Options),
    /// Nanoseconds by packet in every program, by suite and size, next to the same ciphers in scalar C and in aws-lc-rs.
    Dataplane(dataplane::Options),
    /// Cost by packet and map memory from one SA to a million, and from one policy to a hundred thousand.
    Scale(scale::Options),
    /// Throughput, packets a second, CPU and latency of espalier, strongSwan and wireguard-go between the same two hosts.
    Tunnel(tunnel::Options),
    /// Complete IKE handshakes as responder: processor time each, beside strongSwan under the same load.
    Ike(ike::Options),
}

/// How it runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Numbers of Child SAs, rising, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 1000, 10_000, 100_000])]
    pub sizes: Vec<usize>,
    /// Takeovers with each of them.
    #[arg(long, default_value_t = 5)]
    pub runs: u32,
    /// Print one JSON object with every figure on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// Takeovers with one number of SAs. Times are milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// Child SAs.
    pub sas: usize,
    /// Takeovers.
    pub runs: usize,
    /// Kill to first packet through the taker, median.
    pub p50_ms: f64,
    /// The same, 99th percentile (of few runs: the longest).
    pub p99_ms: f64,
    /// Medians of the phases, each since the one before.
    pub phases: BTreeMap<String, f64>,
    /// Probes without an echo, median of the takeovers.
    pub packets_lost: u64,
    /// Probes a second.
    pub packets_per_s: u64,
    /// Child SAs rekeyed or lost in all takeovers.
    pub child_sas_replaced: u64,
    /// New Child SAs a second while they were set up, each with its IKE exchange and its journal entry acknowledged.
    pub setup_per_s: f64,
    /// From the joiner's request until it is in sync again, seconds, median.
    pub snapshot_s: f64,
    /// Anonymous memory of the owner's agent, octets.
    pub owner_octets: u64,
    /// The same of the standby's.
    pub standby_octets: u64,
    /// Processor seconds a second of the owner's agent, idle.
    pub owner_idle_cpu: f64,
    /// Octets a second on the synch channel both ways, idle.
    pub synch_bytes_per_s_idle: f64,
}

/// Everything that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// By number of SAs.
    pub rows: Vec<Row>,
    /// Octets a second on the synch channel, both ways, while one TCP stream runs at full speed.
    pub synch_bytes_per_s: f64,
    /// Octets a second of that stream.
    pub data_bytes_per_s: f64,
    /// The first divided by the second.
    pub synch_share: f64,
    /// Of the largest row.
    pub snapshot_s: f64,
    /// Growth of the owner's anonymous memory from the smallest to the largest row, by SA.
    pub agent_bytes_per_sa: f64,
    /// Growth of p50 from the smallest to the largest row, per cent.
    pub growth_percent: f64,
    /// (SPI, sequence number) and (SPI, IV) pairs sent twice; the recorders judge here too.
    pub dup_seq: u64,
    /// See above.
    pub dup_iv: u64,
    /// Folder with configurations, logs and the plot.
    pub folder: String,
}

/// Runs a benchmark; true if it ran to its end without a repeated number.
pub fn run(command: &Command) -> Result<bool> {
    match command {
        Command::Takeover(options) => takeover(options),
        Command::Dataplane(options) => dataplane::run(options),
        Command::Scale(options) => scale::run(options),
        Command::Tunnel(options) => tunnel::run(options),
        Command::Ike(options) => ike::run(options),
    }
}

fn takeover(options: &Options) -> Result<bool> {
    anyhow::ensure!(options.runs > 0, "--runs must be at least 1");
    anyhow::ensure!(
        !options.sizes.is_empty() && options.sizes.windows(2).all(|w| w[0] < w[1]) && options.sizes[0] > 0,
        "--sizes must be rising numbers from 1"
    );
    lab::resources::clear_on_signal()?;
    setup::run()?;
    let built = build::run()?;
    let product = Product {
        binary: built.espalier,
        object: built.object,
    };
    let mut figures = Figures::default();
    let mut scene = step("a pair, a strongSwan peer, a fleet of initiators", || {
        Scene::build(&product, &cargo_tools::root().join("target/lab"))
    })?;
    figures.folder = scene.cluster.lab.folder.display().to_string();
    detail(&format!("configurations and logs: {}", figures.folder));
    let result = measure_all(options, &mut scene, &mut figures);
    (figures.dup_seq, figures.dup_iv) = scene.cluster.outside.read(lab::ledger::Ledger::duplicates);
    drop(scene);
    conclude(&mut figures);
    fs::write(
        format!("{}/takeover-sizes.svg", figures.folder),
        plot::draw(&figures.rows),
    )
    .context("writing the plot")?;
    fs::write(
        format!("{}/bench.json", figures.folder),
        serde_json::to_string_pretty(&figures)?,
    )
    .context("writing the figures")?;
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print(&figures);
    }
    result.map(|()| figures.dup_seq + figures.dup_iv == 0)
}

fn measure_all(options: &Options, scene: &mut Scene, figures: &mut Figures) -> Result<()> {
    for sas in &options.sizes {
        say(&format!("{sas} Child SAs"));
        let row = measure::row(scene, *sas, options.runs)
            .with_context(|| format!("with {sas} Child SAs"))
            .inspect_err(|_| scene.cluster.states().lines().for_each(detail))?;
        detail(&format!(
            "first packet after {:.0} ms (p50), {:.0} ms (p99); {} of {} probes a second lost; snapshot {:.2} s; {:.0} new SAs a second",
            row.p50_ms, row.p99_ms, row.packets_lost, row.packets_per_s, row.snapshot_s, row.setup_per_s
        ));
        figures.rows.push(row);
    }
    (figures.data_bytes_per_s, figures.synch_bytes_per_s) =
        step("synch traffic at full speed", || measure::line_rate(scene))?;
    Ok(())
}

fn conclude(figures: &mut Figures) {
    if figures.data_bytes_per_s > 0.0 {
        figures.synch_share = figures.synch_bytes_per_s / figures.data_bytes_per_s;
    }
    if let (Some(first), Some(last)) = (figures.rows.first(), figures.rows.last()) {
        figures.snapshot_s = last.snapshot_s;
        figures.growth_percent = (last.p50_ms / first.p50_ms - 1.0) * 100.0;
        if last.sas > first.sas {
            figures.agent_bytes_per_sa =
                (last.owner_octets as f64 - first.owner_octets as f64) / (last.sas - first.sas) as f64;
        }
    }
}

fn print(figures: &Figures) {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "Child SAs",
        "p50",
        "p99",
        "detect",
        "claim",
        "flip",
        "announce",
        "first packet",
        "lost",
        "snapshot",
        "set up",
        "agent idle",
    ]);
    for row in &figures.rows {
        let phase = |name: &str| {
            row.phases
                .get(name)
                .map_or("-".to_owned(), |ms| format!("{ms:.1} ms"))
        };
        table.add_row([
            row.sas.to_string(),
            format!("{:.0} ms", row.p50_ms),
            format!("{:.0} ms", row.p99_ms),
            phase("detect"),
            phase("claim"),
            phase("flip"),
            phase("announce"),
            phase("first_packet"),
            row.packets_lost.to_string(),
            format!("{:.2} s", row.snapshot_s),
            format!("{:.0}/s", row.setup_per_s),
            format!("{:.1} % CPU", row.owner_idle_cpu * 100.0),
        ]);
    }
    for column in table.column_iter_mut() {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    println!(
        "growth of the median from the fewest to the most SAs: {:.0} %\n\
         synch channel at full speed: {:.0} octets/s for {:.0} octets/s of data ({:.3} %)\n\
         memory of the owner's agent: {:.0} octets by Child SA\n\
         (SPI, sequence number) twice: {}, (SPI, IV) twice: {}\n\
         configurations, logs and takeover-sizes.svg: {}",
        figures.growth_percent,
        figures.synch_bytes_per_s,
        figures.data_bytes_per_s,
        figures.synch_share * 100.0,
        figures.agent_bytes_per_sa,
        figures.dup_seq,
        figures.dup_iv,
        figures.folder
    );
}
