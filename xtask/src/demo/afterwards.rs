//! After a takeover: replays are refused, IKE goes on.

use super::figures::Figures;
use anyhow::{Context, Result};
use lab::clock::{now_ns, wait_for};
use lab::esp::{IKE_RESPONSE, exchange};
use lab::ping;
use lab::stage::Stage;
use lab::topology::{Lab, addr};
use std::collections::BTreeMap;
use std::time::Duration;

/// Verdicts that mean "accepted".
const ACCEPTED: [&str; 2] = ["esp_opened", "esp_opened_local"];
/// Verdicts that mean "refused as a replay".
const REFUSED: [&str; 4] = [
    "below_takeover_floor",
    "replay_duplicate",
    "replay_too_old",
    "unknown_spi",
];

/// Sends everything captured before `until_ns` again, at B.
pub fn replay(stage: &Stage, until_ns: u64, figures: &mut Figures) -> Result<()> {
    let frames = stage.outside.read(|l| l.frames_before(until_ns));
    let total = frames.len() as u64;
    crate::steps::detail(&format!("{total} captured frames"));
    let b = &stage.members[1];
    let before = b.verdicts()?;
    let clear_before = clear_from_b(stage)?;
    let start = now_ns();
    let mac = Lab::mac(&stage.lab.members[1].netns, "outside")?;
    let sent = lab::replay::replay(&stage.lab.router, "outside", mac, frames)?;
    // All are judged once the counters have moved by as many; packets may be lost in queues, so there is a limit.
    let refused = wait_for(Duration::from_secs(5), Duration::from_millis(100), || {
        let refused = moved(&before, &b.verdicts().ok()?, &REFUSED);
        (refused >= sent).then_some(refused)
    });
    // The evidence rule looks at 200 ms; a wrong rekey would follow within a second.
    lab::clock::sleep_until(now_ns() + 1_000_000_000);
    let after = b.verdicts()?;
    let refused = refused.unwrap_or_else(|| moved(&before, &after, &REFUSED));
    let accepted = moved(&before, &after, &ACCEPTED).max(clear_from_b(stage)? - clear_before);
    let rekeys = stage
        .outside
        .read(|l| l.requests(exchange::CREATE_CHILD_SA, start, now_ns()));
    figures.replayed = sent;
    figures.replays_accepted = accepted;
    let held = sent > 0 && accepted == 0;
    figures.check(
        "nothing captured before the kill is accepted afterwards",
        held,
        format!("{accepted} of {sent} accepted"),
    );
    // A little may be lost in queues of a busy machine on the way, and then proves nothing; that is the most it may be.
    let counted = refused >= sent - sent / 100;
    figures.check(
        "replays are refused and counted",
        counted,
        format!("{refused} of {sent} counted as refused"),
    );
    figures.check("replays trigger no rekey", rekeys == 0, format!("{rekeys} seen"));
    Ok(())
}

/// Liveness checks and rekeys from both sides, on the same IKE SAs, with consecutive Message IDs.
pub fn ike_goes_on(stage: &Stage, active: usize, figures: &mut Figures) -> Result<()> {
    let start = now_ns();
    let member = &stage.members[active];
    let ours = member.espalier(&["liveness", "one"]);
    let heard = wait_for(Duration::from_secs(5), Duration::from_millis(20), || {
        answered(stage, exchange::INFORMATIONAL, start, addr::CLUSTER_OUTSIDE).then_some(())
    });
    let alive = ours.is_ok() && heard.is_some();
    figures.check("a liveness check by the cluster is answered", alive, text(&ours));
    // charon checks by itself once it has heard nothing for dpd_delay.
    let theirs = wait_for(Duration::from_secs(10), Duration::from_millis(50), || {
        answered(stage, exchange::INFORMATIONAL, start, addr::PEER).then_some(())
    });
    figures.check(
        "a liveness check by the peer is answered",
        theirs.is_some(),
        "dpd_delay = 3s on the peer",
    );
    let by_peer = stage.peer.rekey_child("one");
    let answered_peer = wait_for(Duration::from_secs(5), Duration::from_millis(20), || {
        answered(stage, exchange::CREATE_CHILD_SA, start, addr::PEER).then_some(())
    });
    figures.check(
        "the peer rekeys a Child SA",
        by_peer.is_ok() && answered_peer.is_some(),
        text(&by_peer.map(|()| String::new())),
    );
    let by_us = member.espalier(&["rekey", "two"]);
    let answered_us = wait_for(Duration::from_secs(5), Duration::from_millis(20), || {
        answered(stage, exchange::CREATE_CHILD_SA, start, addr::CLUSTER_OUTSIDE).then_some(())
    });
    figures.check(
        "the cluster rekeys a Child SA",
        by_us.is_ok() && answered_us.is_some(),
        text(&by_us),
    );
    let (host, server) = (&stage.lab.host, &stage.lab.server);
    let one = ping::short(host, addr::HOST_ONE, addr::SERVER_ONE, 10_000, 50)?;
    let two = ping::short(server, addr::SERVER_TWO, addr::HOST_TWO, 10_000, 50)?;
    figures.check(
        "traffic runs over the rekeyed SAs",
        one.lost() + two.lost() == 0,
        format!("{} of 100 pings lost", one.lost() + two.lost()),
    );
    Ok(())
}

/// Message IDs over the whole run, per IKE SA and side.
pub fn message_ids(stage: &Stage, figures: &mut Figures) {
    let faults = stage.outside.read(lab::ledger::Ledger::message_id_faults);
    let detail = if faults.is_empty() {
        "none skipped".to_owned()
    } else {
        faults.join("; ")
    };
    figures.check(
        "Message IDs are consecutive in both directions",
        faults.is_empty(),
        detail,
    );
}

/// Packets by verdict on a member that is counted since a moment.
pub fn moved(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>, names: &[&str]) -> u64 {
    let of = |map: &BTreeMap<String, u64>| names.iter().filter_map(|n| map.get(*n)).sum::<u64>();
    of(after).saturating_sub(of(before))
}

/// Whether a request of this kind by this side, made since a time, has its response on the wire.
fn answered(stage: &Stage, kind: u8, since: u64, by: std::net::Ipv4Addr) -> bool {
    stage.outside.read(|l| {
        let recent = || l.ike.iter().filter(|m| m.at_ns >= since && m.exchange == kind);
        recent()
            .filter(|m| m.src == by && m.flags & IKE_RESPONSE == 0)
            .any(|request| {
                recent().any(|m| {
                    m.flags & IKE_RESPONSE != 0
                        && m.dst == by
                        && m.spi_i == request.spi_i
                        && m.message_id == request.message_id
                })
            })
    })
}

fn clear_from_b(stage: &Stage) -> Result<u64> {
    let mac = Lab::mac(&stage.lab.members[1].netns, "inside").context("member B")?;
    Ok(stage
        .inside
        .read(|l| l.clear.iter().filter(|(_, m)| *m == mac).count() as u64))
}

fn text(result: &Result<String>) -> String {
    match result {
        Ok(text) => text.lines().next().unwrap_or("answered").trim().to_owned(),
        Err(error) => format!("{error:#}"),
    }
}
