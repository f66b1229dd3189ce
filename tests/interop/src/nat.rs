//! A NAT between a peer and the cluster: the router gives the peer its own address, and other ports.

use crate::topology::{Lab, addr};
use anyhow::{Context, Result, ensure};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Stdio;

/// The router translates a peer's ports 500 and 4500 to these. Without connection tracking: with other rules the mapping before is gone
/// in the same moment. Without checksums: those of ESP in UDP are zero (RFC 3948 2.1), which nftables would make something of.
///
/// # Errors
/// nftables refuses.
pub fn translate(lab: &Lab, peer: Ipv4Addr, ike: u16, nat_t: u16) -> Result<()> {
    let rules = format!(
        "table ip esp_nat
delete table ip esp_nat
table ip esp_nat {{
  chain out {{
    type filter hook postrouting priority 100;
    oifname \"outside\" ip saddr {peer} udp sport 500 ip saddr set {router} udp sport set {ike} udp checksum set 0
    oifname \"outside\" ip saddr {peer} udp sport 4500 ip saddr set {router} udp sport set {nat_t} udp checksum set 0
  }}
  chain in {{
    type filter hook prerouting priority -100;
    iifname \"outside\" ip daddr {router} udp dport {ike} ip daddr set {peer} udp dport set 500 udp checksum set 0
    iifname \"outside\" ip daddr {router} udp dport {nat_t} ip daddr set {peer} udp dport set 4500 udp checksum set 0
  }}
}}
",
        router = addr::ROUTER_OUTSIDE,
    );
    let mut nft = lab
        .router
        .command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("nft")?;
    nft.stdin.take().context("nft")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refuses\n{rules}");
    Ok(())
}
