//! The emulated machine: two processors, two network cards on one wire, a serial console.

use super::image::Kernel;
use super::report::Outcome;
use super::suite::Reading;
use crate::setup;
use crate::steps::detail;
use anyhow::{Context, Result, bail};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// What is needed beyond what everything else needs: a file that tells, and the package.
const PACKAGES: [(&str, &str); 3] = [
    (QEMU, "qemu-system-x86"),
    ("/bin/busybox", "busybox-static"),
    ("/usr/bin/xz", "xz-utils"),
];
/// Nothing on the console for so long: the machine hangs. The programs of a kernel take a minute or two to load, in silence, and several
/// times that on a busy host.
const SILENCE: Duration = Duration::from_secs(900);
/// How often whoever waits is told how far it is.
const TICK: Duration = Duration::from_secs(20);
/// Lines of the console that are shown where the machine stops half-way.
const LAST_LINES: usize = 15;

/// Installs what is missing.
pub fn packages() -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(file, _)| !Path::new(file).exists())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    setup::install(&missing)
}

/// Ends the machine where something goes wrong.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the kernel and reads what its console says until it is off.
///
/// # Errors
/// The machine does not start, falls silent, ends half-way or is not done within `limit`. What it said until then is in `outcome`.
pub fn run(
    kernel: &Kernel,
    initrd: &Path,
    verbose: bool,
    limit: Duration,
    outcome: &mut Outcome,
) -> Result<()> {
    let start = Instant::now();
    let mut command = Command::new(QEMU);
    command
        // Hardware acceleration is not to be had everywhere, and where it seems so it may not work.
        .args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1024",
        ])
        .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"]);
    for card in 1..=2 {
        command.args(["-netdev", &format!("hubport,id=n{card},hubid=0")]);
        let device = format!("virtio-net-pci,netdev=n{card},mac=02:00:00:00:ff:0{card},romfile=");
        command.args(["-device", &device]);
    }
    command
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(initrd)
        .args([
            "-append",
            "console=ttyS0 panic=-1 oops=panic quiet net.ifnames=0 no_timer_check",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = Running(command.spawn().with_context(|| format!("start {QEMU}"))?);
    let stdout = child.0.stdout.take().context("its console")?;
    let mut stderr = child.0.stderr.take().context("its messages")?;
    let (lines, console) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut console_of = Console {
        verbose,
        start,
        step: None,
        ended: false,
        last: VecDeque::new(),
    };
    let (mut heard, mut told) = (start, start);
    loop {
        match console.recv_timeout(TICK) {
            Ok(line) => {
                heard = Instant::now();
                console_of.line(&line, outcome);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let why = if start.elapsed() > limit {
            format!("is not done after {} minutes", limit.as_secs() / 60)
        } else if heard.elapsed() > SILENCE {
            format!("has said nothing for {} s", SILENCE.as_secs())
        } else {
            if told.elapsed() >= TICK {
                told = Instant::now();
                detail(&console_of.progress());
            }
            continue;
        };
        let tail = console_of.tail();
        if let Some(step) = console_of.step.take() {
            step.end(false, outcome);
        }
        bail!("the emulated machine {why}\n{tail}");
    }
    let _ = reader.join();
    if console_of.ended {
        return Ok(());
    }
    let mut said = String::new();
    let _ = child.0.kill();
    let _ = stderr.read_to_string(&mut said);
    bail!(
        "the emulated machine stopped before the end of the tests\n{}\n{}",
        console_of.tail(),
        said.trim()
    )
}

/// Reads the console: marks begin with `@@`, everything between is what a step prints.
struct Console {
    verbose: bool,
    start: Instant,
    step: Option<Reading>,
    ended: bool,
    last: VecDeque<String>,
}

impl Console {
    fn line(&mut self, line: &str, outcome: &mut Outcome) {
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.to_owned());
        // The firmware leaves control characters before the first line.
        let mark = line.find("@@").and_then(|at| line.get(at + 2..));
        let mark = mark.map(|m| m.split_once(' ').unwrap_or((m, "")));
        match mark {
            Some(("up", release)) => {
                outcome.release = release.to_owned();
                outcome.boot_seconds = Some(self.start.elapsed().as_secs_f64());
            }
            Some(("note", note)) => outcome.note(note),
            Some(("begin", name)) => self.step = Some(Reading::begin(name, self.verbose)),
            Some(("done", status)) => {
                if let Some(step) = self.step.take() {
                    step.end(status == "0", outcome);
                }
            }
            Some(("end", _)) => self.ended = true,
            _ => {
                if let Some(step) = &mut self.step {
                    step.line(line, outcome);
                }
            }
        }
    }

    fn progress(&self) -> String {
        match &self.step {
            Some(step) => step.progress(),
            None => format!("between checks, {} s", self.start.elapsed().as_secs()),
        }
    }

    fn tail(&self) -> String {
        self.last
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Outcome, bool) {
        let mut outcome = Outcome::new("6.1");
        let mut console = Console {
            verbose: false,
            start: Instant::now(),
            step: None,
            ended: false,
            last: VecDeque::new(),
        };
        for line in text.lines() {
            console.line(line, &mut outcome);
        }
        (outcome, console.ended)
    }

    #[test]
    fn steps_are_read_between_their_marks() {
        let text = "\x1bc\x1b[?7l@@up 6.1.0-56-cloud-amd64\n@@begin programs\n\
                    program steer instructions 1 processed 2 jited 3\ncases 1\ncase ok one way out\n@@done 0\n@@begin loader\n\
                    test a ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n@@done 0\n@@end\n";
        let (outcome, ended) = read(text);
        assert!(ended && outcome.passed());
        assert_eq!(outcome.release, "6.1.0-56-cloud-amd64");
        assert_eq!(outcome.programs.len(), 1);
        let seen: Vec<_> = outcome
            .checks
            .iter()
            .map(|c| (c.name.as_str(), c.passed, c.names.as_slice()))
            .collect();
        let (cases, tests) = (["one way out".to_owned()], ["a".to_owned()]);
        assert_eq!(seen, [("programs", 1, &cases[..]), ("loader", 1, &tests)]);
    }

    #[test]
    fn a_step_that_dies_has_failed() {
        let (outcome, ended) = read("@@up 6.1\n@@begin loader\nSegmentation fault\n@@done 139\n");
        assert!(!ended && !outcome.passed());
        let why = &outcome.checks[0].failures[0];
        assert!(why.starts_with("it ended before its tests did"), "{why}");
    }

    #[test]
    fn a_table_that_ends_early_and_a_case_that_deviates_have_failed() {
        let (early, _) = read("@@up 6.1\n@@begin programs\ncases 2\ncase ok one\n@@done 0\n@@end\n");
        assert!(!early.passed(), "one of two cases ran");
        let (deviates, _) = read(
            "@@up 6.1\n@@begin programs\ncases 2\ncase ok one\ncase failed two\n    why\n@@done 1\n@@end\n",
        );
        assert_eq!(deviates.checks[0].failures, ["two"]);
        let (empty, _) = read("@@up 6.1\n@@begin loader\n@@done 0\n@@end\n");
        assert!(!empty.passed(), "a check without a test has not passed");
    }
}
