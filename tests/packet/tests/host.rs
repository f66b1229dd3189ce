//! The table through `datapath` on the host.

use test_packet::{case, cases, host};

#[test]
fn every_case_holds_on_the_host() {
    case::run_table(&cases::all(), host::run);
}
