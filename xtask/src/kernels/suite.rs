//! What is run on every kernel: test programs as cargo makes them, by themselves.

use super::report::{Check, Outcome, Program};
use crate::cargo_tools::cargo;
use crate::steps::detail;
use crate::test::{Harness, Score};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Where the object lies in the emulated machine.
pub const OBJECT_IN_MACHINE: &str = "/tests/object";
/// The agent, for labs.
const AGENT: &str = "espalier";
/// What starts agents.
const LAB: &str = "lab-devices";
/// Network cards of the emulated machine, on one wire; a test takes them for its own.
const CARDS: &str = "eth0,eth1";

/// How much is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Every program loads, and carries a few packets: what `cargo xtask test` has time for.
    Few,
    /// All that there is.
    All,
}

/// Where something can run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    /// On every kernel.
    Everywhere,
    /// In the emulated machine only: it has the devices for it.
    Machine,
}

/// One check: its name in the table, the test program, what it is told.
struct Step {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    /// What it is told in the emulated machine besides, where every load takes half a minute: which tests to run (no word: all of them).
    /// What is left out there repeats what another check does there, differs in a size only, or asks about user space alone.
    machine: &'static [&'static str],
    /// What it is told on this host besides.
    host: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    only: Where,
    extent: Extent,
    /// Minutes that it gets in the emulated machine.
    minutes: u32,
}

const STEPS: [Step; 6] = [
    Step {
        name: "programs, few cases",
        program: "kernel-report",
        arguments: &["few"],
        machine: &[],
        host: &[],
        environment: &[],
        only: Where::Everywhere,
        extent: Extent::Few,
        minutes: 10,
    },
    Step {
        name: "programs, case tables",
        program: "kernel-report",
        arguments: &[],
        machine: &["some"],
        host: &["cases"],
        environment: &[],
        only: Where::Everywhere,
        extent: Extent::All,
        minutes: 20,
    },
    Step {
        name: "loader",
        program: "dataplane-kernel",
        arguments: TESTS,
        machine: &["programs_attach", "a_live_frame", "a_restart_replaces"],
        host: &[],
        environment: &[],
        only: Where::Everywhere,
        extent: Extent::All,
        minutes: 15,
    },
    Step {
        name: "veth",
        program: "live",
        arguments: TESTS,
        machine: &["aes_256_gcm_with_esn_in_udp"],
        host: &[],
        environment: &[],
        only: Where::Everywhere,
        extent: Extent::All,
        minutes: 10,
    },
    Step {
        name: "virtio_net",
        program: "live",
        arguments: TESTS,
        machine: &["chacha20_poly1305_carries"],
        host: &[],
        environment: &[("ESPALIER_CARDS", CARDS)],
        only: Where::Machine,
        extent: Extent::All,
        minutes: 10,
    },
    Step {
        name: "devices",
        program: LAB,
        arguments: &["bonds"],
        machine: &[],
        host: &[],
        environment: &[("ESPALIER_BIN", "/tests/espalier"), ("ESPALIER_PATIENCE", "10")],
        only: Where::Machine,
        extent: Extent::All,
        minutes: 25,
    },
];

/// How test programs are started: one test after the other, and what they print is shown, since that tells of skipped ones.
const TESTS: &[&str] = &["--test-threads", "1", "--show-output"];

/// The test programs and the object.
pub struct Programs {
    /// Executables by the names that [`STEPS`] give them.
    pub executables: BTreeMap<String, PathBuf>,
    /// The BPF programs.
    pub object: PathBuf,
    steps: Vec<&'static Step>,
}

impl Programs {
    fn steps(&self) -> impl Iterator<Item = &'static Step> {
        self.steps.iter().copied()
    }

    /// Minutes that the steps may take in the emulated machine, all together.
    pub fn minutes(&self) -> u64 {
        self.steps.iter().map(|step| u64::from(step.minutes)).sum()
    }
}

/// Where a test program lies in the emulated machine.
pub fn in_machine(name: &str) -> String {
    format!("/tests/{name}")
}

/// Compiles the test programs, those of `checks` only where any are named.
pub fn programs(object: &Path, extent: Extent, checks: &[String]) -> Result<Programs> {
    let wanted =
        |step: &Step| checks.is_empty() || checks.iter().any(|part| step.name.contains(part.as_str()));
    let steps: Vec<_> = STEPS
        .iter()
        .filter(|step| step.extent == extent && wanted(step))
        .collect();
    if steps.is_empty() {
        bail!("no check is called {}", checks.join(", "));
    }
    let uses = |program: &str| steps.iter().any(|step| step.program == program);
    let mut builds: Vec<&[&str]> = Vec::new();
    if uses("kernel-report") {
        builds.push(&["build", "-p", "test-packet", "--bins"]);
    }
    if uses(LAB) {
        builds.push(&["build", "-p", "test-interop", "-p", "cli", "--bins"]);
    }
    if uses("live") || uses("dataplane-kernel") {
        builds.push(&[
            "test",
            "--no-run",
            "-p",
            "test-packet",
            "-p",
            "dataplane",
            "--test",
            "live",
            "--test",
            "kernel",
        ]);
    }
    let mut executables = BTreeMap::new();
    for build in builds {
        executables.extend(compiled(build)?);
    }
    // What no check runs makes the RAM disk larger only.
    executables.retain(|name, _| uses(name) || (name == AGENT && uses(LAB)));
    let programs = Programs {
        executables,
        object: object.to_owned(),
        steps,
    };
    if let Some(step) = programs
        .steps()
        .find(|s| !programs.executables.contains_key(s.program))
    {
        bail!("cargo made no test program {}", step.program);
    }
    Ok(programs)
}

/// What a command of cargo's makes: executables by name.
fn compiled(build: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let output = cargo()
        .args(build)
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cargo {}", build.join(" ")))?;
    if !output.status.success() {
        bail!(
            "cargo {} failed: the test programs do not compile",
            build.join(" ")
        );
    }
    let mut executables = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let text = |pointer: &str| message.pointer(pointer).and_then(serde_json::Value::as_str);
        let (Some(name), Some(path)) = (text("/target/name"), text("/executable")) else {
            continue;
        };
        // Two packages have a test of the name "kernel".
        let of_dataplane = text("/target/src_path").is_some_and(|p| p.contains("userspace/dataplane/"));
        let name = if of_dataplane {
            format!("dataplane-{name}")
        } else {
            name.to_owned()
        };
        let wanted = name == AGENT || STEPS.iter().any(|s| s.program == name);
        // "cargo test" makes programs of a package beside its tests.
        if wanted {
            executables.entry(name).or_insert_with(|| PathBuf::from(path));
        }
    }
    Ok(executables)
}

/// The environment of a step, but for its own part.
fn environment(object: &str) -> [(&'static str, String); 3] {
    [
        ("ESPALIER_OBJECT", object.to_owned()),
        ("ESPALIER_BPF_OBJECT", object.to_owned()),
        ("RUST_BACKTRACE", "0".to_owned()),
    ]
}

/// What the emulated machine runs, for its shell.
pub fn script(programs: &Programs) -> String {
    let mut script = String::new();
    for step in programs.steps() {
        script.push_str(&format!("echo '@@begin {}'\n", step.name));
        let shared = environment(OBJECT_IN_MACHINE);
        let own = step.environment.iter().map(|(k, v)| (*k, (*v).to_owned()));
        for (key, value) in shared.into_iter().chain(own) {
            script.push_str(&format!("{key}={value} "));
        }
        // One that hangs leaves the time of the others alone.
        script.push_str(&format!(
            "timeout -s KILL {} {} {} 2>&1\n",
            60 * step.minutes,
            in_machine(step.program),
            [step.arguments, step.machine].concat().join(" ")
        ));
        script.push_str("echo \"@@done $?\"\n");
    }
    script
}

/// Runs the steps on this host.
pub fn on_host(programs: &Programs, verbose: bool, outcome: &mut Outcome) {
    for step in programs.steps().filter(|s| s.only == Where::Everywhere) {
        let Some(path) = programs.executables.get(step.program) else {
            continue;
        };
        let mut reading = Reading::begin(step.name, verbose);
        let object = programs.object.to_string_lossy();
        let child = Command::new(path)
            .args(step.arguments)
            .args(step.host)
            .envs(environment(&object))
            .envs(step.environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn();
        let status = child.map_err(anyhow::Error::from).and_then(|mut child| {
            let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
            for line in lines {
                reading.line(&line?, outcome);
            }
            Ok(child.wait()?)
        });
        match status {
            Ok(status) => reading.end(status.success(), outcome),
            Err(error) => {
                detail(&format!("{error:#}"));
                reading.end(false, outcome);
            }
        }
    }
}

/// Reads what one step prints: tests of the usual harness, or cases, a line each.
pub struct Reading {
    name: String,
    harness: Harness,
    score: Score,
    names: Vec<String>,
    expected: Option<u64>,
    start: Instant,
    verbose: bool,
    /// Lines of a failed case's reasons that are still shown.
    reasons: usize,
}

/// Lines that are shown of why a case failed.
const REASONS: usize = 40;

impl Reading {
    /// A step begins.
    pub fn begin(name: &str, verbose: bool) -> Self {
        Self {
            name: name.to_owned(),
            harness: Harness::default(),
            score: Score::default(),
            names: Vec::new(),
            expected: None,
            start: Instant::now(),
            verbose,
            reasons: 0,
        }
    }

    /// One line of its output.
    pub fn line(&mut self, line: &str, outcome: &mut Outcome) {
        if let Some(program) = Program::read(line) {
            outcome.learn(program);
            return;
        }
        let reasons = std::mem::take(&mut self.reasons);
        if let Some(count) = line.strip_prefix("cases ").and_then(|n| n.parse().ok()) {
            self.expected = Some(count);
        } else if let Some(note) = line.strip_prefix("note ") {
            outcome.note(note);
        } else if let Some(name) = line.strip_prefix("case ok ") {
            self.score.passed += 1;
            self.names.push(name.to_owned());
        } else if let Some(name) = line.strip_prefix("case failed ") {
            self.score.failed += 1;
            self.score.failures.push(name.to_owned());
            detail(line);
            self.reasons = REASONS;
        } else if reasons > 0 && !line.starts_with("test ") {
            self.reasons = reasons - 1;
            if !self.verbose {
                detail(line);
            }
        }
        let shown = self.harness.shows(line, &mut self.score);
        if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... ok")) {
            self.names.push(name.to_owned());
        }
        if self.verbose || shown && (line.contains("panicked") || line.contains("FAILED")) {
            detail(line);
        }
    }

    /// How far it is, for somebody who waits.
    pub fn progress(&self) -> String {
        let of = self.expected.map_or(String::new(), |all| format!(" of {all}"));
        let done = self.names.len() + self.score.failures.len();
        let seconds = self.start.elapsed().as_secs();
        format!("{}: {done}{of} done, {seconds} s", self.name)
    }

    /// It has ended.
    pub fn end(self, success: bool, outcome: &mut Outcome) {
        let progress = self.progress();
        let Score {
            passed,
            mut failed,
            mut failures,
            ..
        } = self.score;
        let cut_short = self.expected.is_some_and(|all| all != passed + failed);
        if (!success || cut_short || passed == 0) && failed == 0 {
            failed = 1;
            failures.push(format!("it ended before its tests did ({progress})"));
        }
        let seconds = self.start.elapsed().as_secs_f64();
        let check = Check {
            name: self.name,
            passed,
            failed,
            names: self.names,
            failures,
            seconds,
        };
        detail(&check.line());
        outcome.checks.push(check);
    }
}
