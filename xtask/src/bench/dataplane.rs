//! `cargo xtask bench dataplane`: what a packet costs in each program, next to the same ciphers on the host.

use super::figures::{Cells, median, table};
use crate::steps::{detail, say, step};
use crate::{build, cargo_tools, setup};
use anyhow::{Context, Result};
use lab::cmd;
use maps_schema::sad::{
    SUITE_AES128_CBC_SHA256, SUITE_AES128_GCM, SUITE_AES256_CBC_SHA256, SUITE_AES256_GCM, SUITE_CBC,
    SUITE_CHACHA20_POLY1305,
};
use maps_schema::verdict::Verdict;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use test_packet::case::Program;
use test_packet::ciphers::{Scalar, time_provider};
use test_packet::frames::{Ip, Sealer, ethernet, noise, udp};
use test_packet::kernel::Kernel;
use test_packet::world::*;

/// How it runs.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Octets of the inner packets, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 350, 1400])]
    pub sizes: Vec<usize>,
    /// Rounds over everything; a figure is the median of them.
    #[arg(long, default_value_t = 7)]
    pub rounds: usize,
    /// Print one JSON object with every figure on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// One program with one suite and one size of inner packets. Times are nanoseconds by packet.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Row {
    /// `steer` opens and `inside` seals, the whole way of a packet: from parsing to the redirect. `open` is `steer` up to the
    /// check of selectors, run over and over on one packet. `esp_in` and `esp_out` are the same code behind a cpumap's hop,
    /// and the kernel takes no test runs of programs for cpumaps.
    pub program: String,
    /// Cipher.
    pub suite: String,
    /// Octets of the inner packet.
    pub size: usize,
    /// In the program.
    pub ns: f64,
    /// The cipher alone, the same code in scalar C on the host. Not of AES-CBC.
    pub scalar_ns: Option<f64>,
    /// The same C with rotations as BPF has them: two shifts and an OR. ChaCha20-Poly1305 only; the others have few rotations.
    pub shifts_ns: Option<f64>,
    /// The cipher alone, aws-lc-rs on the host.
    pub awslc_ns: f64,
    /// `ns` by `scalar_ns`.
    pub scalar_ratio: Option<f64>,
    /// `ns` by `awslc_ns`.
    pub awslc_ratio: f64,
    /// Instructions that the verifier walks through, of a million.
    pub insns: u32,
    /// Octets of machine code.
    pub jited_bytes: u32,
}

/// Everything that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// By program, suite and size.
    pub rows: Vec<Row>,
    /// An empty program, run once at a time as the others are.
    pub empty_ns: f64,
    /// Rounds behind each median.
    pub rounds: usize,
}

const SUITES: [(u8, &str); 5] = [
    (SUITE_CHACHA20_POLY1305, "chacha20poly1305"),
    (SUITE_AES128_GCM, "aes128gcm16"),
    (SUITE_AES256_GCM, "aes256gcm16"),
    (SUITE_AES128_CBC_SHA256, "aes128-sha256"),
    (SUITE_AES256_CBC_SHA256, "aes256-sha256"),
];
/// Packets of a round.
const PACKETS: u64 = 250;
/// Runs of `open` in a round.
const REPEAT: u32 = 2000;
/// More than all rounds need.
const LIMIT: u64 = 1 << 30;

/// What runs: name, program, interface, verdict, whether it opens.
const WAYS: [(&str, Program, u32, Verdict, bool); 2] = [
    ("steer", Program::Steer, OUTSIDE_IFINDEX, Verdict::EspOpened, true),
    (
        "inside",
        Program::Inside,
        INSIDE_IFINDEX,
        Verdict::EspSealed,
        false,
    ),
];

/// Runs it.
pub fn run(options: &Options) -> Result<bool> {
    anyhow::ensure!(options.rounds > 0, "--rounds must be at least 1");
    anyhow::ensure!(
        options.sizes.iter().all(|s| (28..=1438).contains(s)),
        "--sizes must be from 28 to 1438: an IPv4 and a UDP header, and what fits into a frame of 1500 octets"
    );
    setup::run()?;
    let object = build::bpf()?;
    let scalar = Scalar::load(&scalar_object("scalar.so", &[])?)?;
    let shifts = Scalar::load(&scalar_object("shifts.so", &["-DSHIFTS_ONLY"])?)?;
    let programs = dataplane::verifier_report(&object).context("the kernel refuses the programs")?;
    let mut kernel = step("loading the programs", || Kernel::load_with(&object, CPUS, SLOTS))?;
    let mut samples: BTreeMap<(usize, usize, &str), Vec<f64>> = BTreeMap::new();
    let mut empty = Vec::new();
    for round in 0..options.rounds {
        say(&format!("round {} of {}", round + 1, options.rounds));
        for (s, (suite, _)) in SUITES.into_iter().enumerate() {
            for size in &options.sizes {
                let mut note = |what: &'static str, ns: f64| {
                    samples.entry((s, *size, what)).or_default().push(ns);
                };
                let chained = suite >= SUITE_CBC;
                let text = (size + 2).next_multiple_of(if chained { 16 } else { 4 });
                if !chained {
                    let c = scalar.time(suite, text)?;
                    note("scalar seal", c.seal);
                    note("scalar open", c.open);
                }
                if suite == SUITE_CHACHA20_POLY1305 {
                    let c = shifts.time(suite, text)?;
                    note("shifts seal", c.seal);
                    note("shifts open", c.open);
                }
                let provider = time_provider(suite, text)?;
                note("awslc seal", provider.seal);
                note("awslc open", provider.open);
                measure(&mut kernel, suite, *size, &mut note)?;
            }
        }
        empty.push(median(&kernel.time_empty(&[0; 64], 1000)?));
    }
    let mut figures = Figures {
        empty_ns: median(&empty),
        rounds: options.rounds,
        ..Figures::default()
    };
    for (s, (_, suite)) in SUITES.into_iter().enumerate() {
        for (name, opens) in WAYS.map(|w| (w.0, w.4)).into_iter().chain([("open", true)]) {
            // What is not a program of its own is part of `steer`.
            let program = if name == "open" { "steer" } else { name };
            let report = programs
                .iter()
                .find(|p| p.name == program)
                .with_context(|| format!("no program {program}"))?;
            for size in &options.sizes {
                let known = |what: &str| samples.get(&(s, *size, what)).map(|v| median(v));
                let of = |what: &str| known(what).unwrap_or(f64::NAN);
                let (scalar, shifts, awslc) = if opens {
                    (known("scalar open"), known("shifts open"), of("awslc open"))
                } else {
                    (known("scalar seal"), known("shifts seal"), of("awslc seal"))
                };
                let ns = of(name);
                figures.rows.push(Row {
                    program: name.to_owned(),
                    suite: suite.to_owned(),
                    size: *size,
                    ns,
                    scalar_ns: scalar,
                    shifts_ns: shifts,
                    awslc_ns: awslc,
                    scalar_ratio: scalar.map(|scalar| ns / scalar),
                    awslc_ratio: ns / awslc,
                    insns: report.verified_instructions,
                    jited_bytes: report.jited_bytes,
                });
            }
        }
    }
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        print(&figures);
    }
    Ok(true)
}

/// Compiles the ciphers in scalar C: optimised as C usually is, without vectors.
fn scalar_object(name: &str, definitions: &[&str]) -> Result<PathBuf> {
    let sources = cargo_tools::root().join("xtask/src/bench/scalar");
    let folder = cargo_tools::target().join("bench");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let object = folder.join(name);
    let mut command = std::process::Command::new("gcc");
    command
        .args([
            "-O2",
            "-fno-tree-vectorize",
            "-fno-tree-slp-vectorize",
            "-shared",
            "-fPIC",
            "-o",
        ])
        .arg(&object)
        .args(definitions);
    for file in ["scalar.c", "chacha20_poly1305.c", "aes_gcm.c"] {
        command.arg(sources.join(file));
    }
    cmd::output(command, "").context("compiling the ciphers in C")?;
    Ok(object)
}

/// One round of one suite and size: both ways, and `open`.
fn measure(
    kernel: &mut Kernel,
    suite: u8,
    size: usize,
    note: &mut impl FnMut(&'static str, f64),
) -> Result<()> {
    let mut world = World::base(suite, false, false);
    world.inbound.limits = cell(LIMIT, LIMIT, 0, EPOCH);
    world.outbound.limits = world.inbound.limits;
    world.valid_for_ms = 600_000;
    let peer = Sealer::peer(suite, false, false);
    let sealed: Vec<Vec<u8>> = {
        let inner = datagram(FAR_HOST, NEAR_HOST, size);
        (1..=PACKETS).map(|seq| peer.frame(seq, &inner)).collect()
    };
    let plain = ethernet(INSIDE_MAC, NEAR_MAC, 0x0800, &datagram(NEAR_HOST, FAR_HOST, size));
    let plain = vec![plain; PACKETS as usize];
    for (name, program, ifindex, verdict, opens) in WAYS {
        // The window begins anew, so the same frames are new ones.
        kernel.arrange(&world)?;
        let frames = if opens { &sealed } else { &plain };
        let times = kernel
            .time(program, ifindex, frames, verdict)
            .with_context(|| format!("{name}, {size} octets"))?;
        note(name, median(&times));
    }
    // Selectors that the packet does not match: it is opened, then dropped before the window is marked.
    world.inbound.selectors[0].protocol = 6;
    kernel.arrange(&world)?;
    let ns = kernel.time_repeated(
        Program::Steer,
        OUTSIDE_IFINDEX,
        &sealed[0],
        Verdict::SelectorMismatch,
        REPEAT,
    )?;
    note("open", ns);
    Ok(())
}

/// A UDP datagram of so many octets.
pub fn datagram(source: u32, destination: u32, size: usize) -> Vec<u8> {
    Ip::new(source, destination, 17).with(&udp(1000, 2000, &noise(size - 28)))
}

fn print(figures: &Figures) {
    let mut cells: Cells = Vec::new();
    let maybe = |value: Option<f64>, digits| value.map_or(String::new(), |v| format!("{v:.digits$}"));
    for row in &figures.rows {
        cells.push(vec![
            row.program.clone(),
            row.suite.clone(),
            row.size.to_string(),
            format!("{:.0}", row.ns),
            maybe(row.scalar_ns, 0),
            maybe(row.scalar_ratio, 2),
            format!("{:.0}", row.awslc_ns),
            format!("{:.2}", row.awslc_ratio),
            row.insns.to_string(),
            row.jited_bytes.to_string(),
        ]);
    }
    println!(
        "{}",
        table(
            &[
                "program",
                "suite",
                "octets",
                "ns",
                "scalar C",
                "ratio",
                "aws-lc-rs",
                "ratio",
                "verified",
                "JITed octets",
            ],
            cells,
        )
    );
    println!(
        "medians of {} rounds; an empty program: {:.0} ns. steer (as esp_in) and inside (as esp_out): the whole way of a \
         packet, each a run of its own; open: steer up to the selectors, one packet over and over; scalar C and aws-lc-rs: the \
         cipher alone, with the copy into its buffer",
        figures.rounds, figures.empty_ns
    );
    let bulk = figures
        .rows
        .iter()
        .filter(|r| r.suite == SUITES[0].1 && (r.program == "steer" || r.program == "open"));
    for row in bulk.filter(|r| r.size == 1400) {
        detail(&format!(
            "{} with {}: {:.2} times scalar C (target: 1.3), {:.2} times the same without an instruction that rotates",
            row.program,
            row.suite,
            row.scalar_ratio.unwrap_or(f64::NAN),
            row.ns / row.shifts_ns.unwrap_or(f64::NAN)
        ));
    }
}
