//! A NAT between a peer and the cluster: the router gives the peer another address, and other ports.

use crate::topology::Lab;
use anyhow::Result;
use std::net::Ipv4Addr;

/// The router translates a peer's address to another one, and its ports 500 and 4500 to these. Without connection tracking: with other
/// rules the mapping before is gone in the same moment.
///
/// # Errors
/// nftables refuses.
pub fn translate(lab: &Lab, peer: Ipv4Addr, seen: Ipv4Addr, ike: u16, nat_t: u16) -> Result<()> {
    let rule = |own: u16, port: u16| {
        // With a port changed the checksum goes: that of ESP in UDP is zero (RFC 3948 2.1), which nftables would make something of. Of one
        // that is left to a device (a veth's), it would leave too little.
        let ports = |side: &str, to: u16| match own == port {
            true => String::new(),
            false => format!(" udp {side} set {to} udp checksum set 0"),
        };
        (
            format!(
                "oifname \"outside\" ip saddr {peer} udp sport {own} ip saddr set {seen}{}",
                ports("sport", port)
            ),
            format!(
                "iifname \"outside\" ip daddr {seen} udp dport {port} ip daddr set {peer}{}",
                ports("dport", own)
            ),
        )
    };
    let ((ike_out, ike_in), (nat_t_out, nat_t_in)) = (rule(500, ike), rule(4500, nat_t));
    let rules = format!(
        "table ip esp_nat
delete table ip esp_nat
table ip esp_nat {{
  chain out {{
    type filter hook postrouting priority 100;
    {ike_out}
    {nat_t_out}
  }}
  chain in {{
    type filter hook prerouting priority -100;
    {ike_in}
    {nat_t_in}
  }}
}}
"
    );
    lab.router.nft(&rules)
}
