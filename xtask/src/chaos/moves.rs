//! Groups of segments go from one member to another under load, on people's command: no packet may be lost.

use super::evidence::Before;
use super::fault::Fault;
use super::inject::PATIENCE;
use super::scene::Scene;
use super::tally::Tally;
use anyhow::{Context, Result};
use lab::clock::now_ns;

/// A group of the member goes to the next one.
pub fn one_group(scene: &Scene, from: usize) -> Result<()> {
    let members = &scene.cluster.members;
    let status = members[from].status()?;
    let groups = status["groups"].as_array().context("no groups in the status")?;
    let own = groups.iter().find(|g| g["owner"] == members[from].place.id);
    let group = own.context("it owns no group")?["group"].to_string();
    let to = members[(from + 1) % members.len()].place.id.to_string();
    members[from].espalier(&["takeover", "--group", &group, "--to", &to])?;
    Ok(())
}

/// The member gives everything away, then takes part again.
pub fn drain(scene: &Scene, member: usize) -> Result<()> {
    scene.cluster.members[member].espalier(&["drain"])?;
    let left = scene.cluster.groups_of(member);
    anyhow::ensure!(left == 0, "a drained member owns {left} groups still");
    scene.cluster.members[member].espalier(&["undrain"])?;
    Ok(())
}

/// Every group goes home.
pub fn rebalance(scene: &Scene) -> Result<()> {
    scene.cluster.wait_all_in_sync(PATIENCE)?;
    scene.cluster.members[0].espalier(&["rebalance"])?;
    scene.cluster.wait_all_in_sync(PATIENCE)?;
    let away = scene.cluster.away()?;
    anyhow::ensure!(
        away == 0,
        "{away} groups are not at home after `espalier rebalance`"
    );
    Ok(())
}

/// Does what people want, and judges that no packet was lost by it.
pub fn losslessly<T>(
    scene: &mut Scene,
    what: &str,
    tally: &mut Tally,
    act: impl FnOnce(&mut Scene) -> Result<T>,
) -> Result<T> {
    let evidence = Before::of(scene);
    let (at, before) = (now_ns(), scene.load.mark());
    let done = act(scene)?;
    let after = scene.load.mark();
    let (sent, lost) = scene.load.lost_between(&before, &after);
    tally.moves.count += 1;
    if scene.cluster.suspected_since(at)? {
        // A machine that does not run an agent for a tenth of a second makes a failover of it.
        tally.moves.disturbed += 1;
        return Ok(done);
    }
    tally.moves.packets += sent;
    tally.moves.lost += lost;
    if lost > 0 {
        tally.violate(format!("{what}: {lost} of {sent} packets were lost"));
        tally.show(evidence.lines(scene, Some((&before, &after))));
    }
    Ok(done)
}

/// [`losslessly`], for what is no failure.
pub fn played<T>(
    scene: &mut Scene,
    fault: Fault,
    tally: &mut Tally,
    act: impl FnOnce(&mut Scene) -> Result<T>,
) -> Result<T> {
    if fault.is_planned() {
        losslessly(scene, fault.kind(), tally, act)
    } else {
        act(scene)
    }
}

/// Packets have come to members that did not own them, on both networks, and were passed on.
pub fn second_hops(scene: &Scene, tally: &mut Tally) {
    let hops = |recorder: &lab::recorder::Recorder| recorder.read(|l| l.second_hops);
    tally.second_hops = [hops(&scene.cluster.outside), hops(&scene.cluster.inside)];
    if tally.violations.is_empty() && tally.second_hops.contains(&0) {
        let [outside, inside] = tally.second_hops;
        tally.violate(format!(
            "{outside} packets took a second hop outside and {inside} inside: nothing was misrouted, so nothing is proven"
        ));
    }
}
