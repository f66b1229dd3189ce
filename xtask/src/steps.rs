//! Progress on standard error, so that standard output stays clean for `--json`.

use std::io::{IsTerminal, Write};
use std::time::Instant;

/// One line about what happens now.
pub fn say(what: &str) {
    let mut err = std::io::stderr().lock();
    let _ = if err.is_terminal() {
        writeln!(err, "\x1b[36m==>\x1b[0m {what}")
    } else {
        writeln!(err, "==> {what}")
    };
}

/// A detail below the last line.
pub fn detail(what: &str) {
    eprintln!("    {what}");
}

/// Says what happens, does it, says how long it took if that was long.
pub fn step<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    say(what);
    let start = Instant::now();
    let result = work().map_err(|e| e.context(what.to_owned()))?;
    if start.elapsed().as_secs() >= 2 {
        detail(&format!("{:.1} s", start.elapsed().as_secs_f64()));
    }
    Ok(result)
}
