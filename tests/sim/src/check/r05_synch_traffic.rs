//! R5: synch traffic per data packet is small. Measured in every run, judged where there is enough traffic to judge.

/// Octets and packets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Octets of the synch channel but for heartbeats (raises, reports, journal, snapshots).
    pub synch: u64,
    /// Octets of heartbeats.
    pub heartbeats: u64,
    /// ESP packets sent by anybody.
    pub packets: u64,
}

/// Most octets per packet and standby that are small.
pub const OCTETS_PER_PACKET: u64 = 12;

impl Traffic {
    /// A record was sent.
    pub fn record(&mut self, bytes: &[u8]) {
        // Version octet, then the sender (member as one octet, incarnation as a varint), then the kind of body: 0 is the heartbeat.
        let mut at = 2;
        while bytes.get(at).is_some_and(|octet| octet & 0x80 != 0) {
            at += 1;
        }
        match bytes.get(at + 1) {
            Some(0) => self.heartbeats += bytes.len() as u64,
            _ => self.synch += bytes.len() as u64,
        }
    }

    /// Judges a stretch of steady traffic since `before`.
    ///
    /// # Errors
    /// It is too much.
    pub fn judge(&self, before: &Self, standbys: u64) -> Result<(), String> {
        let (octets, packets) = (self.synch - before.synch, self.packets - before.packets);
        if octets > packets * OCTETS_PER_PACKET * standbys.max(1) {
            return Err(format!(
                "{octets} octets of synch for {packets} data packets and {standbys} standbys: more than {OCTETS_PER_PACKET} each"
            ));
        }
        Ok(())
    }
}
