//! What came of it: for `--json`, and as tables.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

/// One kernel.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// How it is called here.
    pub kernel: String,
    /// What `uname -r` says; empty where it is not known.
    pub release: String,
    /// Seconds until the emulated machine ran the first test.
    pub boot_seconds: Option<f64>,
    /// Seconds in all.
    pub seconds: f64,
    /// What the verifier says.
    pub programs: Vec<Program>,
    /// Checks that ran.
    pub checks: Vec<Check>,
    /// Where this kernel lacks something, and what is done instead.
    pub notes: Vec<String>,
    /// Why not everything ran.
    pub broken: Option<String>,
}

/// One program after verification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// Instructions of the program.
    pub instructions: u64,
    /// Instructions that the verifier walked through.
    pub processed: u64,
    /// Octets of machine code.
    pub jited_bytes: u64,
}

/// One check.
#[derive(Debug, Serialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
    /// Names of the tests and cases that passed.
    pub names: Vec<String>,
    /// Names of those that failed.
    pub failures: Vec<String>,
    /// Seconds.
    pub seconds: f64,
}

impl Outcome {
    /// Nothing so far.
    pub fn new(kernel: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            ..Self::default()
        }
    }

    /// A program was verified; what is known already counts once.
    pub fn learn(&mut self, program: Program) {
        if !self.programs.contains(&program) {
            self.programs.push(program);
        }
    }

    /// Something that a reader of the tables has to know, once.
    pub fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|n| n == note) {
            self.notes.push(note.to_owned());
        }
    }

    /// Whether all of it ran and passed.
    pub fn passed(&self) -> bool {
        self.broken.is_none() && !self.checks.is_empty() && self.checks.iter().all(|c| c.failed == 0)
    }

    /// What went wrong, a line each.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        let failed = self
            .checks
            .iter()
            .filter(|c| c.failed > 0)
            .flat_map(move |check| {
                let names = check.failures.iter();
                names.map(move |name| format!("Linux {}, {}: {name}", self.kernel, check.name))
            });
        let broken = self
            .broken
            .iter()
            .map(|why| format!("Linux {}: {why}", self.kernel));
        failed.chain(broken)
    }
}

impl Program {
    /// Reads a line `program NAME instructions N processed N jited N`.
    pub fn read(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("program ")?.split_whitespace();
        let name = words.next()?.to_owned();
        let mut number = |label: &str| {
            (words.next()? == label)
                .then(|| words.next())
                .flatten()?
                .parse()
                .ok()
        };
        Some(Self {
            name,
            instructions: number("instructions")?,
            processed: number("processed")?,
            jited_bytes: number("jited")?,
        })
    }
}

impl Check {
    /// One line about it.
    pub fn line(&self) -> String {
        format!("{}: {}, {:.1} s", self.name, self.cell(), self.seconds)
    }

    fn cell(&self) -> String {
        match (self.passed, self.failed) {
            (passed, 0) => format!("ok, {passed}"),
            (passed, failed) => format!("{failed} of {} failed", passed + failed),
        }
    }
}

/// So many tests of a check are named in the tables.
const NAMED: usize = 40;

/// The tables for people.
pub fn tables(outcomes: &[Outcome]) -> String {
    let mut header = vec!["kernel".to_owned(), "release".to_owned(), "boot, s".to_owned()];
    let mut names: Vec<&str> = Vec::new();
    for check in outcomes.iter().flat_map(|o| &o.checks) {
        if !names.contains(&check.name.as_str()) {
            names.push(&check.name);
        }
    }
    header.extend(names.iter().map(|n| (*n).to_owned()));
    header.push("all, s".to_owned());
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for outcome in outcomes {
        let boot = outcome.boot_seconds.map_or("-".to_owned(), |s| format!("{s:.0}"));
        let mut row = vec![outcome.kernel.clone(), outcome.release.clone(), boot];
        row.extend(names.iter().map(|name| {
            let found = outcome.checks.iter().find(|c| c.name == *name);
            found.map_or("-".to_owned(), Check::cell)
        }));
        row.push(format!("{:.0}", outcome.seconds));
        table.add_row(row);
    }
    let mut text = table.to_string();
    text.push_str("\n\ninstructions that the verifier processed\n");
    text.push_str(&verified(outcomes).to_string());
    for outcome in outcomes {
        // Cases are many, and have their names in the JSON.
        for check in outcome.checks.iter().filter(|c| c.names.len() <= NAMED) {
            let names = check.names.join(", ");
            text.push_str(&format!("\nLinux {}, {}: {names}", outcome.kernel, check.name));
        }
        for note in &outcome.notes {
            text.push_str(&format!("\nLinux {}: {note}", outcome.kernel));
        }
        for problem in outcome.problems() {
            text.push_str(&format!("\nfailed: {problem}"));
        }
    }
    text
}

fn verified(outcomes: &[Outcome]) -> Table {
    let mut names: Vec<&str> = Vec::new();
    for program in outcomes.iter().flat_map(|o| &o.programs) {
        if !names.contains(&program.name.as_str()) {
            names.push(&program.name);
        }
    }
    let mut table = Table::new();
    let header = std::iter::once("kernel").chain(names.iter().copied());
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for outcome in outcomes {
        let cells = names.iter().map(|name| {
            let found = outcome.programs.iter().find(|p| p.name == *name);
            found.map_or("-".to_owned(), |p| p.processed.to_string())
        });
        table.add_row(std::iter::once(outcome.kernel.clone()).chain(cells));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_read_from_its_line() {
        let program = Program::read("program steer instructions 15105 processed 148435 jited 63280");
        assert_eq!(
            program,
            Some(Program {
                name: "steer".to_owned(),
                instructions: 15105,
                processed: 148_435,
                jited_bytes: 63_280
            })
        );
        assert_eq!(Program::read("program steer instructions many"), None);
    }

    #[test]
    fn a_kernel_that_ran_nothing_has_not_passed() {
        let mut outcome = Outcome::new("6.1");
        assert!(!outcome.passed());
        let check = |failed: u64| Check {
            name: "loader".to_owned(),
            passed: 2,
            failed,
            names: vec!["a".to_owned(), "b".to_owned()],
            failures: vec!["x".to_owned(); failed as usize],
            seconds: 1.0,
        };
        outcome.checks.push(check(0));
        assert!(outcome.passed());
        outcome.checks.push(check(1));
        assert!(!outcome.passed());
        assert_eq!(outcome.problems().collect::<Vec<_>>(), ["Linux 6.1, loader: x"]);
        let text = tables(&[outcome]);
        assert!(text.contains("failed: Linux 6.1, loader: x"), "{text}");
        assert!(text.contains("Linux 6.1, loader: a, b"), "{text}");
    }
}
