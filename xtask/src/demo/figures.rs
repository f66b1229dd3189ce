//! What a demo found out: every figure, and every invariant with its verdict.

use lab::iperf::Throughput;
use serde::Serialize;
use std::collections::BTreeMap;

/// An invariant, and whether it held.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What must hold, as a claim.
    pub claim: String,
    /// Whether it held.
    pub ok: bool,
    /// The figures behind it.
    pub detail: String,
    /// A comparison: it is shown, but other work on the machine may turn it, so it does not decide about `ok`.
    pub informational: bool,
}

impl Check {
    /// One word for it.
    pub fn mark(&self) -> &'static str {
        match (self.ok, self.informational) {
            (true, false) => "held",
            (false, false) => "FAILED",
            (true, true) => "yes",
            (false, true) => "no",
        }
    }
}

/// Payload figures of both systems in the same lab, with the same peer, in the same run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Throughputs {
    /// espalier in XDP.
    pub espalier: Option<Throughput>,
    /// strongSwan's user-space data path in espalier's place.
    pub strongswan: Option<Throughput>,
    /// espalier's figures divided by strongSwan's, by the names of the figures.
    pub ratio: BTreeMap<String, f64>,
}

/// What a TCP stream went through when the active member was killed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct TcpTakeover {
    /// From the kill to the end of the stall: the stream goes on.
    pub resumed_ms: f64,
    /// The longest time without an octet.
    pub stall_ms: f64,
    /// Octets delivered over the whole stream, each compared with what was sent.
    pub octets: u64,
}

/// Everything that `--json` prints.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Figures {
    /// Every invariant held.
    pub ok: bool,
    /// Phases of the unplanned takeover, each since the one before; `total` is from the kill to the first packet through B.
    pub takeover_ms: BTreeMap<String, f64>,
    /// From the last packet through A to the kill, and from that packet to the first one through B, ms.
    pub last_packet_before_kill_ms: Option<f64>,
    /// See above.
    pub outage_ms: Option<f64>,
    /// Pings and numbered UDP packets lost in the unplanned takeover.
    pub packets_lost: u64,
    /// The same, by flow.
    pub packets_lost_by_flow: BTreeMap<String, u64>,
    /// Pings and UDP packets lost in the planned takeover.
    pub planned_packets_lost: u64,
    /// From the kill of A's agent alone to the first packet through B.
    pub dead_man_ms: Option<f64>,
    /// Packets lost when the agent of A alone was killed.
    pub dead_man_packets_lost: u64,
    /// (SPI, sequence number) pairs that the cluster sent twice, over the whole run.
    pub dup_seq: u64,
    /// (SPI, IV) pairs that the cluster sent twice.
    pub dup_iv: u64,
    /// ESP packets of the cluster that the recorder has judged.
    pub recorded: u64,
    /// Frames replayed at B.
    pub replayed: u64,
    /// Replayed frames that were accepted.
    pub replays_accepted: u64,
    /// CREATE_CHILD_SA requests on the wire from the kill to the end of that traffic.
    pub rekeys_during_takeover: u64,
    /// CREATE_CHILD_SA requests from the kill under a TCP stream to the stream's end: repairs on evidence may be among them.
    pub rekeys_tcp: Option<u64>,
    /// That stream.
    pub tcp_takeover: Option<TcpTakeover>,
    /// Megabits a second.
    pub throughput: Throughputs,
    /// Packets by verdict, by member.
    pub verdicts: BTreeMap<String, BTreeMap<String, u64>>,
    /// Invariants.
    pub checks: Vec<Check>,
    /// Folder with configurations, logs and the timeline.
    pub folder: String,
}

impl Figures {
    /// Enters an invariant.
    pub fn check(&mut self, claim: &str, ok: bool, detail: impl Into<String>) {
        self.enter(claim, ok, detail.into(), false);
    }

    /// Enters a comparison, which does not decide about `ok`.
    pub fn compare(&mut self, claim: &str, ok: bool, detail: impl Into<String>) {
        self.enter(claim, ok, detail.into(), true);
    }

    /// Whether every invariant held.
    pub fn all_held(&self) -> bool {
        let mut invariants = self.checks.iter().filter(|c| !c.informational).peekable();
        invariants.peek().is_some() && invariants.all(|c| c.ok)
    }

    /// The invariants that did not hold, a line each; also where none was proven.
    pub fn broken(&self) -> Vec<String> {
        if self.checks.iter().all(|c| c.informational) {
            return vec!["no invariant was proven".to_owned()];
        }
        let broken = self.checks.iter().filter(|c| !c.ok && !c.informational);
        broken
            .map(|c| format!("{} {} ({})", c.mark(), c.claim, c.detail))
            .collect()
    }

    fn enter(&mut self, claim: &str, ok: bool, detail: String, informational: bool) {
        let check = Check {
            claim: claim.to_owned(),
            ok,
            detail,
            informational,
        };
        crate::steps::detail(&format!("{:<6} {} ({})", check.mark(), check.claim, check.detail));
        self.checks.push(check);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invariant_decides_about_ok_and_a_comparison_does_not() {
        let mut figures = Figures::default();
        assert!(!figures.all_held(), "nothing proven is not ok");
        assert_eq!(figures.broken().len(), 1);
        figures.compare("faster", false, "0.9");
        assert!(!figures.all_held(), "a comparison proves no invariant");
        figures.check("held", true, "");
        assert!(figures.all_held());
        figures.check("broken", false, "");
        assert!(!figures.all_held());
        assert_eq!(figures.broken(), ["FAILED broken ()"]);
    }
}
