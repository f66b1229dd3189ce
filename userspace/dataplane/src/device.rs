//! What is known of a device that refuses an XDP program: why, and what to do.

use crate::xdp_features::{XdpFeatures, xdp_features};
use std::fmt::Write;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Driver of veth pairs.
const VETH: &str = "veth";
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETH_FLAG_LRO: u32 = 1 << 15;
/// Octets of a frame that a driver can put into one buffer with a program's headroom; some less than a page.
const ONE_BUFFER: u32 = 3400;

/// A device as an operator knows it.
pub(crate) struct Device {
    name: String,
    driver: Option<String>,
    mtu: Option<u32>,
    lro: bool,
    features: Option<XdpFeatures>,
}

impl Device {
    /// Asks the kernel; what it does not say is left out.
    pub(crate) fn of(ifindex: u32, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            driver: driver(name).ok(),
            mtu: mtu(name).ok(),
            lro: flags(name).is_ok_and(|flags| flags & ETH_FLAG_LRO != 0),
            features: xdp_features(ifindex).ok().flatten(),
        }
    }

    /// Name, driver and MTU.
    pub(crate) fn named(&self) -> String {
        let mut text = self.name.clone();
        if let Some(driver) = &self.driver {
            let _ = write!(text, " (driver {driver}");
            if let Some(mtu) = self.mtu {
                let _ = write!(text, ", MTU {mtu}");
            }
            text.push(')');
        }
        text
    }

    /// Why a program does not run in the driver, as far as can be told, and what to do about it.
    pub(crate) fn why_not_native(&self) -> String {
        let name = &self.name;
        let below = match self.driver.as_deref() {
            Some("bonding") => Some(
                "every device of the bond must run XDP in its driver, in a mode other than broadcast, tlb or alb",
            ),
            Some("bridge") => Some(
                "a bridge has none: data_plane.mode = \"auto\" or \"generic\", which is slow, or take the device that leads out of the bridge \
                 and name that",
            ),
            Some("macvlan" | "macvtap" | "ipvlan" | "dummy" | "802.1Q VLAN Support") => {
                Some("virtual devices of this kind have none: name the device below it")
            }
            _ => None,
        };
        if let Some(below) = below {
            return below.to_owned();
        }
        if self.lro {
            return format!("it merges packets (LRO): `ethtool -K {name} lro off`");
        }
        if self.features.is_some_and(|f| !f.native) {
            return "its driver has no XDP: use another card, or data_plane.mode = \"auto\" or \"generic\", which is slow".to_owned();
        }
        if self.mtu.is_some_and(|mtu| mtu > ONE_BUFFER) && !self.features.is_some_and(|f| f.gives_pieces) {
            return format!(
                "its MTU may be larger than what the driver puts into one buffer: `ip link set {name} mtu {ONE_BUFFER}` or less"
            );
        }
        format!(
            "the kernel's own reason is in `dmesg`; often too few queues (`ethtool -l {name}`), an MTU that is too large, or merged \
             packets (`ethtool -K {name} lro off rx-gro-hw off`)"
        )
    }
}

/// Whether a device is one end of a veth pair.
pub(crate) fn is_veth(ifindex: u32) -> bool {
    name_of(ifindex).is_some_and(|name| driver(&name).is_ok_and(|driver| driver == VETH))
}

/// What a veth pair lacks that takes no redirected frames.
pub(crate) const BARE_VETH: &str = "the far end of the veth pair has neither an XDP program nor GRO, and takes nothing that programs send: `ethtool -K DEVICE gro on` there";

/// Whether a device is one end of a veth pair whose other end takes no redirected frames. Linux before 6.3 does not say; there: no.
pub(crate) fn is_bare_veth(ifindex: u32) -> bool {
    let takes = xdp_features(ifindex).map(|features| features.map(|f| f.takes));
    matches!(takes, Ok(Some(false))) && is_veth(ifindex)
}

/// A device's name in this network namespace.
pub(crate) fn name_of(ifindex: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the length that the call asks for.
    if unsafe { libc::if_indextoname(ifindex, buffer.as_mut_ptr()) }.is_null() {
        return None;
    }
    let octets: Vec<u8> = buffer.iter().map(|c| *c as u8).take_while(|o| *o != 0).collect();
    Some(String::from_utf8_lossy(&octets).into_owned())
}

/// `struct ifreq`: a name, and a union of which the pointer and the number are used here.
#[repr(C)]
struct Request {
    name: [u8; libc::IF_NAMESIZE],
    value: [u64; 3],
}

fn ioctl(name: &str, number: libc::c_ulong, value: u64) -> io::Result<u64> {
    let mut request = Request {
        name: [0; libc::IF_NAMESIZE],
        value: [value, 0, 0],
    };
    for (to, from) in request
        .name
        .iter_mut()
        .take(libc::IF_NAMESIZE - 1)
        .zip(name.bytes())
    {
        *to = from;
    }
    // SAFETY: a plain call; the descriptor is new and nobody else's.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: the request is as long as `struct ifreq`; a pointer in it is valid for what the callers ask for.
    if unsafe { libc::ioctl(socket.as_raw_fd(), number, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request.value[0])
}

fn mtu(name: &str) -> io::Result<u32> {
    ioctl(name, libc::SIOCGIFMTU, 0).map(|value| value as u32)
}

fn flags(name: &str) -> io::Result<u32> {
    // struct ethtool_value: command, data.
    let mut value = [ETHTOOL_GFLAGS, 0];
    ioctl(name, libc::SIOCETHTOOL, value.as_mut_ptr() as u64)?;
    Ok(value[1])
}

fn driver(name: &str) -> io::Result<String> {
    // struct ethtool_drvinfo: command, then the driver's name of 32 octets, and more that is not looked at.
    let mut info = [0u32; 49];
    info[0] = ETHTOOL_GDRVINFO;
    ioctl(name, libc::SIOCETHTOOL, info.as_mut_ptr() as u64)?;
    let octets: Vec<u8> = info[1..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let end = octets.iter().position(|o| *o == 0).unwrap_or(octets.len());
    Ok(String::from_utf8_lossy(&octets[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(driver: &str, mtu: u32, lro: bool, features: Option<XdpFeatures>) -> Device {
        Device {
            name: "eth0".to_owned(),
            driver: Some(driver.to_owned()),
            mtu: Some(mtu),
            lro,
            features,
        }
    }

    #[test]
    fn every_reason_names_what_to_do() {
        let native = Some(XdpFeatures {
            native: true,
            ..XdpFeatures::default()
        });
        for (device, wanted) in [
            (device("macvlan", 1500, false, None), "device below"),
            (device("bridge", 1500, false, None), "a bridge has none"),
            (device("bonding", 1500, false, None), "every device of the bond"),
            (device("ixgbe", 1500, true, native), "lro off"),
            (
                device("e1000", 1500, false, Some(XdpFeatures::default())),
                "has no XDP",
            ),
            (device("ixgbe", 9000, false, native), "mtu 3400"),
            (device("ixgbe", 1500, false, native), "dmesg"),
            (device("ixgbe", 1500, false, None), "dmesg"),
        ] {
            let why = device.why_not_native();
            assert!(why.contains(wanted), "{why}");
        }
        assert_eq!(
            device("ixgbe", 9000, false, None).named(),
            "eth0 (driver ixgbe, MTU 9000)"
        );
    }

    #[test]
    fn lo_has_an_mtu_and_no_driver_is_no_failure() {
        let lo = Device::of(1, "lo");
        assert!(lo.mtu.is_some_and(|mtu| mtu > 0));
        assert!(lo.named().starts_with("lo"));
    }
}
