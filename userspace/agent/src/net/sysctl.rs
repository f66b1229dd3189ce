//! Kernel settings of the current network namespace.

use anyhow::{Context, Result};

use super::Interface;

fn set(path: &str, value: &str) -> Result<()> {
    write(&format!("/proc/sys/net/ipv4/{path}"), value)
}

/// Forwarding of IPv6, which the routing look-ups of the programs want as well. With it the kernel heeds router advertisements
/// only where `accept_ra` is 2; that is left to the operator.
///
/// # Errors
/// The setting cannot be written, or the host has no IPv6.
pub fn prepare_v6() -> Result<()> {
    write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
}

fn write(path: &str, value: &str) -> Result<()> {
    // Read first: in a container the file may be read-only and right already.
    if std::fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value).with_context(|| format!("cannot write {value} to {path}; run as root"))
}

/// Settings without which cluster addresses and tunnels do not work.
///
/// # Errors
/// A setting cannot be written.
pub fn prepare<'a>(interfaces: impl Iterator<Item = &'a Interface>) -> Result<()> {
    // The kernel must never answer for a cluster address (the programs do, while this member owns it), and must not
    // use one as the source of its own ARP requests.
    set("conf/all/arp_ignore", "1")?;
    set("conf/all/arp_announce", "2")?;
    set("ip_forward", "1")?;
    // Decrypted packets arrive on the outside interface with inside sources. The higher of "all" and the interface's own
    // value counts.
    set("conf/all/rp_filter", "0")?;
    for interface in interfaces {
        let interface = interface.name.replace('.', "/");
        set(&format!("conf/{interface}/arp_ignore"), "1")?;
        set(&format!("conf/{interface}/arp_announce"), "2")?;
        set(&format!("conf/{interface}/rp_filter"), "0")?;
        // A sealed packet whose neighbour is not known yet goes through the stack: its source is the cluster's address.
        set(&format!("conf/{interface}/accept_local"), "1")?;
    }
    Ok(())
}

/// Settings of the TUN device: without redirects, and no reverse path filter.
///
/// # Errors
/// A setting cannot be written.
pub fn prepare_tun(name: &str) -> Result<()> {
    set(&format!("conf/{name}/rp_filter"), "0")?;
    set(&format!("conf/{name}/send_redirects"), "0")
}
