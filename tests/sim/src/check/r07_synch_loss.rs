//! R7: messages of the synch channel that are lost, doubled or out of order kill no SA. Judged in runs in which nothing else happens.

use ike::{Event, EventKind};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct SynchLoss {
    established: BTreeMap<(String, String), u64>,
}

impl SynchLoss {
    pub(super) fn event(&mut self, who: &str, event: &Event) -> Result<(), String> {
        match event.kind {
            EventKind::Established => {
                let connection = event.connection.clone().unwrap_or_default();
                let count = self.established.entry((who.to_owned(), connection)).or_default();
                *count += 1;
                if *count > 1 {
                    return Err(format!(
                        "{who}: established anew, though only synch messages were lost: {event}"
                    ));
                }
                Ok(())
            }
            EventKind::PeerSilent | EventKind::AuthFailed | EventKind::PeerMisbehaved => {
                Err(format!("{who}: though only synch messages were lost: {event}"))
            }
            _ => Ok(()),
        }
    }
}
