//! Throughput by iperf3 (Debian), TCP and UDP, one direction at a time.

use crate::clock::wait_for;
use crate::cmd;
use crate::netns::Netns;
use crate::resources::Resources;
use anyhow::{Context, Result};
use serde::Serialize;
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

/// Figures of one system: megabits a second of payload.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Throughput {
    /// TCP from the peer's host to the server.
    pub tcp_in_mbit: f64,
    /// TCP from the server to the peer's host.
    pub tcp_out_mbit: f64,
    /// UDP from the peer's host to the server, the highest offered rate of the ladder with at most 1 % lost.
    pub udp_in_mbit: f64,
    /// UDP from the server to the peer's host.
    pub udp_out_mbit: f64,
}

/// An iperf3 server.
#[derive(Debug)]
pub struct Server {
    process: Child,
    address: Ipv4Addr,
}

const PORT: u16 = 5201;
/// Offered UDP rates, Mbit/s.
const LADDER: [u32; 10] = [50, 100, 200, 300, 400, 500, 650, 800, 1000, 1300];
/// UDP payload that fits the 1400-octet TUN of strongSwan's user-space data path.
const UDP_OCTETS: &str = "1344";

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
            netns
                .inside(move || Ok(TcpStream::connect((address, PORT)).is_ok()))
                .ok()?
                .then_some(())
        });
        ready.context("iperf3 does not listen")?;
        Ok(Self { process, address })
    }

    /// TCP and UDP in both directions, `seconds` each (a UDP step takes half).
    pub fn measure(&self, client: &Netns, from: Ipv4Addr, seconds: u32) -> Result<Throughput> {
        Ok(Throughput {
            tcp_in_mbit: self.tcp(client, from, seconds, false)?,
            tcp_out_mbit: self.tcp(client, from, seconds, true)?,
            udp_in_mbit: self.udp(client, from, seconds, false)?,
            udp_out_mbit: self.udp(client, from, seconds, true)?,
        })
    }

    /// One TCP run, Mbit/s as received.
    pub fn tcp(&self, client: &Netns, from: Ipv4Addr, seconds: u32, reverse: bool) -> Result<f64> {
        let json = self.client(client, from, seconds, reverse, &[])?;
        let bits = json["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .context("iperf3: no figure")?;
        Ok(bits / 1e6)
    }

    /// UDP: climbs the ladder until more than 1 % is lost.
    pub fn udp(&self, client: &Netns, from: Ipv4Addr, seconds: u32, reverse: bool) -> Result<f64> {
        let mut best = 0.0f64;
        for rate in LADDER {
            let rate = format!("{rate}M");
            let json = self.client(
                client,
                from,
                seconds.div_ceil(2),
                reverse,
                &["-u", "-b", &rate, "-l", UDP_OCTETS],
            )?;
            let sum = &json["end"]["sum"];
            let (Some(bits), Some(lost)) = (sum["bits_per_second"].as_f64(), sum["lost_percent"].as_f64())
            else {
                break;
            };
            let arrived = bits * (1.0 - lost / 100.0) / 1e6;
            if lost > 1.0 {
                break;
            }
            if arrived < best * 1.02 {
                // The sender itself cannot offer more.
                best = best.max(arrived);
                break;
            }
            best = arrived;
        }
        Ok(best)
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

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
