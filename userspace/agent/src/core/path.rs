//! Paths to the peers that carry less than the interface: learnt from the kernel's routes (which hear the routers' ICMP
//! errors), kept for a while, and sealed packets cut to them.

use std::collections::BTreeMap;
use std::time::Duration;

use maps_schema::event::Event;
use model::{EspSpi, Instant, SegmentId};

use super::Core;
use crate::clock;
use crate::net::socket::PieceSocket;
use crate::net::{cut, frame};

/// After this time a path may carry more again (RFC 1191 6.3: ten minutes).
const KEPT: Duration = Duration::from_secs(600);

/// What is known of narrow paths, and the way out for pieces.
pub struct Paths {
    /// SAs whose path was narrowed, and until when that holds.
    narrowed: BTreeMap<EspSpi, Instant>,
    socket: Option<PieceSocket>,
}

impl Paths {
    /// Nothing is known yet.
    pub fn open() -> Self {
        let socket = PieceSocket::open();
        if let Err(error) = &socket {
            tracing::warn!(%error, "no raw socket: sealed packets are not cut");
        }
        Self {
            narrowed: BTreeMap::new(),
            socket: socket.ok(),
        }
    }
}

impl Paths {
    /// Sends a sealed packet to where its header says.
    ///
    /// # Errors
    /// There is no socket for it, or the kernel refuses.
    pub fn send(&self, packet: &[u8]) -> std::io::Result<()> {
        let socket = self.socket.as_ref();
        socket.map_or_else(
            || Err(std::io::ErrorKind::NotConnected.into()),
            |socket| socket.send(packet),
        )
    }
}

impl Core {
    /// The kernel's route to an SA's peer carries less than the SA's record says.
    pub(super) fn narrow_path(&mut self, event: &Event) {
        if !self.groups.owns_segment(SegmentId(event.slot as u8)) {
            return;
        }
        let of_this = |spi_out: u32| spi_out == event.spi;
        let known = self.sad.by_slot(event.slot);
        if !known.is_some_and(|entry| of_this(entry.record.spi_out.0)) {
            return;
        }
        let mtu = u16::try_from(event.seq).unwrap_or(u16::MAX);
        let Some((spi_in, mtu, plan)) = self.sad.learn_path_mtu(event.slot, mtu) else {
            return;
        };
        self.paths.narrowed.insert(spi_in, clock::now() + KEPT);
        if let Some(entry) = self.sad.get(spi_in) {
            self.log.note(
                "path_mtu",
                format!(
                    "{}/{} SA {spi_in}: the path to {} carries {mtu} octets",
                    entry.record.connection,
                    entry.record.child,
                    entry.record.remote.ip()
                ),
            );
        }
        self.execute_or_log(&plan);
    }

    /// A router's error about a sealed packet, which may be another member's: each of them gets it as if it had come from the router, and
    /// its own kernel learns of the path.
    pub(super) fn tell_members_of_path(&self, octets: &[u8]) {
        let Some((link, packet)) = octets.split_at_checked(frame::link_len(octets)) else {
            return;
        };
        let ethertype = &link[link.len() - 2..];
        for facts in self.facts.values() {
            let way = self.way_to(facts);
            let Some((port, to)) = way else { continue };
            let told = [&to[..], &port.mac, ethertype, packet].concat();
            if let Err(error) = self.announcer.send(port, &told) {
                tracing::debug!(%error, "a member was not told of a path");
            }
        }
    }

    /// Paths are tried wider again.
    pub(super) fn forget_old_paths(&mut self, now: Instant) {
        let old = self.paths.narrowed.extract_if(.., |_, until| *until <= now);
        for (spi_in, _) in old.collect::<Vec<_>>() {
            let plan = self.sad.forget_path_mtu(spi_in);
            self.execute_or_log(&plan);
        }
    }

    /// A sealed packet that is larger than its path: the pieces go out. `false` where they did not.
    pub(super) fn send_cut(&mut self, slot: u32, whole: &[u8]) -> bool {
        let (Some(mtu), Some(socket)) = (self.sad.path_mtu(slot), &self.paths.socket) else {
            return false;
        };
        let Some((_, packet)) = whole.split_at_checked(frame::link_len(whole)) else {
            return false;
        };
        let Some(pieces) = cut::pieces(packet, usize::from(mtu)) else {
            return false;
        };
        pieces.iter().all(|piece| {
            let sent = socket.send(piece);
            if let Err(error) = &sent {
                tracing::debug!(%error, "a piece of a sealed packet was not sent");
            }
            sent.is_ok()
        })
    }
}
