//! The table through the loaded programs. Needs root, bpffs and the object; skipped where neither `ESPALIER_BPF_OBJECT` nor
//! `ESPALIER_OBJECT` names one (`cargo xtask test` does).

use test_packet::case::{self, Program};
use test_packet::{cases, kernel::Kernel};

#[test]
fn every_case_holds_in_the_kernel() {
    if std::env::var_os("ESPALIER_BPF_OBJECT")
        .or_else(|| std::env::var_os("ESPALIER_OBJECT"))
        .is_none()
    {
        eprintln!("skipped: neither ESPALIER_BPF_OBJECT nor ESPALIER_OBJECT names a program object");
        return;
    }
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
