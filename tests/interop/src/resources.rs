//! What a lab has created, written down before it is made, so that it goes away whatever happens.
//!
//! One folder `/run/esp-lab/<id>/` a lab: a `ledger` of lines (`lab PID START`, `ns NAME`, `pid PID START`, `path
//! PATH`, `keep`), and the control sockets of its daemons. A process is named by pid and start time, so that a pid that was used
//! again is never killed.

use crate::clock::wait_for;
use crate::cmd;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

const BASE: &str = "/run/esp-lab";

/// The labs of this process that a signal has to clear away.
static LIVE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The written record of one lab. Dropping it removes everything, unless [`Resources::keep`] was called.
#[derive(Debug)]
pub struct Resources {
    /// Random suffix: four hexadecimal digits.
    pub id: String,
    /// Folder for sockets; short, because a Unix socket's path has 107 octets at most.
    pub folder: PathBuf,
    kept: bool,
}

impl Resources {
    /// Clears what crashed labs have left, then starts a record of its own.
    pub fn new() -> Result<Self> {
        clear_leftovers();
        for _ in 0..64 {
            let mut random = [0u8; 2];
            std::io::Read::read_exact(
                &mut fs::File::open("/dev/urandom").context("/dev/urandom")?,
                &mut random,
            )?;
            let id = format!("{:02x}{:02x}", random[0], random[1]);
            let folder = Path::new(BASE).join(&id);
            // Under another name until the ledger says whose it is: without that line it looks like a leftover to all others.
            let fresh = Path::new(BASE).join(format!(".{id}"));
            fs::create_dir_all(BASE).with_context(|| format!("cannot create {BASE}: the lab needs root"))?;
            if folder.exists() || fs::create_dir(&fresh).is_err() {
                continue;
            }
            let me = std::process::id();
            Ledger(fresh.join("ledger")).note(&format!("lab {me} {}", start_time(me).unwrap_or(0)))?;
            if fs::rename(&fresh, &folder).is_err() {
                let _ = fs::remove_dir_all(&fresh);
                continue;
            }
            let this = Self {
                id,
                folder: folder.clone(),
                kept: false,
            };
            if let Ok(mut live) = LIVE.lock() {
                live.push(folder);
            }
            return Ok(this);
        }
        anyhow::bail!("no free lab name under {BASE}: remove old folders there")
    }

    /// `esp-<id>-<what>`.
    pub fn name(&self, what: &str) -> String {
        format!("esp-{}-{what}", self.id)
    }

    /// A namespace is about to be created.
    pub fn note_netns(&self, name: &str) -> Result<()> {
        self.note(&format!("ns {name}"))
    }

    /// A process was started.
    pub fn note_process(&self, pid: u32) -> Result<()> {
        self.ledger().note_process(pid)
    }

    /// A file or folder (a pin) will exist that must go.
    pub fn note_path(&self, path: &Path) -> Result<()> {
        self.note(&format!("path {}", path.display()))
    }

    /// Leaves everything running when dropped; [`clear`] takes it down later.
    pub fn keep(&mut self) -> Result<()> {
        self.kept = true;
        self.note("keep")
    }

    /// A handle for what starts processes later, after the `Resources` are out of reach.
    pub fn ledger(&self) -> Ledger {
        Ledger(self.folder.join("ledger"))
    }

    fn note(&self, line: &str) -> Result<()> {
        self.ledger().note(line)
    }
}

/// The ledger of one lab.
#[derive(Clone, Debug)]
pub struct Ledger(PathBuf);

impl Ledger {
    /// A process was started.
    pub fn note_process(&self, pid: u32) -> Result<()> {
        self.note(&format!("pid {pid} {}", start_time(pid).unwrap_or(0)))
    }

    fn note(&self, line: &str) -> Result<()> {
        let path = &self.0;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| path.display().to_string())?;
        writeln!(file, "{line}").with_context(|| path.display().to_string())
    }
}

impl Drop for Resources {
    fn drop(&mut self) {
        if !self.kept {
            clear(&self.folder);
        }
        if let Ok(mut live) = LIVE.lock() {
            live.retain(|f| f != &self.folder);
        }
    }
}

/// From now on SIGINT, SIGTERM and SIGHUP clear this process's labs away before it ends.
///
/// Call it before any thread is started: the signals are blocked for all and taken by one. (The standard library unblocks
/// them again in the children that it starts.)
pub fn clear_on_signal() -> Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    let mut set = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        set.add(signal);
    }
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&set), None).context("sigprocmask")?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if let Ok(signal) = set.wait() {
                eprintln!("\n{signal}: clearing the lab away");
                let live = LIVE.lock().map(|l| l.clone()).unwrap_or_default();
                for folder in live {
                    clear(&folder);
                }
                std::process::exit(128 + signal as i32);
            }
        })?;
    Ok(())
}

/// Clears labs whose process is gone and which were not kept on purpose.
pub fn clear_leftovers() {
    for folder in folders() {
        let text = fs::read_to_string(folder.join("ledger")).unwrap_or_default();
        let owner = text
            .lines()
            .find_map(|l| l.strip_prefix("lab "))
            .and_then(parse_process);
        let alive = match owner {
            Some((pid, start)) => start_time(pid) == Some(start),
            None => folder
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.')),
        };
        if !alive && !text.lines().any(|l| l == "keep") {
            clear(&folder);
        }
    }
}

/// The folders of all labs on this host, kept ones included.
pub fn folders() -> Vec<PathBuf> {
    fs::read_dir(BASE)
        .map(|d| d.flatten().map(|e| e.path()).collect())
        .unwrap_or_default()
}

/// Removes all that a lab has created. Errors are not reported: what is gone is gone.
pub fn clear(folder: &Path) {
    let text = fs::read_to_string(folder.join("ledger")).unwrap_or_default();
    let of = |prefix: &str| -> Vec<String> {
        text.lines()
            .filter_map(|l| l.strip_prefix(prefix))
            .map(str::to_owned)
            .collect()
    };
    let mut processes: Vec<(u32, u64)> = of("pid ").iter().filter_map(|l| parse_process(l)).collect();
    for name in of("ns ") {
        // Grandchildren (a shell's, an iperf server's) live in the lab's own namespaces and nowhere else.
        let inside = cmd::run(&["ip", "netns", "pids", &name]).unwrap_or_default();
        processes.extend(
            inside
                .lines()
                .filter_map(|l| l.trim().parse().ok())
                .filter_map(|p| Some((p, start_time(p)?))),
        );
    }
    let me = std::process::id();
    processes.retain(|(pid, _)| *pid != me);
    let alive = |p: &(u32, u64)| start_time(p.0) == Some(p.1);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        for process in processes.iter().filter(|p| alive(p)) {
            let _ = kill(Pid::from_raw(process.0 as i32), signal);
        }
        let limit = Duration::from_millis(1500);
        wait_for(limit, Duration::from_millis(10), || {
            (!processes.iter().any(alive)).then_some(())
        });
    }
    for name in of("ns ") {
        let _ = cmd::run(&["ip", "netns", "del", &name]);
    }
    for path in of("path ") {
        let path = Path::new(&path);
        // A record of the kernel's trace is a folder that goes as a whole, and lets nothing in it be removed.
        if fs::remove_dir(path).is_err() && fs::remove_dir_all(path).is_err() {
            let _ = fs::remove_file(path);
        }
    }
    let _ = fs::remove_dir_all(folder);
}

/// Start time of a process in clock ticks since boot; none if it is gone or a zombie.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything, spaces included.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    let state = fields.next()?;
    if state == "Z" || state == "X" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn parse_process(line: &str) -> Option<(u32, u64)> {
    let (pid, start) = line.split_once(' ')?;
    Some((pid.parse().ok()?, start.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_that_start_at_once_do_not_take_each_other_for_leftovers() {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                std::thread::spawn(|| {
                    for _ in 0..25 {
                        let lab = Resources::new().expect("a lab");
                        clear_leftovers();
                        assert!(lab.folder.join("ledger").exists(), "{} was cleared", lab.id);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no lab is lost");
        }
    }

    #[test]
    fn a_process_is_known_by_its_start_time_and_a_dead_one_has_none() {
        let me = std::process::id();
        assert!(start_time(me).is_some_and(|t| t > 0));
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let pid = child.id();
        child.wait().expect("wait");
        assert_eq!(start_time(pid), None);
    }

    #[test]
    fn a_ledger_line_is_read_back() {
        assert_eq!(parse_process("17 4711"), Some((17, 4711)));
        assert_eq!(parse_process("17"), None);
    }
}
