//! The kernel's own word about packets that it drops, with place and time: its trace points, recorded into a small ring of the run's
//! own. Where nothing is lost, next to nothing is written, and what a run that lost something needs is there.

use crate::resources::Resources;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// Where the kernel's trace file system is.
const TRACEFS: &str = "/sys/kernel/tracing";

/// Trace points, and which of their events are lost packets.
const POINTS: [(&str, &str); 6] = [
    ("skb/kfree_skb", "reason > 1"),
    ("xdp/xdp_cpumap_enqueue", "drops > 0"),
    ("xdp/xdp_cpumap_kthread", "drops > 0"),
    ("xdp/xdp_devmap_xmit", "drops > 0"),
    ("xdp/xdp_redirect_err", ""),
    ("xdp/xdp_exception", ""),
];

/// A running record. Dropping it ends it.
#[derive(Debug)]
pub struct Trace {
    folder: PathBuf,
}

/// Events of one sort at one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sort {
    count: u64,
    first_ns: u64,
    last_ns: u64,
}

impl Trace {
    /// Starts it.
    ///
    /// # Errors
    /// The kernel has no trace points, or this is not root of the host.
    pub fn start(resources: &Resources) -> Result<Self> {
        if !PathBuf::from(TRACEFS).join("events").is_dir() {
            crate::cmd::run(&["mount", "-t", "tracefs", "nodev", TRACEFS])?;
        }
        let folder = PathBuf::from(TRACEFS)
            .join("instances")
            .join(resources.name("losses"));
        resources.note_path(&folder)?;
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let this = Self { folder };
        this.set("trace_clock", "mono")?;
        this.set("buffer_size_kb", "256")?;
        for (point, filter) in POINTS {
            if !filter.is_empty() {
                this.set(&format!("events/{point}/filter"), filter)?;
            }
            this.set(&format!("events/{point}/enable"), "1")?;
        }
        Ok(this)
    }

    /// What was dropped in a stretch of time (`CLOCK_MONOTONIC` nanoseconds): a line for each place and reason, the times in
    /// milliseconds since its beginning.
    ///
    /// # Errors
    /// The trace cannot be read.
    pub fn between(&self, from_ns: u64, to_ns: u64) -> Result<Vec<String>> {
        let file = self.folder.join("trace");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(summary(&text, from_ns, to_ns))
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let file = self.folder.join(file);
        fs::write(&file, value).with_context(|| file.display().to_string())
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

fn summary(text: &str, from_ns: u64, to_ns: u64) -> Vec<String> {
    let mut sorts: BTreeMap<String, Sort> = BTreeMap::new();
    for (at, what) in text.lines().filter_map(event) {
        if !(from_ns..=to_ns).contains(&at) {
            continue;
        }
        let sort = sorts.entry(what).or_insert(Sort {
            count: 0,
            first_ns: at,
            last_ns: at,
        });
        sort.count += 1;
        sort.last_ns = at;
    }
    let ms = |at: u64| (at - from_ns) as f64 / 1e6;
    let line = |(what, sort): (&String, &Sort)| {
        format!(
            "{} times from {:.1} to {:.1} ms: {what}",
            sort.count,
            ms(sort.first_ns),
            ms(sort.last_ns)
        )
    };
    sorts.iter().map(line).collect()
}

/// `TASK-PID [CPU] FLAGS SECONDS.MICROS: POINT: FIELDS`: the time, and point and fields without addresses of packets.
fn event(line: &str) -> Option<(u64, String)> {
    if line.starts_with('#') {
        return None;
    }
    let (head, what) = line.split_once(": ")?;
    let (seconds, micros) = head.rsplit(' ').next()?.split_once('.')?;
    let at = seconds.parse::<u64>().ok()? * 1_000_000_000 + micros.parse::<u64>().ok()? * 1000;
    let what: Vec<&str> = what
        .split(' ')
        .filter(|field| !field.starts_with("skbaddr=") && !field.starts_with("rx_sk="))
        .collect();
    Some((at, what.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# tracer: nop\n#\n
          <idle>-0       [001] ..s1.   100.000500: kfree_skb: skbaddr=00000000c1 rx_sk=0000 protocol=2048 location=veth_xmit+0x1/0x2 reason: FULL_RING
     ksoftirqd/1-22      [001] ..s1.   100.002000: kfree_skb: skbaddr=00000000c2 rx_sk=0000 protocol=2048 location=veth_xmit+0x1/0x2 reason: FULL_RING
 cpumap/0/map:36-9121    [000] .....   100.003000: xdp_cpumap_kthread: kthread cpu=0 map_id=36 action=REDIRECT processed=0 drops=1 sched=0
     ksoftirqd/1-22      [001] ..s1.   101.000000: kfree_skb: skbaddr=00000000c3 rx_sk=0000 protocol=2048 location=veth_xmit+0x1/0x2 reason: FULL_RING
";

    #[test]
    fn events_of_the_stretch_are_counted_by_place_and_reason() {
        let at = |ms: u64| 100_000_000_000 + ms * 1_000_000;
        let lines = summary(TEXT, at(0), at(500));
        assert_eq!(
            lines,
            [
                "2 times from 0.5 to 2.0 ms: kfree_skb: protocol=2048 location=veth_xmit+0x1/0x2 reason: FULL_RING",
                "1 times from 3.0 to 3.0 ms: xdp_cpumap_kthread: kthread cpu=0 map_id=36 action=REDIRECT processed=0 drops=1 sched=0",
            ]
        );
    }
}
