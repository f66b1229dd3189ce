//! Trials of devices that not every kernel has, a line each, for `cargo xtask test --kernels`, which runs it in an emulated machine.
//!
//! `lab-devices bonds` makes those with bonds and VLANs, `lab-devices everywhere` the others, `lab-devices all` both; a second argument
//! chooses those whose names contain it.

use lab::devices::{Devices, EVERYWHERE, WITH_BONDS};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("note the lab of devices is not there: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<bool> {
    let mut arguments = std::env::args().skip(1);
    let mut trials = match arguments.next().as_deref() {
        Some("bonds") => WITH_BONDS.to_vec(),
        Some("everywhere") => EVERYWHERE.to_vec(),
        Some("all") => [WITH_BONDS, EVERYWHERE].concat(),
        _ => anyhow::bail!("usage: lab-devices bonds | everywhere | all [PART-OF-A-NAME]"),
    };
    if let Some(part) = arguments.next() {
        trials.retain(|trial| trial.name.contains(&part));
    }
    println!("cases {}", trials.len());
    let devices = Devices::new(&std::env::temp_dir(), &trials)?;
    println!("the lab and the peer are up");
    let mut held = true;
    for (at, trial) in devices.trials().iter().enumerate() {
        // Whoever watches the console takes a machine that is silent for one that hangs.
        println!("begins: {}", trial.name);
        match devices.make(at) {
            Ok(()) => println!("case ok {}", trial.name),
            Err(error) => {
                held = false;
                println!("case failed {}\n{error:#}", trial.name);
            }
        }
        std::io::stdout().flush()?;
    }
    Ok(held)
}
