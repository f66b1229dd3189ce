//! `cargo xtask test --kernels`: the programs on every kernel that is meant to run them. Each kernel of Debian is booted in
//! software emulation with the test programs in its initial RAM disk; the host's own runs them directly.

mod archive;
mod image;
mod machine;
mod report;
mod suite;

use crate::steps::{detail, say, step};
use crate::{build, setup};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::time::Instant;

use report::Outcome;

/// Kernels of Debian: how they are called here, and the package that depends on the newest one.
const KERNELS: [(&str, &str); 2] = [
    ("6.1", "linux-image-cloud-amd64"),
    ("6.12", "linux-image-6.12-cloud-amd64"),
];
/// The name of the kernel that runs this.
const HOST: &str = "host";

/// Which kernels, and how to say what came of it.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Only the programs on several kernels: 6.1 and 6.12 in emulation, and this host's own.
    #[arg(long)]
    pub kernels: bool,
    /// Of the kernels, only these: 6.1, 6.12, host.
    #[arg(long, value_delimiter = ',', requires = "kernels")]
    pub only: Vec<String>,
    /// Print the results as JSON.
    #[arg(long, requires = "kernels")]
    pub json: bool,
    /// Show what the test programs print.
    #[arg(long, short, requires = "kernels")]
    pub verbose: bool,
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

fn run_with(options: &Options, object: &std::path::Path) -> Result<Vec<Outcome>> {
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|o| o == name);
    let programs = step("compiling the test programs", || suite::programs(object))?;
    let mut outcomes = Vec::new();
    for (name, package) in KERNELS.into_iter().filter(|(name, _)| wanted(name)) {
        say(&format!("Linux {name}, Debian's {package}, emulated"));
        let start = Instant::now();
        let mut outcome = Outcome::new(name);
        if let Err(error) = emulated(package, &programs, options.verbose, &mut outcome) {
            outcome.broken = Some(format!("{error:#}"));
            detail(&format!("{error:#}"));
        }
        outcome.seconds = start.elapsed().as_secs_f64();
        outcomes.push(outcome);
    }
    if wanted(HOST) {
        say("this host's kernel");
        let start = Instant::now();
        let mut outcome = Outcome::new(HOST);
        outcome.release = std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .context("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned();
        suite::on_host(&programs, options.verbose, &mut outcome);
        outcome.seconds = start.elapsed().as_secs_f64();
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn emulated(package: &str, programs: &suite::Programs, verbose: bool, outcome: &mut Outcome) -> Result<()> {
    machine::packages()?;
    let kernel = image::kernel(package)?;
    outcome.release = kernel.release.clone();
    let initrd = step("making the initial RAM disk", || image::initrd(&kernel, programs))?;
    machine::run(&kernel, &initrd, verbose, outcome)
}
