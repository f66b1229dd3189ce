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
    /// What is to be known of some of them.
    essence: Vec<Essence>,
}

/// What was said when something failed. It is repeated at the very end, since a long log is cut in its middle.
struct Essence {
    what: String,
    lines: Vec<String>,
}

/// Lines that are repeated of one failure.
const ESSENTIAL: usize = 40;

impl Essence {
    /// Beginning and end, where there is more than is repeated: a panic comes first, its cause may come last.
    fn shown(&self) -> Vec<String> {
        let (lines, half) = (&self.lines, ESSENTIAL / 2);
        if lines.len() <= ESSENTIAL {
            return lines.clone();
        }
        let left_out = lines.len() - ESSENTIAL + 1;
        let (first, last) = (&lines[..half], &lines[lines.len() - half + 1..]);
        [first, &[format!("... {left_out} lines left out ...")], last].concat()
    }
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

    /// A part that says itself what went wrong: nothing where all is well.
    fn add_judged(&mut self, what: &str, wrong: Result<Vec<String>>) {
        let wrong = wrong.unwrap_or_else(|error| {
            detail(&format!("{error:#}"));
            vec![format!("{error:#}")]
        });
        self.add(what, wrong.is_empty());
        self.tell(what, wrong);
    }

    fn tell(&mut self, what: &str, lines: Vec<String>) {
        if !lines.is_empty() {
            let what = what.to_owned();
            self.essence.push(Essence { what, lines });
        }
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
            score.add_judged("takeover", demo::judged(&demo::Options::short()));
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
                score.add_judged(what, chaos::judged(&options).map(|tally| tally.wrong()));
            }
            say("mutants: builds with a safety rule removed");
            let mutants = chaos::mutants::judged(&chaos::mutants::Options::default());
            score.add_judged("mutants", mutants);
        }
        Err(_) => score.fail("cargo test and the takeover: not run, since the build failed"),
    }
    for failure in &score.failures {
        println!("failed: {failure}");
    }
    for essence in &score.essence {
        println!("{}:", essence.what);
        essence.shown().iter().for_each(|line| println!("    {line}"));
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
    in_failures: bool,
    skipped: u64,
    test: String,
    said: Vec<String>,
}

impl Harness {
    /// Scores a line; false if it is the output of a test that passed, which nobody wants to read.
    pub fn shows(&mut self, line: &str, score: &mut Score) -> bool {
        if let Some(totals) = line.strip_prefix("test result: ") {
            self.programs += 1;
            (self.in_successes, self.in_failures) = (false, false);
            self.close(score);
            score.passed += count(totals, "passed").saturating_sub(std::mem::take(&mut self.skipped));
            score.failed += count(totals, "failed");
            score.ignored += count(totals, "ignored");
        } else if line == "successes:" || line == "failures:" {
            // Each list comes twice: with what the tests said, then names alone.
            self.close(score);
            self.in_successes = line == "successes:";
            self.in_failures = line == "failures:";
        } else if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            // Counted by the line of totals.
            score.failures.push(name.to_owned());
        } else if let Some(head) = line.strip_prefix("---- ") {
            self.close(score);
            self.test = head.split(' ').next().unwrap_or_default().to_owned();
        } else if self.in_failures && !self.test.is_empty() {
            self.said.push(line.to_owned());
        } else if self.in_successes && line.starts_with("skipped") {
            // The object, the binary and root are all there: a test that does not run has not passed.
            self.skipped += 1;
            score.fail(&format!("{}: {line}", self.test));
        }
        !self.in_successes
    }

    /// What a test said is complete.
    fn close(&mut self, score: &mut Score) {
        let (test, said) = (std::mem::take(&mut self.test), std::mem::take(&mut self.said));
        let tells = |line: &String| !line.trim().is_empty() && !of_backtrace(line);
        let said = said.into_iter().filter(tells);
        score.tell(&test, said.collect());
    }
}

/// A frame of a backtrace: `  17: name` or `     at file:line`. They would fill what is repeated, in place of what the test said.
fn of_backtrace(line: &str) -> bool {
    let Some(inner) = line.strip_prefix("  ").map(str::trim_start) else {
        return false;
    };
    let numbered = |(number, _): (&str, &str)| number.parse::<u32>().is_ok();
    inner.starts_with("at ") || inner.split_once(": ").is_some_and(numbered)
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
    fn what_a_failed_test_said_is_kept_for_the_end() {
        let text = "test a::b ... FAILED\ntest a::c ... FAILED\n\nfailures:\n\n---- a::b stdout ----\n\n\
                    thread 'a::b' panicked at src/a.rs:1:\nseed 7\n\n---- a::c stdout ----\nError: lost\n\n\n\
                    failures:\n    a::b\n    a::c\n\n\
                    test result: FAILED. 0 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let (score, _) = read(text);
        let said: Vec<(&str, Vec<String>)> = score
            .essence
            .iter()
            .map(|e| (e.what.as_str(), e.shown()))
            .collect();
        let lines = |all: &[&str]| all.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            said,
            [
                (
                    "a::b",
                    lines(&["thread 'a::b' panicked at src/a.rs:1:", "seed 7"])
                ),
                ("a::c", lines(&["Error: lost"])),
            ]
        );
    }

    #[test]
    fn frames_of_a_backtrace_are_not_repeated() {
        let text = "failures:\n\n---- a::b stdout ----\nError: 3 pings lost\n\nStack backtrace:\n   0: anyhow::error\n\
                    \u{20}            at /a/error.rs:10:5\n  17: clone3\n  1.5 s: two members in sync\n\n\
                    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let (score, _) = read(text);
        assert_eq!(
            score.essence[0].shown(),
            [
                "Error: 3 pings lost",
                "Stack backtrace:",
                "  1.5 s: two members in sync"
            ]
        );
    }

    #[test]
    fn of_a_long_text_beginning_and_end_are_repeated() {
        let lines = (1..=100).map(|n| n.to_string()).collect();
        let shown = Essence {
            what: "x".to_owned(),
            lines,
        }
        .shown();
        assert_eq!(shown.len(), ESSENTIAL);
        assert_eq!((shown[0].as_str(), shown[19].as_str()), ("1", "20"));
        assert_eq!(shown[20], "... 61 lines left out ...");
        assert_eq!((shown[21].as_str(), shown[39].as_str()), ("82", "100"));
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
