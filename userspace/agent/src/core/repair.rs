//! What is done about a peer whose sequence numbers are below what counts as seen after a takeover, and about one that may know
//! Message IDs of a fork that was discarded.

use cluster::guest::Wish;
use ike::{Command, MidSync};
use model::{EspSpi, GroupId, MemberId};

use super::Core;

/// Message IDs that the other half of a split may have used beyond what this member knows: a liveness check every 30 s makes
/// 1024 in eight hours.
const FORK_MARGIN: u32 = 1024;
/// Peers that are asked for their Message IDs each second.
const ASKED_PER_SECOND: usize = 256;

impl Core {
    /// Asks the peer to raise its numbers where it can (RFC 6311), or rekeys; the engine decides. The numbers that a peer must
    /// jump over lie between the last edge that was reported and the ceiling that counts as seen.
    pub(super) fn repair(&self, slot: u32, spi_in: EspSpi) -> Wish {
        let edge = self
            .counters
            .counters(slot)
            .filter(|counters| counters.inbound.spi == spi_in.0)
            .map_or(0, |counters| counters.inbound.edge);
        let delta = self.ceiling_of(slot).unwrap_or(0).saturating_sub(edge);
        Wish::Repair { delta }
    }

    /// A member joins this member's group. If it is the very life from which this one took the group over by a failover, it was not
    /// dead but cut off, and what it did in that time is discarded: peers may have answered it (RFC 6311 5.1, ours to ask
    /// with `mid_sync`).
    pub(super) fn fork_has_ended(&mut self, id: GroupId, joiner: MemberId, began_ns: u64) {
        let group = self.groups.get(id);
        let forked = self.groups.owns(id)
            && group.takeover.as_ref().is_some_and(|taken| {
                taken.kind == "failover" && taken.from == joiner.0 && began_ns < taken.started_wall_ns
            });
        let wanted = |name: &str| {
            let mut connections = self.config.connections.iter();
            connections.any(|c| c.name == name && c.extensions.mid_sync == MidSync::OnFork)
        };
        let any = self
            .config
            .connections
            .iter()
            .any(|c| c.extensions.mid_sync == MidSync::OnFork);
        if !forked || !any {
            return;
        }
        let layout = self.groups.layout;
        let spis = self.engine.spis().into_iter();
        let of_group = spis.filter(|spi| layout.group_of(spi.segment()) == id);
        let concerned = of_group.filter(|spi| {
            let connection = self.engine.status_of(*spi).and_then(|sa| sa.connection);
            connection.is_some_and(|name| wanted(&name))
        });
        let concerned = concerned.collect::<Vec<_>>();
        let text = format!("{} peers are asked for their Message IDs", concerned.len());
        self.log.note_of(id, "fork_ended", text);
        self.forked.extend(concerned);
    }

    /// Once a second.
    pub(super) fn ask_message_ids(&mut self) {
        for _ in 0..ASKED_PER_SECOND.min(self.forked.len()) {
            let Some(spi) = self.forked.pop_front() else {
                return;
            };
            let able = self
                .engine
                .status_of(spi)
                .is_some_and(|sa| sa.agreed.message_id_sync);
            if able {
                self.engine_command(Command::SyncMessageIds {
                    spi,
                    margin: FORK_MARGIN,
                });
            }
        }
    }
}
