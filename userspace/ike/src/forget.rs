//! What goes when a segment goes to another member.

use crate::io::Output;
use crate::table::Table;
use model::{IkeSpi, SegmentId};

/// IKE SAs that [`crate::Engine::remove_segments`] took out.
pub struct Forgotten {
    _table: Table,
}

impl Forgotten {
    pub(crate) fn new(table: Table) -> Self {
        Self { _table: table }
    }
}

/// What of an output is left without the segments that are gone.
pub(crate) fn keep(output: Output, gone: &impl Fn(SegmentId) -> bool) -> Option<Output> {
    let lost = |spi: &Option<IkeSpi>| spi.is_some_and(|spi| gone(spi.segment()));
    match output {
        Output::Commit(mut commit) => {
            commit.changes.retain(|change| !gone(change.segment()));
            commit.transmits.retain(|transmit| !lost(&transmit.ike_spi));
            (!commit.changes.is_empty() || !commit.transmits.is_empty()).then_some(Output::Commit(commit))
        }
        Output::Sign(request) => (!gone(request.ike_spi.segment())).then_some(Output::Sign(request)),
        Output::Tls(request) => (!gone(request.ike_spi.segment())).then_some(Output::Tls(request)),
        // First messages that wait are forgotten: their senders repeat them.
        Output::Compute(request) => request
            .ike_spi
            .is_some_and(|spi| !gone(spi.segment()))
            .then_some(Output::Compute(request)),
        Output::Transmit(transmit) => (!lost(&transmit.ike_spi)).then_some(Output::Transmit(transmit)),
        // What happened has happened.
        event @ Output::Event(_) => Some(event),
    }
}
