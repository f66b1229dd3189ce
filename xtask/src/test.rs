//! `cargo xtask test`: everything, and one line at the end that is true.

use crate::cargo_tools::cargo;
use crate::steps::{detail, say};
use crate::{build, demo, setup, tidy};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Instant;

/// What ran and how it ended.
#[derive(Default)]
struct Score {
    passed: u64,
    failed: u64,
    failures: Vec<String>,
}

impl Score {
    fn add(&mut self, what: &str, ok: bool) {
        if ok {
            self.passed += 1;
        } else {
            self.failed += 1;
            self.failures.push(what.to_owned());
        }
    }
}

/// Runs everything; true if all passed. A failed part does not stop the others.
pub fn run() -> Result<bool> {
    let start = Instant::now();
    setup::run()?;
    let mut score = Score::default();
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
    score.add("tidy", tidy::run()?);
    if let Ok(built) = &built {
        cargo_tests(built, &mut score)?;
        say("one real takeover");
        let takeover = demo::run(&demo::Options::short());
        score.add("takeover", takeover.as_ref().is_ok_and(|ok| *ok));
        if let Err(error) = takeover {
            detail(&format!("{error:#}"));
        }
    }
    for failure in &score.failures {
        println!("failed: {failure}");
    }
    println!("{} s", start.elapsed().as_secs());
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
    let mut child = cargo()
        .args([
            "test",
            "--workspace",
            "--no-fail-fast",
            "--",
            "--test-threads",
            "2",
        ])
        .env("ESPALIER_OBJECT", &built.object)
        .env("ESPALIER_BIN", &built.espalier)
        .env("ESPALIER_UML", setup::uml_folder())
        .stdout(Stdio::piped())
        .spawn()
        .context("cargo test")?;
    let mut counted = 0;
    for line in BufReader::new(child.stdout.take().context("cargo test: no output")?).lines() {
        let line = line.context("cargo test: output")?;
        println!("{line}");
        if let Some((name, ok)) = result(&line) {
            counted += 1;
            score.add(&name, ok);
        }
    }
    let status = child.wait().context("cargo test")?;
    // A test program that does not compile, or dies, leaves no line of its own, but the status tells.
    score.add("cargo test as a whole", counted > 0 && status.success());
    Ok(())
}

/// Name and outcome out of a line of the test harness; none for ignored tests and other lines.
fn result(line: &str) -> Option<(String, bool)> {
    let rest = line.strip_prefix("test ")?;
    let (name, outcome) = rest.rsplit_once(" ... ")?;
    match outcome.trim() {
        "ok" => Some((name.to_owned(), true)),
        "FAILED" => Some((name.to_owned(), false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::result;

    #[test]
    fn lines_of_the_harness_are_counted_and_others_are_not() {
        assert_eq!(result("test a::b ... ok"), Some(("a::b".into(), true)));
        assert_eq!(result("test a::b ... FAILED"), Some(("a::b".into(), false)));
        assert_eq!(result("test a::b ... ignored"), None);
        assert_eq!(result("test result: ok. 3 passed; 0 failed"), None);
    }
}
