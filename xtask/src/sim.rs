//! `cargo xtask sim`: simulated clusters, one for each seed (tests/sim), in the release profile.

use crate::cargo_tools::cargo;
use anyhow::{Context, Result};

/// Passes everything on; true if no seed failed.
///
/// # Errors
/// It cannot be started.
pub fn run(arguments: &[String]) -> Result<bool> {
    let status = cargo()
        .args([
            "run",
            "--quiet",
            "--release",
            "--package",
            "test-sim",
            "--bin",
            "espalier-sim",
            "--",
        ])
        .args(arguments)
        .status()
        .context("cargo run --package test-sim")?;
    Ok(status.success())
}
