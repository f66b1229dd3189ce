//! Inputs of a run that go into the stored corpus, which the tests replay.

use super::{folder, scratch, stored};
use crate::steps::detail;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longest file that is kept, octets.
const LONGEST: u64 = 1024;

/// Adds what reaches edges that the stored corpus does not reach; how many files that is.
pub fn run(name: &str, program: &Path) -> Result<u64> {
    let stored = stored(name);
    fs::create_dir_all(&stored).with_context(|| stored.display().to_string())?;
    let before = files(&stored)?;
    let small = small(name)?;
    let log = folder().join(format!("{name}.merge.log"));
    let log = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let status = Command::new(program)
        // Of inputs that reach the same the smallest, as few as cover all; how often an edge is passed does not count.
        .args(["-merge=1", "-set_cover_merge=1", "-use_counters=0"])
        .arg(format!("-timeout={}", super::target::TIMEOUT_S))
        .arg(&stored)
        .arg(&small)
        .stdout(Stdio::null())
        .stderr(log)
        .status()
        .with_context(|| program.display().to_string())?;
    anyhow::ensure!(status.success(), "{name}: merging ended with {status}");
    let kept = files(&stored)?.difference(&before).count() as u64;
    detail(&format!("{kept} inputs more in {}", stored.display()));
    Ok(kept)
}

fn files(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// The small files of the scratch corpus, in a folder of their own.
fn small(name: &str) -> Result<PathBuf> {
    let small = folder().join("small").join(name);
    let _ = fs::remove_dir_all(&small);
    fs::create_dir_all(&small).with_context(|| small.display().to_string())?;
    for file in files(&scratch(name)?)? {
        let length = fs::metadata(&file).map_or(0, |m| m.len());
        if let Some(base) = file.file_name().filter(|_| length <= LONGEST) {
            fs::copy(&file, small.join(base)).with_context(|| file.display().to_string())?;
        }
    }
    Ok(small)
}
