//! The TUN device for packets that this host itself sends to a protected network.

use anyhow::{Context, Result};
use tun_rs::{AsyncDevice, DeviceBuilder};

/// Makes the device. It goes away with the agent.
///
/// # Errors
/// `/dev/net/tun` is missing or not permitted, or the name is taken.
pub fn open(name: &str, mtu: u16) -> Result<AsyncDevice> {
    DeviceBuilder::new().name(name).mtu(mtu).build_async().with_context(|| {
        format!("cannot make the TUN device '{name}'; check /dev/net/tun, and that no other agent uses the name")
    })
}
