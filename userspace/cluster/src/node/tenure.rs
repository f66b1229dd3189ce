//! A planned restart of a lone member, for all its groups.

use super::{EngineKind, Node};
use crate::group::Group;
use crate::group::tenure::Tenure;
use model::Instant;

impl Node {
    /// What this member is in all groups, for its next life.
    ///
    /// # Errors
    /// It is not alone, or something is under way: another member can take over, which loses nothing.
    pub fn tenures(&self) -> Result<Vec<Tenure>, String> {
        let EngineKind::Pair { .. } = self.shared.config.engine else {
            return Err(
                "an external ownership engine decides who serves: hand over with `espalier drain` first"
                    .to_owned(),
            );
        };
        if let Some(peer) = self.shared.peers.values().find(|p| p.detector.alive()) {
            return Err(format!(
                "member {} is heard: hand over with `espalier drain` once it is in sync, or stop it, then restart",
                peer.member
            ));
        }
        let of = |group: &Group| {
            let refused = || {
                format!(
                    "group {} is not owned by this member alone, and at rest",
                    group.id()
                )
            };
            group.tenure(&self.shared).ok_or_else(refused)
        };
        self.groups.iter().map(of).collect()
    }

    /// Goes on where the life before ended. Call it right after [`Node::new`], with the last word of that life, once.
    ///
    /// Returns whether all groups go on; those that do not look for an owner, like those of any new life.
    pub fn go_on(&mut self, now: Instant, tenures: &[Tenure]) -> bool {
        let mut all = tenures.len() == self.groups.len();
        for tenure in tenures {
            let group = self.groups.iter_mut().find(|g| g.id() == tenure.group);
            all &= group.is_some_and(|g| g.go_on(&mut self.shared, now, tenure));
        }
        all
    }
}
