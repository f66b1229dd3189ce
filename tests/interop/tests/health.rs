//! A member whose programs are off an interface, or not its own any more, hands over what it owns and says why.
//!
//! Needs root, strongSwan, and the built product: `cargo xtask test` sees to all of that.

use anyhow::{Context, Result, ensure};
use lab::clock::wait_for;
use lab::faults::{self, Cable};
use lab::member::{Member, Product};
use lab::ping;
use lab::stage::{Stage, random_psk, start_peer};
use lab::topology::{Lab, addr};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

/// The owner is in trouble for this reason, and another member serves.
fn handed_over(stage: &Stage, from: usize, why: &str) -> Result<()> {
    let to = 1 - from;
    stage.wait_active(to, Duration::from_secs(10))?;
    // Until it is over, packets of the old owner's numbers go back to it, where no program takes them.
    let over = wait_for(Duration::from_secs(10), Duration::from_millis(10), || {
        let group = &stage.members[to].status().ok()?["groups"][0];
        (group["handover"] == false).then_some(())
    });
    over.context("the handover does not end")?;
    let status = stage.members[from].status()?;
    let trouble = status["trouble"].as_str().unwrap_or_default();
    ensure!(trouble.contains(why), "it says: {trouble:?}");
    let taken = stage.members[to].status()?["last_takeover"].clone();
    ensure!(taken["kind"] == "planned", "no planned takeover: {taken}");
    // The other half of it: who gave the segments away knows of it too.
    let given = &status["last_takeover"];
    ensure!(
        given["kind"] == "planned" && given["to"] == taken["to"] && given["epoch"] == taken["epoch"],
        "the old owner says: {given}"
    );
    let verdicts = || {
        stage
            .members
            .iter()
            .map(Member::verdicts)
            .collect::<Result<Vec<_>>>()
    };
    let pings = || -> Result<Vec<usize>> {
        let pings = ping::short(&stage.lab.host, addr::HOST_ONE, addr::SERVER_ONE, 10_000, 50)?;
        let lost = pings
            .echoes
            .iter()
            .enumerate()
            .filter(|(_, echo)| echo.back_ns.is_none());
        Ok(lost.map(|(number, _)| number).collect())
    };
    let before = verdicts()?;
    let lost = pings()?;
    if !lost.is_empty() {
        let meanwhile = moved(&before, &verdicts()?);
        for member in &stage.members {
            println!("{}: {:?}", member.place.letter, member.events()?);
        }
        anyhow::bail!("pings {lost:?} of 50 lost through the new owner; meanwhile {meanwhile}");
    }
    Ok(())
}

/// What the programs of each member did meanwhile, for a failure.
fn moved(before: &[BTreeMap<String, u64>], after: &[BTreeMap<String, u64>]) -> String {
    let of = |(before, after): (&BTreeMap<String, u64>, &BTreeMap<String, u64>)| {
        let count = |(name, n): (&String, &u64)| {
            let n = n - before.get(name).copied().unwrap_or(0).min(*n);
            (n > 0).then(|| format!("{name} {n}"))
        };
        after.iter().filter_map(count).collect::<Vec<_>>().join(", ")
    };
    let both = before.iter().zip(after).map(of);
    both.collect::<Vec<_>>().join(" | ")
}

/// A restart puts the programs back; the member is in sync again, and what its life before knew is rekeyed: until then whoever takes such
/// an SA over has no outbound number of it (ADR 13), and packets to the peer meet `lease_exhausted`.
fn mended(stage: &mut Stage, member: usize) -> Result<()> {
    let known = child_spis(&stage.members[1 - member])?;
    stage.members[member].stop();
    stage.members[member].start(&stage.lab.resources)?;
    stage.wait_in_sync(1 - member, Duration::from_secs(20))?;
    let healthy = wait_for(Duration::from_secs(5), Duration::from_millis(50), || {
        stage.members[member].status().ok()?["trouble"]
            .is_null()
            .then_some(())
    });
    healthy.context("it is in trouble still")?;
    let rekeyed = wait_for(Duration::from_secs(10), Duration::from_millis(20), || {
        let now = child_spis(&stage.members[1 - member]).ok()?;
        (now.len() == known.len() && now.is_disjoint(&known)).then_some(())
    });
    rekeyed.context("Child SAs that the member's life before knew are not rekeyed")
}

/// Our inbound SPIs, as `espalier sas` shows them.
fn child_spis(member: &Member) -> Result<BTreeSet<String>> {
    let all = member.sas()?;
    let all = all.as_array().context("a list")?.iter();
    let children = all.filter_map(|ike| ike["children"].as_array()).flatten();
    let spis = children.filter_map(|child| child["spi_in"].as_str());
    Ok(spis.map(str::to_owned).collect())
}

/// ```text
///   A serves    bpftool link detach, outside       "not attached": B serves within two seconds, then A is restarted
///   B serves    another program behind the link    "another program": A serves
/// ```
#[test]
fn a_member_whose_programs_are_gone_or_replaced_hands_over_and_names_the_reason() -> Result<()> {
    let product = Product::built()?;
    let psk = random_psk()?;
    let lab = Lab::new(Path::new(env!("CARGO_TARGET_TMPDIR")))?;
    let peer = start_peer(&lab, &psk)?;
    let mut stage = Stage::up(lab, peer, &product, &psk)?;
    stage.connect()?;

    faults::detach_program(&stage.members[0], Cable::Outside)?;
    handed_over(&stage, 0, "is not attached to interface")?;
    mended(&mut stage, 0)?;

    faults::replace_program(&stage.lab, &stage.members[1], Cable::Inside)?;
    handed_over(&stage, 1, "another program")?;
    mended(&mut stage, 1)
}
