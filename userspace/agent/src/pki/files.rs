//! Files of the folder: made once, or replaced in one step.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// Mode of a file that anybody may read.
pub(super) const PUBLIC: u32 = 0o644;
/// Mode of a file with a secret.
pub(super) const SECRET: u32 = 0o600;

/// Makes a file.
///
/// # Errors
/// It is there already, or cannot be written.
pub(super) fn create(path: &Path, mode: u32, octets: &[u8]) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .with_context(|| {
            format!(
                "cannot create {}; existing files are never overwritten",
                path.display()
            )
        })?;
    file.write_all(octets)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces a file: a reader sees the old one or the new one, whole.
///
/// # Errors
/// It cannot be written; the old one is there still.
pub(super) fn replace(path: &Path, mode: u32, octets: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let fresh = path.with_file_name(name);
    // What an interrupted command left behind; the folder is locked.
    let _ = std::fs::remove_file(&fresh);
    create(&fresh, mode, octets)?;
    std::fs::rename(&fresh, path).with_context(|| format!("cannot replace {}", path.display()))
}

/// Removes a file that may be gone already. Returns whether it was there.
///
/// # Errors
/// It is there still.
pub(super) fn remove(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Keeps other commands out of the folder.
///
/// # Errors
/// Another command is at work there.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>> {
    let folder = File::open(dir).with_context(|| format!("cannot open the folder {}", dir.display()))?;
    match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, error)) => bail!(
            "another command is at work in {} ({error}); try again when it has ended",
            dir.display()
        ),
    }
}
