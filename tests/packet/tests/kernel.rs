//! The table through the loaded programs. Needs root, bpffs and the object; skipped where neither `ESPALIER_BPF_OBJECT` nor
//! `ESPALIER_OBJECT` names one (`cargo xtask test` does).

use test_packet::kernel::{self, Kernel};
use test_packet::{case, cases};

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
    let (cases, beyond) = kernel::runnable(cases::all());
    if beyond > 0 {
        eprintln!("{beyond} cases left out: {}", kernel::BEYOND);
    }
    case::run_table(&cases, |case| {
        kernel
            .run(case)
            .unwrap_or_else(|e| panic!("{}: {e:#}", case.name))
    });
}
