//! `cargo xtask bench ike --instructions`: what the engine executes for a handshake as responder, by part.
//!
//! Instructions do not depend on what else the machine does: two builds are compared with a precision of a few in a thousand,
//! where processor time is off by a fifth. Valgrind counts them, on a processor that it emulates: without the instructions for
//! SHA-256 and without AVX-512, so hashes have a larger share than on recent hardware.

use crate::cargo_tools::{cargo, shown, target};
use crate::steps::{detail, step};
use anyhow::{Context, Result, bail, ensure};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;

/// Handshakes under way at the same time, as in the benchmark itself.
const AT_ONCE: usize = 32;
/// Handshakes of the two runs that are subtracted from each other: what happens once is not counted.
const COUNTS: [usize; 2] = [200, 1200];
/// What is counted.
const COUNTED: &str = "*ike_responder::respond*";

/// Parts by what is in the name of a function; the first line that fits counts.
const PARTS: &[(&str, &[&str])] = &[
    ("x25519", &["curve25519_dalek", "x25519_dalek"]),
    (
        "hashes and PRF",
        &[
            "sha256",
            "SHA256",
            "sha1",
            "SHA1",
            "HMAC",
            "hmac",
            "EVP_Digest",
            "EVP_MD",
        ],
    ),
    (
        "AES-GCM",
        &["aes", "AES", "gcm", "GCM", "ghash", "aead", "AEAD", "EVP_aead"],
    ),
    (
        "memory: allocator",
        &[
            "malloc",
            "free",
            "calloc",
            "realloc",
            "memalign",
            "unlink_chunk",
            "OPENSSL_cleanse",
            "OPENSSL_free",
        ],
    ),
    (
        "memory: copies and wiping",
        &["memcpy", "memmove", "memset", "bcmp", "memcmp", "zeroize"],
    ),
    ("records", &["postcard", "record::", "serialize", "Serialize"]),
    ("messages", &["ike_wire"]),
    (
        "texts",
        &["core::fmt", "alloc::fmt", "fmt::", "to_string", "Display"],
    ),
    (
        "tables",
        &["hashbrown", "btree", "BTree", "siphash", "SipHash", "table::"],
    ),
    ("engine", &["ike::"]),
];

/// What a handshake costs.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Whether a Child SA comes with the IKE SA.
    pub child: bool,
    /// Instructions of the responder for each handshake.
    pub instructions: u64,
    /// Of these, by part.
    pub parts: BTreeMap<String, u64>,
    /// The functions with the most, without what they call.
    pub functions: Vec<(String, u64)>,
    /// Processor time outside of the emulation, microseconds: the least of five runs.
    pub cpu_us: f64,
}

/// Counts for handshakes without and with a Child SA.
pub fn rows() -> Result<Vec<Row>> {
    ensure!(
        lab::cmd::exists("valgrind"),
        "valgrind is missing: apt-get install valgrind"
    );
    let mut command = cargo();
    command.args([
        "build",
        "--release",
        "-p",
        "test-interop",
        "--bin",
        "ike-responder",
    ]);
    shown("compiling the responder", command)?;
    let responder = target().join("release/ike-responder");
    [false, true]
        .into_iter()
        .map(|child| {
            let what = if child {
                "with a Child SA"
            } else {
                "without a Child SA"
            };
            step(&format!("instructions of a handshake {what}"), || {
                let row = row(&responder, child)?;
                detail(&format!(
                    "{} instructions, {:.1} us",
                    row.instructions, row.cpu_us
                ));
                Ok(row)
            })
        })
        .collect()
}

fn row(responder: &Path, child: bool) -> Result<Row> {
    let [few, many] = COUNTS;
    let (before, after) = (counted(responder, few, child)?, counted(responder, many, child)?);
    let each = |cost: i64| cost.max(0) as u64 / (many - few) as u64;
    let mut functions: Vec<(String, u64)> = after
        .iter()
        .map(|(name, cost)| {
            let less = before.get(name).copied().unwrap_or(0);
            (name.clone(), each(*cost as i64 - less as i64))
        })
        .collect();
    functions.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
    let mut parts: BTreeMap<String, u64> = BTreeMap::new();
    for (name, cost) in &functions {
        *parts.entry(part_of(name).to_owned()).or_default() += cost;
    }
    let total = |all: &HashMap<String, u64>| all.values().sum::<u64>() as i64;
    let instructions = each(total(&after) - total(&before));
    functions.truncate(40);
    let times = (0..5)
        .map(|_| processor_time(responder, child))
        .collect::<Result<Vec<_>>>()?;
    Ok(Row {
        child,
        instructions,
        parts,
        functions,
        cpu_us: times.into_iter().fold(f64::INFINITY, f64::min),
    })
}

fn part_of(function: &str) -> &'static str {
    let fits = |(_, words): &&(&str, &[&str])| words.iter().any(|word| function.contains(word));
    PARTS.iter().find(fits).map_or("rest", |(part, _)| part)
}

fn arguments(count: usize, child: bool) -> Vec<String> {
    let mut arguments = vec![count.to_string(), AT_ONCE.to_string()];
    arguments.extend(child.then(|| "child".to_owned()));
    arguments
}

fn processor_time(responder: &Path, child: bool) -> Result<f64> {
    let output = Command::new(responder)
        .args(arguments(4000, child))
        .output()
        .context("the responder")?;
    ensure!(
        output.status.success(),
        "the responder: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .context("the responder's figure")
}

/// Instructions by function, without what it calls.
fn counted(responder: &Path, count: usize, child: bool) -> Result<HashMap<String, u64>> {
    let out = target().join(format!("ike-{count}-{child}.callgrind"));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(responder)
        .args(arguments(count, child))
        .output()
        .context("valgrind")?;
    if !output.status.success() {
        bail!("valgrind: {}", String::from_utf8_lossy(&output.stderr));
    }
    let text = fs::read_to_string(&out).with_context(|| out.display().to_string())?;
    let functions = read(&text);
    ensure!(!functions.is_empty(), "nothing was counted below {COUNTED}");
    Ok(functions)
}

/// Reads what callgrind has written: lines of a place and a cost below `fn=`, where the line after `calls=` is the cost of what is
/// called, and a name stands behind its number the first time only.
fn read(text: &str) -> HashMap<String, u64> {
    let mut names: HashMap<&str, &str> = HashMap::new();
    let mut costs: HashMap<String, u64> = HashMap::new();
    let mut function = "";
    let mut called = false;
    for line in text.lines() {
        let own = line.strip_prefix("fn=");
        if let Some(name) = own.or_else(|| line.strip_prefix("cfn=")) {
            let (number, name) = name.split_once(' ').unwrap_or((name, ""));
            if !name.is_empty() {
                names.insert(number, name);
            }
            if own.is_some() {
                function = names.get(number).copied().unwrap_or(number);
            }
        } else if line.starts_with("calls=") {
            called = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<u64>().ok());
            if let Some(cost) = cost.filter(|_| !called) {
                *costs.entry(function.to_owned()).or_default() += cost;
            }
            called = false;
        }
    }
    costs
}

/// A table of the parts, one column for each kind of handshake.
pub fn print(rows: &[Row]) {
    let mut table = Table::new();
    let title = |row: &Row| {
        if row.child {
            "with a Child SA"
        } else {
            "IKE SA alone"
        }
        .to_owned()
    };
    let head = std::iter::once("instructions each".to_owned()).chain(rows.iter().map(title));
    table.load_style(UTF8_FULL_CONDENSED).set_header(head);
    let parts = PARTS.iter().map(|(part, _)| *part).chain(["rest"]);
    for part in parts {
        let of = |row: &Row| row.parts.get(part).copied().unwrap_or(0).to_string();
        table.add_row(std::iter::once(part.to_owned()).chain(rows.iter().map(of)));
    }
    table.add_row(
        std::iter::once("all".to_owned()).chain(rows.iter().map(|row| row.instructions.to_string())),
    );
    let time = |row: &Row| format!("{:.1} us", row.cpu_us);
    table.add_row(std::iter::once("processor time".to_owned()).chain(rows.iter().map(time)));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    println!("{table}");
    for row in rows {
        println!("{}: the functions with the most", title(row));
        for (name, cost) in row.functions.iter().take(25) {
            println!("{cost:9}  {name}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_of_what_is_called_are_not_a_functions_own() {
        let text = "positions: line\nevents: Ir\nsummary: 60\n\nfl=(1) a.rs\nfn=(1) ike::a\n16 3\n+2 4\ncfn=(2) crypto::b\ncalls=2 30\n* 50\n20 1\n\nfn=(2)\n30 50\nfn=(1)\n5 2\ntotals: 60\n";
        let costs = read(text);
        assert_eq!((costs["ike::a"], costs["crypto::b"]), (10, 50));
    }

    #[test]
    fn a_part_is_the_first_that_fits() {
        let function = "<ike_wire::Header as serde::Serialize>::serialize";
        assert_eq!(part_of(function), "records");
        assert_eq!(part_of("core::str::from_utf8"), "rest");
    }
}
