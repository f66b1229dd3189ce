//! What this kernel says about the programs: a line each, for `cargo xtask test --kernels`, which runs it on several kernels.

use std::process::ExitCode;

use test_packet::kernel::object_path;

fn main() -> ExitCode {
    match dataplane::verifier_report(&object_path()) {
        Ok(reports) => {
            for report in reports {
                println!(
                    "program {} instructions {} processed {} jited {}",
                    report.name, report.instructions, report.verified_instructions, report.jited_bytes
                );
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("note the programs do not load: {error}");
            ExitCode::FAILURE
        }
    }
}
