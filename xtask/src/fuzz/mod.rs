//! `cargo xtask fuzz`: the targets of tests/fuzz under libFuzzer, with coverage counters that the stable compiler puts in.

mod build;
mod heard;
mod keep;
mod target;

use crate::cargo_tools::{root, target as target_folder};
use crate::steps::{detail, say};
use anyhow::{Context, Result, bail};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// What the command line says.
#[derive(clap::Args)]
pub struct Options {
    /// Targets; none: all of them, one after the other.
    targets: Vec<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seed of the mutations; without it another one each time. It is printed.
    #[arg(long)]
    seed: Option<u32>,
    /// Run this input through one target, and nothing else.
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Keep inputs that reach what the corpus in tests/fuzz does not reach: as few as will do, small ones only.
    #[arg(long)]
    keep: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What became of a target.
#[derive(Debug, Default, Serialize)]
pub struct Row {
    /// Which.
    pub target: String,
    /// Seed of its mutations.
    pub seed: u32,
    /// How long it ran, with the reading of its corpus.
    pub seconds: f64,
    /// Inputs.
    pub executions: u64,
    /// Inputs a second.
    pub executions_per_s: u64,
    /// Edges of the control flow that were reached.
    pub edges: u64,
    /// The same, with how often each was passed.
    pub features: u64,
    /// Inputs in the scratch corpus that reach something of their own.
    pub corpus: u64,
    /// Those that were found in this run.
    pub new_inputs: u64,
    /// Files that were added to tests/fuzz/corpus.
    pub kept: u64,
    /// What was found.
    pub crashes: Vec<Crash>,
}

/// An input that a target does not survive.
#[derive(Debug, Serialize)]
pub struct Crash {
    /// The input.
    pub path: PathBuf,
    /// What the target said last.
    pub said: Vec<String>,
    /// How to see it again.
    pub reproduce: String,
}

/// The user wants no more.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Runs the targets; true if nothing was found.
///
/// # Errors
/// There is no such target, or the build fails.
pub fn run(options: &Options) -> Result<bool> {
    let targets = chosen(&options.targets)?;
    let programs = build::run(&targets)?;
    if let Some(input) = &options.input {
        return reproduce(&programs, input);
    }
    on_interrupt()?;
    let seed = options.seed.unwrap_or_else(any_seed);
    say(&format!(
        "{} targets, {} s each, seed {seed}",
        programs.len(),
        options.seconds
    ));
    let mut rows = Vec::new();
    for (name, program) in &programs {
        if INTERRUPTED.load(Ordering::Relaxed) {
            break;
        }
        let mut row = target::run(name, program, seed, options.seconds)?;
        if options.keep {
            row.kept = keep::run(name, program)?;
        }
        rows.push(row);
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        println!("{}", table(&rows));
    }
    for crash in rows.iter().flat_map(|row| &row.crashes) {
        say(&format!("found: {}", crash.path.display()));
        crash.said.iter().for_each(|line| detail(line));
        detail(&format!("again: {}", crash.reproduce));
    }
    Ok(rows.iter().all(|row| row.crashes.is_empty()))
}

/// Names of all targets.
fn names() -> Result<Vec<String>> {
    let folder = root().join("tests/fuzz/fuzz_targets");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

fn chosen(wanted: &[String]) -> Result<Vec<String>> {
    let all = names()?;
    if let Some(unknown) = wanted.iter().find(|name| !all.contains(name)) {
        bail!("there is no target {unknown}; there are {}", all.join(", "));
    }
    Ok(if wanted.is_empty() { all } else { wanted.to_vec() })
}

/// Where the targets are built, and what they find.
fn folder() -> PathBuf {
    target_folder().join("fuzz")
}

/// The stored corpus of a target.
fn stored(name: &str) -> PathBuf {
    root().join("tests/fuzz/corpus").join(name)
}

/// What has been found so far, in earlier runs too.
fn scratch(name: &str) -> Result<PathBuf> {
    let folder = folder().join("corpus").join(name);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

fn any_seed() -> u32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Of 0 libFuzzer makes one of its own, which nobody learns.
    (now.as_secs() as u32 ^ now.subsec_nanos()).max(1)
}

/// One input through one target; true if it survives.
fn reproduce(programs: &[(String, PathBuf)], input: &Path) -> Result<bool> {
    let [(name, program)] = programs else {
        bail!("--input needs the one target that it is for");
    };
    let input = fs::canonicalize(input).with_context(|| input.display().to_string())?;
    say(&format!("{name} with {}", input.display()));
    let status = Command::new(program)
        .arg(format!("-timeout={}", target::TIMEOUT_S))
        .arg(&input)
        .env("RUST_BACKTRACE", "1")
        .status()
        .with_context(|| program.display().to_string())?;
    Ok(status.success())
}

/// A first SIGINT ends the target that runs (it has the signal as well), and what is known so far is shown.
fn on_interrupt() -> Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    extern "C" fn interrupted(_signal: libc::c_int) {
        INTERRUPTED.store(true, Ordering::Relaxed);
    }
    let handler = SigHandler::Handler(interrupted);
    let flags = SaFlags::SA_RESTART | SaFlags::SA_RESETHAND;
    // SAFETY: the handler stores an atomic and does nothing else.
    unsafe { sigaction(Signal::SIGINT, &SigAction::new(handler, flags, SigSet::empty())) }?;
    Ok(())
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    let head = [
        "target",
        "executions",
        "each s",
        "edges",
        "features",
        "corpus",
        "new",
        "kept",
        "crashes",
    ];
    table.load_style(UTF8_FULL_CONDENSED).set_header(head);
    for row in rows {
        let numbers = [
            row.executions,
            row.executions_per_s,
            row.edges,
            row.features,
            row.corpus,
            row.new_inputs,
            row.kept,
            row.crashes.len() as u64,
        ];
        let cells = std::iter::once(row.target.clone()).chain(numbers.map(|n| n.to_string()));
        table.add_row(cells);
    }
    for column in 1..head.len() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
