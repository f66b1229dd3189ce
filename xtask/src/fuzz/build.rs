//! Compiles the targets with LLVM's coverage counters. The pass is part of every compiler, so the stable one will do, and no
//! sanitizer's runtime is needed: a panic is what a target ends in.

use crate::cargo_tools::{cargo, shown};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::Command;

/// What libFuzzer reads: a counter for each edge, where the edge is, and what is compared with what.
const FLAGS: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// The programs, with the names of their targets.
pub fn run(targets: &[String]) -> Result<Vec<(String, PathBuf)>> {
    let host = host()?;
    let folder = super::folder().join("build");
    let mut command = cargo();
    command
        .args([
            "build",
            "--locked",
            "--release",
            "--manifest-path",
            "tests/fuzz/Cargo.toml",
        ])
        // With a target named, the flags are not for build scripts and macros.
        .args(["--target", &host, "--target-dir"])
        .arg(&folder)
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
    for name in targets {
        command.args(["--bin", name]);
    }
    shown("building the fuzz targets (some minutes the first time)", command)?;
    let programs = folder.join(host).join("release");
    let program = |name: &String| (name.clone(), programs.join(name));
    Ok(targets.iter().map(program).collect())
}

/// The compiler's own target.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).arg("-vV").output().context("rustc -vV")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}
