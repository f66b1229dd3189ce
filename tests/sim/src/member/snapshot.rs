//! Snapshots of a group: what a joining member gets.

use super::{Cx, Member};
use crate::entry::{self, EntryChange, Snapshot};
use crate::sabotage::Sabotage;
use cluster::{Input, Output};
use maps_schema::sad::spi_slot;
use model::GroupId;
use sad::LimitRaise;

const CAP_ROUNDS: usize = 16;

impl Member {
    /// Limits for every SA of the group that has no upper ones.
    pub(super) fn caps(&self, group: GroupId) -> Vec<LimitRaise> {
        let now = self.of(group);
        let caps = self
            .sad
            .cap_for_join(|_| (now.epoch, now.alone), |slot| self.plane.counters(slot));
        caps.into_iter()
            .filter(|cap| self.layout.group_of_slot(cap.slot) == group)
            .collect()
    }

    /// Owner: a member joins. From here on every SA has limits, and the snapshot says which.
    pub(super) fn cap_limits(&mut self, cx: &mut Cx<'_>, group: GroupId, token: u64) {
        for _ in 0..CAP_ROUNDS {
            let caps = self.caps(group);
            if caps.is_empty() {
                break;
            }
            for cap in &caps {
                self.apply_raise(cx.now, cap);
            }
            let plan = self.sad.known_to_standby(caps.iter().map(|cap| cap.spi));
            self.execute(&plan);
        }
        // Entries that are committed by now belong to the snapshot, since its position is behind them.
        let mut later = Vec::new();
        while let Some(output) = self.node.poll() {
            match output {
                Output::Committed { token } => self.committed(cx, token),
                other => later.push(other),
            }
        }
        self.deferred.extend(later);
        let children = self
            .sad
            .snapshot_where(|segment| self.layout.group_of(segment) == group, cx.now);
        let snapshot = Snapshot {
            ike: self
                .mirror
                .iter()
                .filter(|(spi, _)| self.group_of(**spi) == group)
                .map(|(spi, record)| (*spi, record.clone()))
                .collect(),
            children,
            suspects: self
                .suspects
                .keys()
                .copied()
                .filter(|spi| self.group_of_child(*spi) == group)
                .collect(),
            parts: self
                .sad
                .parts_where(|segment| self.layout.group_of(segment) == group),
        };
        let mut bytes = entry::encode(&snapshot);
        if self.sabotage == Some(Sabotage::StaleSnapshot) {
            bytes = self.first_snapshots.entry(group).or_insert(bytes).clone();
        }
        cx.trace.note(
            cx.now,
            "snapshot",
            [u64::from(self.me.0), bytes.len() as u64],
            || {
                format!(
                    "member {} takes a snapshot of group {group}, {} octets",
                    self.me,
                    bytes.len()
                )
            },
        );
        let now = cx.now;
        self.node.handle(Input::Snapshot { now, token, bytes });
    }

    /// Joining: takes the owner's state of the group in place of its own.
    pub(super) fn install_snapshot(&mut self, cx: &mut Cx<'_>, group: GroupId, token: u64, bytes: &[u8]) {
        let Some(snapshot) = entry::decode::<Snapshot>(bytes) else {
            return;
        };
        let layout = self.layout;
        self.mirror
            .retain(|spi, _| layout.group_of(spi.segment()) != group);
        self.mirror.extend(snapshot.ike);
        self.suspects
            .retain(|spi, _| layout.group_of_slot(spi_slot(spi.0)) != group);
        self.suspects
            .extend(snapshot.suspects.into_iter().map(|spi| (spi, None)));
        let here = |segment| layout.group_of(segment) == group;
        match self.sad.restore_where(here, snapshot.children, cx.now) {
            Ok(plan) => {
                self.execute(&plan);
                let epoch = self.node.epoch(group).number;
                let parts: Vec<_> = snapshot.parts.into_iter().map(EntryChange::Child).collect();
                self.apply(cx, group, &parts, epoch, false);
                let suspects: Vec<_> = self.suspects.keys().copied().collect();
                let of_group: Vec<_> = suspects
                    .into_iter()
                    .filter(|spi| self.group_of_child(*spi) == group)
                    .collect();
                if self.sabotage != Some(Sabotage::NothingTainted) {
                    let plan = self.sad.taint_as_told(of_group, &self.tainted_directions());
                    self.execute(&plan);
                }
                self.withholding.remove(&group);
                cx.watch.installed(cx.now, self.me, group);
                self.armed(cx, token);
            }
            Err(error) => cx.trace.note(cx.now, "snapshot", [u64::from(self.me.0), 0], || {
                format!("member {}: the snapshot was not installed: {error}", self.me)
            }),
        }
    }
}
