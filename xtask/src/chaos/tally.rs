//! What a chaos run has counted, and what it prints.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use std::collections::BTreeMap;

/// One kind of fault.
#[derive(Clone, Debug, Default, Serialize)]
pub struct KindTally {
    /// How often it was injected.
    pub count: u64,
    /// How often another member owned the cluster afterwards.
    pub takeovers: u64,
    /// From the fault to the first packet through the other member, ms, median.
    pub p50_ms: Option<f64>,
    /// The longest.
    pub max_ms: Option<f64>,
    /// From the end of the fault until all members were in sync and all SAs answered, ms, the longest.
    pub healed_max_ms: f64,
    /// While it lasted: the longest time without an answer over one connection, ms.
    pub silent_max_ms: f64,
    /// Where it is asked whether the agent saw it: how often it did.
    pub noticed: Option<u64>,
    #[serde(skip)]
    takeover_ms: Vec<f64>,
}

/// What docs/SYNCH-CHANNEL.md excepts: a pair that was split under `solo = "continue"`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Split {
    /// Faults that may split a pair.
    pub faults: u64,
    /// Inbound packets that both halves accepted, or that were replayed to the winner after the loser had accepted them.
    pub deliveries_twice: u64,
    /// IKE SAs begun anew because of it.
    pub ike_sa_inits: u64,
}

/// Moves of groups on command, at which no packet may be lost.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Moves {
    /// How many: each `rebalance`, `drain` and `takeover --group` counts once.
    pub count: u64,
    /// Of those, not judged, since a member was suspected meanwhile.
    pub disturbed: u64,
    /// Packets sent during the others.
    pub packets: u64,
    /// Of those, lost.
    pub lost: u64,
}

/// Everything that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Tally {
    /// Every invariant held, over all faults that were asked for.
    pub ok: bool,
    /// Faults that were injected.
    pub kills: u64,
    /// The seed.
    pub seed: u64,
    /// Members.
    pub members: usize,
    /// Groups of segments.
    pub groups: u8,
    /// Router and server spread packets over all members.
    pub ecmp: bool,
    /// Moves of groups.
    pub moves: Moves,
    /// Packets that one member passed on to another: outside, inside.
    pub second_hops: [u64; 2],
    /// `pair` or `etcd`.
    pub engine: &'static str,
    /// (SPI, sequence number) pairs that the cluster sent twice.
    pub dup_seq: u64,
    /// (SPI, IV) pairs that the cluster sent twice.
    pub dup_iv: u64,
    /// Packets delivered in clear twice, outside a split: replays that were accepted, or packets that two members accepted.
    pub replays_accepted: u64,
    /// Captured frames that were sent to the owner again.
    pub replayed: u64,
    /// Of those, counted as refused by the owner's verdicts.
    pub replays_refused: u64,
    /// Connections without answer after a fault was healed, and IKE SAs begun anew (IKE_SA_INIT), outside a split.
    pub sas_lost: u64,
    /// Steps back and gaps in Message IDs, outside a split.
    pub message_id_faults: u64,
    /// Takeovers after the death of the owner (its host, or its agent alone): kill to first packet, ms.
    pub p50_ms: Option<f64>,
    /// The 99th percentile of them.
    pub p99_ms: Option<f64>,
    /// How many those are.
    pub takeovers: usize,
    /// By kind of fault.
    pub faults: BTreeMap<&'static str, KindTally>,
    /// Excepted by the documentation, counted all the same.
    pub split: Split,
    /// ESP packets of the cluster that the recorder has judged.
    pub recorded: u64,
    /// Packets delivered in clear that were compared with all others.
    pub deliveries_judged: u64,
    /// Frames that the recorders missed; anything but 0 voids the proof.
    pub missed: u64,
    /// Octets that one TCP stream carried through all of it.
    pub tcp_octets: u64,
    /// Packets sent by pings and UDP flows.
    pub packets_sent: u64,
    /// Of those, lost in outages.
    pub packets_lost: u64,
    /// Seconds of the whole run.
    pub seconds: f64,
    /// What did not hold.
    pub violations: Vec<String>,
    /// What counters, queues and events say about the first of them.
    pub evidence: Vec<String>,
    /// Folder with configurations, logs and the histogram.
    pub folder: String,
    #[serde(skip)]
    pub(super) kill_ms: Vec<f64>,
}

impl Tally {
    /// Enters a fault with what came of it.
    pub fn enter(
        &mut self,
        kind: &'static str,
        killed_owner: bool,
        takeover_ms: Option<f64>,
        healed_ms: f64,
    ) {
        self.kills += 1;
        let of = self.faults.entry(kind).or_default();
        of.count += 1;
        of.healed_max_ms = of.healed_max_ms.max(healed_ms);
        if let Some(ms) = takeover_ms {
            of.takeovers += 1;
            of.takeover_ms.push(ms);
            of.p50_ms = percentile(&of.takeover_ms, 50.0);
            of.max_ms = percentile(&of.takeover_ms, 100.0);
            if killed_owner {
                self.kill_ms.push(ms);
                self.takeovers = self.kill_ms.len();
                self.p50_ms = percentile(&self.kill_ms, 50.0);
                self.p99_ms = percentile(&self.kill_ms, 99.0);
            }
        }
    }

    /// Enters for how long no answer came over a connection.
    pub fn silent(&mut self, kind: &'static str, ms: f64) {
        let of = self.faults.entry(kind).or_default();
        of.silent_max_ms = of.silent_max_ms.max(ms);
    }

    /// Enters whether a fault was noticed.
    pub fn notice(&mut self, kind: &'static str, noticed: bool) {
        *self.faults.entry(kind).or_default().noticed.get_or_insert(0) += u64::from(noticed);
    }

    /// Enters something that did not hold.
    pub fn violate(&mut self, what: impl Into<String>) {
        let what = what.into();
        crate::steps::detail(&format!("VIOLATED: {what}"));
        self.violations.push(what);
    }

    /// Enters, and shows, what is known about a violation.
    pub fn show(&mut self, evidence: Vec<String>) {
        for line in &evidence {
            crate::steps::detail(line);
        }
        self.evidence.extend(evidence);
    }

    /// What did not hold and what is known about it; nothing if every invariant held.
    pub fn wrong(&self) -> Vec<String> {
        if self.ok {
            return Vec::new();
        }
        let run = format!(
            "seed {}, {} members, engine {}, {} group(s): {} faults played; files: {}",
            self.seed, self.members, self.engine, self.groups, self.kills, self.folder
        );
        let violations = self.violations.iter().map(|v| format!("VIOLATED: {v}"));
        let lines = std::iter::once(run).chain(violations);
        lines.chain(self.evidence.iter().cloned()).collect()
    }

    /// Times from the owner's death to the first packet through its taker, ms.
    pub fn kill_times(&self) -> &[f64] {
        &self.kill_ms
    }

    /// A table for people.
    pub fn print(&self) {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header([
            "fault",
            "times",
            "takeovers",
            "first packet, median",
            "longest",
            "no answer, longest",
            "back in sync, longest",
            "noticed",
        ]);
        let ms = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.0} ms"));
        for (kind, of) in &self.faults {
            table.add_row([
                (*kind).to_owned(),
                of.count.to_string(),
                of.takeovers.to_string(),
                ms(of.p50_ms),
                ms(of.max_ms),
                ms(Some(of.silent_max_ms)),
                ms(Some(of.healed_max_ms)),
                of.noticed
                    .map_or("-".to_owned(), |n| format!("{n} of {}", of.count)),
            ]);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{table}");
        println!(
            "{} faults, seed {}, {} members, engine {}, {:.0} s\n\
             {} ESP packets of the cluster: {} (SPI, sequence number) and {} (SPI, IV) twice\n\
             {} frames replayed, {} counted as refused; {} of {} deliveries came twice\n\
             SAs lost: {}; Message ID faults: {}\n\
             owner killed {} times: first packet through another member after {} (p50), {} (p99)\n\
             {} of {} packets of pings and UDP flows lost; one TCP stream carried {:.0} MB",
            self.kills,
            self.seed,
            self.members,
            self.engine,
            self.seconds,
            self.recorded,
            self.dup_seq,
            self.dup_iv,
            self.replayed,
            self.replays_refused,
            self.replays_accepted,
            self.deliveries_judged,
            self.sas_lost,
            self.message_id_faults,
            self.takeovers,
            ms(self.p50_ms),
            ms(self.p99_ms),
            self.packets_lost,
            self.packets_sent,
            self.tcp_octets as f64 / 1e6,
        );
        if self.split.faults > 0 {
            println!(
                "excepted (a pair that may be split under solo = \"continue\"): {} faults; {} deliveries twice, {} IKE SAs begun anew",
                self.split.faults, self.split.deliveries_twice, self.split.ike_sa_inits
            );
        }
        if self.groups > 1 {
            println!(
                "{} groups: {} moves ({} not judged), {} of {} packets lost meanwhile; second hops: {} outside, {} inside",
                self.groups,
                self.moves.count,
                self.moves.disturbed,
                self.moves.lost,
                self.moves.packets,
                self.second_hops[0],
                self.second_hops[1]
            );
        }
        for violation in &self.violations {
            println!("VIOLATED: {violation}");
        }
        println!(
            "{}; configurations, logs and takeovers.svg: {}",
            if self.ok { "every invariant held" } else { "NOT ok" },
            self.folder
        );
    }
}

/// The nearest-rank percentile; none of an empty list.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 50.0), Some(50.0));
        assert_eq!(percentile(&values, 99.0), Some(99.0));
        assert_eq!(percentile(&values, 100.0), Some(100.0));
        assert_eq!(percentile(&[7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&[], 50.0), None);
    }

    #[test]
    fn only_the_owners_death_counts_for_the_percentiles() {
        let mut tally = Tally::default();
        tally.enter("host_death", true, Some(120.0), 900.0);
        tally.enter("pause", false, Some(500.0), 400.0);
        tally.enter("pause", false, None, 600.0);
        assert_eq!((tally.kills, tally.takeovers, tally.p99_ms), (3, 1, Some(120.0)));
        let pause = &tally.faults["pause"];
        assert_eq!((pause.count, pause.takeovers, pause.healed_max_ms), (2, 1, 600.0));
    }
}
