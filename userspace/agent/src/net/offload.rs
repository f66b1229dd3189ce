//! Packets that the host merges before the programs see them (GRO, LRO).
//!
//! In a driver a program runs before all of that. In generic mode it runs after: it would meet frames of up to 64 KiB that nobody has
//! sent, with a checksum for each packet that is in no header any more.

use std::io;

use super::vlan::{ETHTOOL_GFLAGS, ETHTOOL_SFLAGS, Value, ethtool};

const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// Has the kernel and the card merge nothing that arrives on a device. True if something was switched off.
///
/// # Errors
/// The driver keeps a setting.
pub fn merge_nothing(device: &str) -> io::Result<bool> {
    let mut gro = Value {
        command: ETHTOOL_GGRO,
        data: 0,
    };
    ethtool(device, &mut gro)?;
    let merges = gro.data != 0;
    if merges {
        let mut off = Value {
            command: ETHTOOL_SGRO,
            data: 0,
        };
        ethtool(device, &mut off)?;
    }
    let mut flags = Value {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    ethtool(device, &mut flags)?;
    let card_merges = flags.data & ETH_FLAG_LRO != 0;
    if card_merges {
        flags.command = ETHTOOL_SFLAGS;
        flags.data &= !ETH_FLAG_LRO;
        ethtool(device, &mut flags)?;
    }
    Ok(merges || card_merges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_does_not_exist_is_an_error() {
        assert!(merge_nothing("esp-none").is_err());
    }
}
