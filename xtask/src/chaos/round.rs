//! One fault, from a healthy cluster to a healthy cluster, with everything judged on the way.

use super::fault::Fault;
use super::inject::{self, Injected, PATIENCE};
use super::moves;
use super::scene::Scene;
use super::tally::Tally;
use anyhow::{Context, Result};
use lab::clock::{now_ns, wait_for};
use lab::esp::exchange;
use lab::topology::Lab;
use std::collections::BTreeSet;
use std::time::Duration;

/// Verdicts that mean "refused as a replay".
const REFUSED: [&str; 4] = [
    "below_takeover_floor",
    "replay_duplicate",
    "replay_too_old",
    "unknown_spi",
];

/// Replays in one round at most.
const REPLAYS_MAX: u32 = 3;

/// What goes on from round to round.
#[derive(Default)]
pub struct Course {
    /// From when to when the pair may have been split.
    splits: Vec<(u64, u64)>,
    /// Deliveries that were judged already.
    repeated: usize,
}

/// Injects a fault and judges it. The line says what happened.
///
/// # Errors
/// The cluster, or a connection, did not come back: the run ends here.
pub fn play(
    scene: &mut Scene,
    fault: Fault,
    may_split: bool,
    course: &mut Course,
    tally: &mut Tally,
) -> Result<String> {
    let owner = scene.cluster.wait_all_in_sync(PATIENCE)?;
    let injected = moves::played(scene, fault, tally, |scene| inject::inject(scene, fault, owner))?;
    let healed = now_ns();
    let now_owner = scene.cluster.wait_all_in_sync(PATIENCE)?;
    let in_sync = now_ns();
    if let Err(silent) = scene.load.wait_answers_after(in_sync, PATIENCE) {
        tally.sas_lost += silent.len() as u64;
        anyhow::bail!("no answers over {} after all was healed", silent.join(", "));
    }
    scene
        .load
        .wait_stream_after(in_sync, PATIENCE)
        .context("after all was healed")?;
    mirrored(scene, now_owner)?;
    let back = now_ns();
    let taker = injected.taker.or((now_owner != owner).then_some(now_owner));
    let takeover_ms = takeover_ms(scene, &injected, taker, tally.groups > 1)?;
    let gap = scene.load.longest_gap(injected.at_ns, healed);
    if may_split {
        course.splits.push((injected.at_ns, back));
        tally.split.faults += 1;
    }
    begun_anew(scene, &injected, may_split, tally);
    let (replayed, refused) = replay(scene, now_owner, tally)?;
    judge(scene, course, tally);
    if tally.groups > 1 {
        moves::losslessly(scene, "rebalance", tally, |scene| moves::rebalance(scene))?;
    }
    // The next round replays from the start of this fault on, and looks for deliveries as far back.
    scene.cluster.outside.forget_before(injected.at_ns);
    scene.cluster.inside.forget_before(injected.at_ns);
    let healed_ms = (back - healed) as f64 / 1e6;
    tally.enter(fault.kind(), fault.kills_owner(), takeover_ms, healed_ms);
    let gap_ms = gap.1 as f64 / 1e6;
    tally.silent(fault.kind(), gap_ms);
    if let Some(noticed) = injected.noticed {
        tally.notice(fault.kind(), noticed);
    }
    let letter = |m: usize| scene.cluster.members[m].place.letter;
    let moved = match (taker, takeover_ms) {
        (Some(taker), Some(ms)) => format!("{} serves after {ms:.0} ms", letter(taker)),
        _ => format!("{} serves on", letter(now_owner)),
    };
    Ok(format!(
        "at {}: {moved}; at most {gap_ms:.0} ms without an answer ({}); back after {healed_ms:.0} ms; {replayed} frames replayed, {refused} refused",
        letter(injected.victim),
        gap.0
    ))
}

/// From the fault to the first packet through the member that took over.
///
/// Where members share the load, the taker carries packets all the time: then until answers came over every connection.
fn takeover_ms(
    scene: &Scene,
    injected: &Injected,
    taker: Option<usize>,
    sharing: bool,
) -> Result<Option<f64>> {
    if sharing {
        let answers = injected.answers_ns;
        return Ok(answers.map(|at| (at - injected.at_ns) as f64 / 1e6));
    }
    let Some(taker) = taker else { return Ok(None) };
    let first = scene.cluster.first_through(taker, injected.at_ns)?;
    Ok(first.map(|at| (at - injected.at_ns) as f64 / 1e6))
}

/// Waits until every member has the same IKE SAs and Child SAs as the owner.
fn mirrored(scene: &Scene, owner: usize) -> Result<()> {
    let spis = |member: usize| -> Result<BTreeSet<String>> {
        let sas = scene.cluster.members[member].sas()?;
        let mut all = BTreeSet::new();
        for sa in sas.as_array().context("espalier sas --json: no list")? {
            all.insert(format!("IKE {}", sa["spi_local"]));
            let children = sa["children"].as_array().map_or(&[][..], Vec::as_slice);
            all.extend(
                children
                    .iter()
                    .map(|c| format!("{} {}", c["spi_in"], c["spi_out"])),
            );
        }
        Ok(all)
    };
    let others = || (0..scene.cluster.members.len()).filter(|m| *m != owner);
    // A rekey that is under way moves both.
    wait_for(Duration::from_secs(10), Duration::from_millis(50), || {
        let own = spis(owner).ok()?;
        others()
            .all(|m| spis(m).is_ok_and(|theirs| theirs == own))
            .then_some(())
    })
    .context("the members do not have the same SAs")
}

/// IKE SAs that were begun anew since the fault.
fn begun_anew(scene: &Scene, injected: &Injected, may_split: bool, tally: &mut Tally) {
    let inits = scene
        .cluster
        .outside
        .read(|l| l.requests(exchange::IKE_SA_INIT, injected.at_ns, now_ns())) as u64;
    if may_split {
        tally.split.ike_sa_inits += inits;
    } else if inits > 0 {
        tally.sas_lost += inits;
        tally.violate(format!("{inits} IKE SAs were begun anew"));
    }
}

/// Sends the owner again what was captured since the fault before this one, and once more where the queues of a busy machine
/// have lost too much of it. Returns frames and refusals.
fn replay(scene: &Scene, owner: usize, tally: &mut Tally) -> Result<(u64, u64)> {
    let (mut sent, mut refused) = (0, 0);
    for _ in 0..REPLAYS_MAX {
        let (now_sent, now_refused) = replay_once(scene, owner)?;
        (sent, refused) = (sent + now_sent, refused + now_refused);
        tally.replayed += now_sent;
        tally.replays_refused += now_refused;
        // Frames that were lost in an outage are new to the owner, which may accept them once.
        if now_refused * 10 >= now_sent * 9 {
            break;
        }
    }
    anyhow::ensure!(
        sent > 0 && refused >= sent / 2,
        "of {sent} replayed frames only {refused} were judged by the owner: the replay proves nothing"
    );
    Ok((sent, refused))
}

fn replay_once(scene: &Scene, owner: usize) -> Result<(u64, u64)> {
    let cluster = &scene.cluster;
    let frames = cluster.outside.read(|l| l.frames_before(now_ns()));
    let member = &cluster.members[owner];
    // Where members share the load, frames take a second hop to the one that judges them.
    let refusals = || -> Result<u64> {
        let mut sum = 0;
        for member in &cluster.members {
            let verdicts = member.verdicts()?;
            sum += REFUSED.iter().filter_map(|name| verdicts.get(*name)).sum::<u64>();
        }
        Ok(sum)
    };
    let before = refusals()?;
    let mac = Lab::mac(&member.place.netns, "outside")?;
    let sent = lab::replay::replay(&cluster.lab.router, "outside", mac, frames)?;
    wait_for(Duration::from_secs(2), Duration::from_millis(50), || {
        (refusals().ok()? >= before + sent).then_some(())
    });
    Ok((sent, refusals()?.saturating_sub(before).min(sent)))
}

/// What the recorders say of the whole run so far.
fn judge(scene: &Scene, course: &mut Course, tally: &mut Tally) {
    let cluster = &scene.cluster;
    let (dup_seq, dup_iv) = cluster.outside.read(lab::ledger::Ledger::duplicates);
    if (dup_seq, dup_iv) != (tally.dup_seq, tally.dup_iv) {
        tally.violate(format!(
            "{} (SPI, sequence number) and {} (SPI, IV) were sent twice",
            dup_seq - tally.dup_seq,
            dup_iv - tally.dup_iv
        ));
    }
    (tally.dup_seq, tally.dup_iv) = (dup_seq, dup_iv);
    let (repeated, judged) = cluster.inside.read(|l| {
        let deliveries = &l.deliveries;
        (deliveries.repeated[course.repeated..].to_vec(), deliveries.judged)
    });
    course.repeated += repeated.len();
    tally.deliveries_judged = judged;
    let split = |at: u64| course.splits.iter().any(|(from, to)| (*from..*to).contains(&at));
    let (excepted, accepted): (Vec<_>, Vec<_>) = repeated
        .iter()
        .partition(|(first, again)| split(*first) || split(*again));
    tally.split.deliveries_twice += excepted.len() as u64;
    tally.replays_accepted += accepted.len() as u64;
    if let Some((first, again)) = accepted.first() {
        tally.violate(format!(
            "{} packets were delivered twice, one of them {:.1} ms apart",
            accepted.len(),
            (again - first) as f64 / 1e6
        ));
    }
    tally.recorded = cluster.outside.read(lab::ledger::Ledger::sent_by_cluster);
    tally.missed = cluster.outside.lost() + cluster.inside.lost();
}
