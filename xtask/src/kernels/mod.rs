//! `cargo xtask test --kernels`: the programs on every kernel that is meant to run them. Each kernel of Debian is booted in
//! software emulation with the test programs in its initial RAM disk; the host's own runs them directly.

mod archive;
mod image;
mod machine;
mod report;
mod suite;

use crate::cargo_tools::root;
use crate::steps::{detail, say, step};
use crate::{build, setup};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use report::Outcome;
use suite::Extent;

/// Kernels of Debian: how they are called here, and the package that depends on the newest one.
const KERNELS: [(&str, &str); 2] = [
    ("6.1", "linux-image-cloud-amd64"),
    ("6.12", "linux-image-6.12-cloud-amd64"),
];
/// Minutes for what is not part of any check.
const BOOT_MINUTES: u64 = 10;
/// The name of the kernel that runs this.
const HOST: &str = "host";

/// Which kernels, and how to say what came of it.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Only the programs on several kernels: 6.1 and 6.12 in emulation, and this host's own.
    #[arg(long)]
    pub kernels: bool,
    /// Of the kernels, only these: 6.1, 6.12, host.
    #[arg(long, value_delimiter = ',', requires = "kernels")]
    pub only: Vec<String>,
    /// Only these checks, by a part of the name: "programs", "loader", "veth", "virtio_net", "devices".
    #[arg(long, value_delimiter = ',', requires = "kernels")]
    pub checks: Vec<String>,
    /// Every program is loaded, and carries a few packets: what `cargo xtask test` does with 6.1 and 6.12.
    #[arg(long, requires = "kernels")]
    pub few: bool,
    /// A kernel that is not done after so many minutes has failed. Without: what its checks may take, and some for booting.
    #[arg(long, requires = "kernels")]
    pub minutes: Option<u64>,
    /// Print the results as JSON.
    #[arg(long, requires = "kernels")]
    pub json: bool,
    /// Show what the test programs print.
    #[arg(long, short, requires = "kernels")]
    pub verbose: bool,
}

impl Options {
    /// What is part of `cargo xtask test`: this host's kernel runs all tests anyway.
    fn of_all_tests() -> Self {
        Self {
            kernels: true,
            only: KERNELS.iter().map(|(name, _)| (*name).to_owned()).collect(),
            checks: Vec::new(),
            few: true,
            minutes: Some(10),
            json: false,
            verbose: false,
        }
    }

    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| o == name)
    }
}

/// Builds, runs every kernel, prints the table; true if everything passed everywhere.
pub fn run(options: &Options) -> Result<bool> {
    let known = || KERNELS.iter().map(|(name, _)| *name).chain([HOST]);
    if let Some(wrong) = options.only.iter().find(|o| !known().any(|k| k == *o)) {
        bail!(
            "no kernel is called {wrong}; there are {}",
            known().collect::<Vec<_>>().join(", ")
        );
    }
    setup::run()?;
    let object = build::bpf()?;
    let outcomes = run_with(options, &object)?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&outcomes)?);
    } else {
        println!("{}", report::tables(&outcomes));
    }
    Ok(outcomes.iter().all(Outcome::passed))
}

/// The older kernels as part of all tests: every program loads there, and carries a few packets. One result for each kernel, by name.
pub fn few(object: &Path) -> Result<Vec<(&'static str, bool)>> {
    let outcomes = run_with(&Options::of_all_tests(), object)?;
    println!("{}", report::tables(&outcomes));
    let passed = |name: &str| outcomes.iter().any(|o| o.kernel == name && o.passed());
    Ok(KERNELS.iter().map(|(name, _)| (*name, passed(name))).collect())
}

fn run_with(options: &Options, object: &Path) -> Result<Vec<Outcome>> {
    let extent = if options.few { Extent::Few } else { Extent::All };
    let programs = step("compiling the test programs", || {
        suite::programs(object, extent, &options.checks)
    })?;
    let mut outcomes = Vec::new();
    for (name, package) in KERNELS.into_iter().filter(|(name, _)| options.wants(name)) {
        say(&format!("Linux {name}, Debian's {package}, emulated"));
        outcomes.push(timed(name, |outcome| {
            emulated(package, &programs, options, outcome)
        }));
    }
    if options.wants(HOST) {
        say("this host's kernel");
        outcomes.push(timed(HOST, |outcome| {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
            outcome.release = release.context("/proc/sys/kernel/osrelease")?.trim().to_owned();
            suite::on_host(&programs, options.verbose, outcome);
            Ok(())
        }));
    }
    Ok(outcomes)
}

/// One kernel. What came of it is written to a file at once: the next one may take long.
fn timed(name: &str, work: impl FnOnce(&mut Outcome) -> Result<()>) -> Outcome {
    let start = Instant::now();
    let mut outcome = Outcome::new(name);
    if let Err(error) = work(&mut outcome) {
        outcome.broken = Some(format!("{error:#}"));
        detail(&format!("{error:#}"));
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    match written(&outcome) {
        Ok(path) => detail(&format!("{:.0} s in all; {}", outcome.seconds, path.display())),
        Err(error) => detail(&format!("the report is not written: {error:#}")),
    }
    outcome
}

fn written(outcome: &Outcome) -> Result<PathBuf> {
    let folder = root().join("target/kernels");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("report-{}.json", outcome.kernel));
    std::fs::write(&path, serde_json::to_string_pretty(outcome)?)?;
    Ok(path)
}

fn emulated(
    package: &str,
    programs: &suite::Programs,
    options: &Options,
    outcome: &mut Outcome,
) -> Result<()> {
    machine::packages()?;
    let kernel = image::kernel(package)?;
    outcome.release = kernel.release.clone();
    let initrd = step("making the initial RAM disk", || image::initrd(&kernel, programs))?;
    let minutes = options
        .minutes
        .unwrap_or_else(|| programs.minutes() + BOOT_MINUTES);
    let limit = Duration::from_secs(60 * minutes);
    machine::run(&kernel, &initrd, options.verbose, limit, outcome)
}
