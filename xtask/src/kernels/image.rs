//! Kernel packages, unpacked and not installed, and the initial RAM disk that goes with each.

use super::archive::Archive;
use super::suite::{self, Programs};
use crate::cargo_tools::{root, shown};
use crate::steps::detail;
use anyhow::{Context, Result, bail};
use lab::cmd;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Modules that tests need: those that are built into a kernel are not found, and not missed.
const MODULES: [&str; 8] = [
    "virtio_pci",
    "virtio_net",
    "veth",
    "tun",
    "bridge",
    "bonding",
    "8021q",
    "macvlan",
];
/// Programs that tests run.
const TOOLS: [&str; 8] = [
    "ip", "ethtool", "bpftool", "nsenter", "ping", "sysctl", "tc", "cat",
];

/// A kernel, unpacked.
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    folder: PathBuf,
}

impl Kernel {
    /// The kernel proper.
    pub fn image(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
    }
}

/// The kernel that a package of Debian depends on: downloaded and unpacked where it is not there yet.
///
/// # Errors
/// The package archives of this host do not have it, with their lists read anew.
pub fn kernel(meta: &str) -> Result<Kernel> {
    match listed(meta) {
        Ok(kernel) => Ok(kernel),
        Err(why) => {
            // No lists at all, or old ones that name a package which a newer one has replaced.
            detail(&format!("{why:#}"));
            let mut update = Command::new("apt-get");
            update.args(["-q", "-o", "DPkg::Lock::Timeout=300", "update"]);
            shown("apt-get update", update)?;
            listed(meta).with_context(|| format!("the package archives here have no {meta} (Debian 12 does)"))
        }
    }
}

fn listed(meta: &str) -> Result<Kernel> {
    let package = newest(meta)?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let folder = root().join("target/kernels").join(&release);
    let kernel = Kernel { release, folder };
    if !kernel.folder.join("modules.ready").exists() {
        unpack(&package, &kernel)?;
    }
    Ok(kernel)
}

fn newest(meta: &str) -> Result<String> {
    let text = cmd::run(&["apt-cache", "depends", "--important", meta])?;
    let mut found = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .filter(|name| name.starts_with("linux-image-"));
    let package = found.next().context("it depends on no kernel")?;
    Ok(package.to_owned())
}

fn unpack(package: &str, kernel: &Kernel) -> Result<()> {
    let fresh = kernel.folder.with_extension("new");
    let _ = fs::remove_dir_all(&fresh);
    fs::create_dir_all(&fresh).with_context(|| fresh.display().to_string())?;
    let mut command = Command::new("apt-get");
    command
        .current_dir(&fresh)
        .args(["-q", "-o", "APT::Sandbox::User=root", "download", package]);
    shown(&format!("downloading {package} (26 to 35 MB)"), command)?;
    let archive = fs::read_dir(&fresh)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .context("apt-get left no package")?;
    cmd::run(&[
        "dpkg".as_ref(),
        "-x".as_ref(),
        archive.as_os_str(),
        fresh.as_os_str(),
    ])?;
    fs::remove_file(&archive)?;
    let base = fresh.to_string_lossy();
    cmd::run(&["depmod", "-b", &base, &kernel.release]).context("depmod")?;
    fs::write(fresh.join("modules.ready"), "")?;
    let _ = fs::remove_dir_all(&kernel.folder);
    fs::rename(&fresh, &kernel.folder).with_context(|| kernel.folder.display().to_string())
}

/// Makes the RAM disk: busybox, tools with their libraries, modules, the test programs, the object, and what runs them.
pub fn initrd(kernel: &Kernel, programs: &Programs) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for folder in [
        "proc", "sys", "dev", "tmp", "run", "root", "etc", "usr/bin", "sbin",
    ] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", &read(Path::new("/bin/busybox"))?);
    for tool in TOOLS {
        let path = find(tool)?;
        program(&mut archive, &format!("/tools/{tool}"), &path)?;
    }
    for (name, path) in &programs.executables {
        // Names of functions and lines make up most of a test program.
        let stripped = kernel.folder.join("stripped");
        let strip = [
            OsStr::new("strip"),
            OsStr::new("-o"),
            stripped.as_os_str(),
            path.as_os_str(),
        ];
        cmd::run(&strip).context("strip")?;
        program(&mut archive, &suite::in_machine(name), &stripped)?;
    }
    archive.file(suite::OBJECT_IN_MACHINE, &read(&programs.object)?);
    let mut order = String::new();
    for module in MODULES {
        for file in modules(kernel, module)? {
            let name = file
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let name = name.trim_end_matches(".xz").to_owned();
            let path = format!("/modules/{name}");
            if archive.has(&path) {
                continue;
            }
            archive.file(&path, &plain(&file)?);
            order.push_str(&name);
            order.push('\n');
        }
    }
    archive.file("/modules/order", order.as_bytes());
    archive.file("/init", include_bytes!("init.sh"));
    archive.file("/suite", suite::script(programs).as_bytes());
    let octets = archive.finish();
    let path = kernel.folder.join("initrd");
    fs::write(&path, &octets).with_context(|| path.display().to_string())?;
    detail(&format!("{} MB", octets.len() / 1_000_000));
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn find(tool: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into(), "/bin".into()])
        .map(|folder| folder.join(tool))
        .find(|p| p.is_file());
    let found = found.with_context(|| format!("there is no {tool} here; `cargo xtask setup` installs it"))?;
    fs::canonicalize(&found).with_context(|| found.display().to_string())
}

/// A program with the libraries that the dynamic linker would load for it here.
fn program(archive: &mut Archive, path: &str, from: &Path) -> Result<()> {
    archive.file(path, &read(from)?);
    // A static program is told so with status 1.
    let text = cmd::run(&["ldd".as_ref(), from.as_os_str()]).unwrap_or_default();
    for library in libraries(&text) {
        if !archive.has(library) {
            archive.file(library, &read(Path::new(library))?);
        }
    }
    Ok(())
}

/// Paths in what `ldd` prints: `libc.so.6 => /lib/libc.so.6 (0x...)`, `/lib64/ld-linux-x86-64.so.2 (0x...)`.
fn libraries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        let path = path.split(" (").next().unwrap_or_default();
        path.starts_with('/').then_some(path)
    })
}

/// Files of a module and of those that it needs, in the order in which they are loaded.
fn modules(kernel: &Kernel, module: &str) -> Result<Vec<PathBuf>> {
    let base = kernel.folder.to_string_lossy().into_owned();
    let text = cmd::run(&[
        "modprobe",
        "-d",
        &base,
        "-S",
        &kernel.release,
        "--show-depends",
        module,
    ])
    .with_context(|| format!("kernel {} has no {module}", kernel.release))?;
    // Options that this host's configuration gives the module follow the path.
    let files = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("insmod "));
    Ok(files
        .filter_map(|file| file.split_whitespace().next())
        .map(PathBuf::from)
        .collect())
}

/// A module as `insmod` takes it on every kernel: not compressed.
fn plain(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|e| e != "xz") {
        return read(file);
    }
    let output = Command::new("xz")
        .arg("-dc")
        .arg(file)
        .output()
        .context("run xz")?;
    if !output.status.success() {
        bail!(
            "xz -dc {}: {}",
            file.display(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_ldd_names_by_path() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            libraries(text).collect::<Vec<_>>(),
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"]
        );
        assert_eq!(libraries("\tnot a dynamic executable").count(), 0);
    }
}
