//! What is sent from the client to the server, and back.

use super::Row;
use super::chain::Chain;
use anyhow::{Context, Result, bail};
use lab::clock::wait_for;
use lab::cmd;
use serde_json::Value;
use std::process::{Child, Stdio};
use std::time::Duration;

const PORT: u16 = 5201;
/// A rate holds when no more of its packets were lost, per cent.
const MAY_BE_LOST: f64 = 0.5;
/// Highest rate that is offered, packets a second; more than one sender makes here.
const MOST_PPS: f64 = 400_000.0;
/// Steps of the search for the highest rate that holds: the interval is halved each time, on a logarithmic scale.
const STEPS: u32 = 7;
/// Runs that must fail before a rate is said not to hold: a host that does something else for a moment fails one, and the search never comes back.
const TRIES: u32 = 2;

/// An iperf3 server on the server.
pub struct Server<'a> {
    chain: &'a Chain,
    process: Child,
    seconds: u32,
}

impl<'a> Server<'a> {
    /// Starts one; each run takes so many seconds.
    pub fn start(chain: &'a Chain, seconds: u32) -> Result<Self> {
        let to = chain.east.host_address();
        let host = &chain.east.host;
        let process = host
            .command("iperf3")
            .args(["-s", "-B", &to, "-p", &PORT.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("iperf3")?;
        chain.resources.note_process(process.id())?;
        wait_for(Duration::from_secs(5), Duration::from_millis(10), || {
            host.listens(PORT).ok()?.then_some(())
        })
        .context("iperf3 does not listen")?;
        Ok(Self {
            chain,
            process,
            seconds,
        })
    }

    /// Seconds of a TCP run.
    pub fn seconds(&self) -> u32 {
        self.seconds
    }

    /// TCP in so many streams.
    pub fn tcp(&self, streams: u32, reverse: bool) -> Result<Row> {
        let before = busy_seconds()?;
        let streams = streams.to_string();
        let mut more = vec!["-P", &streams];
        if reverse {
            more.push("-R");
        }
        let json = self.client(self.seconds, &more)?;
        let busy = busy_seconds()? - before;
        let sum = &json["end"]["sum_received"];
        let bps = number(&sum["bits_per_second"])?;
        let octets = number(&sum["bytes"])?;
        Ok(Row {
            bps,
            // Segments that fill a packet of 1400 octets, with timestamps.
            pps: bps / 8.0 / 1348.0,
            cpu_s_per_gb: busy / (octets / 1e9),
            ..Row::default()
        })
    }

    /// UDP with so many octets in a datagram: the highest rate that loses no more than a little.
    pub fn udp(&self, octets: u32) -> Result<Row> {
        let mut best = Row::default();
        let (mut low, mut high) = (1000f64, MOST_PPS);
        for _ in 0..STEPS {
            let pps = (low * high).sqrt();
            // iperf3's own control connection is in the tunnel too: a run that fails is a rate that does not hold.
            let mut tries = (0..TRIES).filter_map(|_| self.udp_at(octets, pps).ok());
            match tries.find(|row| row.loss <= MAY_BE_LOST) {
                Some(row) => {
                    // The sender itself cannot offer more.
                    let sender_bound = row.pps < pps * 0.9;
                    low = pps;
                    if row.pps > best.pps {
                        best = row;
                    }
                    if sender_bound {
                        break;
                    }
                }
                None => high = pps,
            }
        }
        Ok(best)
    }

    fn udp_at(&self, octets: u32, pps: f64) -> Result<Row> {
        let before = busy_seconds()?;
        let rate = format!("{:.0}", pps * f64::from(octets) * 8.0);
        let json = self.client(1, &["-u", "-b", &rate, "-l", &octets.to_string()])?;
        let busy = busy_seconds()? - before;
        let sum = &json["end"]["sum"];
        let (packets, lost, seconds) = (
            number(&sum["packets"])?,
            number(&sum["lost_packets"])?,
            number(&sum["seconds"])?,
        );
        let arrived = (packets - lost) / seconds;
        Ok(Row {
            bps: arrived * f64::from(octets) * 8.0,
            pps: arrived,
            loss: lost / packets.max(1.0) * 100.0,
            cpu_s_per_gb: busy / ((packets - lost) * f64::from(octets) / 1e9),
            ..Row::default()
        })
    }

    /// Round trip of small packets while nothing else is on the way.
    pub fn ping(&self) -> Result<Row> {
        let to = self.chain.east.host_address();
        let ping = ["ping", "-n", "-q", "-c", "400", "-i", "0.005", "-W", "1", &to];
        let text = self.chain.west.host.run(&ping)?;
        // rtt min/avg/max/mdev = 0.101/0.203/0.304/0.040 ms
        let average = text
            .split_once("mdev = ")
            .and_then(|(_, rest)| rest.split('/').nth(1))
            .and_then(|ms| ms.parse::<f64>().ok())
            .context("ping wrote no round trip times")?;
        let loss = text
            .split_once("% packet loss")
            .and_then(|(before, _)| before.rsplit(' ').next())
            .and_then(|n| n.parse().ok())
            .unwrap_or(0.0);
        Ok(Row {
            rtt_us: average * 1000.0,
            loss,
            ..Row::default()
        })
    }

    fn client(&self, seconds: u32, more: &[&str]) -> Result<Value> {
        let host = &self.chain.west.host;
        let (to, port, seconds) = (
            self.chain.east.host_address(),
            PORT.to_string(),
            seconds.to_string(),
        );
        let mut command = host.command("iperf3");
        command
            .args([
                "-J",
                "-c",
                &to,
                "-p",
                &port,
                "-t",
                &seconds,
                "--connect-timeout",
                "3000",
            ])
            .args(more);
        let text = cmd::output(command, "").context("iperf3")?;
        let json: Value = serde_json::from_str(&text).context("iperf3 wrote no JSON")?;
        match json["error"].as_str() {
            Some(error) => bail!("iperf3: {error}"),
            None => Ok(json),
        }
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().context("iperf3: a figure is missing")
}

/// Seconds that the processors of this machine were busy since it started.
fn busy_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .map(|f| f.parse().unwrap_or(0))
        .collect();
    // User, nice, system, irq and softirq (proc_stat(5)).
    let ticks: u64 = [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum();
    // SAFETY: a plain library call without pointers.
    let ticks_a_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / ticks_a_second.max(1) as f64)
}
