//! Every checker is seen to catch what it is there for: a build with one rule broken (in the simulation's glue or maps) fails within a
//! bounded number of seeds, and by the rule that was broken.

use std::sync::atomic::{AtomicU64, Ordering};
use test_sim::scenarios::Scenario;
use test_sim::{Options, Sabotage, run_seed};

/// A broken rule, the checkers of which one has to catch it, the scenario, and the most seeds that this may take.
const CASES: &[(Sabotage, &[&str], &str, u64)] = &[
    (Sabotage::LeaseIgnored, &["R4"], "cuts", 400),
    (Sabotage::NothingTainted, &["R4"], "unseen-taker", 100),
    (Sabotage::RestsKept, &["rests"], "planned-after-loss", 20),
    (Sabotage::RestsBelow, &["rests"], "planned-after-loss", 20),
    (Sabotage::ForkForgotten, &["service"], "forked-child", 400),
    (Sabotage::ForkNotKept, &["service"], "untold-fork", 60),
    (Sabotage::ForkUnnamed, &["service"], "empty-half", 60),
    (Sabotage::RaiseUnconfirmed, &["R4", "R6"], "cuts", 400),
    (Sabotage::CeilingIgnored, &["R6"], "kills", 200),
    (Sabotage::ValidityIgnored, &["dead-man"], "pauses", 60),
    (Sabotage::SendBeforeCommit, &["R3", "R8"], "everything", 200),
    (Sabotage::EpochNotRaised, &["R4"], "kills", 60),
    (Sabotage::EpochNotRaised, &["R8"], "kills", 60),
    (Sabotage::StaleSnapshot, &["R1"], "kills", 60),
    (Sabotage::StaleSnapshot, &["mirror"], "everything", 100),
    (Sabotage::ArmedUnapplied, &["R1"], "kills", 30),
    (Sabotage::StaleRecord, &["R3"], "kills", 60),
    (Sabotage::StaleRecord, &["mirror"], "everything", 60),
    (Sabotage::IvWithoutSender, &["R10"], "everything", 300),
    (Sabotage::OwnAddress, &["R11"], "kills", 10),
    (Sabotage::SpiOfMemberOne, &["R12"], "kills", 60),
    (Sabotage::GarbageDrains, &["R13"], "everything", 60),
    (Sabotage::LinkLossKills, &["R1", "mirror"], "cuts", 100),
    (Sabotage::SlowRaiseKills, &["R7"], "synch-noise", 200),
    (Sabotage::ReportsEverything, &["R5"], "steady", 30),
    (Sabotage::FlipLost, &["takeover"], "kills", 30),
    (Sabotage::ContactUnheard, &["contact"], "begins-anew", 20),
    (Sabotage::AlwaysTwo, &["one-ike-sa"], "reauth-only", 5),
    (Sabotage::GuestUnconfirmed, &["R9"], "members-kills", 20),
    (Sabotage::GuestUsedAtOnce, &["R9"], "members-kills", 40),
    (Sabotage::GuestUnjournalled, &["R1"], "members-kills", 20),
    (Sabotage::RosterUnsaid, &["mirror"], "members-kills", 150),
    (Sabotage::GuestsForgotten, &["mirror"], "members-kills", 40),
    (
        Sabotage::ReservationsKept,
        &["mirror", "service"],
        "everything",
        300,
    ),
];

/// The first seed with which a checker of the list speaks, and what it says.
fn caught(sabotage: Sabotage, rules: &[&str], scenario: &str, most: u64) -> Option<(u64, String)> {
    let options = Options {
        scenario: Scenario::named(scenario),
        sabotage: Some(sabotage),
        ..Options::default()
    };
    assert!(options.scenario.is_some(), "scenario {scenario}");
    (1..=most).find_map(|seed| {
        let outcome = run_seed(seed, &options);
        let mut found = outcome.ran.violations.into_iter();
        let found = found.find(|v| rules.contains(&v.rule))?;
        Some((seed, format!("{}: {}", found.rule, found.text)))
    })
}

#[test]
fn every_checker_catches_the_break_of_its_rule() {
    let next = AtomicU64::new(0);
    let missed = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((sabotage, rules, scenario, most)) =
                    CASES.get(next.fetch_add(1, Ordering::Relaxed) as usize)
                {
                    match caught(*sabotage, rules, scenario, *most) {
                        Some((seed, text)) => {
                            println!("{sabotage:?} is caught with seed {seed} of {scenario}: {text}");
                        }
                        None => missed.lock().expect("no panic").push(format!(
                            "{sabotage:?}: none of {rules:?} spoke in seeds 1 to {most} of {scenario}"
                        )),
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no panic");
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

/// Runs are too short for two members to use one number of a tainted lease, and mirrors do not compare these: nothing else sees it.
#[test]
fn parts_of_a_tainted_lease_that_overlap_are_caught_by_that_checker_and_no_other() {
    for sabotage in [Sabotage::RestsKept, Sabotage::RestsBelow] {
        let options = Options {
            scenario: Scenario::named("planned-after-loss"),
            sabotage: Some(sabotage),
            ..Options::default()
        };
        let runs = (1..=40).map(|seed| run_seed(seed, &options).ran.violations);
        let rules: Vec<_> = runs.filter_map(|found| Some(found.first()?.rule)).collect();
        println!("{sabotage:?}: {} of 40 seeds", rules.len());
        assert!(rules.len() >= 6, "{sabotage:?}: {} of 40 seeds", rules.len());
        assert!(
            rules.iter().all(|rule| *rule == "rests"),
            "{sabotage:?}: {rules:?}"
        );
    }
}
