//! Network namespaces. Processes enter with `nsenter` (which leaves /sys, and with it bpffs, alone), threads with setns.

use crate::cmd;
use crate::resources::Resources;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;

/// A named network namespace. Dropping it removes nothing: [`crate::resources`] does.
#[derive(Clone, Debug)]
pub struct Netns {
    /// Name under /run/netns.
    pub name: String,
}

/// Without IPv6: duplicate address detection and router solicitations are noise on a recorder.
pub const WITHOUT_IPV6: [&str; 2] = [
    "net.ipv6.conf.all.disable_ipv6=1",
    "net.ipv6.conf.default.disable_ipv6=1",
];
/// Of a host on whose interfaces packets come in that it would not expect there, and that sends nobody elsewhere.
pub const FORWARDS: [&str; 4] = [
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
    "net.ipv4.conf.all.send_redirects=0",
    "net.ipv4.conf.default.send_redirects=0",
];

/// Interfaces of the lab never offload: locally made packets would carry checksums that no XDP redirect completes.
pub const NO_OFFLOADS: [&str; 10] = ["tx", "off", "gro", "off", "gso", "off", "tso", "off", "rx", "off"];

impl Netns {
    /// A new one, without IPv6, whose `lo` is up; `settings` are kernel parameters.
    pub fn create(resources: &Resources, what: &str, settings: &[&str]) -> Result<Self> {
        let name = resources.name(what);
        resources.note_netns(&name)?;
        cmd::run(&["ip", "netns", "add", &name])?;
        let netns = Self { name };
        netns.sysctl(&[&WITHOUT_IPV6, settings].concat())?;
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// A cable to another one: a pair of interfaces.
    pub fn cable(&self, own: &str, other: &Self, others: &str) -> Result<()> {
        self.ip(&format!(
            "link add {own} type veth peer name {others} netns {}",
            other.name
        ))
    }

    /// As [`Netns::cable`], without offloads, and up at both ends.
    pub fn wire(&self, own: &str, other: &Self, others: &str) -> Result<()> {
        self.cable(own, other, others)?;
        for (netns, name) in [(self, own), (other, others)] {
            netns.run(&[&["ethtool", "-K", name], &NO_OFFLOADS[..]].concat())?;
            netns.ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// Where it is bound.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg("--")
            .arg(program);
        // The demo blocks these signals for its own thread that takes them, and a child would inherit that: an agent that is
        // asked to end would not hear it.
        let unblock = || {
            let mut set = SigSet::empty();
            for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
                set.add(signal);
            }
            sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&set), None).map_err(std::io::Error::from)
        };
        // SAFETY: between fork and exec only sigprocmask(2) is called, which is async-signal-safe; nothing is allocated.
        unsafe { command.pre_exec(unblock) };
        command
    }

    /// Runs a command inside, to its end.
    pub fn run(&self, argv: &[&str]) -> Result<String> {
        let (first, rest) = argv.split_first().context("empty command")?;
        let mut command = self.command(first);
        command.args(rest);
        cmd::output(command, "")
    }

    /// Runs several `ip` commands inside, one a line; stops at the first that fails.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]);
        cmd::output(command, batch)
            .with_context(|| format!("in namespace {}:\n{batch}", self.name))
            .map(drop)
    }

    /// Gives nftables these rules inside.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut command = self.command("nft");
        command.args(["-f", "-"]);
        cmd::output(command, rules)
            .with_context(|| format!("in namespace {}:\n{rules}", self.name))
            .map(drop)
    }

    /// Sets kernel parameters under /proc/sys/net inside.
    pub fn sysctl(&self, settings: &[&str]) -> Result<()> {
        let mut command = self.command("sysctl");
        command.arg("-q").arg("-w").args(settings);
        cmd::output(command, "").map(drop)
    }

    /// Runs `work` on a thread of its own inside the namespace.
    pub fn thread<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<JoinHandle<Result<T>>> {
        let file = File::open(self.path()).with_context(|| format!("namespace {}", self.name))?;
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                setns(&file, CloneFlags::CLONE_NEWNET).context("setns")?;
                work()
            })
            .context("cannot start a thread")
    }

    /// Whether somebody listens on a TCP port inside. Unlike a connection, this is nothing that a server would notice: iperf3's takes any
    /// for a client, and turns the next one down until it has done with it.
    pub fn listens(&self, port: u16) -> Result<bool> {
        self.inside(move || {
            // The main thread's namespace is another one.
            let tables = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
            let text = tables.map(|path| std::fs::read_to_string(path).unwrap_or_default());
            Ok(text
                .iter()
                .flat_map(|table| table.lines())
                .any(|line| is_listener(line, port)))
        })
    }

    /// Runs a short piece of work inside and waits for it.
    pub fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        self.thread("inside", work)?
            .join()
            .map_err(|_| anyhow::anyhow!("thread in {} panicked", self.name))?
    }
}

/// A line of `/proc/net/tcp`: number, local address and port, remote ones, state (0A: it listens).
fn is_listener(line: &str, port: u16) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let (Some(local), Some(state)) = (words.next(), words.nth(1)) else {
        return false;
    };
    state == "0A" && local.ends_with(&format!(":{port:04X}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let line = |state| format!("   0: 0100007F:1451 00000000:0000 {state} 00000000:00000000 00:00000000");
        assert!(is_listener(&line("0A"), 5201));
        assert!(!is_listener(&line("01"), 5201) && !is_listener(&line("0A"), 5202));
        assert!(!is_listener(
            "  sl  local_address rem_address   st tx_queue rx_queue",
            5201
        ));
    }
}
