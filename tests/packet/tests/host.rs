//! The table through `datapath` on the host.

use test_packet::{case, cases, host};

#[test]
fn no_two_cases_have_one_name() {
    let mut names: Vec<String> = cases::all()
        .into_iter()
        .map(|c| format!("{:?} {}", c.program, c.name))
        .collect();
    names.sort();
    let twice: Vec<&[String]> = names.windows(2).filter(|pair| pair[0] == pair[1]).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn every_case_holds_on_the_host() {
    case::run_table(&cases::all(), host::run);
}
