//! Parts of a bond. A program on a bond runs in the drivers of its parts, and the kernel names the part as where a frame arrived: so
//! the programs find the bond's port by its parts too.

use crate::error::PlaneError;
use crate::load::Plane;
use crate::netlink::{self, IFLA_MASTER, NLM_F_REQUEST, RTM_GETLINK};
use maps_schema::names::MAP_PORT_OF;
use maps_schema::steer::{MAX_PORTS, NO_VLAN, Port, PortKey};
use std::collections::HashMap;
use std::io;
use zerocopy::IntoBytes;

const NLM_F_DUMP: u16 = 0x300;

/// Indexes of the devices that a bond is made of; nothing for a device of another kind.
///
/// # Errors
/// Netlink fails.
pub fn bond_parts(ifindex: u32) -> io::Result<Vec<u32>> {
    // nlmsghdr (16), ifinfomsg (16), and the master as the one attribute (8), by which the kernel chooses.
    let mut request = [0u8; 40];
    request[0..4].copy_from_slice(&40u32.to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request[32..34].copy_from_slice(&8u16.to_ne_bytes());
    request[34..36].copy_from_slice(&IFLA_MASTER.to_ne_bytes());
    request[36..40].copy_from_slice(&ifindex.to_ne_bytes());
    let socket = netlink::open(libc::NETLINK_ROUTE)?;
    netlink::send(&socket, &request)?;
    let mut parts = Vec::new();
    let mut buffer = vec![0u8; 64 * 1024];
    while !netlink::bond_parts(netlink::receive(&socket, &mut buffer)?, ifindex, &mut parts)? {}
    Ok(parts)
}

/// Devices, each once, with their parts. One that has just gone has none.
pub(crate) fn parts_of(devices: impl Iterator<Item = u32>) -> Vec<(u32, Vec<u32>)> {
    let mut found: Vec<(u32, Vec<u32>)> = Vec::new();
    for device in devices {
        if !found.iter().any(|(known, _)| *known == device) {
            found.push((device, bond_parts(device).unwrap_or_default()));
        }
    }
    found
}

impl Plane {
    /// Has the programs find ports by the device (and tag) of arrival, by the parts of that device, and by the device that routes
    /// name. `parts`: devices with what they are made of. Two keys for different ports are left to the first one.
    pub(crate) fn write_port_keys(
        &mut self,
        ports: &[Port],
        parts: &[(u32, Vec<u32>)],
    ) -> Result<(), PlaneError> {
        let mut keys: HashMap<PortKey, u32> = HashMap::new();
        for port in ports {
            let of_device = parts.iter().filter(|(device, _)| *device == port.ifindex);
            let arrivals = std::iter::once(port.ifindex)
                .chain(of_device.flat_map(|(_, parts)| parts.iter().copied()))
                .map(|ifindex| (ifindex, port.vlan));
            for (ifindex, vlan) in arrivals.chain([(port.device, NO_VLAN)]) {
                let key = PortKey {
                    ifindex,
                    vlan: u32::from(vlan),
                };
                keys.entry(key).or_insert(u32::from(port.index));
            }
        }
        for (key, index) in &keys {
            self.put(MAP_PORT_OF, key.as_bytes(), &index.to_ne_bytes())?;
        }
        // Last: in adopted maps packets go through those that stay.
        let keys: Vec<&[u8]> = keys.keys().map(IntoBytes::as_bytes).collect();
        self.retain(MAP_PORT_OF, size_of::<PortKey>(), |key| keys.contains(&key))
    }

    /// Tells the programs what bonds are made of now. Returns the devices whose parts have changed.
    ///
    /// # Errors
    /// [`PlaneError`] where the kernel refuses.
    pub(crate) fn tell_parts(&mut self, seen: &[(u32, Vec<u32>)]) -> Result<Vec<u32>, PlaneError> {
        let changed = |(device, parts): &(u32, Vec<u32>)| {
            let known = self.parts.iter().find(|(known, _)| known == device);
            known.map_or(!parts.is_empty(), |(_, known)| known != parts)
        };
        let changed: Vec<u32> = seen.iter().filter(|s| changed(s)).map(|s| s.0).collect();
        if changed.is_empty() {
            return Ok(changed);
        }
        let mut ports = Vec::new();
        for index in 0..MAX_PORTS as u32 {
            let port = self.port(index)?;
            if port.side != 0 {
                ports.push(port);
            }
        }
        self.write_port_keys(&ports, seen)?;
        self.parts = seen.to_vec();
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lo_is_made_of_nothing() {
        assert_eq!(bond_parts(1).expect("netlink"), Vec::<u32>::new());
    }
}
