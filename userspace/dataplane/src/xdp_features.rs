//! Asks the kernel what a device can do with XDP (generic netlink family "netdev", since Linux 6.3), and tells the programs.

use crate::device;
use crate::error::PlaneError;
use crate::load::Plane;
use crate::netlink::{self, NLM_F_REQUEST};
use crate::sys;
use crate::watch::Seen;
use crate::xdp_mode::{XdpModeUsed, query};
use maps_schema::names::MAP_PORTS;
use maps_schema::steer::{
    MAX_PORTS, PORT_GENERIC, PORT_NO_REDIRECT, PORT_REDIRECT_BACK, PORT_TAKES_PIECES, Port,
};
use std::io;
use std::os::fd::BorrowedFd;
use zerocopy::{FromBytes, IntoBytes};

/// `GENL_ID_CTRL`, and how it names a family.
const CONTROL: u16 = 0x10;
const CONTROL_GET_FAMILY: u8 = 3;
const CONTROL_FAMILY_NAME: u16 = 2;
/// `NETDEV_CMD_DEV_GET`, and how it names a device.
const DEVICE_GET: u8 = 1;
const DEVICE_IFINDEX: u16 = 1;
/// `enum netdev_xdp_act`.
const BASIC: u64 = 1;
const NDO_XMIT: u64 = 4;
const RX_SG: u64 = 32;
const NDO_XMIT_SG: u64 = 64;

/// What a device can do. It may change: of a veth device it depends on the far end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// Programs run in the driver.
    pub native: bool,
    /// It hands frames in several buffers to programs: its MTU may be larger than a page holds.
    pub gives_pieces: bool,
    /// It takes frames that were redirected to it.
    pub takes: bool,
    /// Also those in several buffers.
    pub takes_pieces: bool,
}

impl XdpFeatures {
    pub(crate) fn of(bits: u64) -> Self {
        Self {
            native: bits & BASIC != 0,
            gives_pieces: bits & RX_SG != 0,
            takes: bits & NDO_XMIT != 0,
            takes_pieces: bits & NDO_XMIT_SG != 0,
        }
    }

    fn flags(self) -> u8 {
        match (self.takes, self.takes_pieces) {
            (false, _) => PORT_NO_REDIRECT,
            (true, true) => PORT_TAKES_PIECES,
            (true, false) => 0,
        }
    }
}

/// What the kernel says about a device; nothing where it is too old to say it.
///
/// # Errors
/// There is no such device, or netlink fails.
pub fn xdp_features(ifindex: u32) -> io::Result<Option<XdpFeatures>> {
    let name = b"netdev\0";
    let request = message(CONTROL, CONTROL_GET_FAMILY, CONTROL_FAMILY_NAME, name);
    let family = match netlink::ask(libc::NETLINK_GENERIC, &request, netlink::family) {
        Ok(family) => family,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let request = message(family, DEVICE_GET, DEVICE_IFINDEX, &ifindex.to_ne_bytes());
    netlink::ask(libc::NETLINK_GENERIC, &request, netlink::xdp_features).map(Some)
}

/// A generic netlink request with one attribute.
fn message(family: u16, command: u8, attribute: u16, payload: &[u8]) -> Vec<u8> {
    let length = 24 + payload.len();
    let mut out = Vec::with_capacity(length.next_multiple_of(4));
    out.extend((length as u32).to_ne_bytes());
    out.extend(family.to_ne_bytes());
    out.extend(NLM_F_REQUEST.to_ne_bytes());
    out.extend([0; 8]);
    out.extend([command, 1, 0, 0]);
    out.extend((4 + payload.len() as u16).to_ne_bytes());
    out.extend(attribute.to_ne_bytes());
    out.extend(payload);
    out.resize(length.next_multiple_of(4), 0);
    out
}

/// A device whose abilities are others than the programs knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ability {
    /// Device that frames leave on.
    pub ifindex: u32,
    /// It takes redirected frames.
    pub takes: bool,
    /// It takes them in several buffers.
    pub takes_pieces: bool,
}

impl Plane {
    /// Devices that ports are on.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn devices(&self) -> Result<Vec<u32>, PlaneError> {
        let mut devices = Vec::new();
        for index in 0..MAX_PORTS as u32 {
            let port = self.port(index)?;
            if port.side != 0 && !devices.contains(&port.ifindex) {
                devices.push(port.ifindex);
            }
        }
        Ok(devices)
    }

    /// Tells the programs what the devices can do: what a device does not take goes through the host's stack, where it would be lost
    /// without a trace otherwise. Returns what has changed.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub fn tell_abilities(&mut self, seen: &Seen) -> Result<Vec<Ability>, PlaneError> {
        let mut changed = Vec::new();
        for device in self.tell_parts(&seen.parts)? {
            tracing::info!(device, "the parts of a bond are others");
        }
        for index in 0..MAX_PORTS as u32 {
            let mut port = self.port(index)?;
            let found = seen.devices.iter().find(|(ifindex, _)| *ifindex == port.ifindex);
            let Some((ifindex, flags)) = found.filter(|(_, flags)| port.side != 0 && *flags != port.flags)
            else {
                continue;
            };
            port.flags = *flags;
            self.put(MAP_PORTS, &index.to_ne_bytes(), port.as_bytes())?;
            changed.push(Ability {
                ifindex: *ifindex,
                takes: flags & PORT_NO_REDIRECT == 0,
                takes_pieces: flags & PORT_TAKES_PIECES != 0,
            });
        }
        Ok(changed)
    }

    pub(crate) fn port(&self, index: u32) -> Result<Port, PlaneError> {
        let map = self
            .map(MAP_PORTS)
            .map_err(|e| PlaneError::new("open PORTS".to_owned(), e))?;
        let mut port = Port::default();
        read(map, index, &mut port).map_err(|e| PlaneError::new(format!("read port {index}"), e))?;
        Ok(port)
    }
}

/// Flags of the ports on these devices. Kernels before 6.3 do not say what a device can do: there whole frames are redirected, and those
/// in several buffers are not. A device that has just gone is left out: that is the business of those who watch links.
pub(crate) fn flags_of(devices: &[u32]) -> Vec<(u32, u8)> {
    let generic: Vec<bool> = devices
        .iter()
        .map(|ifindex| matches!(query(*ifindex), Ok(XdpModeUsed::Generic)))
        .collect();
    // What was made into an skb before a program ran is sent like all of the stack's, wherever it goes.
    let all = generic.iter().all(|generic| *generic);
    let devices = devices.iter().zip(&generic);
    let flags =
        devices.filter_map(|(ifindex, generic)| Some((*ifindex, port_flags(*ifindex, *generic, all)?)));
    flags.collect()
}

fn port_flags(ifindex: u32, generic: bool, all_generic: bool) -> Option<u8> {
    let features = xdp_features(ifindex).ok()?;
    if all_generic {
        return Some(PORT_TAKES_PIECES | PORT_GENERIC);
    }
    let takes = match features {
        Some(features) => features.flags(),
        // A device that runs programs on skbs only has no driver that takes frames either.
        None if generic => PORT_NO_REDIRECT,
        None => 0,
    };
    let back = !generic && device::is_veth(ifindex);
    let back = if back { PORT_REDIRECT_BACK } else { 0 };
    let generic = if generic { PORT_GENERIC } else { 0 };
    Some(takes | back | generic)
}

fn read(map: BorrowedFd<'_>, index: u32, port: &mut Port) -> io::Result<()> {
    let mut octets = [0u8; size_of::<Port>()];
    sys::map_lookup(map, &index.to_ne_bytes(), &mut octets)?;
    *port = Port::read_from_bytes(&octets).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_say_the_least_that_a_device_can_do() {
        let flags = |bits| XdpFeatures::of(bits).flags();
        assert_eq!(flags(0), PORT_NO_REDIRECT);
        assert_eq!(flags(BASIC | RX_SG), PORT_NO_REDIRECT);
        assert_eq!(flags(BASIC | NDO_XMIT), 0);
        assert_eq!(flags(BASIC | NDO_XMIT | NDO_XMIT_SG), PORT_TAKES_PIECES);
    }

    #[test]
    fn a_device_that_does_not_exist_is_an_error_and_lo_runs_no_program_in_a_driver() {
        assert!(xdp_features(0x7fff_fff0).is_err() || xdp_features(1).is_ok_and(|f| f.is_none()));
        if let Some(lo) = xdp_features(1).expect("netlink") {
            assert!(!lo.native && !lo.takes, "{lo:?}");
        }
    }
}
