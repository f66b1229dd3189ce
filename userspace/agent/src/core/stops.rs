//! Connections that an operator has stopped. All members know of them, so that whoever takes over neither initiates such a connection nor
//! leaves an IKE SA up that was to be ended.

use std::collections::{BTreeMap, BTreeSet};

use model::{GroupId, IkeSpi};

use super::Core;
use super::entry::{EntryChange, STOPS_SINCE};

/// Connections that an operator has stopped, with their IKE SAs that were to be ended then. A peer may come again later: that is its own
/// affair, and not ended by a takeover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops(BTreeMap<String, BTreeSet<IkeSpi>>);

impl Stops {
    /// As a snapshot names them.
    pub fn of(all: Vec<(String, Vec<IkeSpi>)>) -> Self {
        Self(
            all.into_iter()
                .map(|(name, spis)| (name, spis.into_iter().collect()))
                .collect(),
        )
    }

    /// For a snapshot.
    pub fn all(&self) -> Vec<(String, Vec<IkeSpi>)> {
        let all = self.0.iter();
        all.map(|(name, spis)| (name.clone(), spis.iter().copied().collect()))
            .collect()
    }

    /// Whether the connection is stopped.
    pub fn contains(&self, connection: &str) -> bool {
        self.0.contains_key(connection)
    }

    /// It is stopped, and these IKE SAs are to end.
    pub fn stop(&mut self, connection: &str, ending: impl IntoIterator<Item = IkeSpi>) {
        self.0.entry(connection.to_owned()).or_default().extend(ending);
    }

    /// It is started again, or not configured any more.
    pub fn start(&mut self, connection: &str) {
        self.0.remove(connection);
    }

    /// The IKE SA has ended.
    pub fn ended(&mut self, spi: IkeSpi) {
        for ending in self.0.values_mut() {
            ending.remove(&spi);
        }
    }

    /// IKE SAs that are to end.
    pub fn ending(&self) -> impl Iterator<Item = IkeSpi> {
        self.0.values().flatten().copied()
    }

    /// What a member that owns nothing hears in a snapshot is all there is; one that owns groups knows of stops that the sender may not
    /// have heard of.
    pub fn hear(&mut self, told: Self, owns_any: bool) {
        if !owns_any {
            self.0.clear();
        }
        for (name, ending) in told.0 {
            self.0.entry(name).or_default().extend(ending);
        }
    }
}

impl Core {
    /// An operator's word, for all members. It is in the journal before the message that ends the first IKE SA.
    pub(super) fn tell_stop(&mut self, group: GroupId, change: EntryChange) {
        // A member of an older release would join anew, since it cannot read that.
        if self.groups.owns(group) && self.node.all_read(group, STOPS_SINCE) {
            self.propose_changes(group, vec![change], Vec::new(), Vec::new());
        }
    }

    /// This member has adopted a group's IKE SAs: those that an operator had ended when their owner was lost are ended now.
    pub(super) fn go_on_stopping(&mut self, id: GroupId) {
        let layout = self.groups.layout;
        let here =
            |spi: &IkeSpi| layout.group_of(spi.segment()) == id && self.engine.status_of(*spi).is_some();
        for spi in self.stops.ending().filter(here).collect::<Vec<_>>() {
            self.log.note_of(
                id,
                "stop",
                format!("IKE SA {spi} was being ended by an operator: that goes on here"),
            );
            self.engine_command(ike::Command::DeleteIke { spi });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_known_until_a_start_and_ends_what_was_up_when_it_was_given() {
        let mut stops = Stops::default();
        stops.stop("branch", [IkeSpi(1), IkeSpi(2)]);
        stops.ended(IkeSpi(1));
        assert!(stops.contains("branch") && !stops.contains("other"));
        assert_eq!(stops.ending().collect::<Vec<_>>(), [IkeSpi(2)]);
        assert_eq!(Stops::of(stops.all()), stops);
        stops.start("branch");
        assert_eq!(stops, Stops::default());
    }

    #[test]
    fn a_joiner_forgets_what_was_started_while_it_was_away_unless_it_owns_something() {
        let mut stale = Stops::default();
        stale.stop("old", []);
        let told = Stops::of(vec![("new".to_owned(), vec![IkeSpi(3)])]);
        let mut joiner = stale.clone();
        joiner.hear(told.clone(), false);
        assert_eq!(joiner, told);
        stale.hear(told, true);
        assert!(stale.contains("old") && stale.contains("new"));
    }
}
