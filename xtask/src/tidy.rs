//! Rules of the source tree that no compiler checks: who may depend on whom, where clocks and randomness may be read,
//! how long a file may be, and that every `unsafe` says why it is sound.

use crate::cargo_tools::{cargo, root};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A room, and what of ours it may depend on (docs/ARCHITECTURE.md).
const ROOMS: &[(&str, &[&str])] = &[
    ("maps-schema", &[]),
    ("datapath", &["maps-schema"]),
    ("model", &[]),
    ("crypto", &["model"]),
    ("ike-wire", &["model"]),
    ("ike", &["model", "ike-wire", "crypto"]),
    ("sad", &["model", "maps-schema", "datapath"]),
    ("cluster", &["model", "crypto"]),
    ("ownership", &["cluster", "model"]),
    ("dataplane", &["sad", "model", "maps-schema", "datapath"]),
    (
        "agent",
        &[
            "maps-schema",
            "datapath",
            "model",
            "crypto",
            "ike-wire",
            "ike",
            "sad",
            "cluster",
            "ownership",
            "dataplane",
        ],
    ),
    ("cli", &["agent", "maps-schema", "model"]),
];

/// Rooms without clocks, randomness or I/O: time and randomness are arguments there.
const PURE: &[(&str, &str)] = &[
    ("maps-schema", "maps-schema/src"),
    ("datapath", "ebpf/datapath/src"),
    ("model", "userspace/model/src"),
    ("crypto", "userspace/crypto/src"),
    ("ike-wire", "userspace/ike-wire/src"),
    ("ike", "userspace/ike/src"),
    ("sad", "userspace/sad/src"),
    ("cluster", "userspace/cluster/src"),
];

/// External crates that pure rooms must not have.
const NOT_IN_PURE: &[&str] = &["aya", "tokio", "getrandom", "rand", "nix", "socket2", "quinn"];
/// Only these may name aya.
const MAY_USE_AYA: &[&str] = &["dataplane", "test-packet"];

/// What reads a clock or the operating system's randomness.
const IMPURE: &[&str] = &[
    "Instant::now",
    "SystemTime",
    "OsRng",
    "getrandom",
    "thread_rng",
    "rand::rng",
    "SystemRandom",
    "thread::sleep",
];

const LINES: usize = 700;

/// Prints every breach; true if there is none.
pub fn run() -> Result<bool> {
    crate::steps::say("tidy");
    let mut breaches = Vec::new();
    edges(&metadata()?, &mut breaches);
    for (room, folder) in PURE {
        for file in sources(&root().join(folder)) {
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            impure(room, &shown(&file), &text, &mut breaches);
        }
    }
    let mut files = 0;
    for folder in [
        "maps-schema",
        "ebpf/datapath",
        "ebpf/programs/src",
        "userspace",
        "xtask",
        "tests",
    ] {
        for file in sources(&root().join(folder)) {
            files += 1;
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            lengths(&shown(&file), &text, &mut breaches);
            soundness(&shown(&file), &text, &mut breaches);
        }
    }
    for breach in &breaches {
        println!("tidy: {breach}");
    }
    println!("tidy: {files} files, {} breaches", breaches.len());
    Ok(breaches.is_empty())
}

fn metadata() -> Result<serde_json::Value> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cargo metadata")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn edges(metadata: &serde_json::Value, breaches: &mut Vec<String>) {
    let packages = metadata["packages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let ours: Vec<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let allowed = ROOMS
            .iter()
            .find(|(room, _)| *room == name)
            .map(|(_, allowed)| *allowed);
        let pure = PURE.iter().any(|(room, _)| *room == name);
        for dependency in package["dependencies"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default()
        {
            // What tests use does not reach the product.
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let to = dependency["name"].as_str().unwrap_or_default();
            if ours.contains(&to) && allowed.is_some_and(|a| !a.contains(&to)) {
                breaches.push(format!(
                    "{name} must not depend on {to} (docs/ARCHITECTURE.md, Rooms)"
                ));
            }
            if pure && NOT_IN_PURE.contains(&to) {
                breaches.push(format!(
                    "{name} must not depend on {to}: it does no I/O and reads no clock"
                ));
            }
            if to == "aya" && !MAY_USE_AYA.contains(&name) {
                breaches.push(format!("{name} must not name aya: only dataplane does"));
            }
        }
    }
}

fn impure(room: &str, file: &str, text: &str, breaches: &mut Vec<String>) {
    if file.ends_with("/tests.rs") || file.contains("/tests/") {
        return;
    }
    for (number, line) in text.lines().enumerate() {
        if line.trim() == "#[cfg(test)]" {
            return;
        }
        let code = line.split("//").next().unwrap_or_default();
        for what in IMPURE {
            if code.contains(what) {
                breaches.push(format!(
                    "{file}:{}: {what} in {room}: take it as an argument",
                    number + 1
                ));
            }
        }
    }
}

fn lengths(file: &str, text: &str, breaches: &mut Vec<String>) {
    let lines = text.lines().count();
    if lines > LINES {
        breaches.push(format!(
            "{file}: {lines} lines, more than {LINES}: split it by responsibility"
        ));
    }
}

fn soundness(file: &str, text: &str, breaches: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        // The words are put together here so that this file does not find itself.
        let keyword = concat!("uns", "afe");
        let opens = ["{", "impl ", "fn ", "extern "]
            .iter()
            .any(|w| code.contains(&format!("{keyword} {w}")));
        if !opens || code.contains('"') {
            continue;
        }
        let from = number.saturating_sub(12);
        let reason = lines[from..=number]
            .iter()
            .any(|l| l.contains("SAFETY:") || l.contains("# Safety"));
        if !reason {
            breaches.push(format!(
                "{file}:{}: {keyword} without a SAFETY comment",
                number + 1
            ));
        }
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(check: impl FnOnce(&mut Vec<String>)) -> usize {
        let mut breaches = Vec::new();
        check(&mut breaches);
        breaches.len()
    }

    #[test]
    fn an_arrow_that_points_up_is_found_and_one_that_points_down_is_not() {
        let of = |to: &str, kind: Option<&str>| {
            json!({"packages": [
                {"name": "ike", "dependencies": [{"name": to, "kind": kind}]},
                {"name": "cluster", "dependencies": []}, {"name": "model", "dependencies": []},
            ]})
        };
        assert_eq!(found(|b| edges(&of("cluster", None), b)), 1);
        assert_eq!(found(|b| edges(&of("tokio", None), b)), 1);
        assert_eq!(found(|b| edges(&of("aya", None), b)), 2);
        assert_eq!(found(|b| edges(&of("model", None), b)), 0);
        assert_eq!(found(|b| edges(&of("cluster", Some("dev")), b)), 0);
    }

    #[test]
    fn a_clock_in_a_pure_room_is_found_unless_it_is_a_test() {
        let text =
            "let t = Instant::now();\n// SystemTime is banned\n#[cfg(test)]\nlet t = SystemTime::now();";
        assert_eq!(found(|b| impure("ike", "x.rs", text, b)), 1);
        assert_eq!(found(|b| impure("ike", "a/tests/x.rs", text, b)), 0);
    }

    #[test]
    fn an_unsound_block_and_a_long_file_are_found() {
        let bare = concat!("uns", "afe { f() }");
        assert_eq!(found(|b| soundness("x.rs", bare, b)), 1);
        assert_eq!(
            found(|b| soundness("x.rs", &format!("// SAFETY: fine\n{bare}"), b)),
            0
        );
        assert_eq!(found(|b| lengths("x.rs", &"\n".repeat(LINES + 1), b)), 1);
        assert_eq!(found(|b| lengths("x.rs", &"\n".repeat(LINES), b)), 0);
    }
}
