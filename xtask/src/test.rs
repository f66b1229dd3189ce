//! `cargo xtask test`: everything, and one line at the end that is true.

use crate::cargo_tools::cargo;
use crate::steps::{detail, say};
use crate::{build, chaos, demo, kernels, setup, tidy};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What ran and how it ended.
#[derive(Default)]
pub struct Score {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Tests that were not asked for.
    pub ignored: u64,
    /// Names of those that failed.
    pub failures: Vec<String>,
}

impl Score {
    fn add(&mut self, what: &str, ok: bool) {
        if ok {
            self.passed += 1;
        } else {
            self.fail(what);
        }
    }

    fn fail(&mut self, what: &str) {
        self.failed += 1;
        self.failures.push(what.to_owned());
    }
}

/// Runs everything; true if all passed. A failed part does not stop the others.
pub fn run() -> Result<bool> {
    let start = Instant::now();
    setup::run()?;
    let mut score = Score::default();
    // What takes seconds comes before what takes minutes.
    score.add(
        "format",
        check("cargo fmt --check", cargo().args(["fmt", "--all", "--check"])),
    );
    let mut programs = cargo();
    programs.args(["fmt", "--manifest-path", "ebpf/programs/Cargo.toml", "--check"]);
    score.add(
        "format of the programs",
        check("cargo fmt --check, programs", &mut programs),
    );
    score.add("tidy", tidy::run()?);
    let built = build::run();
    score.add("build", built.is_ok());
    if let Err(error) = &built {
        detail(&format!("{error:#}"));
    }
    let mut clippy = cargo();
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-D",
        "warnings",
    ]);
    score.add("clippy", check("cargo clippy", &mut clippy));
    match &built {
        Ok(built) => {
            cargo_tests(built, &mut score)?;
            say("the programs on older kernels, emulated");
            match kernels::few(&built.object) {
                Ok(kernels) => {
                    for (name, passed) in kernels {
                        score.add(&format!("the programs on Linux {name}"), passed);
                    }
                }
                Err(error) => {
                    score.fail("the programs on older kernels");
                    detail(&format!("{error:#}"));
                }
            }
            say("one real takeover");
            let takeover = demo::run(&demo::Options::short());
            score.add("takeover", takeover.as_ref().is_ok_and(|ok| *ok));
            if let Err(error) = takeover {
                detail(&format!("{error:#}"));
            }
            use chaos::Engine::{Etcd, Pair};
            for (what, options) in [
                ("chaos, a pair", chaos::Options::short(2, Pair)),
                ("chaos, three members with etcd", chaos::Options::short(3, Etcd)),
                (
                    "chaos, three members that share the load",
                    chaos::Options::sharing(),
                ),
            ] {
                say(what);
                let run = chaos::run(&options);
                score.add(what, run.as_ref().is_ok_and(|ok| *ok));
                if let Err(error) = run {
                    detail(&format!("{error:#}"));
                }
            }
            say("mutants: builds with a safety rule removed");
            let mutants = chaos::mutants::run(&chaos::mutants::Options::default());
            score.add("mutants", mutants.as_ref().is_ok_and(|ok| *ok));
            if let Err(error) = mutants {
                detail(&format!("{error:#}"));
            }
        }
        Err(_) => score.fail("cargo test and the takeover: not run, since the build failed"),
    }
    for failure in &score.failures {
        println!("failed: {failure}");
    }
    println!("{} s, {} tests ignored", start.elapsed().as_secs(), score.ignored);
    println!("{} passed, {} failed", score.passed, score.failed);
    Ok(score.failed == 0)
}

fn check(what: &str, command: &mut Command) -> bool {
    say(what);
    command.status().is_ok_and(|s| s.success())
}

/// `cargo test`, with the results counted test by test.
fn cargo_tests(built: &build::Built, score: &mut Score) -> Result<()> {
    say("cargo test --workspace");
    let scapy = setup::scapy();
    score.add("scapy, to compare ESP with", scapy.is_ok());
    if let Err(error) = &scapy {
        detail(&format!("{error:#}"));
    }
    let mut child = cargo()
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        // With their output, since only that tells that a test had nothing to do.
        .args(["--test-threads", "2", "--show-output"])
        .env("ESPALIER_OBJECT", &built.object)
        .env("ESPALIER_BPF_OBJECT", &built.object)
        .env("ESPALIER_BIN", &built.espalier)
        .env("ESPALIER_UML", setup::uml_folder())
        .envs(scapy.ok().map(|python| ("ESPALIER_SCAPY", python)))
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test")?;
    let mut harness = Harness::default();
    for line in BufReader::new(child.stdout.take().context("cargo test: no output")?).lines() {
        let line = line.context("cargo test: output")?;
        if harness.shows(&line, score) {
            println!("{line}");
        }
    }
    let status = child.wait().context("cargo test")?;
    // A test program that does not compile, or dies, leaves no line of its own, but the status tells.
    score.add("cargo test as a whole", harness.programs > 0 && status.success());
    Ok(())
}

/// Reads what the test harness prints.
#[derive(Default)]
pub struct Harness {
    programs: u64,
    in_successes: bool,
    skipped: u64,
    test: String,
}

impl Harness {
    /// Scores a line; false if it is the output of a test that passed, which nobody wants to read.
    pub fn shows(&mut self, line: &str, score: &mut Score) -> bool {
        if let Some(totals) = line.strip_prefix("test result: ") {
            self.programs += 1;
            self.in_successes = false;
            score.passed += count(totals, "passed").saturating_sub(std::mem::take(&mut self.skipped));
            score.failed += count(totals, "failed");
            score.ignored += count(totals, "ignored");
        } else if line == "successes:" || line == "failures:" {
            self.in_successes = line == "successes:";
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            // Counted by the line of totals.
            score.failures.push(name.to_owned());
        } else if let Some(head) = line.strip_prefix("---- ") {
            self.test = head.split(' ').next().unwrap_or_default().to_owned();
        } else if self.in_successes && line.starts_with("skipped") {
            // The object, the binary and root are all there: a test that does not run has not passed.
            self.skipped += 1;
            score.fail(&format!("{}: {line}", self.test));
        }
        !self.in_successes
    }
}

/// The number before a word in `ok. 3 passed; 0 failed; 1 ignored; ...`.
fn count(totals: &str, word: &str) -> u64 {
    totals
        .split(['.', ';'])
        .filter_map(|part| part.trim().strip_suffix(word))
        .find_map(|number| number.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Score, Vec<&str>) {
        let mut score = Score::default();
        let mut harness = Harness::default();
        let shown = text.lines().filter(|l| harness.shows(l, &mut score)).collect();
        (score, shown)
    }

    #[test]
    fn tests_are_counted_by_the_totals_and_failures_named() {
        let text = "test a::b ... ok\ntest a::c ... FAILED\ntest a::d ... ignored\n\
                    test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let (score, shown) = read(text);
        assert_eq!((score.passed, score.failed, score.ignored), (1, 1, 1));
        assert_eq!(score.failures, ["a::c"]);
        assert_eq!(shown.len(), 4);
    }

    #[test]
    fn a_test_that_says_it_was_skipped_has_failed() {
        let text = "test k::one ... ok\ntest k::two ... ok\n\nsuccesses:\n\n---- k::two stdout ----\n\
                    skipped: no object\n\n\nsuccesses:\n    k::one\n    k::two\n\n\
                    test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let (score, shown) = read(text);
        assert_eq!((score.passed, score.failed), (1, 1));
        assert_eq!(score.failures, ["k::two: skipped: no object"]);
        assert!(!shown.contains(&"skipped: no object"));
    }
}
