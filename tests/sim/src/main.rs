//! `espalier-sim`: runs seeds, prints what failed, and how to see it again. `cargo xtask sim` starts it.

use clap::Parser;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use test_sim::scenarios::{SCENARIOS, Scenario};
use test_sim::setup::Engine;
use test_sim::{Options, Outcome, Sabotage, run_seed};

/// Runs simulated clusters, one for each seed, and checks them.
#[derive(Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
struct Arguments {
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    start: u64,
    /// Only this seed, with its last events in words.
    #[arg(long)]
    seed: Option<u64>,
    /// Only this scenario (`list` names them all); otherwise the seed chooses.
    #[arg(long)]
    scenario: Option<String>,
    /// Only clusters of this many members.
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=3))]
    members: Option<u8>,
    /// Only this ownership engine.
    #[arg(long, value_enum)]
    engine: Option<Engine>,
    /// Break a rule on purpose: some seeds must fail.
    #[arg(long, value_enum)]
    sabotage: Option<Sabotage>,
    /// Print one JSON object for each seed that failed, and one with the totals.
    #[arg(long)]
    json: bool,
    /// Threads; as many as there are CPUs unless told otherwise.
    #[arg(long)]
    threads: Option<usize>,
    /// Events to show of a run that failed.
    #[arg(long, default_value_t = 40)]
    events: usize,
    /// Go on after the first failure.
    #[arg(long)]
    keep_going: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.scenario.as_deref() == Some("list") {
        for scenario in SCENARIOS {
            println!("{:<14} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    let scenario = match &arguments.scenario {
        None => None,
        Some(name) => match Scenario::named(name) {
            Some(scenario) => Some(scenario),
            None => {
                eprintln!("error: there is no scenario {name:?}; `--scenario list` names them");
                return ExitCode::from(2);
            }
        },
    };
    let options = Options {
        scenario,
        members: arguments.members,
        engine: arguments.engine,
        sabotage: arguments.sabotage,
        keep: 0,
    };
    if let Some(seed) = arguments.seed {
        let outcome = run_seed(
            seed,
            &Options {
                keep: arguments.events,
                ..options
            },
        );
        print(&outcome, &arguments);
        println!("{}", summary(&outcome));
        return code(outcome.ran.violations.is_empty());
    }
    run_many(&arguments, &options)
}

fn code(ok: bool) -> ExitCode {
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Totals {
    seeds: AtomicU64,
    failed: AtomicU64,
    packets: AtomicU64,
    takeovers: AtomicU64,
    handovers: AtomicU64,
    reauthenticated: AtomicU64,
    lost: AtomicU64,
    virtual_ms: AtomicU64,
}

fn run_many(arguments: &Arguments, options: &Options) -> ExitCode {
    let (next, stop, totals) = (AtomicU64::new(0), AtomicBool::new(false), Totals::default());
    let threads = arguments
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let began = Instant::now();
    let running = AtomicUsize::new(threads);
    std::thread::scope(|scope| {
        if !arguments.json && arguments.seeds > u64::from(PROGRESS_FROM) {
            scope.spawn(|| progress(arguments.seeds, &totals, &running, began));
        }
        for _ in 0..threads {
            scope.spawn(|| {
                let _ends = Ends(&running);
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= arguments.seeds {
                        break;
                    }
                    let outcome = run_seed(arguments.start + number, options);
                    totals.seeds.fetch_add(1, Ordering::Relaxed);
                    totals.packets.fetch_add(outcome.ran.packets, Ordering::Relaxed);
                    totals
                        .takeovers
                        .fetch_add(outcome.ran.takeovers, Ordering::Relaxed);
                    totals
                        .handovers
                        .fetch_add(outcome.ran.handovers, Ordering::Relaxed);
                    totals
                        .reauthenticated
                        .fetch_add(outcome.ran.reauthenticated, Ordering::Relaxed);
                    totals.lost.fetch_add(outcome.ran.lost, Ordering::Relaxed);
                    totals
                        .virtual_ms
                        .fetch_add(outcome.ran.virtual_ms, Ordering::Relaxed);
                    if !outcome.ran.violations.is_empty() {
                        totals.failed.fetch_add(1, Ordering::Relaxed);
                        stop.store(!arguments.keep_going, Ordering::Relaxed);
                        // Once more, for the words.
                        let words = Options {
                            keep: arguments.events,
                            ..options.clone()
                        };
                        print(&run_seed(outcome.seed, &words), arguments);
                    }
                }
            });
        }
    });
    let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let per_second = of(&totals.seeds) as f64 / began.elapsed().as_secs_f64().max(0.001);
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({
                "first_seed": arguments.start, "seeds": of(&totals.seeds), "failed": of(&totals.failed),
                "packets": of(&totals.packets), "takeovers": of(&totals.takeovers),
                "handovers": of(&totals.handovers), "reauthenticated": of(&totals.reauthenticated),
                "lost": of(&totals.lost), "virtual_s": of(&totals.virtual_ms) / 1000,
                "threads": threads, "seeds_per_s": per_second,
            })
        );
    } else {
        println!(
            "seeds {} to {}: {} run, {} failed; {} ESP packets, {} takeovers ({} planned), {} reauthentications, {} packets lost where that is counted, {} s of virtual time; {per_second:.0} seeds/s on {threads} threads",
            arguments.start,
            arguments.start + arguments.seeds - 1,
            of(&totals.seeds),
            of(&totals.failed),
            of(&totals.packets),
            of(&totals.takeovers),
            of(&totals.handovers),
            of(&totals.reauthenticated),
            of(&totals.lost),
            of(&totals.virtual_ms) / 1000
        );
    }
    code(of(&totals.failed) == 0)
}

/// A run of fewer seeds is over before anybody asks how far it is.
const PROGRESS_FROM: u16 = 2000;
/// How far it is, this often.
const PROGRESS: Duration = Duration::from_secs(10);

/// One thread less is at work, however it ends.
struct Ends<'a>(&'a AtomicUsize);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Says on standard error how far a long run is, until no thread runs seeds any more.
fn progress(seeds: u64, totals: &Totals, running: &AtomicUsize, began: Instant) {
    let mut said = Instant::now();
    while running.load(Ordering::Relaxed) > 0 {
        std::thread::sleep(Duration::from_millis(100));
        if said.elapsed() < PROGRESS {
            continue;
        }
        said = Instant::now();
        let done = totals.seeds.load(Ordering::Relaxed);
        let rate = done as f64 / began.elapsed().as_secs_f64();
        let left = seeds.saturating_sub(done) as f64 / rate.max(0.001);
        eprintln!(
            "{done} of {seeds} seeds, {} failed; {rate:.0} seeds/s, {left:.0} s to go",
            totals.failed.load(Ordering::Relaxed)
        );
    }
}

fn summary(outcome: &Outcome) -> String {
    format!(
        "seed {}, scenario {}: {} ms of virtual time, {} events, digest {:016x}; {} ESP packets, {} takeovers ({} planned), {} reauthentications, {} breaches",
        outcome.seed,
        outcome.scenario,
        outcome.ran.virtual_ms,
        outcome.ran.steps,
        outcome.ran.digest,
        outcome.ran.packets,
        outcome.ran.takeovers,
        outcome.ran.handovers,
        outcome.ran.reauthenticated,
        outcome.ran.violations.len()
    )
}

fn print(outcome: &Outcome, arguments: &Arguments) {
    let commit = commit();
    if arguments.json {
        let breaches: Vec<_> = outcome
            .ran
            .violations
            .iter()
            .map(|v| serde_json::json!({"rule": v.rule, "at_ms": v.at.millis(), "text": v.text}))
            .collect();
        println!(
            "{}",
            serde_json::json!({
                "seed": outcome.seed, "scenario": outcome.scenario, "commit": commit, "step": outcome.ran.steps,
                "digest": format!("{:016x}", outcome.ran.digest), "violations": breaches, "events": outcome.ran.recent,
            })
        );
        return;
    }
    if outcome.ran.violations.is_empty() {
        return;
    }
    println!("---- seed {} failed ----", outcome.seed);
    for event in &outcome.ran.recent {
        println!("{event}");
    }
    let s = &outcome.setup;
    println!(
        "cluster: {} members, {:?} engine, {:?}, {} groups, weights {:?}, rebalance {:?}, ecmp {}, limits {:?}",
        s.members, s.engine, s.solo, s.groups, s.weights, s.rebalance, s.ecmp, s.limits
    );
    for peer in &s.peers {
        println!("{peer:?}");
    }
    for v in &outcome.ran.violations {
        println!(
            "BREACH of {} at {:.3} ms: {}",
            v.rule,
            v.at.0 as f64 / 1e6,
            v.text
        );
    }
    println!("{}, commit {commit}", summary(outcome));
    let mut again = format!("cargo xtask sim --seed {}", outcome.seed);
    if let Some(name) = &arguments.scenario {
        again.push_str(&format!(" --scenario {name}"));
    }
    if let Some(members) = arguments.members {
        again.push_str(&format!(" --members {members}"));
    }
    if let Some(engine) = arguments.engine {
        again.push_str(&format!(" --engine {engine:?}").to_lowercase());
    }
    println!("again: {again}");
}

fn commit() -> String {
    let output = std::process::Command::new("git")
        .args(["describe", "--always", "--dirty", "--abbrev=12"])
        .output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |o| String::from_utf8_lossy(&o.stdout).trim().to_owned(),
    )
}
