//! Who checks the checkers: builds with a safety rule removed, which the same recorders must catch.
//!
//! A mutant is a patch of one place in a scratch copy of the sources, so the product carries no switch for it. A patch that no
//! longer fits is an error. The unchanged product goes through the same acts first and must pass.

use super::inject::PATIENCE;
use super::scene::{self, Build, Scene};
use crate::build::{self, Built};
use crate::cargo_tools::{self, cargo, root, shown, target};
use crate::steps::{detail, say, step};
use anyhow::{Context, Result, ensure};
use lab::clock::{now_ns, wait_for};
use lab::config::Settings;
use lab::esp::{IKE_RESPONSE, exchange};
use lab::faults::{self, Cable};
use lab::member::Product;
use lab::topology::{Lab, addr};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How the mutants run.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Only these mutants, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Print one JSON object on standard output, and nothing else there.
    #[arg(long)]
    pub json: bool,
}

/// What is built anew.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Programs,
    Agent,
}

/// A rule that is removed.
struct Mutant {
    name: &'static str,
    part: Part,
    file: &'static str,
    rule: &'static str,
    instead: &'static str,
    /// Whether a checker has seen it.
    caught: fn(&Finding) -> bool,
}

const MUTANTS: [Mutant; 3] = [
    Mutant {
        name: "lease_ignored",
        part: Part::Programs,
        file: "ebpf/datapath/src/limits.rs",
        rule: "let first = lower_bound(limits, k).saturating_add(1);",
        instead: "let first = 1;",
        caught: |f| f.dup_seq > 0,
    },
    Mutant {
        name: "ceiling_ignored",
        part: Part::Programs,
        file: "ebpf/datapath/src/limits.rs",
        rule: "let floor = lower_bound(limits, k);",
        instead: "let floor = 0;",
        caught: |f| f.replays_accepted > 0,
    },
    Mutant {
        name: "commit_after_send",
        part: Part::Agent,
        file: "userspace/agent/src/core/mod.rs",
        rule: "        self.propose_changes(group, changes, commit.transmits, about);",
        instead: "        for transmit in &commit.transmits {
            self.transmit(transmit);
        }
        self.propose_changes(group, changes, commit.transmits, about);",
        caught: |f| f.sas_lost > 0,
    },
];

/// What the recorders found in the acts.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Finding {
    /// (SPI, sequence number) sent twice.
    pub dup_seq: u64,
    /// (SPI, IV) sent twice.
    pub dup_iv: u64,
    /// Replays accepted.
    pub replays_accepted: u64,
    /// Connections without answers.
    pub sas_lost: u64,
}

#[derive(Serialize)]
struct Verdict {
    build: &'static str,
    ok: bool,
    #[serde(flatten)]
    finding: Finding,
}

impl Verdict {
    fn line(&self) -> String {
        let f = &self.finding;
        let verdict = match (self.build, self.ok) {
            ("product", true) => "passed",
            ("product", false) => "FAILED",
            (_, true) => "caught",
            (_, false) => "NOT CAUGHT",
        };
        format!(
            "{:<18} {verdict:<10} dup_seq {}, dup_iv {}, replays accepted {}, SAs lost {}",
            self.build, f.dup_seq, f.dup_iv, f.replays_accepted, f.sas_lost
        )
    }
}

/// Builds and runs them; true if the product passed and every mutant was caught.
pub fn run(options: &Options) -> Result<bool> {
    Ok(judged(options)?.is_empty())
}

/// Builds and runs them; a line for each that did not end as it should.
pub fn judged(options: &Options) -> Result<Vec<String>> {
    lab::resources::clear_on_signal()?;
    crate::setup::run()?;
    let built = build::run()?;
    let verdicts = all(options, &built)?;
    if options.json {
        let ok = verdicts.iter().all(|v| v.ok);
        let rows = serde_json::to_value(&verdicts)?;
        println!("{}", serde_json::json!({ "ok": ok, "builds": rows }));
    } else {
        verdicts.iter().for_each(|v| println!("{}", v.line()));
    }
    let wrong = verdicts.iter().filter(|v| !v.ok);
    Ok(wrong.map(Verdict::line).collect())
}

fn all(options: &Options, built: &Built) -> Result<Vec<Verdict>> {
    let wanted = |m: &&Mutant| options.only.is_empty() || options.only.iter().any(|o| o == m.name);
    let mutants: Vec<&Mutant> = MUTANTS.iter().filter(wanted).collect();
    ensure!(
        !mutants.is_empty(),
        "no such mutant; there are {}",
        MUTANTS.map(|m| m.name).join(", ")
    );
    let product = Product {
        binary: built.espalier.clone(),
        object: built.object.clone(),
    };
    let mut finding = Finding::default();
    for part in [Part::Programs, Part::Agent] {
        if mutants.iter().any(|m| m.part == part) {
            let f = step("the product itself", || act(part, &product))?;
            finding.dup_seq += f.dup_seq;
            finding.dup_iv += f.dup_iv;
            finding.replays_accepted += f.replays_accepted;
            finding.sas_lost += f.sas_lost;
        }
    }
    let clean = MUTANTS.iter().all(|m| !(m.caught)(&finding)) && finding.dup_iv == 0;
    let mut verdicts = vec![Verdict {
        build: "product",
        ok: clean,
        finding,
    }];
    for mutant in mutants {
        say(&format!("mutant {}", mutant.name));
        let mutated = mutate(mutant, &product)?;
        let finding = act(mutant.part, &mutated)?;
        detail(&format!("{finding:?}"));
        verdicts.push(Verdict {
            build: mutant.name,
            ok: (mutant.caught)(&finding),
            finding,
        });
    }
    Ok(verdicts)
}

fn act(part: Part, product: &Product) -> Result<Finding> {
    match part {
        Part::Programs => takeover_and_replay(product),
        Part::Agent => takeover_in_an_exchange(product),
    }
}

fn stage(product: &Product, settings: Settings) -> Result<Scene> {
    Scene::build(&Build {
        ecmp: false,
        product,
        parent: &cargo_tools::root().join("target/lab"),
        members: 2,
        voters: 0,
        settings,
    })
}

/// The owner's host dies under load; what was captured before is replayed at the taker.
fn takeover_and_replay(product: &Product) -> Result<Finding> {
    let mut scene = stage(product, scene::settings(1))?;
    let cluster = &mut scene.cluster;
    let owner = cluster.wait_all_in_sync(PATIENCE)?;
    let sent = |c: &lab::cluster::Cluster| c.outside.read(lab::ledger::Ledger::sent_by_cluster);
    // Enough numbers that a taker which starts from the beginning repeats many of them.
    wait_for(PATIENCE, Duration::from_millis(20), || {
        (sent(cluster) >= 1500).then_some(())
    })
    .context("the cluster sends nothing")?;
    let killed = cluster.members[owner].kill_host()?;
    let taker = cluster.wait_other_serves(owner, PATIENCE)?;
    let mac = Lab::mac(&cluster.lab.members[taker].netns, "outside")?;
    wait_for(PATIENCE, Duration::from_millis(20), || {
        let by_taker = |l: &lab::ledger::Ledger| l.esp_out.iter().filter(|(_, m)| *m == mac).count();
        (cluster.outside.read(by_taker) >= 100).then_some(())
    })
    .context("the taker sends nothing")?;
    let frames = cluster.outside.read(|l| l.frames_before(killed));
    let replayed = frames.len() as u64;
    let judged = || -> Result<u64> { Ok(cluster.members[taker].verdicts()?.values().sum()) };
    let before = judged()?;
    lab::replay::replay(&cluster.lab.router, "outside", mac, frames)?;
    wait_for(Duration::from_secs(5), Duration::from_millis(50), || {
        (judged().ok()? >= before + replayed).then_some(())
    })
    .context("the taker has not judged the replayed frames")?;
    let (dup_seq, dup_iv) = cluster.outside.read(lab::ledger::Ledger::duplicates);
    Ok(Finding {
        dup_seq,
        dup_iv,
        replays_accepted: cluster.inside.read(|l| l.deliveries.repeated.len()) as u64,
        sas_lost: 0,
    })
}

/// The standby's cables are cut, so it hears and acknowledges nothing; the peer rekeys alpha; the owner's host dies before it may go
/// on alone; the standby is connected again and takes over. What the owner has answered without an acknowledgement, nobody knows of.
fn takeover_in_an_exchange(product: &Product) -> Result<Finding> {
    let mut scene = stage(
        product,
        Settings {
            // The owner must not go on alone before it is killed.
            suspicion_floor: "2s",
            ..scene::settings(1)
        },
    )?;
    let owner = scene.cluster.wait_all_in_sync(PATIENCE)?;
    let standby = 1 - owner;
    let letter = scene.cluster.members[standby].place.letter;
    let stopped = now_ns();
    for cable in [Cable::Synch, Cable::Outside] {
        faults::cable(&scene.cluster.lab, letter, cable, false)?;
    }
    scene.peers[0].rekey_child("alpha").context("the peer rekeys")?;
    let seen = |response: bool| {
        scene.cluster.outside.read(|l| {
            l.ike.iter().any(|m| {
                m.at_ns >= stopped
                    && m.exchange == exchange::CREATE_CHILD_SA
                    && (m.flags & IKE_RESPONSE != 0) == response
                    && (if response { m.dst } else { m.src }) == addr::PEER
            })
        })
    };
    wait_for(Duration::from_millis(1500), Duration::from_millis(2), || {
        seen(false).then_some(())
    })
    .context("the peer's request was not seen in time: is the machine overloaded?")?;
    // A response would follow within a few milliseconds.
    let answered = wait_for(Duration::from_millis(200), Duration::from_millis(5), || {
        seen(true).then_some(())
    });
    let killed = scene.cluster.members[owner].kill_host()?;
    ensure!(
        killed - stopped < 1_900_000_000,
        "the owner was killed too late to prove anything: is the machine overloaded?"
    );
    for cable in [Cable::Synch, Cable::Outside] {
        faults::cable(&scene.cluster.lab, letter, cable, true)?;
    }
    scene.cluster.wait_other_serves(owner, PATIENCE)?;
    // The peer repeats an unanswered request within seconds, and uses a new SA at once.
    let silent = scene.load.wait_answers_after(now_ns(), Duration::from_secs(12));
    let lost = silent.err().unwrap_or_default();
    detail(&format!(
        "the rekey was {}answered before the kill; {} connections silent after the takeover",
        if answered.is_some() { "" } else { "not " },
        lost.len()
    ));
    let (dup_seq, dup_iv) = scene.cluster.outside.read(lab::ledger::Ledger::duplicates);
    let inits = |l: &lab::ledger::Ledger| l.requests(exchange::IKE_SA_INIT, killed, now_ns());
    Ok(Finding {
        dup_seq,
        dup_iv,
        replays_accepted: scene.cluster.inside.read(|l| l.deliveries.repeated.len()) as u64,
        sas_lost: (lost.len() + scene.cluster.outside.read(inits)) as u64,
    })
}

/// The product with one rule removed.
fn mutate(mutant: &Mutant, product: &Product) -> Result<Product> {
    let tree = root().join("target/mutants/tree");
    copy_sources(&tree)?;
    let file = tree.join(mutant.file);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    ensure!(
        text.matches(mutant.rule).count() == 1,
        "mutant {}: {} does not hold exactly once `{}`; adapt xtask/src/chaos/mutants.rs",
        mutant.name,
        mutant.file,
        mutant.rule
    );
    fs::write(&file, text.replace(mutant.rule, mutant.instead))?;
    let mut mutated = product.clone();
    match mutant.part {
        Part::Programs => {
            let object = build::bpf_of(&tree, &bpf_target()?)?;
            // The next mutant's build overwrites it.
            mutated.object = root().join(format!("target/mutants/{}.bpf.o", mutant.name));
            fs::copy(&object, &mutated.object).with_context(|| object.display().to_string())?;
        }
        Part::Agent => mutated.binary = agent_of(&tree)?,
    }
    Ok(mutated)
}

/// A target folder for the mutants' programs. It begins as a copy of the product's, so that the standard library for BPF is not
/// compiled once more.
fn bpf_target() -> Result<PathBuf> {
    let folder = root().join("target/mutants/bpf");
    if !folder.exists() {
        let fresh = root().join("target/mutants/bpf.new");
        let _ = fs::remove_dir_all(&fresh);
        lab::cmd::run(&[
            "cp".as_ref(),
            "-a".as_ref(),
            root().join("ebpf/programs/target").as_os_str(),
            fresh.as_os_str(),
        ])?;
        fs::rename(&fresh, &folder).with_context(|| folder.display().to_string())?;
    }
    Ok(folder)
}

/// Builds the binary of a source tree under another name, so that the product's own stays what it is. Unoptimised: the crates of
/// others are the tests' and compiled already.
fn agent_of(tree: &Path) -> Result<PathBuf> {
    let manifest = tree.join("userspace/cli/Cargo.toml");
    let text = fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
    let renamed = text.replacen("name = \"espalier\"", "name = \"espalier-mutant\"", 1);
    ensure!(text != renamed, "{}: no binary espalier", manifest.display());
    fs::write(&manifest, renamed)?;
    let mut command = cargo();
    command
        .current_dir(tree)
        .args(["build", "-p", "cli"])
        .env("CARGO_TARGET_DIR", target());
    shown("compiling the mutant's agent", command)?;
    Ok(target().join("debug/espalier-mutant"))
}

/// Copies what git knows, with the times of the files, so that only what was patched is compiled anew.
fn copy_sources(tree: &Path) -> Result<()> {
    let listed = lab::cmd::run(&[
        "git".as_ref(),
        "-C".as_ref(),
        root().as_os_str(),
        "ls-files".as_ref(),
        "--cached".as_ref(),
        "--others".as_ref(),
        "--exclude-standard".as_ref(),
    ])?;
    for name in listed.lines() {
        let (from, to) = (root().join(name), tree.join(name));
        let Ok(now) = fs::metadata(&from) else { continue };
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let modified = now.modified().context("time of a file")?;
        let same =
            fs::metadata(&to).is_ok_and(|m| m.modified().ok() == Some(modified) && m.len() == now.len());
        if !same {
            fs::copy(&from, &to).with_context(|| from.display().to_string())?;
            let copy = fs::OpenOptions::new().write(true).open(&to)?;
            copy.set_modified(modified).context("time of a file")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_still_fits_the_sources() {
        for mutant in &MUTANTS {
            let text = fs::read_to_string(root().join(mutant.file)).expect("the file");
            assert_eq!(text.matches(mutant.rule).count(), 1, "{}", mutant.name);
            assert_ne!(mutant.rule, mutant.instead);
        }
    }

    #[test]
    fn a_clean_run_is_no_catch() {
        assert!(MUTANTS.iter().all(|m| !(m.caught)(&Finding::default())));
    }
}
