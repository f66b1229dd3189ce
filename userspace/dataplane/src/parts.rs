//! Parts of a bond. A program on a bond runs in the drivers of its parts, and the kernel names the part as where a frame arrived: so
//! the programs find the bond's port by its parts too.

use crate::error::PlaneError;
use crate::load::Plane;
use crate::xdp_mode::{NLM_F_REQUEST, NLMSG_ERROR, attribute, open};
use maps_schema::names::MAP_PORT_OF;
use maps_schema::steer::{MAX_PORTS, NO_VLAN, Port, PortKey};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use zerocopy::IntoBytes;

const RTM_GETLINK: u16 = 18;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_DONE: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_SLAVE_KIND: u16 = 4;

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
    let socket = open(libc::NETLINK_ROUTE)?;
    // SAFETY: the request is live and of the length given.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut parts = Vec::new();
    let mut answer = vec![0u8; 64 * 1024];
    loop {
        // SAFETY: the buffer is live and of the length given.
        let length = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
        if length < 0 {
            return Err(io::Error::last_os_error());
        }
        if read_links(&answer[..length as usize], ifindex, &mut parts)? {
            return Ok(parts);
        }
    }
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

/// Collects the parts of a bond out of messages; true if these were the last ones.
fn read_links(mut messages: &[u8], bond: u32, parts: &mut Vec<u32>) -> io::Result<bool> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let number = |message: &[u8], at: usize| {
        let octets = message.get(at..at + 4).and_then(|b| b.try_into().ok());
        octets.map(u32::from_ne_bytes).ok_or_else(short)
    };
    while !messages.is_empty() {
        let length = number(messages, 0)? as usize;
        let message = messages.get(..length.max(16)).ok_or_else(short)?;
        match u16::from_ne_bytes([message[4], message[5]]) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = number(message, 16)? as i32;
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ => {}
        }
        let attributes = message.get(32..).ok_or_else(short)?;
        let master = attribute(attributes, IFLA_MASTER).and_then(|m| m.try_into().ok());
        let kind =
            attribute(attributes, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_SLAVE_KIND));
        // Bridges and routing domains have masters too: nothing of theirs arrives at a part of its own.
        if master.map(u32::from_ne_bytes) == Some(bond) && kind.is_some_and(|kind| kind.starts_with(b"bond"))
        {
            parts.push(number(message, 20)?);
        }
        messages = messages
            .get(message.len().next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(false)
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

    fn attribute_of(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = ((4 + payload.len()) as u16).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend(payload);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    fn message(kind: u16, index: u32, attributes: &[u8]) -> Vec<u8> {
        let mut out = vec![0u8; 32];
        out[0..4].copy_from_slice(&(32 + attributes.len() as u32).to_ne_bytes());
        out[4..6].copy_from_slice(&kind.to_ne_bytes());
        out[20..24].copy_from_slice(&index.to_ne_bytes());
        out.extend(attributes);
        out
    }

    fn link(index: u32, master: u32, kind: &[u8]) -> Vec<u8> {
        let info = attribute_of(IFLA_LINKINFO, &attribute_of(IFLA_INFO_SLAVE_KIND, kind));
        message(
            16,
            index,
            &[attribute_of(IFLA_MASTER, &master.to_ne_bytes()), info].concat(),
        )
    }

    #[test]
    fn parts_are_those_of_this_bond_and_ports_of_bridges_are_none() {
        let links = [
            link(3, 9, b"bond\0"),
            link(4, 8, b"bond\0"),
            link(5, 9, b"bridge\0"),
            link(6, 9, b"bond\0"),
        ];
        let mut parts = Vec::new();
        assert!(!read_links(&links.concat(), 9, &mut parts).expect("whole messages"));
        assert_eq!(parts, [3, 6]);
        assert!(read_links(&message(NLMSG_DONE, 0, &[]), 9, &mut parts).expect("the end"));
    }

    #[test]
    fn cut_messages_and_errors_are_errors() {
        let mut parts = Vec::new();
        let whole = link(3, 9, b"bond\0");
        assert!(read_links(&whole[..whole.len() - 4], 9, &mut parts).is_err());
        assert!(read_links(&[0; 7], 9, &mut parts).is_err());
        let mut refused = message(NLMSG_ERROR, 0, &[]);
        refused[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        let error = read_links(&refused, 9, &mut parts).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn lo_is_made_of_nothing() {
        assert_eq!(bond_parts(1).expect("netlink"), Vec::<u32>::new());
    }
}
