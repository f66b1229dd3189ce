//! What the kernel's verifier says about each program, and how much stack its calls take.

use crate::{build, setup};
use anyhow::{Context, Result};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use lab::cmd;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const OBJDUMP: &str = "/usr/lib/llvm-22/bin/llvm-objdump";
/// Stack of a call chain, octets; the verifier allows no more.
const STACK_LIMIT: u32 = 512;
/// The verifier rounds every frame up to this.
const FRAME: u32 = 16;

/// One program's figures.
#[derive(Debug, Serialize)]
struct Figures {
    name: String,
    instructions: u32,
    processed: u32,
    jited_bytes: u32,
    stack_bytes: Option<u32>,
}

/// Loads the programs and prints their figures.
pub fn run(json: bool) -> Result<()> {
    setup::run()?;
    let object = build::bpf()?;
    let reports = dataplane::verifier_report(&object).context("the kernel refuses the programs")?;
    let stacks = stacks(&object).unwrap_or_default();
    let figures: Vec<Figures> = reports
        .into_iter()
        .map(|r| Figures {
            stack_bytes: stacks.get(&r.name).copied(),
            name: r.name,
            instructions: r.instructions,
            processed: r.verified_instructions,
            jited_bytes: r.jited_bytes,
        })
        .collect();
    if json {
        println!("{}", serde_json::to_string_pretty(&figures)?);
        return Ok(());
    }
    let mut table = Table::new();
    let stack = format!("stack, of {STACK_LIMIT}");
    table.load_style(UTF8_FULL_CONDENSED).set_header([
        "program",
        "instructions",
        "processed",
        "JITed octets",
        &stack,
    ]);
    for f in figures {
        let stack = f
            .stack_bytes
            .map_or_else(|| "unknown".to_owned(), |s| s.to_string());
        table.add_row([
            f.name,
            f.instructions.to_string(),
            f.processed.to_string(),
            f.jited_bytes.to_string(),
            stack,
        ]);
    }
    println!("{table}");
    Ok(())
}

/// A function in the object: its frame and whom it calls.
#[derive(Debug, Default)]
struct Function {
    frame: u32,
    calls: BTreeSet<String>,
}

fn stacks(object: &Path) -> Result<BTreeMap<String, u32>> {
    let text = cmd::run(&[OBJDUMP.as_ref(), "-dr".as_ref(), object.as_os_str()])?;
    let functions = functions(&text);
    Ok(functions
        .keys()
        .map(|name| (name.clone(), depth(&functions, name, &mut Vec::new())))
        .collect())
}

/// Deepest chain of frames from a function down.
fn depth(functions: &BTreeMap<String, Function>, name: &str, path: &mut Vec<String>) -> u32 {
    let Some(function) = functions.get(name) else {
        return 0;
    };
    // Recursion would not load; without this a wrong reading would not end.
    if path.iter().any(|p| p == name) {
        return 0;
    }
    path.push(name.to_owned());
    let below = function
        .calls
        .iter()
        .map(|callee| depth(functions, callee, path))
        .max()
        .unwrap_or(0);
    path.pop();
    function.frame.max(1).next_multiple_of(FRAME) + below
}

/// Reads a disassembly with relocations.
fn functions(text: &str) -> BTreeMap<String, Function> {
    let mut functions: BTreeMap<String, Function> = BTreeMap::new();
    // Functions of the section `.text` by their offset: calls to static functions name the section and the offset.
    let mut in_text: BTreeMap<u64, String> = BTreeMap::new();
    let mut offsets: Vec<(String, u64)> = Vec::new();
    let (mut section, mut current, mut call, mut copied) = (String::new(), String::new(), None, None);
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("Disassembly of section ") {
            section = name.trim_end_matches(':').to_owned();
        } else if let Some((address, name)) = header(line) {
            current = name.to_owned();
            functions.entry(current.clone()).or_default();
            if section == ".text" {
                in_text.insert(address, current.clone());
            }
        } else if let Some((_, target)) = line.split_once("R_BPF_64_32") {
            let target = target.trim();
            if target == ".text" {
                offsets.extend(call.take().map(|at| (current.clone(), at)));
            } else if let Some(function) = functions.get_mut(&current) {
                function.calls.insert(target.to_owned());
            }
        } else if let Some(function) = functions.get_mut(&current) {
            call = immediate(line, "call 0x").map(|n| (n + 1) * 8);
            if let Some(offset) = immediate(line, "(r10 - 0x") {
                function.frame = function.frame.max(offset as u32);
            }
            // `rN = r10`, then `rN += -0xM`: the address of a local.
            if let Some(offset) = immediate(line, " += -0x").filter(|_| copied.take().is_some()) {
                function.frame = function.frame.max(offset as u32);
            }
            copied = line.ends_with(" = r10").then_some(());
        }
    }
    for (caller, offset) in offsets {
        if let (Some(callee), Some(function)) = (in_text.get(&offset), functions.get_mut(&caller)) {
            function.calls.insert(callee.clone());
        }
    }
    functions
}

fn header(line: &str) -> Option<(u64, &str)> {
    let (address, rest) = line.split_once(" <")?;
    let name = rest.strip_suffix(">:")?;
    Some((u64::from_str_radix(address, 16).ok()?, name))
}

fn immediate(line: &str, before: &str) -> Option<u64> {
    let rest = line.split_once(before)?.1;
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    u64::from_str_radix(&digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stack_of_a_program_is_that_of_its_deepest_chain_of_calls() {
        let text = "\
Disassembly of section .text:

0000000000000000 <leaf>:
       0:\t7b 1a d0 ff 00 00 00 00\t*(u64 *)(r10 - 0x30) = r1
0000000000000010 <global>:
       2:\tbf a2 00 00 00 00 00 00\tr2 = r10
       3:\t07 02 00 00 e8 ff ff ff\tr2 += -0x64
Disassembly of section xdp:

0000000000000000 <program>:
       0:\t7b 1a f8 ff 00 00 00 00\t*(u64 *)(r10 - 0x8) = r1
       1:\t85 10 00 00 ff ff ff ff\tcall -0x1
\t\t0000000000000008:  R_BPF_64_32\tglobal
       2:\t85 10 00 00 ff ff ff ff\tcall 0x1
       3:\t85 10 00 00 ff ff ff ff\tcall 0x1
\t\t0000000000000018:  R_BPF_64_32\t.text
";
        let f = functions(text);
        assert_eq!(
            (f["leaf"].frame, f["global"].frame, f["program"].frame),
            (0x30, 0x64, 8)
        );
        assert_eq!(depth(&f, "program", &mut Vec::new()), 16 + 112);
        assert!(f["program"].calls.contains("global"));
    }
}
