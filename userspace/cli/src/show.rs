//! Tables for people. Everything in them is in the JSON as well.

use agent::status::{EventEntry, SaList, Status};
use comfy_table::{Table, presets};

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head.to_vec());
    table
}

fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.1} ms"))
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{:.0} %", v * 100.0))
}

/// Seconds as an operator reads them.
fn time(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

/// `espalier status`.
pub fn status(s: &Status) -> String {
    let mut facts = Table::new();
    facts.load_preset(presets::NOTHING);
    let in_sync = s.in_sync.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
    let attached = s.data_plane.attached.iter().map(|(i, m)| format!("{i} {m}")).collect::<Vec<_>>().join(", ");
    for (name, value) in [
        ("cluster", s.cluster.clone()),
        ("member", format!("{} ({})", s.member, s.member_name)),
        ("role", s.role.clone()),
        ("epoch", format!("{}, owner {}", s.epoch, s.owner)),
        ("segments owned", s.segments_owned.to_string()),
        ("in sync", in_sync),
        ("SAs", format!("{} IKE, {} Child", s.ike_sas, s.child_sas)),
        ("lowest lease left", percent(s.lease_headroom_lowest)),
        ("lowest headroom left", percent(s.ceiling_headroom_lowest)),
        ("commits pending", s.commits_pending.to_string()),
        ("XDP", format!("{attached}; {} CPUs, {} slots", s.data_plane.cpus, s.data_plane.slots)),
        ("up", time(s.uptime_seconds)),
    ] {
        facts.add_row([name.to_owned(), value]);
    }
    let mut out = facts.to_string();
    if !s.peers.is_empty() {
        let up = |b: bool| if b { "up" } else { "down" };
        let mut peers = table(&["peer", "synch link", "outside link", "last seen"]);
        for p in &s.peers {
            let seen = ms(p.last_seen_ms);
            peers.add_row([format!("{} ({})", p.id, p.name), up(p.synch_up).into(), up(p.outside_up).into(), seen]);
        }
        out.push_str(&format!("\n\n{peers}"));
    }
    if !s.connections.is_empty() {
        let mut connections = table(&["connection", "phase", "IKE", "Child"]);
        for c in &s.connections {
            connections.add_row([c.name.clone(), c.phase.clone(), c.ike_sas.to_string(), c.child_sas.to_string()]);
        }
        out.push_str(&format!("\n\n{connections}"));
    }
    if let Some(t) = &s.last_takeover {
        let kind = if t.planned { "planned" } else { "unplanned" };
        let mut phases = table(&["detect", "claim", "flip", "announce", "adopt", "first packet", "total"]);
        phases.add_row([
            ms(t.detect_ms),
            ms(t.claim_ms),
            ms(t.flip_ms),
            ms(t.announce_ms),
            ms(t.adopt_ms),
            ms(t.first_packet_ms),
            ms(t.total_ms),
        ]);
        out.push_str(&format!("\n\nlast takeover: {kind}, epoch {}: {}\n{phases}", t.epoch, t.reason));
    }
    out
}

/// `espalier sas`.
pub fn sas(list: &SaList) -> String {
    let mut ike = table(&["connection", "IKE SPI", "phase", "peer", "identity", "suite", "age", "children"]);
    for sa in &list.ike_sas {
        ike.add_row([
            sa.connection.clone().unwrap_or_else(|| "-".to_owned()),
            sa.spi.clone(),
            sa.phase.clone(),
            sa.remote.clone(),
            sa.remote_id.clone().unwrap_or_else(|| "-".to_owned()),
            sa.suite.clone(),
            time(sa.age_seconds),
            sa.children.to_string(),
        ]);
    }
    let mut child = table(&[
        "connection/child", "in", "out", "peer", "suite", "selectors", "seq/lease", "edge/ceiling", "packets in/out", "age",
    ]);
    for sa in &list.child_sas {
        child.add_row([
            format!("{}/{}", sa.connection, sa.child),
            sa.spi_in.clone(),
            sa.spi_out.clone(),
            sa.remote.clone(),
            sa.suite.clone(),
            format!("{} = {}", sa.ts_local.join(","), sa.ts_remote.join(",")),
            format!("{}/{}", sa.seq_out, sa.lease),
            format!("{}/{}", sa.edge_in, sa.ceiling),
            format!("{}/{}", sa.packets_in, sa.packets_out),
            time(sa.age_seconds),
        ]);
    }
    format!("{ike}\n\n{child}")
}

/// `espalier events`.
pub fn events(events: &[EventEntry]) -> String {
    let mut rows = table(&["number", "time", "kind", "event"]);
    for e in events {
        let day = (e.wall % 86_400.0).max(0.0);
        let (h, m, s) = ((day / 3600.0) as u32, (day / 60.0) as u32 % 60, day % 60.0);
        rows.add_row([e.number.to_string(), format!("{h:02}:{m:02}:{s:06.3}"), e.kind.clone(), e.text.clone()]);
    }
    rows.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent::status::TakeoverReport;

    #[test]
    fn the_last_takeover_is_shown_with_its_phases() {
        let mut s = Status { role: "active".to_owned(), ..Status::default() };
        assert!(!status(&s).contains("last takeover"));
        s.last_takeover =
            Some(TakeoverReport { reason: "silence".to_owned(), detect_ms: Some(112.34), ..TakeoverReport::default() });
        let text = status(&s);
        assert!(text.contains("112.3 ms") && text.contains("unplanned") && text.contains("silence"), "{text}");
    }

    #[test]
    fn times_read_like_times() {
        assert_eq!(time(59.9), "59 s");
        assert_eq!(time(61.0), "1 min 1 s");
        assert_eq!(time(7260.0), "2 h 1 min");
    }
}
