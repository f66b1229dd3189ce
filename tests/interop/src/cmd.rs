//! Running other programs, with errors that name the command and what it said.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Stdio};

/// Runs a command to its end and returns its standard output.
pub fn run<S: AsRef<OsStr>>(argv: &[S]) -> Result<String> {
    run_with_input(argv, "")
}

/// The same, with text on standard input.
pub fn run_with_input<S: AsRef<OsStr>>(argv: &[S], input: &str) -> Result<String> {
    let (first, rest) = argv.split_first().context("empty command")?;
    let mut command = Command::new(first);
    command.args(rest);
    output(command, input)
}

/// Runs a prepared command to its end and returns its standard output.
pub fn output(mut command: Command, input: &str) -> Result<String> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(if input.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}; `cargo xtask setup` installs what is missing"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .with_context(|| format!("writing to {shown}"))?;
    }
    let out = child
        .wait_with_output()
        .with_context(|| format!("waiting for {shown}"))?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let err = String::from_utf8_lossy(&out.stderr);
        bail!("{shown} failed ({}): {} {}", out.status, err.trim(), text.trim());
    }
    Ok(text)
}

/// Whether a program of this name is on the path.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(program).is_file())
}
