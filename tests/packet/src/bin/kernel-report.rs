//! What this kernel makes of the programs, a line each, for `cargo xtask test --kernels`, which runs it on several kernels.
//!
//! `kernel-report programs` loads them, `kernel-report few`, `some` and `cases` also run cases of the tables through them.

use std::io::Write;
use std::process::ExitCode;

use dataplane::ProgramReport;
use test_packet::case::{Case, deviations};
use test_packet::cases;
use test_packet::kernel::{BEYOND, Kernel, object_path, runnable};

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("programs") => programs(),
        Some("few") => run(cases::few()),
        Some("some") => run(cases::some()),
        Some("cases") => run(cases::all()),
        _ => Err("usage: kernel-report programs | few | some | cases".to_owned()),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("note {error}");
            ExitCode::FAILURE
        }
    }
}

fn programs() -> Result<bool, String> {
    let reports = dataplane::verifier_report(&object_path());
    print(&reports.map_err(|error| format!("the programs do not load: {error}"))?);
    Ok(true)
}

fn print(reports: &[ProgramReport]) {
    for report in reports {
        println!(
            "program {} instructions {} processed {} jited {}",
            report.name, report.instructions, report.verified_instructions, report.jited_bytes
        );
    }
}

/// Runs every case, and says of each how it ended as soon as it has.
fn run(cases: Vec<Case>) -> Result<bool, String> {
    let mut kernel = Kernel::load().map_err(|error| format!("the programs do not load: {error:#}"))?;
    print(kernel.programs());
    let (cases, beyond) = runnable(cases);
    println!("cases {}", cases.len());
    if beyond > 0 {
        println!("note {beyond} cases left out: {BEYOND}");
    }
    let mut held = true;
    for case in &cases {
        let problem = match kernel.run(case) {
            Ok(seen) => deviations(case, &seen),
            Err(error) => Some(format!("{error:#}")),
        };
        match problem {
            None => println!("case ok {}", case.name),
            Some(problem) => {
                held = false;
                println!("case failed {}\n{problem}", case.name);
            }
        }
        // Somebody waits for each line on the other end of a pipe.
        std::io::stdout()
            .flush()
            .map_err(|error| format!("nobody reads: {error}"))?;
    }
    Ok(held)
}
