//! Compiles the BPF object and the binary.

use crate::cargo_tools::{cargo, root, shown, target};
use crate::steps::say;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a build gives.
#[derive(Clone, Debug)]
pub struct Built {
    /// The BPF object.
    pub object: PathBuf,
    /// The binary `espalier`.
    pub espalier: PathBuf,
}

/// Compiler flags of the BPF programs; `bpf-linker` writes BTF, so that bpftool shows fields by name.
const BPF_FLAGS: [&str; 7] = [
    "--cfg=bpf_target_arch=\"x86_64\"",
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    "-Clinker=bpf-linker",
    "-Cpanic=abort",
    "-Ccodegen-units=1",
    "-Ctarget-cpu=v3",
];

/// Builds both.
pub fn run() -> Result<Built> {
    let object = bpf()?;
    let mut command = cargo();
    command.args(["build", "--release", "-p", "cli"]);
    shown("compiling espalier", command)?;
    Ok(Built {
        object,
        espalier: target().join("release/espalier"),
    })
}

/// Builds the BPF object.
pub fn bpf() -> Result<PathBuf> {
    // The programs have a target folder of their own: other flags, another standard library.
    bpf_of(&root(), &root().join("ebpf/programs/target"))
}

/// Builds the BPF object of a source tree into a target folder.
pub fn bpf_of(tree: &Path, target: &Path) -> Result<PathBuf> {
    let programs = tree.join("ebpf/programs");
    let mut command = cargo();
    command
        .current_dir(&programs)
        .args([
            "build",
            "--release",
            "--target",
            "bpfel-unknown-none",
            "-Z",
            "build-std=core",
        ])
        .env("CARGO_ENCODED_RUSTFLAGS", BPF_FLAGS.join("\x1f"))
        .env("CARGO_TARGET_DIR", target)
        .env_remove("RUSTUP_TOOLCHAIN")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", compiler()?);
    shown("compiling the BPF programs", command)?;
    let object = target.join("bpfel-unknown-none/release/espalier");
    if !object.is_file() {
        bail!("the build left no object at {}", object.display());
    }
    Ok(object)
}

/// Builds, then runs a member in the foreground.
pub fn run_member(config: &Path) -> Result<bool> {
    crate::setup::run()?;
    let built = run()?;
    say(&format!("espalier run --config {}", config.display()));
    let status = Command::new(&built.espalier)
        .args([Path::new("run"), Path::new("--config"), config])
        .env("ESPALIER_OBJECT", &built.object)
        .status()
        .context("cannot start espalier")?;
    Ok(status.success())
}

/// Whether Debian's compiler and the library sources that fit it are there.
pub fn debian_sources() -> bool {
    Path::new("/usr/bin/rustc").exists() && sources_of(Path::new("/usr/bin/rustc"))
}

/// Debian's rustc with its sources, else a rustup nightly that has them.
fn compiler() -> Result<PathBuf> {
    if debian_sources() {
        return Ok("/usr/bin/rustc".into());
    }
    let found = Command::new("rustup")
        .args(["which", "--toolchain", "nightly", "rustc"])
        .output();
    if let Ok(output) = found {
        let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        if output.status.success() && sources_of(&path) {
            return Ok(path);
        }
    }
    bail!(
        "no compiler with library sources for BPF: install Debian's rustc-web and rust-web-src (cargo xtask setup), or run \
         `rustup toolchain install nightly --component rust-src`"
    )
}

fn sources_of(rustc: &Path) -> bool {
    let Ok(output) = Command::new(rustc).args(["--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success()
        && sysroot
            .join("lib/rustlib/src/rust/library/core/src/lib.rs")
            .exists()
}
