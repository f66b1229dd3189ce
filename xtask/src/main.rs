//! `cargo xtask`: set-up, builds, checks, tests and the demo. `cargo xtask help` lists them.

mod bench;
mod build;
mod cargo_tools;
mod chaos;
mod demo;
mod fuzz;
mod histogram;
mod kernels;
mod setup;
mod sim;
mod steps;
mod svg;
mod test;
mod tidy;
mod verifier;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Set-up, builds, checks, tests and the demo of espalier.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing: Debian packages, the BPF linker, the kernel of the second peer. Needs root.
    Setup,
    /// Compile the BPF programs and the `espalier` binary.
    Build,
    /// Load every program and print instructions, processed instructions, JITed size and stack.
    Verifier {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Build, then run a member on this host from its configuration file.
    Run {
        /// The member's configuration; docs/examples/espalier.toml shows one.
        #[arg(long, short)]
        config: PathBuf,
    },
    /// Check the rules of the source tree: dependency direction, clocks, file lengths, SAFETY comments.
    Tidy,
    /// Simulated clusters under random faults, one for each seed: `cargo xtask sim --seeds 1000`, `--seed 7` to see one again.
    #[command(disable_help_flag = true)]
    Sim {
        /// Passed on; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Coverage-guided fuzzing of what reads octets of peers and members: `cargo xtask fuzz --seconds 600`, or some targets by name.
    Fuzz(fuzz::Options),
    /// Everything that has to pass: format, lints, tidy, unit, packet, model and interop tests, one real takeover. With
    /// `--kernels`: the programs on several kernels, and nothing else.
    Test(kernels::Options),
    /// The main job, live: a strongSwan peer keeps its tunnel while a member of the cluster is killed.
    Demo(demo::Options),
    /// Random faults on a real cluster under load, judged by wire recorders.
    Chaos(chaos::Options),
    /// Benchmarks.
    Bench {
        #[command(subcommand)]
        command: bench::Command,
    },
    /// Check the checkers: builds with a safety rule removed must be caught.
    Mutants(chaos::mutants::Options),
    /// Remove labs that `demo --keep` has left running.
    LabClean,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // Each cause says more than the one before; a backtrace would say nothing to an operator.
            let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
            eprintln!("error: {}", causes.join("\n  because: "));
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> Result<bool> {
    match command {
        Command::Setup => setup::run().and_then(|()| setup::scapy()).map(|_| true),
        Command::Build => setup::run().and_then(|()| build::run()).map(|_| true),
        Command::Verifier { json } => verifier::run(json).map(|()| true),
        Command::Run { config } => build::run_member(&config),
        Command::Tidy => tidy::run(),
        Command::Sim { arguments } => sim::run(&arguments),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Test(options) if options.kernels => kernels::run(&options),
        Command::Test(_) => test::run(),
        Command::Demo(options) => demo::run(&options),
        Command::Chaos(options) => chaos::run(&options),
        Command::Bench { command } => bench::run(&command),
        Command::Mutants(options) => chaos::mutants::run(&options),
        Command::LabClean => {
            for folder in lab::resources::folders() {
                println!("clearing {}", folder.display());
                lab::resources::clear(&folder);
            }
            Ok(true)
        }
    }
}
