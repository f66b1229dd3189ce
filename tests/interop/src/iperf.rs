//! Throughput by iperf3 (Debian), TCP and UDP, one direction at a time.

use crate::clock::wait_for;
use crate::cmd;
use crate::netns::Netns;
use crate::resources::Resources;
use anyhow::{Context, Result};
use serde::Serialize;
use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::time::Duration;

/// Figures of one system: megabits a second of payload, and what the whole machine spent on it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Throughput {
    /// TCP from the peer's host to the server, one stream, the better of two runs.
    pub tcp_in_mbit: f64,
    /// TCP from the server to the peer's host, one stream, the better of two runs.
    pub tcp_out_mbit: f64,
    /// UDP from the peer's host to the server: the highest rate of the ladder with at most 1 % lost.
    pub udp_in_mbit: f64,
    /// UDP from the server to the peer's host.
    pub udp_out_mbit: f64,
    /// Seconds of all processors that were not idle, by gigabyte (10^9 octets) of TCP payload, senders and peer included.
    pub tcp_in_cpu_s_per_gb: f64,
    /// The same from the server to the peer's host.
    pub tcp_out_cpu_s_per_gb: f64,
}

/// One TCP run.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    mbit: f64,
    cpu_s_per_gb: f64,
}

/// An iperf3 server.
#[derive(Debug)]
pub struct Server {
    process: Child,
    address: Ipv4Addr,
}

const PORT: u16 = 5201;
/// Offered UDP rates, Mbit/s.
const LADDER: [u32; 14] = [
    50, 100, 150, 200, 250, 300, 350, 400, 500, 600, 700, 800, 900, 1000,
];
/// UDP payload that fills the 1400-octet TUN of strongSwan's user-space data path.
const UDP_OCTETS: &str = "1372";
/// A rung holds when no more than this was lost, per cent.
const MAY_BE_LOST: f64 = 1.0;
const TCP_SECONDS: u32 = 4;
const UDP_SECONDS: u32 = 2;

impl Server {
    /// Starts one.
    pub fn start(netns: &Netns, address: Ipv4Addr, resources: &Resources) -> Result<Self> {
        let process = netns
            .command("iperf3")
            .args(["-s", "-B", &address.to_string(), "-p", &PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("iperf3")?;
        resources.note_process(process.id())?;
        let ready = wait_for(Duration::from_secs(5), Duration::from_millis(10), || {
            netns.listens(PORT).ok()?.then_some(())
        });
        ready.context("iperf3 does not listen")?;
        Ok(Self { process, address })
    }

    /// TCP twice and UDP up the ladder, in both directions by turns.
    pub fn measure(&self, client: &Netns, from: Ipv4Addr) -> Result<Throughput> {
        let (mut into, mut out) = (Run::default(), Run::default());
        for _ in 0..2 {
            into = into.better(self.tcp(client, from, false)?);
            out = out.better(self.tcp(client, from, true)?);
        }
        // UDP carries at least half of what TCP does, as a rule; if not, the ladder is climbed down.
        let ladder = |tcp: Run, reverse| climb(tcp.mbit / 2.0, |rate| self.udp(client, from, rate, reverse));
        Ok(Throughput {
            tcp_in_mbit: into.mbit,
            tcp_out_mbit: out.mbit,
            udp_in_mbit: ladder(into, false),
            udp_out_mbit: ladder(out, true),
            tcp_in_cpu_s_per_gb: into.cpu_s_per_gb,
            tcp_out_cpu_s_per_gb: out.cpu_s_per_gb,
        })
    }

    /// One TCP run, as received.
    fn tcp(&self, client: &Netns, from: Ipv4Addr, reverse: bool) -> Result<Run> {
        let before = busy_seconds()?;
        let json = self.client(client, from, TCP_SECONDS, reverse, &[])?;
        let busy = busy_seconds()? - before;
        let sum = &json["end"]["sum_received"];
        let (Some(bits), Some(octets)) = (sum["bits_per_second"].as_f64(), sum["bytes"].as_f64()) else {
            anyhow::bail!("iperf3: no figure");
        };
        Ok(Run {
            mbit: bits / 1e6,
            cpu_s_per_gb: busy / (octets / 1e9),
        })
    }

    /// One UDP run: what arrived, Mbit/s; none if too much was lost.
    fn udp(&self, client: &Netns, from: Ipv4Addr, rate: u32, reverse: bool) -> Option<f64> {
        let rate = format!("{rate}M");
        let more = ["-u", "-b", &rate, "-l", UDP_OCTETS];
        // iperf3's own control connection is in the tunnel too: a run that fails is a rung that does not hold.
        let json = self.client(client, from, UDP_SECONDS, reverse, &more).ok()?;
        let sum = &json["end"]["sum"];
        let (bits, lost) = (sum["bits_per_second"].as_f64()?, sum["lost_percent"].as_f64()?);
        (lost <= MAY_BE_LOST).then_some(bits * (1.0 - lost / 100.0) / 1e6)
    }

    fn client(
        &self,
        netns: &Netns,
        from: Ipv4Addr,
        seconds: u32,
        reverse: bool,
        more: &[&str],
    ) -> Result<serde_json::Value> {
        let mut command = netns.command("iperf3");
        let (to, port) = (self.address.to_string(), PORT.to_string());
        command.args([
            "-J",
            "-c",
            &to,
            "-B",
            &from.to_string(),
            "-p",
            &port,
            "-t",
            &seconds.to_string(),
        ]);
        command.args(["--connect-timeout", "3000"]).args(more);
        if reverse {
            command.arg("-R");
        }
        let text = cmd::output(command, "").context("throughput")?;
        serde_json::from_str(&text).context("iperf3 wrote no JSON")
    }
}

impl Run {
    fn better(self, other: Self) -> Self {
        if other.mbit > self.mbit { other } else { self }
    }
}

/// The highest rung that holds, as carried: from the rung at `start` Mbit/s upwards, or downwards if that does not hold. A
/// rung that does not hold is tried once more, since another process may have had the processor.
fn climb(start: f64, mut carried: impl FnMut(u32) -> Option<f64>) -> f64 {
    let mut twice = |rate: u32| carried(rate).or_else(|| carried(rate));
    let first = LADDER.iter().rposition(|r| f64::from(*r) <= start).unwrap_or(0);
    let mut best = None;
    for rate in &LADDER[first..] {
        let Some(arrived) = twice(*rate) else { break };
        best = Some(arrived.max(best.unwrap_or(0.0)));
        // The sender itself cannot offer more.
        if arrived < f64::from(*rate) * 0.95 {
            break;
        }
    }
    let below = LADDER[..first].iter().rev();
    best.or_else(|| below.copied().find_map(twice)).unwrap_or(0.0)
}

/// Seconds that the processors of this machine were busy since it started.
fn busy_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    // SAFETY: a plain library call without pointers.
    let ticks_a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(busy_ticks(line) as f64 / ticks_a_second.max(1) as f64)
}

/// User, nice, system, irq and softirq out of the line `cpu` (proc_stat(5)).
fn busy_ticks(line: &str) -> u64 {
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum()
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_is_climbed_to_the_last_rung_that_holds() {
        let up_to = |limit: u32| move |rate: u32| (rate <= limit).then_some(f64::from(rate));
        assert_eq!(climb(220.0, up_to(600)), 600.0);
        assert_eq!(climb(220.0, up_to(100)), 100.0);
        assert_eq!(climb(5000.0, up_to(2000)), 1000.0);
        assert_eq!(climb(220.0, up_to(10)), 0.0);
    }

    #[test]
    fn one_bad_run_of_a_rung_does_not_end_the_climb_and_a_slow_sender_does() {
        let mut tries = 0;
        let once_bad = |rate: u32| {
            tries += 1;
            (tries % 2 == 0 && rate <= 400).then_some(f64::from(rate))
        };
        assert_eq!(climb(300.0, once_bad), 400.0);
        let mut highest = 0;
        let slow_sender = |rate: u32| {
            highest = rate;
            Some(f64::from(rate.min(420)))
        };
        assert_eq!(climb(300.0, slow_sender), 420.0);
        assert_eq!(highest, 500);
    }

    #[test]
    fn idle_waiting_and_stolen_time_is_not_busy() {
        assert_eq!(busy_ticks("cpu  1 20 300 9000 9000 4000 50000 9000 0 0"), 54_321);
    }
}
