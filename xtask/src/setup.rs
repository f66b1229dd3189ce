//! Installs what is missing, and nothing else. Fast when all is there.

use crate::cargo_tools::{cargo, root, shown};
use crate::steps::{detail, say};
use anyhow::{Context, Result, bail};
use lab::cmd;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LINKER_VERSION: &str = "0.13.0";

/// A file that tells whether a package is there, and the package.
const PACKAGES: &[(&str, &str)] = &[
    ("/usr/bin/cc", "build-essential"),
    ("/usr/bin/rustc", "rustc-web"),
    ("/usr/lib/llvm-22/bin/llvm-config", "llvm-22-dev"),
    ("/usr/share/doc/libpolly-22-dev", "libpolly-22-dev"),
    ("/usr/include/zstd.h", "libzstd-dev"),
    ("/usr/include/zlib.h", "zlib1g-dev"),
    ("/usr/sbin/bpftool", "bpftool"),
    ("/usr/sbin/ethtool", "ethtool"),
    ("/usr/bin/iperf3", "iperf3"),
    ("/usr/bin/tcpdump", "tcpdump"),
    ("/usr/bin/tshark", "tshark"),
    ("/usr/sbin/charon-systemd", "charon-systemd"),
    ("/usr/sbin/swanctl", "strongswan-swanctl"),
    (
        "/usr/lib/ipsec/plugins/libstrongswan-kernel-libipsec.so",
        "libcharon-extra-plugins",
    ),
    (
        "/usr/lib/ipsec/plugins/libstrongswan-eap-mschapv2.so",
        "libcharon-extauth-plugins",
    ),
    (
        "/usr/lib/ipsec/plugins/libstrongswan-chapoly.so",
        "libstrongswan-extra-plugins",
    ),
    (
        "/usr/lib/ipsec/plugins/libstrongswan-gcm.so",
        "libstrongswan-standard-plugins",
    ),
    ("/usr/bin/softhsm2-util", "softhsm2"),
    ("/usr/sbin/nft", "nftables"),
    (lab::faults::FAKETIME, "libfaketime"),
    ("/usr/bin/ping", "iputils-ping"),
    ("/usr/bin/nsenter", "util-linux"),
    ("/usr/sbin/sysctl", "procps"),
    ("/usr/sbin/modprobe", "kmod"),
    ("/usr/bin/etcd", "etcd-server"),
    ("/usr/bin/etcdctl", "etcd-client"),
    ("/usr/bin/wireguard-go", "wireguard-go"),
    ("/usr/bin/wg", "wireguard-tools"),
    // The etcd-client crate compiles its protocol description, which includes ones that come with the compiler.
    ("/usr/bin/protoc", "protobuf-compiler"),
    ("/usr/include/google/protobuf/descriptor.proto", "libprotobuf-dev"),
];

/// Installs everything that builds, tests and the demo need.
pub fn run() -> Result<()> {
    packages()?;
    linker()?;
    components()?;
    bpffs()?;
    second_peer()?;
    Ok(())
}

/// The independent ESP implementation that datapath is compared with, and what it computes with.
const SCAPY: [&str; 2] = ["scapy==2.8.0", "cryptography==50.0.2"];

/// The Python that has scapy: in a virtual environment of its own, made once. An error where it cannot be had.
pub fn scapy() -> Result<PathBuf> {
    let folder = root().join("target/scapy");
    let python = folder.join("bin/python");
    let stamp = folder.join("versions");
    if fs::read_to_string(&stamp).is_ok_and(|v| v == SCAPY.join(" ")) {
        return Ok(python);
    }
    let _ = fs::remove_dir_all(&folder);
    let mut command = Command::new("python3");
    command.args(["-m", "venv"]).arg(&folder);
    shown("a Python environment for scapy", command)
        .context("python3 -m venv: install Debian's python3-venv")?;
    let mut command = Command::new(&python);
    command
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(SCAPY);
    shown("installing scapy", command)?;
    fs::write(&stamp, SCAPY.join(" ")).with_context(|| stamp.display().to_string())?;
    Ok(python)
}

/// Where the second peer's kernel is unpacked.
pub fn uml_folder() -> PathBuf {
    root().join("target/uml")
}

fn packages() -> Result<()> {
    let present = |file: &str| {
        Path::new(file).exists() || Path::new(&file.replacen("/usr/sbin/", "/sbin/", 1)).exists()
    };
    let mut missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(file, _)| !present(file))
        .map(|(_, package)| *package)
        .collect();
    if !cmd::exists("ip") {
        missing.push("iproute2");
    }
    // /usr/bin/rustc may be another package's: what counts are the library sources that fit it.
    if !crate::build::debian_sources() && !missing.contains(&"rustc-web") {
        missing.push("rustc-web");
    }
    if missing.contains(&"rustc-web") {
        missing.push("rust-web-src");
    }
    if missing.is_empty() {
        return Ok(());
    }
    let installed = install(&missing);
    if installed.is_err() && missing.contains(&"rustc-web") {
        // Outside Debian 12 there is no rustc-web; a nightly with sources does as well.
        let rest: Vec<&str> = missing
            .iter()
            .copied()
            .filter(|p| !p.starts_with("rust"))
            .collect();
        detail("not all of it can be had: going on without Debian's rustc-web");
        if !rest.is_empty() {
            install(&rest)?;
        }
        return Ok(());
    }
    installed
}

/// Installs Debian packages.
///
/// # Errors
/// There is no apt-get, or no right to use it: what to do by hand; or it failed.
pub fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!(
        "apt-get install -y --no-install-recommends {}",
        packages.join(" ")
    );
    if !cmd::exists("apt-get") {
        bail!(
            "these programs are missing and there is no apt-get here; install what the Debian packages {} hold",
            packages.join(", ")
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("run as root, or install by hand: {by_hand}");
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(arguments);
        command
    };
    shown("apt-get update", apt(&["update"]))?;
    let mut command = apt(&["install", "-y", "--no-install-recommends"]);
    command.args(packages);
    shown(&by_hand, command)
}

fn linker() -> Result<()> {
    let version = cmd::run(&["bpf-linker", "--version"]).unwrap_or_default();
    if version.contains(LINKER_VERSION) {
        return Ok(());
    }
    let mut command = cargo();
    command
        .env("LLVM_PREFIX", "/usr/lib/llvm-22")
        .env_remove("CARGO_TARGET_DIR")
        .args([
            "install",
            "bpf-linker",
            "--version",
            LINKER_VERSION,
            "--no-default-features",
            "--features",
            "llvm-22",
            "--locked",
        ]);
    shown("cargo install bpf-linker (about a minute)", command)
}

/// Formatting and lints need their rustup components; a toolchain without rustup brings its own.
fn components() -> Result<()> {
    for (program, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        let there = cargo()
            .args([program, "--version"])
            .output()
            .is_ok_and(|o| o.status.success());
        if !there {
            let mut command = Command::new("rustup");
            command.current_dir(root()).args(["component", "add", component]);
            shown(&format!("rustup component add {component}"), command)?;
        }
    }
    Ok(())
}

fn bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    if mounts.lines().any(|l| l.split(' ').nth(1) == Some("/sys/fs/bpf")) {
        return Ok(());
    }
    say("mounting bpffs on /sys/fs/bpf");
    cmd::run(&["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])
        .map(drop)
        .context("mounting bpffs needs root")
}

/// The second peer is a Linux kernel in User Mode Linux; its package is unpacked, not installed.
fn second_peer() -> Result<()> {
    let folder = uml_folder();
    if folder.join("usr/bin/linux.uml").exists() {
        return Ok(());
    }
    let fresh = root().join("target/uml.new");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh).with_context(|| fresh.display().to_string())?;
    let mut command = Command::new("apt-get");
    // As root apt wants to download as another user, who may not write here: that is no error, so it is told not to try.
    command.current_dir(&fresh).args([
        "-q",
        "-o",
        "APT::Sandbox::User=root",
        "download",
        "user-mode-linux",
    ]);
    if shown("downloading user-mode-linux (41 MB) for the second peer", command).is_err() {
        let mut update = Command::new("apt-get");
        update.args(["-q", "update"]);
        shown("apt-get update", update)?;
        let mut command = Command::new("apt-get");
        command.current_dir(&fresh).args([
            "-q",
            "-o",
            "APT::Sandbox::User=root",
            "download",
            "user-mode-linux",
        ]);
        shown("downloading user-mode-linux", command)?;
    }
    let package = fs::read_dir(&fresh)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"));
    let package = package.context("apt-get left no package")?;
    cmd::run(&[
        "dpkg".as_ref(),
        "-x".as_ref(),
        package.as_os_str(),
        fresh.as_os_str(),
    ])?;
    fs::remove_file(&package)?;
    fs::rename(&fresh, &folder).with_context(|| folder.display().to_string())
}
