//! Asks the kernel in which mode XDP really runs on an interface (netlink, `IFLA_XDP_ATTACHED`).

use crate::netlink::{self, NLM_F_REQUEST, RTM_GETLINK};
use std::io;

/// Mode in which an XDP program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpModeUsed {
    /// No program is attached.
    None,
    /// In the driver.
    Driver,
    /// Generic, after an skb was made.
    Generic,
    /// In hardware.
    Hardware,
    /// Several at once.
    Multiple,
}

pub(crate) fn query(ifindex: u32) -> io::Result<XdpModeUsed> {
    // nlmsghdr (16) and ifinfomsg (16).
    let mut request = [0u8; 32];
    request[0..4].copy_from_slice(&32u32.to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[20..24].copy_from_slice(&ifindex.to_ne_bytes());
    netlink::ask(libc::NETLINK_ROUTE, &request, netlink::xdp_mode)
}
