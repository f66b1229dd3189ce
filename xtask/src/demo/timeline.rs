//! Packets per 10 ms around the kill, by direction and by the member that carried them.

use anyhow::Result;
use lab::stage::Stage;
use lab::topology::Lab;

/// Width of a bin.
pub const BIN_NS: u64 = 10_000_000;
/// Bins before the kill.
pub const BEFORE: usize = 30;
/// Bins from the kill on.
pub const AFTER: usize = 70;

/// A moment with a name.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// When.
    pub at_ns: u64,
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub struct Direction {
    /// Packets offered to the cluster, by bin.
    pub offered: Vec<u32>,
    /// Packets that A carried.
    pub by_a: Vec<u32>,
    /// Packets that B carried.
    pub by_b: Vec<u32>,
}

/// The picture's data.
#[derive(Clone, Debug)]
pub struct Timeline {
    /// When A was killed.
    pub killed_ns: u64,
    /// From the peer to the server: opened.
    pub inbound: Direction,
    /// From the server to the peer: sealed.
    pub outbound: Direction,
    /// Phases in order.
    pub phases: Vec<Phase>,
}

impl Timeline {
    /// Collects it from the recorders.
    pub fn collect(stage: &Stage, killed_ns: u64, phases: Vec<Phase>) -> Result<Self> {
        let mac = |member: usize, interface: &str| Lab::mac(&stage.lab.members[member].netns, interface);
        let (a_out, b_out) = (mac(0, "outside")?, mac(1, "outside")?);
        let (a_in, b_in) = (mac(0, "inside")?, mac(1, "inside")?);
        let server = Lab::mac(&stage.lab.server, "eth0")?;
        let start = killed_ns.saturating_sub(BIN_NS * BEFORE as u64);
        let of = |list: &[(u64, [u8; 6])], mac: Option<[u8; 6]>| {
            bins(
                list.iter()
                    .filter(|(_, m)| mac.is_none_or(|mac| mac == *m))
                    .map(|(t, _)| *t),
                start,
            )
        };
        let inbound = Direction {
            offered: stage.outside.read(|l| of(&l.esp_in, None)),
            by_a: stage.inside.read(|l| of(&l.clear, Some(a_in))),
            by_b: stage.inside.read(|l| of(&l.clear, Some(b_in))),
        };
        let outbound = Direction {
            offered: stage.inside.read(|l| of(&l.clear, Some(server))),
            by_a: stage.outside.read(|l| of(&l.esp_out, Some(a_out))),
            by_b: stage.outside.read(|l| of(&l.esp_out, Some(b_out))),
        };
        Ok(Self {
            killed_ns,
            inbound,
            outbound,
            phases,
        })
    }
}

fn bins(times: impl Iterator<Item = u64>, start: u64) -> Vec<u32> {
    let mut bins = vec![0u32; BEFORE + AFTER];
    for time in times.filter(|t| *t >= start) {
        if let Some(bin) = bins.get_mut(((time - start) / BIN_NS) as usize) {
            *bin += 1;
        }
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_fall_into_their_bins_and_others_are_left_out() {
        let start = 5 * BIN_NS;
        let end = start + BIN_NS * (BEFORE + AFTER) as u64;
        let b = bins(
            [start - 1, start, start + 1, start + BIN_NS, end].into_iter(),
            start,
        );
        assert_eq!((b[0], b[1], b.iter().sum::<u32>()), (2, 1, 3));
    }
}
