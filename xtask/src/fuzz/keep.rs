//! Inputs of a run that go into the stored corpus, which the tests replay.

use super::{folder, scratch, stored};
use crate::steps::detail;
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longest file that is kept, octets.
const LONGEST: u64 = 1024;
/// Files that a target's stored corpus grows to at most: `cargo test` replays each of them.
const FILES: usize = 300;
/// And octets: all corpora together are to stay below some 300 kB.
const OCTETS: u64 = 18_000;

/// Adds what reaches edges that the stored corpus does not reach; how many files that is.
pub fn run(name: &str, program: &Path) -> Result<u64> {
    let stored = stored(name);
    fs::create_dir_all(&stored).with_context(|| stored.display().to_string())?;
    let before = files(&stored)?;
    // Beside the tree: an interrupted merge leaves nothing in it.
    let merged = anew(&folder().join("merged").join(name))?;
    copy(before.keys().map(String::as_str), &stored, &merged)?;
    let small = small(name)?;
    let log = folder().join(format!("{name}.merge.log"));
    let log = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let status = Command::new(program)
        // Of inputs that reach the same the smallest, as few as cover all; how often an edge is passed does not count.
        .args(["-merge=1", "-set_cover_merge=1", "-use_counters=0"])
        .arg(format!("-timeout={}", super::target::TIMEOUT_S))
        .arg(&merged)
        .arg(&small)
        .stdout(Stdio::null())
        .stderr(log)
        .status()
        .with_context(|| program.display().to_string())?;
    anyhow::ensure!(status.success(), "{name}: merging ended with {status}");
    let mut found = files(&merged)?;
    found.retain(|file, _| !before.contains_key(file));
    let kept = within_bounds(&before, &found);
    copy(kept.iter().copied(), &merged, &stored)?;
    detail(&format!(
        "{} inputs more in {}, of {} that reach more",
        kept.len(),
        stored.display(),
        found.len()
    ));
    Ok(kept.len() as u64)
}

/// Files by name, with their lengths.
type Files = BTreeMap<String, u64>;

/// As many of the new files as there is room for, the smallest first.
fn within_bounds<'f>(before: &Files, found: &'f Files) -> Vec<&'f str> {
    let mut by_length: Vec<_> = found
        .iter()
        .map(|(file, length)| (*length, file.as_str()))
        .collect();
    by_length.sort_unstable();
    let mut octets = before.values().sum::<u64>();
    let fits = by_length
        .into_iter()
        .take(FILES.saturating_sub(before.len()))
        .take_while(|(length, _)| {
            octets += length;
            octets <= OCTETS
        });
    fits.map(|(_, file)| file).collect()
}

fn files(folder: &Path) -> Result<Files> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let named = |entry: fs::DirEntry| {
        Some((
            entry.file_name().into_string().ok()?,
            entry.metadata().ok()?.len(),
        ))
    };
    Ok(entries.flatten().filter_map(named).collect())
}

/// An empty folder.
fn anew(folder: &Path) -> Result<PathBuf> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    Ok(folder.to_owned())
}

fn copy<'f>(files: impl Iterator<Item = &'f str>, from: &Path, to: &Path) -> Result<()> {
    for file in files {
        fs::copy(from.join(file), to.join(file)).with_context(|| from.join(file).display().to_string())?;
    }
    Ok(())
}

/// The small files of the scratch corpus, in a folder of their own.
fn small(name: &str) -> Result<PathBuf> {
    let small = anew(&folder().join("small").join(name))?;
    let scratch = scratch(name)?;
    let mut found = files(&scratch)?;
    found.retain(|_, length| *length <= LONGEST);
    copy(found.keys().map(String::as_str), &scratch, &small)?;
    Ok(small)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, u64)]) -> Files {
        files
            .iter()
            .map(|(name, length)| ((*name).to_owned(), *length))
            .collect()
    }

    #[test]
    fn the_smallest_are_kept_until_files_or_octets_are_enough() {
        let found = of(&[("a", 900), ("b", 10), ("c", 500)]);
        assert_eq!(within_bounds(&of(&[]), &found), ["b", "c", "a"]);
        assert_eq!(within_bounds(&of(&[("seed", OCTETS - 510)]), &found), ["b", "c"]);
        assert_eq!(within_bounds(&of(&[("seed", OCTETS + 1)]), &found), [""; 0]);
        let many = (0..FILES - 1).map(|n| (n.to_string(), 1)).collect();
        assert_eq!(within_bounds(&many, &found), ["b"]);
    }
}
