//! What the kernel's own queues have lost, by its own counters: rings of veth pairs, receive buffers of sockets, the backlog of a
//! processor. They are the lab's, not the product's, and a processor that is not to be had fills them.

use crate::netns::Netns;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;

/// Counters of protocols that mean a lost packet.
const LOSSES: [&str; 14] = [
    "Ip.InDiscards",
    "Ip.OutDiscards",
    "Ip.InHdrErrors",
    "Ip.InAddrErrors",
    "Ip.OutNoRoutes",
    "Ip.ReasmFails",
    "Ip.FragFails",
    "Icmp.InErrors",
    "Icmp.InCsumErrors",
    "Udp.NoPorts",
    "Udp.InErrors",
    "Udp.RcvbufErrors",
    "Udp.SndbufErrors",
    "Udp.InCsumErrors",
];

/// Columns of `/proc/net/softnet_stat` that are shown, and what they count.
const SOFTNET: [(usize, &str); 3] = [(1, "backlog dropped"), (2, "budget used up"), (10, "flow limit")];

/// Losses so far, by place and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Losses(BTreeMap<(String, String), u64>);

impl Losses {
    /// Reads the counters of some namespaces, each with the name that it is shown by, and of all processors.
    ///
    /// # Errors
    /// A namespace is gone.
    pub fn read(places: &[(String, &Netns)]) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (place, netns) in places {
            let (devices, protocols) = netns.inside(|| {
                let read = |file: &str| fs::read_to_string(file).with_context(|| file.to_owned());
                Ok((
                    read("/proc/thread-self/net/dev")?,
                    read("/proc/thread-self/net/snmp")?,
                ))
            })?;
            let found = of_devices(&devices).into_iter().chain(of_protocols(&protocols));
            all.extend(found.map(|(name, count)| ((place.clone(), name), count)));
        }
        let softnet = fs::read_to_string("/proc/net/softnet_stat").context("/proc/net/softnet_stat")?;
        all.extend(of_processors(&softnet));
        Ok(Self(all))
    }

    /// What was lost since an earlier reading, one line for each counter that has moved.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let moved = self.0.iter().filter_map(|(key, count)| {
            let more = count.saturating_sub(before.0.get(key).copied().unwrap_or(0));
            (more > 0).then(|| format!("{} {}: {more}", key.0, key.1))
        });
        moved.collect()
    }
}

/// Errors and drops of devices, out of `/proc/net/dev`.
fn of_devices(text: &str) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for line in text.lines().skip(2) {
        let Some((name, counts)) = line.split_once(':') else {
            continue;
        };
        let counts: Vec<u64> = counts.split_whitespace().filter_map(|c| c.parse().ok()).collect();
        // Octets, packets, errors, drops, fifo and so on: eight columns each way.
        for (column, what) in [
            (2, "rx errors"),
            (3, "rx dropped"),
            (4, "rx overrun"),
            (10, "tx errors"),
            (11, "tx dropped"),
        ] {
            if let Some(count) = counts.get(column) {
                found.push((format!("{} {what}", name.trim()), *count));
            }
        }
    }
    found
}

/// [`LOSSES`] out of `/proc/net/snmp`: a line of names for each line of values.
fn of_protocols(text: &str) -> Vec<(String, u64)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for pair in lines.chunks_exact(2) {
        let (names, values) = (pair[0].split_whitespace(), pair[1].split_whitespace());
        let protocol = pair[0].split(':').next().unwrap_or_default();
        for (name, value) in names.zip(values).skip(1) {
            let name = format!("{protocol}.{name}");
            if let Ok(value) = value.parse()
                && LOSSES.contains(&name.as_str())
            {
                found.push((name, value));
            }
        }
    }
    found
}

/// Processors, out of `/proc/net/softnet_stat`: a line each, in hexadecimal.
fn of_processors(text: &str) -> Vec<((String, String), u64)> {
    let mut found = Vec::new();
    for (cpu, line) in text.lines().enumerate() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        for (column, what) in SOFTNET {
            let count = columns.get(column).and_then(|c| u64::from_str_radix(c, 16).ok());
            if let Some(count) = count {
                found.push(((format!("cpu {cpu}"), what.to_owned()), count));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
outside: 3746318   3000    0    7    0     0          0         0   149472    1122    0    2    0     0       0          0
";

    #[test]
    fn drops_of_devices_are_read_by_column() {
        let found = of_devices(DEV);
        assert!(found.contains(&("outside rx dropped".to_owned(), 7)));
        assert!(found.contains(&("outside tx dropped".to_owned(), 2)));
        assert!(found.contains(&("lo tx errors".to_owned(), 0)));
    }

    #[test]
    fn protocols_and_processors_are_read_by_name() {
        let snmp = "Udp: InDatagrams NoPorts InErrors RcvbufErrors\nUdp: 5 1 2 3\n";
        let found = of_protocols(snmp);
        assert_eq!(
            found,
            [
                ("Udp.NoPorts".to_owned(), 1),
                ("Udp.InErrors".to_owned(), 2),
                ("Udp.RcvbufErrors".to_owned(), 3)
            ]
        );
        let softnet = "00000009 0000000a 00000001 0 0 0 0 0 0 0 00000002 0 0 1 0\n";
        let counts: Vec<u64> = of_processors(softnet).into_iter().map(|(_, n)| n).collect();
        assert_eq!(counts, [10, 1, 2]);
    }

    #[test]
    fn only_counters_that_moved_are_shown() {
        let at = |count| {
            Losses(BTreeMap::from([(
                ("A".to_owned(), "inside rx dropped".to_owned()),
                count,
            )]))
        };
        assert!(at(4).since(&at(4)).is_empty());
        assert_eq!(at(6).since(&at(4)), ["A inside rx dropped: 2"]);
    }

    #[test]
    fn this_host_has_counters() {
        let here = Losses::read(&[]).expect("/proc");
        assert!(here.0.keys().any(|(place, _)| place == "cpu 0"));
    }
}
