//! Traffic selectors.

use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One traffic selector (RFC 7296 3.13.1): inclusive ranges; `first` and `last` are of the same family.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TrafficSelector {
    /// First address.
    pub first: IpAddr,
    /// Last address.
    pub last: IpAddr,
    /// IP protocol, 0 for any.
    pub protocol: u8,
    /// First port; 0 with `last_port` 65535 for any.
    pub first_port: u16,
    /// Last port.
    pub last_port: u16,
}
