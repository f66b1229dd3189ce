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
    if !splits_buffers() {
        let all = cases.len();
        cases.retain(|c| c.first_buffer.is_none());
        eprintln!(
            "{} cases left out: this kernel (before 6.18) cannot be told where the first buffer ends",
            all - cases.len()
        );
    }
    case::run_table(&cases, |case| {
        kernel
            .run(case)
            .unwrap_or_else(|e| panic!("{}: {e:#}", case.name))
    });
}

/// Whether test runs take the length of the first buffer.
fn splits_buffers() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release");
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(18))
}
