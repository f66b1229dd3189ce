//! The table through the loaded programs. Needs root, bpffs and the object (`cargo xtask build`), hence `#[ignore]`:
//! `cargo test -p test-packet -- --ignored`.

use test_packet::{case, cases, kernel::Kernel};

#[test]
#[ignore = "needs root and the program object"]
fn every_case_holds_in_the_kernel() {
    let mut kernel = Kernel::load().expect("programs and maps");
    case::run_table(&cases::all(), |case| kernel.run(case).expect("a test run"));
}
