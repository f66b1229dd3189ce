//! Takeovers under traffic: a dead host, a planned move, a dead agent on a living host.

use super::figures::{Figures, TcpTakeover};
use super::timeline::{Phase, Timeline};
use super::traffic::Traffic;
use anyhow::Result;
use lab::clock::now_ns;
use lab::esp::exchange;
use lab::stage::Stage;
use lab::tcp::Stream;
use lab::topology::{Lab, addr};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a takeover may take before the demo gives up, not what it should take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is known after the host of A has died.
pub struct Killed {
    /// When.
    pub at_ns: u64,
    /// The picture.
    pub timeline: Timeline,
}

/// Kills A's agent and takes A's links down, under traffic.
pub fn kill_host(stage: &mut Stage, figures: &mut Figures) -> Result<Killed> {
    let traffic = Traffic::start(stage)?;
    traffic.run_for(Duration::from_millis(1500))?;
    let killed = stage.members[0].kill_host()?;
    traffic
        .wait_answers_after(killed + 1_000_000, PATIENCE)
        .inspect_err(|_| note_state(stage))?;
    traffic.run_for(Duration::from_millis(2000))?;
    let outcome = traffic.stop()?;
    let until = now_ns();

    let carried = first_through(stage, 1, killed)?;
    let phases = phases(stage, killed, carried)?;
    figures.takeover_ms = durations(killed, &phases);
    if let (Some(last), Some(first)) = (last_through(stage, 0, killed)?, carried) {
        figures.last_packet_before_kill_ms = Some(ms(last, killed));
        figures.outage_ms = Some(ms(last, first));
    }
    figures.packets_lost = outcome.lost();
    figures.packets_lost_by_flow = outcome.lost_by_flow();
    let inits = stage
        .outside
        .read(|l| l.requests(exchange::IKE_SA_INIT, killed, until));
    let rekeys = stage
        .outside
        .read(|l| l.requests(exchange::CREATE_CHILD_SA, killed, until));
    figures.rekeys_during_takeover = rekeys as u64;
    let new_spis = stage
        .outside
        .read(|l| l.flows.values().filter(|f| f.first_ns > killed).count());
    figures.check(
        "B carries traffic after A's host has died",
        carried.is_some(),
        outcome.line(),
    );
    figures.check(
        "same IKE SAs: no IKE_SA_INIT on the wire",
        inits == 0,
        format!("{inits} seen"),
    );
    figures.check(
        "same Child SAs: no new SPI, no rekey",
        new_spis == 0 && rekeys == 0,
        format!("{new_spis} new SPIs, {rekeys} rekeys"),
    );
    figures.check(
        "no packet was delivered twice",
        outcome.repeated() == 0,
        format!("{} repeated", outcome.repeated()),
    );
    let timeline = Timeline::collect(stage, killed, phases)?;
    Ok(Killed {
        at_ns: killed,
        timeline,
    })
}

/// A planned move from one member to the other, under traffic.
pub fn planned(stage: &mut Stage, from: usize, to: usize, figures: &mut Figures) -> Result<()> {
    let traffic = Traffic::start(stage)?;
    traffic.run_for(Duration::from_millis(1000))?;
    let start = now_ns();
    let target = stage.members[to].place.id.to_string();
    stage.members[from].espalier(&["takeover", "--to", &target])?;
    stage.wait_active(to, PATIENCE)?;
    traffic.run_for(Duration::from_millis(1500))?;
    let outcome = traffic.stop()?;
    let until = now_ns();
    figures.planned_packets_lost = outcome.lost();
    let carried = first_through(stage, to, start)?;
    let rekeys = stage
        .outside
        .read(|l| l.requests(exchange::CREATE_CHILD_SA, start, until));
    let inits = stage
        .outside
        .read(|l| l.requests(exchange::IKE_SA_INIT, start, until));
    figures.check(
        "a planned takeover loses not one packet",
        outcome.lost() == 0,
        outcome.line(),
    );
    let moved = carried.is_some() && rekeys + inits == 0 && outcome.repeated() == 0;
    let detail = format!(
        "{rekeys} rekeys, {inits} IKE_SA_INIT, {} repeated",
        outcome.repeated()
    );
    figures.check("the planned takeover moved the same SAs", moved, detail);
    Ok(())
}

/// Kills the agent of a member alone; its host and its programs live on.
pub fn kill_agent(stage: &mut Stage, victim: usize, other: usize, figures: &mut Figures) -> Result<()> {
    let traffic = Traffic::start(stage)?;
    traffic.run_for(Duration::from_millis(1000))?;
    let killed = stage.members[victim].kill_agent()?;
    stage
        .wait_active(other, PATIENCE)
        .inspect_err(|_| note_state(stage))?;
    traffic
        .wait_answers_after(now_ns(), PATIENCE)
        .inspect_err(|_| note_state(stage))?;
    traffic.run_for(Duration::from_millis(1500))?;
    let outcome = traffic.stop()?;
    let until = now_ns();
    let carried = first_through(stage, other, killed)?;
    figures.dead_man_ms = carried.map(|at| ms(killed, at));
    figures.dead_man_packets_lost = outcome.lost();
    let inits = stage
        .outside
        .read(|l| l.requests(exchange::IKE_SA_INIT, killed, until));
    let victim_mac = Lab::mac(&stage.lab.members[victim].netns, "outside")?;
    // After the other member's first packet the victim's programs must not seal any more.
    let late = carried.map_or(0, |at| {
        stage.outside.read(|l| {
            l.esp_out
                .iter()
                .filter(|(t, mac)| *t > at + 100_000_000 && *mac == victim_mac)
                .count()
        })
    });
    figures.check(
        "the dead-man's switch hands over from a dead agent on a living host",
        carried.is_some() && inits == 0,
        outcome.line(),
    );
    figures.check(
        "the host of the dead agent serves no more",
        late == 0,
        format!("{late} packets after the handover"),
    );
    Ok(())
}

/// Kills the active member's agent and takes its links down while one TCP stream runs at full speed to the server.
pub fn kill_under_tcp(stage: &mut Stage, victim: usize, other: usize, figures: &mut Figures) -> Result<()> {
    let (host, server) = (&stage.lab.host, &stage.lab.server);
    let stream = Stream::start(host, (server, addr::SERVER_ONE), 7003)?;
    stream.wait_arrival_after(now_ns() + 1_500_000_000, PATIENCE)?;
    let before = stage.outside.read(lab::ledger::Ledger::duplicates);
    let killed = stage.members[victim].kill_host()?;
    stage
        .wait_active(other, PATIENCE)
        .inspect_err(|_| note_state(stage))?;
    let gone_on = stream.wait_arrival_after(now_ns(), PATIENCE);
    if gone_on.is_ok() {
        stream.wait_arrival_after(now_ns() + 2_000_000_000, PATIENCE)?;
    } else {
        note_state(stage);
    }
    let result = stream.finish();
    let until = now_ns();
    let rekeys = stage
        .outside
        .read(|l| l.requests(exchange::CREATE_CHILD_SA, killed, until));
    let inits = stage
        .outside
        .read(|l| l.requests(exchange::IKE_SA_INIT, killed, until));
    let after = stage.outside.read(lab::ledger::Ledger::duplicates);
    figures.rekeys_tcp = Some(rekeys as u64);
    let stall = result.as_ref().ok().and_then(|r| r.longest_stall(killed));
    if let (Ok(result), Some((from, to))) = (&result, stall) {
        figures.tcp_takeover = Some(TcpTakeover {
            resumed_ms: ms(killed, to),
            stall_ms: ms(from, to),
            octets: result.sent,
        });
    }
    let text = match (&result, stall) {
        (Ok(result), Some((_, to))) => format!(
            "it goes on after {:.0} ms; {:.0} MB arrived as sent; {rekeys} Child SA rekeys on evidence or otherwise, {inits} \
             IKE_SA_INIT",
            ms(killed, to),
            result.sent as f64 / 1e6
        ),
        (Ok(_), None) => "nothing arrived after the kill".to_owned(),
        (Err(error), _) => format!("{error:#}"),
    };
    figures.check(
        "a TCP stream outlives the active member",
        stall.is_some() && gone_on.is_ok() && inits == 0,
        text,
    );
    figures.check(
        "the takeover under TCP repeats no (SPI, sequence number) and no (SPI, IV)",
        after == before,
        format!("{} and {}", after.0 - before.0, after.1 - before.1),
    );
    Ok(())
}

/// Time of the first packet that a member carried in either direction after `since`.
fn first_through(stage: &Stage, member: usize, since: u64) -> Result<Option<u64>> {
    let place = &stage.lab.members[member];
    let (outside, inside) = (
        Lab::mac(&place.netns, "outside")?,
        Lab::mac(&place.netns, "inside")?,
    );
    let first = |list: &[(u64, [u8; 6])], mac: [u8; 6]| {
        list.iter()
            .filter(|(t, m)| *t > since && *m == mac)
            .map(|(t, _)| *t)
            .min()
    };
    let sealed = stage.outside.read(|l| first(&l.esp_out, outside));
    let opened = stage.inside.read(|l| first(&l.clear, inside));
    Ok(sealed.into_iter().chain(opened).min())
}

/// The last packet that a member carried before `until`, in either direction.
fn last_through(stage: &Stage, member: usize, until: u64) -> Result<Option<u64>> {
    let mac = |interface| Lab::mac(&stage.lab.members[member].netns, interface);
    let (outside, inside) = (mac("outside")?, mac("inside")?);
    let last = |list: &[(u64, [u8; 6])], mac: [u8; 6]| {
        let own = list.iter().filter(|(at, from)| *from == mac && *at <= until);
        own.map(|(at, _)| *at).max()
    };
    let sealed = stage.outside.read(|l| last(&l.esp_out, outside));
    let opened = stage.inside.read(|l| last(&l.clear, inside));
    Ok(sealed.into_iter().chain(opened).max())
}

/// The phases in order, at absolute times: B's own account, the announcement and the first packet from the recorders.
fn phases(stage: &Stage, killed: u64, carried: Option<u64>) -> Result<Vec<Phase>> {
    let mut phases = Vec::new();
    let status = stage.members[1].status()?;
    let report = &status["last_takeover"];
    if let (Some(start), Some(offsets)) = (report["started_ns"].as_u64(), report["phases_ms"].as_object()) {
        for (name, key) in [
            ("suspected", "suspected"),
            ("claimed", "claimed"),
            ("flipped", "flipped"),
        ] {
            if let Some(offset) = offsets.get(key).and_then(serde_json::Value::as_f64) {
                phases.push(Phase {
                    name: name.into(),
                    at_ns: start + (offset * 1e6) as u64,
                });
            }
        }
    }
    let mac = Lab::mac(&stage.lab.members[1].netns, "outside")?;
    let announced = stage.outside.read(|l| {
        l.announcements
            .iter()
            .find(|(t, from, ip)| *t > killed && *from == mac && *ip == addr::CLUSTER_OUTSIDE)
            .map(|a| a.0)
    });
    phases.extend(announced.map(|at_ns| Phase {
        name: "announced".into(),
        at_ns,
    }));
    phases.extend(carried.map(|at_ns| Phase {
        name: "first packet".into(),
        at_ns,
    }));
    Ok(phases)
}

fn durations(killed: u64, phases: &[Phase]) -> BTreeMap<String, f64> {
    let mut durations = BTreeMap::new();
    let keys = [
        ("suspected", "detect"),
        ("claimed", "claim"),
        ("flipped", "flip"),
        ("announced", "announce"),
        ("first packet", "first_packet"),
    ];
    let mut before = killed;
    for (name, key) in keys {
        if let Some(phase) = phases.iter().find(|p| p.name == name) {
            durations.insert(key.to_owned(), ms(before, phase.at_ns));
            before = phase.at_ns;
        }
    }
    if let Some(last) = phases.iter().find(|p| p.name == "first packet") {
        durations.insert("total".to_owned(), ms(killed, last.at_ns));
    }
    durations
}

/// What the members say, for someone who has to find out why it did not work.
fn note_state(stage: &Stage) {
    for member in &stage.members {
        let status = member.status().map_or_else(|e| e.to_string(), |s| s.to_string());
        crate::steps::detail(&format!("member {}: {status}", member.place.letter));
    }
}

fn ms(from: u64, to: u64) -> f64 {
    ((to as f64 - from as f64) / 1e4).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_is_counted_from_the_one_before_and_the_total_from_the_kill() {
        let at = |name: &str, ms: u64| Phase {
            name: name.into(),
            at_ns: ms * 1_000_000,
        };
        let phases = [at("suspected", 120), at("flipped", 125), at("first packet", 140)];
        let d = durations(10_000_000, &phases);
        assert_eq!(
            (d["detect"], d["flip"], d["first_packet"], d["total"]),
            (110.0, 5.0, 15.0, 130.0)
        );
    }
}
