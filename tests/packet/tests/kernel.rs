//! The table through the loaded programs. Needs root, bpffs and the object (`cargo xtask build`), hence `#[ignore]`:
//! `cargo test -p test-packet -- --ignored`.

use test_packet::case::{self, Program};
use test_packet::{cases, kernel::Kernel};

#[test]
#[ignore = "needs root and the program object"]
fn every_case_holds_in_the_kernel() {
    let mut kernel = Kernel::load().expect("programs and maps");
    // The kernel refuses test runs of cpumap programs. They differ from the attached ones in two constants only.
    let mut cases = cases::all();
    cases.retain(|c| !matches!(c.program, Program::EspIn | Program::EspOut));
    case::run_table(&cases, |case| {
        kernel
            .run(case)
            .unwrap_or_else(|e| panic!("{}: {e:#}", case.name))
    });
}
