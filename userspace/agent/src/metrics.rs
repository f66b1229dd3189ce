//! `/metrics`: values of one moment in Prometheus' text format. No label per SA: those are in `/v1/sas`.

use prometheus::{Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::status::{Status, TakeoverReport};

/// Everything of one moment that /metrics shows.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// As `espalier status`.
    pub status: Status,
    /// Connection (`none` for what belongs to none), verdict, packets.
    pub verdicts: Vec<(String, &'static str, u64)>,
    /// IKE events by kind.
    pub ike_events: Vec<(&'static str, u64)>,
    /// Takeovers by planned or not.
    pub takeovers: [u64; 2],
    /// Frames that went the slow path, by reason.
    pub slow_frames: Vec<(&'static str, u64)>,
}

struct Builder {
    registry: Registry,
    member: String,
}

impl Builder {
    fn counter(
        &self,
        name: &str,
        help: &str,
        label: &[&str],
        rows: &[(&[&str], u64)],
    ) -> prometheus::Result<()> {
        let vec = IntCounterVec::new(Opts::new(name, help).const_label("member", &self.member), label)?;
        for (labels, value) in rows {
            vec.with_label_values(labels).inc_by(*value);
        }
        self.registry.register(Box::new(vec))
    }

    fn gauge(
        &self,
        name: &str,
        help: &str,
        label: &[&str],
        rows: &[(&[&str], i64)],
    ) -> prometheus::Result<()> {
        let vec = IntGaugeVec::new(Opts::new(name, help).const_label("member", &self.member), label)?;
        for (labels, value) in rows {
            vec.with_label_values(labels).set(*value);
        }
        self.registry.register(Box::new(vec))
    }

    fn float(
        &self,
        name: &str,
        help: &str,
        label: &[&str],
        rows: &[(&[&str], f64)],
    ) -> prometheus::Result<()> {
        let vec = GaugeVec::new(Opts::new(name, help).const_label("member", &self.member), label)?;
        for (labels, value) in rows {
            vec.with_label_values(labels).set(*value);
        }
        self.registry.register(Box::new(vec))
    }
}

/// Phases of a takeover by name, in seconds.
fn phases(report: &TakeoverReport) -> Vec<(&'static str, f64)> {
    [
        ("detect", report.detect_ms),
        ("claim", report.claim_ms),
        ("flip", report.flip_ms),
        ("announce", report.announce_ms),
        ("adopt", report.adopt_ms),
        ("first_packet", report.first_packet_ms),
        ("total", report.total_ms),
    ]
    .into_iter()
    .filter_map(|(name, ms)| ms.map(|ms| (name, ms / 1000.0)))
    .collect()
}

impl Sample {
    /// The text.
    ///
    /// # Errors
    /// A metric is defined twice (a mistake in this file).
    pub fn text(&self) -> prometheus::Result<String> {
        let s = &self.status;
        let b = Builder {
            registry: Registry::new(),
            member: s.member_name.clone(),
        };
        b.gauge(
            "espalier_build_info",
            "Version of the agent; always 1.",
            &["version", "cluster"],
            &[(&[&s.version, &s.cluster], 1)],
        )?;
        let roles = ["active", "standby", "joining", "down"];
        let roles = roles.map(|role| ([role], i64::from(role == s.role)));
        let roles = roles.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
        b.gauge(
            "espalier_role_info",
            "1 for the role that the member has.",
            &["role"],
            &roles,
        )?;
        b.gauge(
            "espalier_epoch",
            "Ownership epoch that the member knows.",
            &[],
            &[(&[], s.epoch as i64)],
        )?;
        b.gauge(
            "espalier_segments_owned",
            "Segments that the member owns.",
            &[],
            &[(&[], i64::from(s.segments_owned))],
        )?;
        b.gauge(
            "espalier_in_sync_members",
            "Members that have acknowledged all current values, the owner included.",
            &[],
            &[(&[], s.in_sync.len() as i64)],
        )?;
        let mut links = Vec::new();
        for peer in &s.peers {
            links.push(([peer.name.as_str(), "synch"], i64::from(peer.synch_up)));
            links.push(([peer.name.as_str(), "outside"], i64::from(peer.outside_up)));
        }
        let links = links.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
        b.gauge(
            "espalier_link_up",
            "1 while the link to the peer is up.",
            &["peer", "link"],
            &links,
        )?;
        b.gauge(
            "espalier_ike_sas",
            "IKE SAs, served or mirrored.",
            &[],
            &[(&[], s.ike_sas as i64)],
        )?;
        b.gauge(
            "espalier_child_sas",
            "Child SAs, served or mirrored.",
            &[],
            &[(&[], s.child_sas as i64)],
        )?;
        let down = s.connections.iter().filter(|c| c.phase == "down").count();
        b.gauge(
            "espalier_connections_down",
            "Configured connections without an IKE SA.",
            &[],
            &[(&[], down as i64)],
        )?;
        b.gauge(
            "espalier_connections_configured",
            "Configured connections.",
            &[],
            &[(&[], s.connections.len() as i64)],
        )?;
        b.gauge(
            "espalier_commits_pending",
            "Journal entries that wait for an acknowledgement.",
            &[],
            &[(&[], s.commits_pending as i64)],
        )?;
        if let Some(value) = s.lease_headroom_lowest {
            let help = "Smallest part of a lease that is left among all SAs.";
            b.float("espalier_lease_headroom_lowest_ratio", help, &[], &[(&[], value)])?;
        }
        if let Some(value) = s.ceiling_headroom_lowest {
            let help = "Smallest part of a headroom that is left among all SAs.";
            b.float(
                "espalier_ceiling_headroom_lowest_ratio",
                help,
                &[],
                &[(&[], value)],
            )?;
        }
        let verdicts = self
            .verdicts
            .iter()
            .map(|(c, v, n)| ([c.as_str(), *v], *n))
            .collect::<Vec<_>>();
        let verdicts = verdicts.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
        b.counter(
            "espalier_packets_total",
            "Packets by connection and verdict.",
            &["connection", "verdict"],
            &verdicts,
        )?;
        let events = self
            .ike_events
            .iter()
            .map(|(k, n)| ([*k], *n))
            .collect::<Vec<_>>();
        let events = events.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
        b.counter(
            "espalier_ike_events_total",
            "IKE events by kind.",
            &["kind"],
            &events,
        )?;
        let slow = self
            .slow_frames
            .iter()
            .map(|(k, n)| ([*k], *n))
            .collect::<Vec<_>>();
        let slow = slow.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
        b.counter(
            "espalier_slow_frames_total",
            "Frames that took the slow path.",
            &["reason"],
            &slow,
        )?;
        b.counter(
            "espalier_takeovers_total",
            "Takeovers that this member carried out.",
            &["planned"],
            &[(&["no"], self.takeovers[0]), (&["yes"], self.takeovers[1])],
        )?;
        if let Some(report) = &s.last_takeover {
            let rows = phases(report)
                .into_iter()
                .map(|(name, v)| ([name], v))
                .collect::<Vec<_>>();
            let rows = rows.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
            let help = "Time of each phase of the last takeover.";
            b.float("espalier_takeover_phase_seconds", help, &["phase"], &rows)?;
        }
        b.counter(
            "espalier_synch_bytes_total",
            "Octets of the synch channel.",
            &["kind", "direction"],
            &[
                (&["stream", "sent"], s.synch.stream_sent),
                (&["stream", "received"], s.synch.stream_received),
                (&["datagram", "sent"], s.synch.datagram_sent),
                (&["datagram", "received"], s.synch.datagram_received),
            ],
        )?;
        b.counter(
            "espalier_synch_refused_total",
            "Connections to the synch channel that were refused.",
            &[],
            &[(&[], s.synch.refused)],
        )?;
        b.counter(
            "espalier_synch_datagrams_lost_total",
            "Datagrams of the synch channel lost on this host.",
            &[],
            &[(&[], s.synch.datagram_lost)],
        )?;
        b.float(
            "espalier_uptime_seconds",
            "Seconds since the agent started.",
            &[],
            &[(&[], s.uptime_seconds)],
        )?;
        b.registry.register(Box::new(
            prometheus::process_collector::ProcessCollector::for_self(),
        ))?;
        let mut text = Vec::new();
        TextEncoder::new().encode(&b.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_becomes_metrics_with_base_units_and_no_sa_labels() {
        let mut sample = Sample::default();
        sample.status.role = "active".to_owned();
        sample.status.member_name = "gw1".to_owned();
        sample.status.lease_headroom_lowest = Some(0.5);
        sample.status.last_takeover = Some(TakeoverReport {
            detect_ms: Some(120.0),
            ..TakeoverReport::default()
        });
        sample.verdicts.push(("site-a".to_owned(), "esp_opened", 7));
        let text = sample.text().unwrap();
        for line in [
            "espalier_packets_total{connection=\"site-a\",member=\"gw1\",verdict=\"esp_opened\"} 7",
            "espalier_role_info{member=\"gw1\",role=\"active\"} 1",
            "espalier_role_info{member=\"gw1\",role=\"standby\"} 0",
            "espalier_takeover_phase_seconds{member=\"gw1\",phase=\"detect\"} 0.12",
            "espalier_lease_headroom_lowest_ratio{member=\"gw1\"} 0.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("spi"));
    }
}
