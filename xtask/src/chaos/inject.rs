//! Puts faults in and takes them out again.

use super::fault::{BOTH_LINKS, Fault, Victim};
use super::moves;
use super::scene::Scene;
use anyhow::{Context, Result};
use lab::clock::{now_ns, sleep_until, wait_for};
use lab::etcd::EtcdCluster;
use lab::faults::{self, Cable, Way};
use nix::sys::signal::Signal;
use std::time::Duration;

/// Limit of every wait for something that must come.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A slow etcd server stands still for so long, and runs a third of it.
const SLOW_PULSE_NS: u64 = 150_000_000;

/// What a fault has done, as far as it is known at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Injected {
    /// When, `CLOCK_MONOTONIC` nanoseconds.
    pub at_ns: u64,
    /// The member that it was about.
    pub victim: usize,
    /// The member that took over while the fault lasted, where that had to happen.
    pub taker: Option<usize>,
    /// When traffic was back over all connections after a death.
    pub answers_ns: Option<u64>,
    /// The cluster noticed damage to its data plane, or the agent's wall clock was seen to be off: `None` where this is not asked.
    pub noticed: Option<bool>,
}

/// Injects a fault, lets it last, and heals it. Traffic over all connections must be back before a dead owner is healed.
pub fn inject(scene: &mut Scene, fault: Fault, owner: usize) -> Result<Injected> {
    let victim = victim(scene, fault, owner);
    let mut injected = Injected {
        at_ns: now_ns(),
        victim,
        ..Injected::default()
    };
    match fault {
        Fault::HostDeath => {
            injected.at_ns = scene.cluster.members[victim].kill_host()?;
            unreachable(scene, &[victim])?;
            injected.taken_over(scene)?;
            restart(scene, victim, true)?;
        }
        Fault::AgentKill => {
            injected.at_ns = scene.cluster.members[victim].kill_agent()?;
            injected.taken_over(scene)?;
            restart(scene, victim, false)?;
        }
        Fault::StandbyDeath { links } => {
            let member = &mut scene.cluster.members[victim];
            injected.at_ns = if links {
                member.kill_host()?
            } else {
                member.kill_agent()?
            };
            if links {
                unreachable(scene, &[victim])?;
            }
            answers(scene)?;
            restart(scene, victim, links)?;
        }
        Fault::Pause { ms, .. } => {
            let member = &scene.cluster.members[victim];
            injected.at_ns = member.signal(Signal::SIGSTOP)?;
            sleep_until(injected.at_ns + ms * 1_000_000);
            member.signal(Signal::SIGCONT)?;
        }
        Fault::Cut { cable, ms, .. } => cut(scene, victim, &[cable], ms)?,
        Fault::Isolation { ms, .. } => cut(scene, victim, &[Cable::Synch, Cable::Outside], ms)?,
        Fault::OneWay { way, links, ms, .. } => lossy(scene, victim, links, way, 100, ms)?,
        Fault::DeafOwner { ms } => {
            let member = &scene.cluster.members[victim];
            injected.at_ns = now_ns();
            faults::lose(member, BOTH_LINKS, Way::In, 100)?;
            sleep_until(injected.at_ns + ms * 1_000_000);
            let noticed = deaf_owner_replaced(scene, victim);
            faults::heal_loss(&scene.cluster.members[victim])?;
            noticed?;
        }
        Fault::Loss { percent, ms, .. } => {
            lossy(scene, victim, &["synch", "outside"], Way::Both, percent, ms)?
        }
        Fault::ClockJump { seconds, .. } => {
            injected.noticed = Some(clock_jump(scene, victim, seconds)?);
        }
        Fault::ProgramOff { cable, .. } => {
            injected.noticed = Some(program_off(scene, victim, owner, cable)?);
        }
        Fault::InterfaceDown { cable, ms, .. } => {
            let member = &scene.cluster.members[victim];
            injected.at_ns = member.link(cable.interface(), false)?;
            sleep_until(injected.at_ns + ms * 1_000_000);
            member.link(cable.interface(), true)?;
        }
        Fault::Planned => {
            let next = (owner + 1) % scene.cluster.members.len();
            let to = scene.cluster.members[next].place.id.to_string();
            scene.cluster.members[owner].espalier(&["takeover", "--to", &to])?;
        }
        Fault::CutFromEtcd { ms, .. } => {
            let addresses: Vec<_> = scene.cluster.lab.voters.iter().map(|v| v.address).collect();
            let member = &scene.cluster.members[victim];
            faults::cut_from(member, &addresses)?;
            sleep_until(injected.at_ns + ms * 1_000_000);
            faults::heal_loss(member)?;
        }
        Fault::VotersStopped { count, ms } => {
            voters(scene)?.freeze_all(count)?;
            sleep_until(injected.at_ns + ms * 1_000_000);
            voters(scene)?.thaw_all()?;
        }
        Fault::VoterKilled { leader, ms } => {
            let etcd = voters(scene)?;
            let led = etcd.leader()?;
            let node = if leader { led } else { (led + 1) % etcd.count() };
            etcd.kill(node)?;
            sleep_until(injected.at_ns + ms * 1_000_000);
            etcd.restart(node)?;
            etcd.wait_ready(node)?;
        }
        Fault::VotersSlow { ms } => {
            let etcd = voters(scene)?;
            while now_ns() < injected.at_ns + ms * 1_000_000 {
                etcd.freeze_all(etcd.count())?;
                sleep_until(now_ns() + SLOW_PULSE_NS);
                etcd.thaw_all()?;
                sleep_until(now_ns() + SLOW_PULSE_NS / 3);
            }
        }
        Fault::VotersStoppedHostDeath { ms } => {
            let count = voters(scene)?.count();
            voters(scene)?.freeze_all(count)?;
            let others = |scene: &Scene| -> usize {
                let others = (0..scene.cluster.members.len()).filter(|m| *m != victim);
                others.map(|m| scene.cluster.groups_of(m)).sum()
            };
            let before = others(scene);
            injected.at_ns = scene.cluster.members[victim].kill_host()?;
            unreachable(scene, &[victim])?;
            sleep_until(injected.at_ns + ms * 1_000_000);
            let after = others(scene);
            voters(scene)?.thaw_all()?;
            anyhow::ensure!(
                after <= before,
                "a member took over although no etcd server answered:\n{}",
                scene.cluster.states()
            );
            injected.taken_over(scene)?;
            restart(scene, victim, true)?;
        }
        Fault::GroupMove => moves::one_group(scene, owner)?,
        Fault::Drain => moves::drain(scene, owner)?,
    }
    Ok(injected)
}

impl Injected {
    /// Waits until other members than the victim serve everything and answers come over all connections.
    fn taken_over(&mut self, scene: &Scene) -> Result<()> {
        self.taker = Some(scene.cluster.wait_other_serves(self.victim, PATIENCE)?);
        answers(scene)?;
        self.answers_ns = Some(now_ns());
        Ok(())
    }
}

/// Where a router spreads packets over all members, it has noticed that these have no link any more.
fn unreachable(scene: &Scene, members: &[usize]) -> Result<()> {
    if scene.ecmp {
        scene.cluster.lab.spread(members)?;
    }
    Ok(())
}

fn voters(scene: &mut Scene) -> Result<&mut EtcdCluster> {
    scene.etcd.as_mut().context("this fault needs --engine etcd")
}

/// The member that a fault is about: the first one after the owner where it is a standby.
fn victim(scene: &Scene, fault: Fault, owner: usize) -> usize {
    let standby = (owner + 1) % scene.cluster.members.len();
    match fault {
        Fault::StandbyDeath { .. } => standby,
        Fault::Pause { who, .. }
        | Fault::Cut { who, .. }
        | Fault::Isolation { who, .. }
        | Fault::OneWay { who, .. }
        | Fault::Loss { who, .. }
        | Fault::ClockJump { who, .. }
        | Fault::ProgramOff { who, .. }
        | Fault::InterfaceDown { who, .. }
        | Fault::CutFromEtcd { who, .. }
            if who == Victim::Standby =>
        {
            standby
        }
        _ => owner,
    }
}

/// Waits until answers come over all connections.
fn answers(scene: &Scene) -> Result<()> {
    scene
        .load
        .wait_answers_after(now_ns(), PATIENCE)
        .map_err(|silent| anyhow::anyhow!("traffic did not come back over {}", silent.join(", ")))
}

fn restart(scene: &mut Scene, member: usize, links: bool) -> Result<()> {
    let cluster = &mut scene.cluster;
    if links {
        cluster.members[member].revive_links()?;
        if scene.ecmp {
            cluster.lab.spread(&[])?;
        }
    }
    cluster.members[member].start(&cluster.lab.resources)
}

fn cut(scene: &Scene, victim: usize, cables: &[Cable], ms: u64) -> Result<()> {
    let letter = scene.cluster.members[victim].place.letter;
    let all = |connected| -> Result<()> {
        let one = |c: &Cable| faults::cable(&scene.cluster.lab, letter, *c, connected);
        cables.iter().try_for_each(one)
    };
    let at = now_ns();
    all(false)?;
    sleep_until(at + ms * 1_000_000);
    all(true)
}

fn lossy(scene: &Scene, victim: usize, links: &[&str], way: Way, percent: u8, ms: u64) -> Result<()> {
    let member = &scene.cluster.members[victim];
    let at = now_ns();
    faults::lose(member, links, way, percent)?;
    sleep_until(at + ms * 1_000_000);
    faults::heal_loss(member)
}

/// The wall clock jumps for a while and jumps back. True if the agent's own clock was seen to follow.
fn clock_jump(scene: &Scene, victim: usize, seconds: i64) -> Result<bool> {
    scene.clocks[victim].jump(seconds)?;
    let seen = wait_for(Duration::from_secs(5), Duration::from_millis(100), || {
        let off = wall_clock_off(scene, victim).ok()?;
        (off.abs_diff(seconds) <= 1).then_some(())
    });
    scene.clocks[victim].jump(0)?;
    wait_for(Duration::from_secs(5), Duration::from_millis(100), || {
        (wall_clock_off(scene, victim).ok()?.abs() <= 1).then_some(())
    });
    Ok(seen.is_some())
}

/// How far the agent's wall clock is off, seconds, by an event that it logs now.
fn wall_clock_off(scene: &Scene, member: usize) -> Result<i64> {
    let member = &scene.cluster.members[member];
    // A standby logs the planned takeover to it, the owner the liveness check.
    let me = member.place.id.to_string();
    let before = last_event(member)?.0;
    let _ = member.espalier(&["takeover", "--to", &me]);
    let _ = member.espalier(&["liveness", "beta"]);
    let (monotonic, wall) = last_event(member)?;
    anyhow::ensure!(monotonic > before, "nothing was logged");
    let offset = |m: u64, w: i128| w - i128::from(m);
    let real = i128::from(lab::clock::realtime_to_monotonic_ns());
    Ok(((offset(monotonic, wall) + real) / 1_000_000_000) as i64)
}

/// Monotonic and wall time of the last event in a member's log.
fn last_event(member: &lab::member::Member) -> Result<(u64, i128)> {
    let text = member.espalier(&["events", "--json"])?;
    let events: serde_json::Value = serde_json::from_str(&text).context("espalier events --json")?;
    let last = events.as_array().and_then(|l| l.last()).context("no events")?;
    let of = |key: &str| {
        last[key]
            .as_u64()
            .with_context(|| format!("no {key} in an event"))
    };
    Ok((of("monotonic_ns")?, i128::from(of("wall_ns")?)))
}

/// Under an engine other members own everything that a deaf owner owned. Of a pair that may go on alone, the owner serves on, and the
/// standby, which it excluded, does not.
fn deaf_owner_replaced(scene: &Scene, deaf: usize) -> Result<()> {
    let others = (0..scene.cluster.members.len()).filter(|m| *m != deaf);
    let served = others.map(|m| scene.cluster.groups_of(m)).sum::<usize>();
    let all = scene.cluster.groups_known(deaf)?;
    let wanted = if scene.etcd.is_some() { all } else { 0 };
    anyhow::ensure!(
        served == wanted,
        "{served} of {all} groups are owned by members that hear each other, not {wanted}:\n{}",
        scene.cluster.states()
    );
    Ok(())
}

/// Takes a program off. True if the cluster did something about it: another owner, or the program put back. If not, an operator
/// restarts the agent.
fn program_off(scene: &mut Scene, victim: usize, owner: usize, cable: Cable) -> Result<bool> {
    faults::detach_program(&scene.cluster.members[victim], cable)?;
    let attached = |scene: &Scene| faults::program_attached(&scene.cluster.members[victim], cable);
    let noticed = wait_for(Duration::from_secs(2), Duration::from_millis(50), || {
        let moved = victim == owner && scene.cluster.groups_of(owner) == 0;
        (moved || attached(scene).unwrap_or(false)).then_some(())
    });
    if !attached(scene)? {
        scene.cluster.members[victim].stop();
        restart(scene, victim, false)?;
    }
    Ok(noticed.is_some())
}
