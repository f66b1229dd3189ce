//! Answers as tables for people.

use agent::api::{
    ChannelStatus, ChildSa, ConnectionStatus, IkeSa, LoggedEvent, MemberStatus, Policies, ReloadReport,
    Status, TakeoverStatus,
};
use comfy_table::{Table, presets};
use std::fmt::Write;

/// An empty table.
pub fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_HORIZONTAL_ONLY)
        .set_header(header.iter().copied());
    table
}

/// Why a connection is down, and what is done about it.
fn reason(connection: &ConnectionStatus) -> String {
    let mut text = connection.reason.clone().unwrap_or_default();
    if let Some(retry) = &connection.retry {
        let separator = if text.is_empty() { "" } else { "; " };
        let remote = |address: &Option<String>| address.clone().unwrap_or_default();
        let _ = match retry.next_in_ms {
            Some(ms) => write!(
                text,
                "{separator}{} attempt(s), the next to {} in {:.1} s",
                retry.attempts,
                remote(&retry.next_remote),
                ms as f64 / 1000.0
            ),
            None => write!(
                text,
                "{separator}attempt {} to {}",
                retry.attempts,
                remote(&retry.last_remote)
            ),
        };
    }
    text
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() {
        return "-".to_owned();
    }
    items
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// `espalier reload`.
pub fn reload(report: &ReloadReport) -> String {
    let mut out = String::new();
    let changes = [("+", &report.added), ("-", &report.removed)];
    for (sign, places) in changes {
        for place in places {
            let _ = writeln!(out, "{sign} {place}");
        }
    }
    let values: Vec<_> = report.changed.iter().chain(&report.needs_restart).collect();
    if !values.is_empty() {
        let mut changed = table(&["changed", "from", "to", "in force"]);
        for value in values {
            let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
            changed.add_row([
                value.path.clone(),
                shown(&value.old),
                shown(&value.new),
                value.effect.text().to_owned(),
            ]);
        }
        let _ = writeln!(out, "{changed}");
    }
    out.push_str(&report.text);
    out
}

/// `espalier status`.
pub fn status(status: &Status) -> String {
    let mut out = String::new();
    let valid = if status.owner == status.member {
        format!(", valid for {} ms", status.valid_for_ms)
    } else {
        String::new()
    };
    let _ = writeln!(
        out,
        "{} member {} ({}): {}, {} with the {} engine\nepoch {}, owner {}{valid}, in sync {}, journal {} (committed {}), up {} s",
        status.cluster,
        status.member,
        status.name,
        status.role,
        status.mode,
        status.engine,
        status.epoch,
        status.owner,
        list(&status.in_sync),
        status.journal.position,
        status.journal.committed,
        status.uptime_s,
    );
    if let Some(trouble) = &status.trouble {
        let _ = writeln!(out, "TROUBLE: {trouble}");
    }
    if status.draining {
        let _ = writeln!(
            out,
            "drained: it takes nothing over by itself (espalier undrain ends that)"
        );
    }
    if let Some(silence) = &status.engine_silent {
        let _ = writeln!(
            out,
            "the ownership engine has not answered for {:.1} s: {}",
            silence.for_ms as f64 / 1000.0,
            silence.why
        );
    }
    if status.groups.len() > 1 {
        let _ = writeln!(out, "\n{}", groups(status));
    }
    let mut members = table(&[
        "member",
        "name",
        "state",
        "in sync",
        "groups",
        "links",
        "format",
        "secret",
        "last heartbeat",
        "suspected after",
    ]);
    for member in &status.members {
        members.add_row([
            member.id.to_string(),
            member.name.clone(),
            member_state(member),
            if member.in_sync { "yes" } else { "no" }.to_owned(),
            member.groups_owned.to_string(),
            list(&member.links_up),
            member
                .record_format
                .map_or("-".to_owned(), |format| format.to_string()),
            member.secret.clone().unwrap_or_else(|| "-".to_owned()),
            member
                .last_heartbeat_ms
                .map_or("never".to_owned(), |ms| format!("{ms} ms ago")),
            format!("{} ms", member.suspicion_ms),
        ]);
    }
    let _ = writeln!(out, "\n{members}");
    if status.record_format != status.record_format_newest {
        let _ = writeln!(
            out,
            "speaks record format {} at most (record_format in [cluster]); this release knows {}",
            status.record_format, status.record_format_newest
        );
    }
    if !status.secret.active.is_empty() {
        let _ = write!(out, "cluster secret {} in use", status.secret.active);
        for (name, what) in [
            (&status.secret.next, "is known as the next"),
            (&status.secret.before, "before is honoured"),
        ] {
            if let Some(name) = name {
                let _ = write!(out, ", {name} {what}");
            }
        }
        out.push('\n');
    }
    for member in status.members.iter().filter(|m| !m.differs.is_empty()) {
        let _ = writeln!(
            out,
            "member {} has another configuration in: {}",
            member.id,
            member.differs.join(", ")
        );
    }
    if !status.channel.certificate.is_empty() {
        let _ = writeln!(out, "\n{}", channel(&status.channel));
    }
    let mut connections = table(&[
        "connection",
        "state",
        "peer",
        "Child SAs",
        "certificate",
        "agreed",
        "reason",
    ]);
    for connection in &status.connections {
        connections.add_row([
            connection.name.clone(),
            connection.state.clone(),
            connection.remote.clone(),
            connection.children.to_string(),
            connection
                .certificate
                .as_ref()
                .map_or("-".to_owned(), |c| match c.days_left {
                    ..0 => "expired".to_owned(),
                    days => format!("{days} days left"),
                }),
            list(&connection.agreed),
            reason(connection),
        ]);
    }
    let _ = writeln!(out, "\n{connections}");
    if !status.pools.is_empty() {
        let mut pools = table(&["pool", "network", "addresses", "used here"]);
        for pool in &status.pools {
            pools.add_row([
                pool.name.clone(),
                pool.network.clone(),
                pool.size.to_string(),
                pool.used.to_string(),
            ]);
        }
        let _ = writeln!(out, "\n{pools}");
    }
    for interface in &status.interfaces {
        let _ = writeln!(
            out,
            "{} interface {}: {} XDP, MTU {}",
            interface.side, interface.name, interface.mode, interface.mtu
        );
    }
    if let Some(last) = &status.last_takeover {
        let _ = writeln!(
            out,
            "\nlast takeover: {}",
            takeover(last, status.groups.len() > 1, status.member)
        );
    }
    let others = status.takeovers.iter().filter(|t| {
        let last = status.last_takeover.as_ref();
        last.is_none_or(|last| last.group != t.group)
    });
    for other in others {
        let _ = writeln!(out, "before: {}", takeover(other, true, status.member));
    }
    if !status.verdicts.is_empty() {
        let mut verdicts = table(&["verdict", "packets"]);
        for (name, packets) in &status.verdicts {
            verdicts.add_row([name.clone(), packets.to_string()]);
        }
        let _ = writeln!(out, "\n{verdicts}");
    }
    out.truncate(out.trim_end().len());
    out
}

fn member_state(member: &MemberStatus) -> String {
    let mut state = member.state.clone();
    if !member.healthy {
        state.push_str(", in trouble");
    }
    if member.draining {
        state.push_str(", drained");
    }
    state
}

/// What planned moves wait for at the moment; `None`: for nothing.
pub fn move_waits(status: &Status) -> Option<String> {
    let waiting = status.groups.iter().filter(|g| g.move_waits.is_some());
    let lines = waiting.map(|g| {
        format!(
            "group {}: {} Child SAs are to be rekeyed before it moves",
            g.group, g.suspects
        )
    });
    let lines = lines.collect::<Vec<_>>();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Who owns what.
fn groups(status: &Status) -> Table {
    let mut groups = table(&["group", "segments", "owner", "epoch", "in sync", "home", "state"]);
    for group in &status.groups {
        let mut state = group.role.clone();
        if group.handover {
            state.push_str(", moving");
        }
        if group.suspects > 0 {
            state.push_str(&format!(", {} Child SAs to rekey", group.suspects));
        }
        if let Some(to) = group.move_waits {
            state.push_str(&format!(" before it moves to member {to}"));
        }
        if group.engine_waits {
            state.push_str(", waits for the ownership engine");
        }
        groups.add_row([
            group.group.to_string(),
            group.segments.to_string(),
            if group.owner == 0 {
                "none".to_owned()
            } else {
                group.owner.to_string()
            },
            group.epoch.to_string(),
            list(&group.in_sync),
            group.home.to_string(),
            state,
        ]);
    }
    groups
}

/// `me`: only the taker knows what it took over.
fn takeover(takeover: &TakeoverStatus, with_group: bool, me: u8) -> String {
    let mut phases: Vec<_> = takeover.phases_ms.iter().collect();
    phases.sort_by(|a, b| a.1.total_cmp(b.1));
    let line = phases
        .iter()
        .map(|(name, ms)| format!("{name} {ms:.1} ms"))
        .collect::<Vec<_>>()
        .join(" -> ");
    let group = if with_group {
        format!(" of group {}", takeover.group)
    } else {
        String::new()
    };
    let mut text = format!(
        "{}{group} from member {} to member {}, epoch {} at {} ({})\n  {line}",
        takeover.kind,
        takeover.from,
        takeover.to,
        takeover.epoch,
        utc(takeover.started_wall_ns),
        takeover.reason,
    );
    if takeover.to == me {
        let _ = write!(
            text,
            "\n  {} IKE SAs, {} Child SAs, {} rekeyed on evidence",
            takeover.ike_sas, takeover.child_sas, takeover.evidence_rekeys
        );
    }
    text
}

/// The synch channel's part of `espalier status`.
fn channel(channel: &ChannelStatus) -> String {
    let mut out = format!(
        "certificate {} of {}, until {} ({} days){}\n",
        channel.certificate,
        channel.issuer,
        date(channel.not_after),
        channel.days_left,
        if channel.renewing {
            ", links are being renewed"
        } else {
            ""
        }
    );
    let mut links = table(&[
        "link to",
        "network",
        "up for",
        "round trip",
        "release",
        "certificate",
        "days left",
    ]);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for link in &channel.links {
        links.add_row([
            link.member.to_string(),
            link.link.clone(),
            link.up_s.map_or_else(|| "down".to_owned(), |s| format!("{s} s")),
            or_dash(link.rtt_ms.map(|ms| format!("{ms:.2} ms"))),
            or_dash(link.release.clone()),
            or_dash(link.certificate.clone()),
            or_dash(link.days_left.map(|days| days.to_string())),
        ]);
    }
    let _ = write!(out, "{links}");
    let refused = channel.refused.iter().filter(|(_, n)| **n > 0);
    let refused = refused.map(|(why, n)| format!("{why} {n}")).collect::<Vec<_>>();
    if !refused.is_empty() {
        let _ = write!(out, "\nrefused on the synch channel: {}", refused.join(", "));
    }
    out
}

/// When the IKE SA is due to be authenticated anew.
fn authentication(ike: &IkeSa) -> String {
    let Some(left) = ike.reauth_in_s else {
        return String::new();
    };
    let ago = ike.authenticated_s.unwrap_or_default();
    match ike.initiator {
        true => format!(", authenticated {ago} s ago, anew in {left} s"),
        false => format!(", authenticated {ago} s ago, ends in {left} s unless anew"),
    }
}

/// `espalier sas`.
pub fn sas(sas: &[IkeSa]) -> String {
    if sas.is_empty() {
        return "no SAs".to_owned();
    }
    let mut out = String::new();
    for ike in sas {
        let _ = writeln!(
            out,
            "{}: {}, {} {} <-> {} [{}]{}, SPIs {} / {}, {}, next request {} / expected {}{}{}",
            ike.connection,
            ike.state,
            if ike.initiator { "initiator" } else { "responder" },
            ike.local,
            ike.remote,
            ike.remote_id,
            match ike.virtual_addresses.is_empty() {
                true => String::new(),
                false => format!(", virtual address {}", ike.virtual_addresses.join(", ")),
            },
            ike.spi_local,
            ike.spi_remote,
            ike.suite,
            ike.next_request_id,
            ike.expected_request_id,
            ike.age_s.map_or(String::new(), |s| format!(", {s} s old")),
            authentication(ike),
        );
        let mut children = table(&[
            "child",
            "SPI in / out",
            "suite",
            "segment",
            "member",
            "CPU",
            "local",
            "remote",
            "in: packets, edge / ceiling",
            "out: packets, seq / lease",
        ]);
        for child in &ike.children {
            let mut suite = child.suite.clone();
            if child.esn {
                suite.push_str(", ESN");
            }
            if child.udp_encap {
                suite.push_str(", UDP");
            }
            if child.transport {
                suite.push_str(", transport");
            }
            children.add_row([
                child.name.clone(),
                format!("{} / {}", child.spi_in, child.spi_out),
                suite,
                child.segment.to_string(),
                served_by(child),
                child.cpu.to_string(),
                list(&child.ts_local),
                list(&child.ts_remote),
                format!("{}, {} / {}", child.packets_in, child.edge, bound(child.ceiling)),
                format!("{}, {} / {}", child.packets_out, child.seq, bound(child.lease)),
            ]);
        }
        let _ = writeln!(out, "{children}\n");
    }
    out.truncate(out.trim_end().len());
    out
}

/// The member that serves a Child SA, and whether it is for that member's traffic alone.
fn served_by(child: &ChildSa) -> String {
    let own = if child.guest && child.bound {
        ", its own"
    } else {
        ""
    };
    format!("{}{own}", child.member)
}

fn bound(limit: u64) -> String {
    if limit == u64::MAX {
        "none".to_owned()
    } else {
        limit.to_string()
    }
}

/// `espalier policies`.
pub fn policies(policies: &Policies) -> String {
    let ports = |ports: Option<(u16, u16)>| match ports {
        None => "any".to_owned(),
        Some((first, last)) if first == last => first.to_string(),
        Some((first, last)) => format!("{first}-{last}"),
    };
    let mut rules = table(&[
        "destination",
        "source",
        "protocol",
        "ports: source / destination",
        "action",
        "policy",
        "SPI in",
    ]);
    for rule in &policies.rules {
        rules.add_row([
            rule.destination.clone(),
            rule.source.clone(),
            rule.protocol.map_or("any".to_owned(), |p| p.to_string()),
            format!("{} / {}", ports(rule.source_ports), ports(rule.destination_ports)),
            rule.action.clone(),
            rule.name.clone(),
            rule.spi_in.clone().unwrap_or_default(),
        ]);
    }
    let mut out = rules.to_string();
    if policies.left_out > 0 {
        let _ = write!(
            out,
            "\n{} more rules of SAs are not shown (espalier sas has their selectors)",
            policies.left_out
        );
    }
    out
}

/// `espalier events`.
pub fn events(events: &[LoggedEvent]) -> String {
    if events.is_empty() {
        return "nothing has happened yet".to_owned();
    }
    let mut table = table(&["monotonic s", "wall clock (UTC)", "group", "event", ""]);
    for event in events {
        table.add_row([
            format!("{:.6}", event.monotonic_ns as f64 / 1e9),
            utc(event.wall_ns),
            event.group.map_or_else(String::new, |group| group.to_string()),
            event.kind.clone(),
            event.text.clone(),
        ]);
    }
    table.to_string()
}

/// `YYYY-MM-DD`, of seconds since 1970.
pub fn date(seconds: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.split('T').next().unwrap_or_default().to_owned()
}

/// `YYYY-MM-DDThh:mm:ss.mmmZ`.
fn utc(wall_ns: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(wall_ns);
    humantime::format_rfc3339_millis(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent::api::{ChildSa, GroupLine};

    #[test]
    fn phases_of_a_takeover_are_shown_in_the_order_of_time() {
        let phases = [("flipped", 104.5), ("suspected", 101.0), ("claimed", 102.0)];
        let takeover = TakeoverStatus {
            kind: "failover".to_owned(),
            phases_ms: phases.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect(),
            ..TakeoverStatus::default()
        };
        let text = status(&Status {
            last_takeover: Some(takeover),
            ..Status::default()
        });
        assert!(
            text.contains("suspected 101.0 ms -> claimed 102.0 ms -> flipped 104.5 ms"),
            "{text}"
        );
    }

    #[test]
    fn a_takeover_by_another_member_is_shown_with_its_reason() {
        let takeover = TakeoverStatus {
            kind: "failover".to_owned(),
            from: 1,
            to: 3,
            reason: "member 1 was silent".to_owned(),
            ..TakeoverStatus::default()
        };
        let shown = |member| {
            status(&Status {
                member,
                last_takeover: Some(takeover.clone()),
                ..Status::default()
            })
        };
        let text = shown(2);
        assert!(text.contains("from member 1 to member 3"), "{text}");
        assert!(
            text.contains("(member 1 was silent)") && !text.contains("Child SAs,"),
            "{text}"
        );
        assert!(shown(3).contains("0 Child SAs,"));
    }

    #[test]
    fn groups_are_shown_where_there_are_several_and_troubles_always() {
        let group = |id, owner| GroupLine {
            group: id,
            owner,
            role: "standby".to_owned(),
            ..GroupLine::default()
        };
        let mut shown = Status {
            groups: vec![group(0, 2)],
            trouble: Some("inside interface eth1 has no carrier".to_owned()),
            ..Status::default()
        };
        let text = status(&shown);
        assert!(text.contains("TROUBLE: inside interface eth1"), "{text}");
        assert!(!text.contains("home"), "{text}");
        shown.groups.push(GroupLine {
            engine_waits: true,
            ..group(1, 0)
        });
        let text = status(&shown);
        assert!(
            text.contains("none") && text.contains("standby, waits for the ownership engine"),
            "{text}"
        );
    }

    #[test]
    fn an_sa_without_upper_limit_shows_none() {
        let child = ChildSa {
            lease: u64::MAX,
            seq: 7,
            ..ChildSa::default()
        };
        let text = sas(&[IkeSa {
            children: vec![child],
            ..IkeSa::default()
        }]);
        assert!(text.contains("7 / none"), "{text}");
        assert_eq!(sas(&[]), "no SAs");
    }

    #[test]
    fn wall_time_is_shown_in_utc_with_milliseconds() {
        assert_eq!(utc(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123Z");
    }
}
