//! VLAN devices. Their frames meet the programs, tagged, on the device below them (ADR 7).

use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Result, bail};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVlan, LinkInfo, VlanProtocol};
use socket2::{Domain, Socket, Type};

use super::Interface;

/// The tag of a VLAN device's frames; `None` for a device of another kind.
///
/// # Errors
/// A service provider's VLAN (IEEE 802.1ad), or one without a number.
pub fn tag(infos: &[LinkInfo]) -> Result<Option<u16>> {
    if !infos
        .iter()
        .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Vlan)))
    {
        return Ok(None);
    }
    let mut tag = None;
    for info in infos {
        let LinkInfo::Data(InfoData::Vlan(data)) = info else {
            continue;
        };
        for item in data {
            match item {
                InfoVlan::Id(id) => tag = Some(*id),
                InfoVlan::Protocol(protocol) if *protocol != VlanProtocol::Ieee8021Q => {
                    bail!("its VLAN is an 802.1ad one, which the programs do not look into; use 802.1Q");
                }
                _ => {}
            }
        }
    }
    match tag {
        Some(1..=4094) => Ok(tag),
        _ => bail!("it is a VLAN device without a VLAN number from 1 to 4094"),
    }
}

const SIOCETHTOOL: libc::c_ulong = 0x8946;
pub(super) const ETHTOOL_GFLAGS: u32 = 0x25;
pub(super) const ETHTOOL_SFLAGS: u32 = 0x26;
/// The card takes tags out of received frames and reports them beside.
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// `struct ethtool_value`.
#[repr(C)]
pub(super) struct Value {
    pub(super) command: u32,
    pub(super) data: u32,
}

/// `struct ifreq` with a pointer.
#[repr(C)]
struct Request {
    name: [u8; libc::IF_NAMESIZE],
    data: *mut Value,
    rest: [u8; 16],
}

pub(super) fn ethtool(name: &str, value: &mut Value) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
    let mut request = Request {
        name: [0; libc::IF_NAMESIZE],
        data: value,
        rest: [0; 16],
    };
    let octets = name.as_bytes();
    if octets.len() >= libc::IF_NAMESIZE {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..octets.len()].copy_from_slice(octets);
    // SAFETY: the request and the value that it points to live through the call and have the kernel's layout.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Has the card leave tags in the frames of the device below a VLAN: a program sees no tag that was taken out before.
///
/// # Errors
/// The driver does not know the setting, or keeps it.
pub fn keep_tags(device: &str) -> io::Result<()> {
    let mut value = Value {
        command: ETHTOOL_GFLAGS,
        data: 0,
    };
    ethtool(device, &mut value)?;
    if value.data & ETH_FLAG_RXVLAN == 0 {
        return Ok(());
    }
    value.command = ETHTOOL_SFLAGS;
    value.data &= !ETH_FLAG_RXVLAN;
    ethtool(device, &mut value)
}

/// [`keep_tags`] on the device below a VLAN device, and on what that is made of; nothing for other interfaces.
///
/// # Errors
/// What to do by hand.
pub fn prepare(interface: &Interface) -> std::result::Result<(), String> {
    if interface.vlan == 0 {
        return Ok(());
    }
    if interface.devices.is_empty() {
        return Err(format!(
            "the device below {} is in another network namespace; move it here",
            interface.name
        ));
    }
    for device in &interface.devices {
        keep_tags(device).map_err(|error| {
            format!(
                "{device} may take VLAN tags out of frames before the programs see them ({error}); check: ethtool -K {device} \
                 rx-vlan-offload off"
            )
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_device_has_its_number_and_others_have_none() {
        let vlan = |data| {
            [
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(data)),
            ]
        };
        assert_eq!(tag(&vlan(vec![InfoVlan::Id(10)])).unwrap(), Some(10));
        let q = vec![InfoVlan::Protocol(VlanProtocol::Ieee8021Q), InfoVlan::Id(4094)];
        assert_eq!(tag(&vlan(q)).unwrap(), Some(4094));
        assert_eq!(tag(&[LinkInfo::Kind(InfoKind::Veth)]).unwrap(), None);
        assert_eq!(tag(&[]).unwrap(), None);
        let ad = vec![InfoVlan::Id(10), InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)];
        let error = tag(&vlan(ad)).unwrap_err().to_string();
        assert!(error.contains("802.1ad"), "{error}");
        assert!(tag(&vlan(vec![InfoVlan::Id(0)])).is_err());
        assert!(tag(&vlan(Vec::new())).is_err());
    }

    #[test]
    fn loopback_has_no_tags_to_keep_and_a_missing_device_is_an_error() {
        keep_tags("lo").unwrap();
        assert!(keep_tags("esp-none").is_err());
        assert!(keep_tags("a name that no device can have").is_err());
    }
}
