//! What a target says on standard error: libFuzzer's lines, the count of tests/fuzz, and a panic.

use std::path::PathBuf;

/// Lines of a panic and of libFuzzer's verdict that are repeated.
const SAID: usize = 12;
/// Longest of them, characters.
const LINE: usize = 300;

/// What was heard so far.
#[derive(Debug, Default)]
pub struct Heard {
    /// Inputs.
    pub executions: u64,
    /// Edges.
    pub edges: u64,
    /// Edges with how often.
    pub features: u64,
    /// Inputs that reach something of their own.
    pub corpus: u64,
    /// Inputs that were found in this run, where libFuzzer has said it at its end.
    pub new_inputs: Option<u64>,
    /// Where it wrote the input that it did not survive.
    pub crash: Option<PathBuf>,
    /// What it said of that.
    pub said: Vec<String>,
    /// A panic is being told.
    panics: bool,
}

impl Heard {
    /// One more line.
    pub fn line(&mut self, line: &str) {
        if let Some(count) = number_after(line, "executions: ") {
            self.executions = self.executions.max(count);
        } else if let Some(status) = line.strip_prefix('#') {
            let count = status.split(|c: char| !c.is_ascii_digit()).next();
            let count = count.and_then(|count| count.parse().ok());
            self.executions = self.executions.max(count.unwrap_or(0));
            self.edges = number_after(line, " cov: ").unwrap_or(self.edges);
            self.features = number_after(line, " ft: ").unwrap_or(self.features);
            self.corpus = number_after(line, " corp: ").unwrap_or(self.corpus);
        } else if let Some(count) = number_after(line, "stat::number_of_executed_units: ") {
            self.executions = count;
        } else if let Some(count) = number_after(line, "stat::new_units_added: ") {
            self.new_inputs = Some(count);
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.crash = Some(PathBuf::from(path.trim()));
        } else {
            self.words(line);
        }
    }

    fn words(&mut self, line: &str) {
        if line.contains("panicked at ") {
            self.panics = true;
        } else if line.starts_with("note: run with") || line.starts_with("stack backtrace") {
            self.panics = false;
        }
        let verdict = line.contains("ERROR: libFuzzer") || line.starts_with("SUMMARY: ");
        // An abort that a panic led to says nothing more.
        let more = verdict && !line.contains("deadly signal");
        if (self.panics && !verdict || more) && self.said.len() < SAID && !line.trim().is_empty() {
            self.said.push(line.chars().take(LINE).collect());
        }
    }
}

/// The number behind `what`, whatever spaces are between.
fn number_after(line: &str, what: &str) -> Option<u64> {
    let (_, rest) = line.split_once(what)?;
    let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_and_the_totals_are_read() {
        let mut heard = Heard::default();
        let lines = "INFO: seed corpus: files: 14 min: 1b max: 90b total: 614b rss: 42Mb\n\
                     #15\tINITED cov: 312 ft: 420 corp: 12/500b exec/s: 0 rss: 43Mb\n\
                     #4096\tREDUCE cov: 318 ft: 431 corp: 14/510b lim: 90 exec/s: 2048 rss: 44Mb L: 9/90 MS: 1 EraseBytes-\n\
                     executions: 9000";
        lines.lines().for_each(|line| heard.line(line));
        assert_eq!(
            (heard.executions, heard.edges, heard.features, heard.corpus),
            (9000, 318, 431, 14)
        );
        heard.line("stat::number_of_executed_units: 12345");
        heard.line("stat::new_units_added:          7");
        assert_eq!((heard.executions, heard.new_inputs), (12_345, Some(7)));
        assert!(heard.crash.is_none() && heard.said.is_empty());
    }

    #[test]
    fn of_a_crash_the_panic_and_the_path_are_kept() {
        let mut heard = Heard::default();
        let lines = "thread '<unnamed>' (7) panicked at src/a.rs:1:\nleft over\nnote: run with `RUST_BACKTRACE=1`\n\
                     ==9== ERROR: libFuzzer: deadly signal\nSUMMARY: libFuzzer: deadly signal\n0x1,0x2,\n\
                     artifact_prefix='/x/'; Test unit written to /x/crash-00ff\nBase64: AQI=";
        lines.lines().for_each(|line| heard.line(line));
        assert_eq!(
            heard.said,
            ["thread '<unnamed>' (7) panicked at src/a.rs:1:", "left over"]
        );
        assert_eq!(heard.crash, Some(PathBuf::from("/x/crash-00ff")));

        let mut heard = Heard::default();
        heard.line("==9== ERROR: libFuzzer: timeout after 10 seconds");
        heard.line("artifact_prefix='/x/'; Test unit written to /x/timeout-1");
        assert_eq!(heard.said.len(), 1);
        assert!(heard.crash.is_some());
    }
}
