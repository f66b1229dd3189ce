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
/// Network cards of the emulated machine, on one wire; a test takes them for its own.
const CARDS: &str = "eth0,eth1";

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
    /// Tests that run in the emulated machine, where every load takes seconds; all of them where there is none.
    machine: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    only: Where,
}

const STEPS: [Step; 5] = [
    Step {
        name: "programs",
        program: "kernel-report",
        arguments: &[],
        machine: &[],
        environment: &[],
        only: Where::Everywhere,
    },
    Step {
        name: "loader",
        program: "dataplane-kernel",
        arguments: TESTS,
        machine: &["programs_attach", "a_live_frame", "a_restart_replaces"],
        environment: &[],
        only: Where::Everywhere,
    },
    Step {
        name: "case tables",
        program: "kernel",
        arguments: TESTS,
        machine: &[],
        environment: &[],
        only: Where::Everywhere,
    },
    Step {
        name: "veth",
        program: "live",
        arguments: TESTS,
        machine: &["aes_256_gcm_with_esn_in_udp"],
        environment: &[],
        only: Where::Everywhere,
    },
    Step {
        name: "virtio_net",
        program: "live",
        arguments: TESTS,
        machine: &["chacha20_poly1305_carries"],
        environment: &[("ESPALIER_CARDS", CARDS)],
        only: Where::Machine,
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
}

/// Where a test program lies in the emulated machine.
pub fn in_machine(name: &str) -> String {
    format!("/tests/{name}")
}

/// Compiles the test programs.
pub fn programs(object: &Path) -> Result<Programs> {
    let output = cargo()
        .args(["test", "--no-run", "--message-format", "json-render-diagnostics"])
        .args(["-p", "test-packet", "-p", "dataplane", "--tests", "--bins"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test --no-run")?;
    if !output.status.success() {
        bail!("the test programs do not compile");
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
        let is_test = message.pointer("/profile/test") == Some(&serde_json::Value::Bool(true));
        if text("/target/kind/0") == Some("bin") && is_test {
            // The tests within the program, not the program.
            continue;
        }
        // Two packages have a test of the name "kernel".
        let of_dataplane = text("/target/src_path").is_some_and(|p| p.contains("userspace/dataplane/"));
        let name = if of_dataplane {
            format!("dataplane-{name}")
        } else {
            name.to_owned()
        };
        executables.insert(name, PathBuf::from(path));
    }
    executables.retain(|name, _| STEPS.iter().any(|s| s.program == name));
    if let Some(step) = STEPS.iter().find(|s| !executables.contains_key(s.program)) {
        bail!("cargo made no test program {}", step.program);
    }
    Ok(Programs {
        executables,
        object: object.to_owned(),
    })
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
pub fn script() -> String {
    let mut script = String::new();
    for step in &STEPS {
        script.push_str(&format!("echo '@@begin {}'\n", step.name));
        let shared = environment(OBJECT_IN_MACHINE);
        let own = step.environment.iter().map(|(k, v)| (*k, (*v).to_owned()));
        for (key, value) in shared.into_iter().chain(own) {
            script.push_str(&format!("{key}={value} "));
        }
        script.push_str(&format!(
            "{} {} 2>&1\n",
            in_machine(step.program),
            [step.arguments, step.machine].concat().join(" ")
        ));
        script.push_str("echo \"@@done $?\"\n");
    }
    script
}

/// Runs the steps on this host.
pub fn on_host(programs: &Programs, verbose: bool, outcome: &mut Outcome) {
    for step in STEPS.iter().filter(|s| s.only == Where::Everywhere) {
        let Some(path) = programs.executables.get(step.program) else {
            continue;
        };
        let mut reading = Reading::begin(step.name, verbose);
        let object = programs.object.to_string_lossy();
        let child = Command::new(path)
            .args(step.arguments)
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

/// Reads what one step prints.
pub struct Reading {
    name: String,
    harness: Harness,
    score: Score,
    start: Instant,
    verbose: bool,
}

impl Reading {
    /// A step begins.
    pub fn begin(name: &str, verbose: bool) -> Self {
        Self {
            name: name.to_owned(),
            harness: Harness::default(),
            score: Score::default(),
            start: Instant::now(),
            verbose,
        }
    }

    /// One line of its output.
    pub fn line(&mut self, line: &str, outcome: &mut Outcome) {
        if let Some(program) = Program::read(line) {
            outcome.programs.push(program);
            return;
        }
        if let Some(note) = line.strip_prefix("note ") {
            outcome.notes.push(note.to_owned());
        }
        let shown = self.harness.shows(line, &mut self.score);
        if self.verbose || shown && (line.contains("panicked") || line.contains("FAILED")) {
            detail(line);
        }
    }

    /// It has ended.
    pub fn end(self, success: bool, outcome: &mut Outcome) {
        let Score {
            passed,
            mut failed,
            mut failures,
            ..
        } = self.score;
        if !success && failed == 0 {
            failed = 1;
            failures.push(format!("{} ended before its tests did", self.name));
        }
        let seconds = self.start.elapsed().as_secs_f64();
        let check = Check {
            name: self.name,
            passed,
            failed,
            failures,
            seconds,
        };
        detail(&check.line());
        outcome.checks.push(check);
    }
}
