//! One target, for its time.

use super::heard::Heard;
use super::{Crash, Row, folder, scratch, stored};
use crate::steps::{detail, say};
use anyhow::{Context, Result, bail};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds that one input may take.
pub const TIMEOUT_S: u32 = 10;
/// Memory that a target may take, MB.
const MEMORY_MB: u32 = 2048;
/// Longest input, octets.
pub const LONGEST: usize = 4096;
/// How slowly the length of inputs grows towards that. libFuzzer's own value (100) never gets beyond the first few steps of a
/// target with some hundred inputs a second.
const LENGTH_CONTROL: u32 = 10;
/// How often the state is shown.
const INTERVAL: Duration = Duration::from_secs(5);

/// Runs a target; what was found is in the row.
///
/// # Errors
/// It cannot be started, or has no coverage counters.
pub fn run(name: &str, program: &Path, seed: u32, seconds: u64) -> Result<Row> {
    say(name);
    let artifacts = folder().join("artifacts").join(name);
    fs::create_dir_all(&artifacts).with_context(|| artifacts.display().to_string())?;
    let log = folder().join(format!("{name}.log"));
    let mut log = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let start = Instant::now();
    let mut child = Command::new(program)
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-seed={seed}"))
        .arg(format!("-timeout={TIMEOUT_S}"))
        .arg(format!("-rss_limit_mb={MEMORY_MB}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg(format!("-len_control={LENGTH_CONTROL}"))
        .arg(format!("-artifact_prefix={}/", artifacts.display()))
        .arg("-print_final_stats=1")
        // New inputs go to the first folder.
        .arg(scratch(name)?)
        .arg(stored(name))
        .env("ESPALIER_FUZZ_COUNT", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| program.display().to_string())?;
    let stderr = child.stderr.take().context("a target without standard error")?;
    let mut heard = Heard::default();
    let (mut shown, mut before) = (Instant::now(), 0);
    for line in BufReader::new(stderr).split(b'\n') {
        let line = line.context("a target's standard error")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(log, "{line}").context("the target's log")?;
        heard.line(&line);
        let passed = shown.elapsed();
        if passed >= INTERVAL {
            let rate = (heard.executions - before.min(heard.executions)) as f64 / passed.as_secs_f64();
            detail(&progress(start.elapsed(), &heard, rate));
            (shown, before) = (Instant::now(), heard.executions);
        }
    }
    let status = child.wait().context("a target's end")?;
    let seconds = start.elapsed().as_secs_f64();
    if !status.success() && heard.crash.is_none() {
        bail!(
            "{name} ended with {status} and left no input: {}",
            heard.said.join("; ")
        );
    }
    if heard.edges == 0 && heard.crash.is_none() {
        bail!("{name} has no coverage counters: the compiler has ignored the flags");
    }
    let rate = heard.executions as f64 / seconds;
    detail(&progress(start.elapsed(), &heard, rate));
    Ok(row(name, seed, seconds, heard))
}

fn progress(passed: Duration, heard: &Heard, rate: f64) -> String {
    format!(
        "{:>5} s: {} executions ({rate:.0} each s), {} edges, {} features, corpus {}, {}",
        passed.as_secs(),
        heard.executions,
        heard.edges,
        heard.features,
        heard.corpus,
        heard
            .crash
            .as_ref()
            .map_or("nothing found", |_| "found something")
    )
}

fn row(name: &str, seed: u32, seconds: f64, heard: Heard) -> Row {
    let crash = |path: std::path::PathBuf| Crash {
        reproduce: format!("cargo xtask fuzz {name} --input {}", path.display()),
        path,
        said: heard.said,
    };
    Row {
        target: name.to_owned(),
        seed,
        seconds,
        executions: heard.executions,
        executions_per_s: (heard.executions as f64 / seconds.max(0.001)) as u64,
        edges: heard.edges,
        features: heard.features,
        corpus: heard.corpus,
        new_inputs: heard.new_inputs.unwrap_or(0),
        kept: 0,
        crashes: heard.crash.map(crash).into_iter().collect(),
    }
}
