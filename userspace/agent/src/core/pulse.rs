//! Whether the programs judge what arrives: packets that the interfaces receive, against the counters of verdicts.
//!
//! Every frame that a program sees ends in a verdict. Frames that arrive while no counter moves go past the programs, or wait
//! where nobody takes them: another program in front, a driver without XDP after a reset, cpumap threads that hang.

use std::fs;

/// So many looks in a row, with packets in each, must find no verdict.
const SILENT_LOOKS: u32 = 5;
/// And so many packets must have come meanwhile: broadcasts of a quiet network prove nothing.
const PACKETS_MIN: u64 = 100;

/// What was counted, and for how long nothing moves.
#[derive(Default)]
pub struct Pulse {
    received: Option<u64>,
    /// Packets judged that belong to no connection (heartbeats of other members, ARP, IKE: there are always some), and all of them.
    judged: [Option<u64>; 2],
    silent: u32,
    unjudged: u64,
}

impl Pulse {
    /// Looks at the counters. `received` rises with every packet that an interface takes in. `judged` reads the verdicts of so
    /// many connections, and is asked for all of them only where those of none do not move.
    pub fn look(&mut self, received: u64, judged: impl Fn(u32) -> Option<u64>) {
        let before = self.received.replace(received);
        // A device that came anew counts from the beginning.
        let Some(came) = before.and_then(|before| received.checked_sub(before)) else {
            self.judged = [None, None];
            return;
        };
        if came == 0 {
            return;
        }
        let few = judged(1);
        let moved = |old: Option<u64>, new: Option<u64>| old.is_none() || new.is_none() || old != new;
        if moved(std::mem::replace(&mut self.judged[0], few), few) {
            return self.well();
        }
        let all = judged(u32::MAX);
        if moved(std::mem::replace(&mut self.judged[1], all), all) {
            return self.well();
        }
        self.silent = self.silent.saturating_add(1);
        self.unjudged = self.unjudged.saturating_add(came);
    }

    fn well(&mut self) {
        (self.silent, self.unjudged) = (0, 0);
    }

    /// What is wrong.
    pub fn trouble(&self) -> Option<String> {
        (self.silent >= SILENT_LOOKS && self.unjudged >= PACKETS_MIN).then(|| {
            "packets arrive, but the programs judge none of them: no verdict counter moves".to_owned()
        })
    }
}

/// Packets that these devices of this network namespace have received; nothing where the kernel does not say.
pub fn received<'a>(devices: impl Iterator<Item = &'a str>) -> Option<u64> {
    let text = fs::read_to_string("/proc/thread-self/net/dev").ok()?;
    Some(devices.map(|device| packets(&text, device).unwrap_or(0)).sum())
}

/// The second column behind the name.
fn packets(table: &str, device: &str) -> Option<u64> {
    let mut rows = table.lines().filter_map(|line| line.split_once(':'));
    let (_, columns) = rows.find(|(name, _)| name.trim() == device)?;
    columns.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pulse with the counters that it looks at.
    struct Host {
        pulse: Pulse,
        received: u64,
        /// Packets judged: without a connection, and all.
        judged: [u64; 2],
    }

    impl Host {
        /// One whose programs work.
        fn working() -> Self {
            let mut host = Self {
                pulse: Pulse::default(),
                received: 1000,
                judged: [7, 9],
            };
            assert!(!host.after(&[(50, 50, 50), (50, 0, 50), (50, 50, 50)]));
            host
        }

        /// Looks once a second; each has so many packets received, and judged (without connection, in all). Whether there is trouble.
        fn after(&mut self, looks: &[(u64, u64, u64)]) -> bool {
            for (came, none, every) in looks {
                self.received += came;
                self.judged = [self.judged[0] + none, self.judged[1] + every];
                let [few, all] = self.judged;
                let judged = |connections| Some(if connections == 1 { few } else { all });
                self.pulse.look(self.received, judged);
            }
            self.pulse.trouble().is_some()
        }
    }

    #[test]
    fn packets_without_verdicts_are_trouble_after_a_while_and_not_before() {
        let mut host = Host::working();
        // The first look finds that connections had packets since they were last looked at.
        assert!(!host.after(&[(50, 0, 0); 5]));
        assert!(host.after(&[(50, 0, 0)]));
        assert!(host.after(&[(0, 0, 0); 30]), "nothing comes: nothing is proven");
        assert!(!host.after(&[(50, 1, 1)]), "well again");
    }

    #[test]
    fn few_packets_and_packets_of_connections_alone_are_no_trouble() {
        let mut host = Host::working();
        assert!(
            !host.after(&[(2, 0, 0); 50]),
            "a hundred packets in fifty seconds, less the first look's"
        );
        assert!(host.after(&[(2, 0, 0)]));
        let mut host = Host::working();
        assert!(!host.after(&[(500, 0, 500); 30]), "ESP only");
    }

    #[test]
    fn counters_that_begin_anew_or_cannot_be_read_prove_nothing() {
        let mut pulse = Host::working().pulse;
        pulse.look(3, |_| Some(0));
        assert_eq!(pulse.judged, [None, None]);
        for received in (100..3000).step_by(100) {
            pulse.look(received, |_| None);
        }
        assert!(pulse.trouble().is_none());
    }

    #[test]
    fn the_kernels_table_is_read() {
        let table = "Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes\n\
            \x20   lo:   26544     235    0    0    0     0          0         0    26544     235\n\
            outside: 1234567 8901    0    0    0     0          0         0 1 2\n";
        assert_eq!(packets(table, "outside"), Some(8901));
        assert_eq!(packets(table, "side"), None);
        assert!(received(["lo"].into_iter()).is_some());
    }
}
