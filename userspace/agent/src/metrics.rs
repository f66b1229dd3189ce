//! `/metrics`: values of one moment in Prometheus' text format. No label per SA: those are in `/v1/sas`.

use prometheus::{Encoder, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::api::Status;

/// Octets and refusals of the synch channel.
#[derive(Clone, Copy, Debug, Default)]
pub struct SynchSample {
    /// In streams, sent.
    pub stream_sent: u64,
    /// In streams, received.
    pub stream_received: u64,
    /// As datagrams, sent.
    pub datagram_sent: u64,
    /// As datagrams, received.
    pub datagram_received: u64,
    /// Datagrams lost on this host.
    pub datagram_lost: u64,
    /// Connections refused.
    pub refused: u64,
}

/// Everything of one moment that /metrics shows.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// As `espalier status`.
    pub status: Status,
    /// IKE SAs, served or mirrored.
    pub ike_sas: u64,
    /// Child SAs, served or mirrored.
    pub child_sas: u64,
    /// Child SAs that are deleted, and whose last inbound packets are still taken (ADR 26).
    pub child_sas_lingering: u64,
    /// Entries and raises that wait for an acknowledgement.
    pub commits_pending: u64,
    /// Smallest part of a lease that is left among all SAs, 0 to 1; `None` without SAs.
    pub lease_headroom_lowest: Option<f64>,
    /// Smallest part of a headroom that is left among all SAs, 0 to 1; `None` without SAs.
    pub ceiling_headroom_lowest: Option<f64>,
    /// Connection (`none` for what belongs to none), verdict, packets.
    pub verdicts: Vec<(String, &'static str, u64)>,
    /// IKE events by kind.
    pub ike_events: Vec<(&'static str, u64)>,
    /// Takeovers: unplanned, planned.
    pub takeovers: [u64; 2],
    /// Frames that went the slow path, by reason.
    pub slow_frames: Vec<(&'static str, u64)>,
    /// The synch channel.
    pub synch: SynchSample,
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

impl Sample {
    /// The text.
    ///
    /// # Errors
    /// A metric is defined twice (a mistake in this file).
    pub fn text(&self) -> prometheus::Result<String> {
        let s = &self.status;
        let b = Builder {
            registry: Registry::new(),
            member: s.name.clone(),
        };
        b.gauge(
            "espalier_build_info",
            "Version of the agent; always 1.",
            &["version", "cluster"],
            &[(&[env!("CARGO_PKG_VERSION"), &s.cluster], 1)],
        )?;
        let roles = ["active", "alone", "standby", "joining", "starting", "stopped"];
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
            &[(&[], i64::from(s.segments.get(&s.member).copied().unwrap_or(0)))],
        )?;
        b.gauge(
            "espalier_in_sync_members",
            "Members that have acknowledged all current values, the owner included.",
            &[],
            &[(&[], s.in_sync.len() as i64)],
        )?;
        let name_of = |id: u8| {
            let peer = s.members.iter().find(|peer| peer.id == id);
            match peer {
                Some(peer) => peer.name.clone(),
                None if id == s.member => s.name.clone(),
                None => "none".to_owned(),
            }
        };
        let mut owners = Vec::new();
        let mut numbers: [Vec<(String, i64)>; 4] = Default::default();
        for group in &s.groups {
            let name = group.group.to_string();
            owners.push(([name.clone(), name_of(group.owner)], 1));
            let values = [
                group.epoch as i64,
                group.in_sync.len() as i64,
                i64::from(group.owner == group.home),
                i64::from(group.engine_waits),
            ];
            for (rows, value) in numbers.iter_mut().zip(values) {
                rows.push((name.clone(), value));
            }
        }
        let owners = owners.iter().map(|(l, v)| (l.each_ref().map(String::as_str), *v));
        let owners = owners.collect::<Vec<_>>();
        let owners = owners.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
        b.gauge(
            "espalier_group_owner",
            "1 for the member that owns the group of segments, as far as this member knows.",
            &["group", "owner"],
            &owners,
        )?;
        let names = [
            (
                "espalier_group_epoch",
                "Ownership epoch of the group of segments.",
            ),
            (
                "espalier_group_in_sync_members",
                "Members in the group's in-sync set, the owner included.",
            ),
            (
                "espalier_group_at_home",
                "1 where the member that the group is meant for owns it.",
            ),
            (
                "espalier_group_engine_waits",
                "1 while the group waits for the ownership engine.",
            ),
        ];
        for ((name, help), rows) in names.into_iter().zip(&numbers) {
            let rows = rows
                .iter()
                .map(|(group, v)| ([group.as_str()], *v))
                .collect::<Vec<_>>();
            let rows = rows.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
            b.gauge(name, help, &["group"], &rows)?;
        }
        b.gauge(
            "espalier_healthy",
            "1 while the member's own data plane works.",
            &[],
            &[(&[], i64::from(s.trouble.is_none()))],
        )?;
        b.gauge(
            "espalier_draining",
            "1 while the member is being drained.",
            &[],
            &[(&[], i64::from(s.draining))],
        )?;
        let silence = s
            .engine_silent
            .as_ref()
            .map_or(0.0, |silent| silent.for_ms as f64 / 1000.0);
        b.float(
            "espalier_engine_silent_seconds",
            "For how long the ownership engine has not answered; 0: it does, or there is none.",
            &[],
            &[(&[], silence)],
        )?;
        let peers = s
            .members
            .iter()
            .map(|peer| ([peer.name.as_str()], peer))
            .collect::<Vec<_>>();
        let healthy = peers.iter().map(|(l, peer)| (&l[..], i64::from(peer.healthy)));
        b.gauge(
            "espalier_peer_healthy",
            "1 while the peer says that its data plane works.",
            &["peer"],
            &healthy.collect::<Vec<_>>(),
        )?;
        let heard = peers
            .iter()
            .map(|(l, peer)| (&l[..], i64::from(peer.state == "up")));
        b.gauge(
            "espalier_peer_up",
            "1 while the peer is heard.",
            &["peer"],
            &heard.collect::<Vec<_>>(),
        )?;
        let mut links = Vec::new();
        for peer in &s.members {
            for link in ["synch", "outside"] {
                links.push((
                    [peer.name.as_str(), link],
                    i64::from(peer.links_up.iter().any(|up| up == link)),
                ));
            }
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
            &[(&[], self.ike_sas as i64)],
        )?;
        b.gauge(
            "espalier_child_sas",
            "Child SAs, served or mirrored.",
            &[],
            &[(&[], self.child_sas as i64)],
        )?;
        b.gauge(
            "espalier_child_sas_lingering",
            "Child SAs that are deleted, and whose last inbound packets are still taken for a moment.",
            &[],
            &[(&[], self.child_sas_lingering as i64)],
        )?;
        let down = s.connections.iter().filter(|c| c.state == "down").count();
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
        for (name, help, value) in [
            (
                "espalier_pool_addresses",
                "Virtual addresses that a pool has, for all members together.",
                (|p| p.size) as fn(&crate::api::PoolStatus) -> u32,
            ),
            (
                "espalier_pool_addresses_used",
                "Virtual addresses that peers of this member use.",
                |p| p.used,
            ),
        ] {
            let rows = s.pools.iter().map(|p| ([p.name.as_str()], i64::from(value(p))));
            let rows = rows.collect::<Vec<_>>();
            let rows = rows.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
            b.gauge(name, help, &["pool"], &rows)?;
        }
        b.gauge(
            "espalier_commits_pending",
            "Journal entries that wait for an acknowledgement.",
            &[],
            &[(&[], self.commits_pending as i64)],
        )?;
        if let Some(value) = self.lease_headroom_lowest {
            let help = "Smallest part of a lease that is left among all SAs.";
            b.float("espalier_lease_headroom_lowest_ratio", help, &[], &[(&[], value)])?;
        }
        if let Some(value) = self.ceiling_headroom_lowest {
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
            let rows = report
                .phases_ms
                .iter()
                .map(|(name, ms)| ([name.as_str()], ms / 1000.0))
                .collect::<Vec<_>>();
            let rows = rows.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
            let help = "Each phase of the last takeover, since the last sign of life of the old owner or the command.";
            b.float("espalier_takeover_phase_seconds", help, &["phase"], &rows)?;
        }
        b.counter(
            "espalier_synch_bytes_total",
            "Octets of the synch channel.",
            &["kind", "direction"],
            &[
                (&["stream", "sent"], self.synch.stream_sent),
                (&["stream", "received"], self.synch.stream_received),
                (&["datagram", "sent"], self.synch.datagram_sent),
                (&["datagram", "received"], self.synch.datagram_received),
            ],
        )?;
        let refused = s.channel.refused.iter();
        let refused = refused
            .map(|(reason, n)| ([reason.as_str()], *n))
            .collect::<Vec<_>>();
        let refused = refused.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
        b.counter(
            "espalier_synch_refused_total",
            "Connections of the synch channel that were refused or closed for what the other side did.",
            &["reason"],
            &refused,
        )?;
        b.counter(
            "espalier_synch_connections_total",
            "Connections that became a link of the synch channel.",
            &[],
            &[(&[], s.channel.connections)],
        )?;
        b.gauge(
            "espalier_certificate_expiry_timestamp_seconds",
            "When this member's certificate expires, seconds since 1970.",
            &[],
            &[(&[], s.channel.not_after as i64)],
        )?;
        let certificates = s.connections.iter();
        let certificates = certificates
            .filter_map(|c| Some(([c.name.as_str()], c.certificate.as_ref()?.not_after as i64)))
            .collect::<Vec<_>>();
        let certificates = certificates.iter().map(|(l, v)| (&l[..], *v)).collect::<Vec<_>>();
        b.gauge(
            "espalier_connection_certificate_expiry_timestamp_seconds",
            "When the certificate that we prove ourselves by to this connection's peer expires, seconds since 1970.",
            &["connection"],
            &certificates,
        )?;
        b.counter(
            "espalier_synch_datagrams_lost_total",
            "Datagrams of the synch channel lost on this host.",
            &[],
            &[(&[], self.synch.datagram_lost)],
        )?;
        b.float(
            "espalier_uptime_seconds",
            "Seconds since the agent started.",
            &[],
            &[(&[], s.uptime_s as f64)],
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
    use crate::api::TakeoverStatus;

    #[test]
    fn a_sample_becomes_metrics_with_base_units_and_no_sa_labels() {
        let mut sample = Sample::default();
        sample.status.role = "active".to_owned();
        sample.status.name = "gw1".to_owned();
        sample.lease_headroom_lowest = Some(0.5);
        sample.status.last_takeover = Some(TakeoverStatus {
            phases_ms: [("suspected".to_owned(), 120.0)].into(),
            ..TakeoverStatus::default()
        });
        sample.status.channel.not_after = 2_000_000_000;
        sample.status.channel.refused.insert("revoked".to_owned(), 3);
        sample.status.connections.push(crate::api::ConnectionStatus {
            name: "site-a".to_owned(),
            certificate: Some(crate::api::CertificateStatus {
                not_after: 2_000_000_001,
                ..Default::default()
            }),
            ..Default::default()
        });
        sample.verdicts.push(("site-a".to_owned(), "esp_opened", 7));
        let text = sample.text().unwrap();
        for line in [
            "espalier_packets_total{connection=\"site-a\",member=\"gw1\",verdict=\"esp_opened\"} 7",
            "espalier_role_info{member=\"gw1\",role=\"active\"} 1",
            "espalier_role_info{member=\"gw1\",role=\"standby\"} 0",
            "espalier_certificate_expiry_timestamp_seconds{member=\"gw1\"} 2000000000",
            "espalier_connection_certificate_expiry_timestamp_seconds{connection=\"site-a\",member=\"gw1\"} 2000000001",
            "espalier_synch_refused_total{member=\"gw1\",reason=\"revoked\"} 3",
            "espalier_takeover_phase_seconds{member=\"gw1\",phase=\"suspected\"} 0.12",
            "espalier_lease_headroom_lowest_ratio{member=\"gw1\"} 0.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
        assert!(!text.contains("spi"));
    }
}
