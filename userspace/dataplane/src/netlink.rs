//! Netlink: a request, and what the kernel's answer says. What is read here may be any octets.

use crate::xdp_features::XdpFeatures;
use crate::xdp_mode::XdpModeUsed;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const RTM_GETLINK: u16 = 18;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Octets of `nlmsghdr`, of that with `genlmsghdr`, and of that with `ifinfomsg`: attributes are behind.
const HEADER: usize = 16;
const GENERIC: usize = 20;
const LINK: usize = 32;
/// Attributes of links.
pub(crate) const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
/// Attribute of a generic netlink family.
const CONTROL_FAMILY_ID: u16 = 1;
/// Attribute of a device in the family "netdev".
const DEVICE_FEATURES: u16 = 3;
/// Bits of an attribute's type that say nothing about what it is (nested, byte order).
const TYPE: u16 = 0x3fff;

/// A netlink socket.
pub(crate) fn open(protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn send(socket: &OwnedFd, request: &[u8]) -> io::Result<()> {
    // SAFETY: the request is live and of the length given.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// What the kernel says next, at most as much as the buffer holds.
pub(crate) fn receive<'b>(socket: &OwnedFd, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    // SAFETY: the buffer is live and of the length given.
    let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(&buffer[..length as usize])
}

/// Sends one request; `read` makes of the answer what is asked for.
pub(crate) fn ask<T>(protocol: i32, request: &[u8], read: impl Fn(&[u8]) -> io::Result<T>) -> io::Result<T> {
    let socket = open(protocol)?;
    send(&socket, request)?;
    read(receive(&socket, &mut vec![0; 32 * 1024])?)
}

fn short() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

fn number(octets: &[u8], at: usize) -> io::Result<u32> {
    let octets = octets.get(at..).and_then(|o| o.first_chunk());
    octets.map(|o| u32::from_ne_bytes(*o)).ok_or_else(short)
}

/// The first message, its type, and what is behind it; the kernel's refusal is an error.
fn first(octets: &[u8]) -> io::Result<(u16, &[u8], &[u8])> {
    let length = number(octets, 0)? as usize;
    let message = octets.get(..length).filter(|message| message.len() >= HEADER);
    let message = message.ok_or_else(short)?;
    let kind = u16::from_ne_bytes([message[4], message[5]]);
    if kind == NLMSG_ERROR {
        let code = number(message, HEADER)? as i32;
        return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
    }
    let rest = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
    Ok((kind, message, rest))
}

/// Payload of the first attribute of a kind.
fn attribute(mut list: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(list.get(0..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(list.get(2..4)?.try_into().ok()?) & TYPE;
        let payload = list.get(4..length)?;
        if found == kind {
            return Some(payload);
        }
        list = list.get(length.next_multiple_of(4)..)?;
    }
}

/// The mode of a link's XDP program, out of the answer to `RTM_GETLINK`.
///
/// # Errors
/// The kernel's refusal, or a message that is cut off.
pub fn xdp_mode(answer: &[u8]) -> io::Result<XdpModeUsed> {
    let (_, message, _) = first(answer)?;
    let xdp = attribute(message.get(LINK..).ok_or_else(short)?, IFLA_XDP);
    let attached = xdp.and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED));
    Ok(match attached.and_then(|attached| attached.first()) {
        Some(1) => XdpModeUsed::Driver,
        Some(2) => XdpModeUsed::Generic,
        Some(3) => XdpModeUsed::Hardware,
        Some(4) => XdpModeUsed::Multiple,
        _ => XdpModeUsed::None,
    })
}

/// The number of a generic netlink family, out of the answer to `CTRL_CMD_GETFAMILY`.
///
/// # Errors
/// The kernel's refusal, or a message that is cut off or does not say it.
pub fn family(answer: &[u8]) -> io::Result<u16> {
    let (_, message, _) = first(answer)?;
    let id = attribute(message.get(GENERIC..).ok_or_else(short)?, CONTROL_FAMILY_ID);
    let id = id.and_then(|id| id.first_chunk());
    id.map(|id| u16::from_ne_bytes(*id)).ok_or_else(short)
}

/// What a device can do with XDP, out of the answer to `NETDEV_CMD_DEV_GET`; nothing where it does not say.
///
/// # Errors
/// The kernel's refusal, or a message that is cut off.
pub fn xdp_features(answer: &[u8]) -> io::Result<XdpFeatures> {
    let (_, message, _) = first(answer)?;
    let bits = attribute(message.get(GENERIC..).ok_or_else(short)?, DEVICE_FEATURES);
    let bits = bits.and_then(|bits| bits.first_chunk());
    Ok(XdpFeatures::of(bits.map_or(0, |bits| u64::from_ne_bytes(*bits))))
}

/// Collects the parts of a bond out of messages about links; true if these were the last ones.
///
/// # Errors
/// The kernel's refusal, or a message that is cut off.
pub fn bond_parts(mut messages: &[u8], bond: u32, parts: &mut Vec<u32>) -> io::Result<bool> {
    while !messages.is_empty() {
        let (kind, message, rest) = first(messages)?;
        if kind == NLMSG_DONE {
            return Ok(true);
        }
        let attributes = message.get(LINK..).ok_or_else(short)?;
        let master = attribute(attributes, IFLA_MASTER).and_then(|m| m.try_into().ok());
        let kind =
            attribute(attributes, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_SLAVE_KIND));
        // Bridges and routing domains have masters too: nothing of theirs arrives at a part of its own.
        if master.map(u32::from_ne_bytes) == Some(bond) && kind.is_some_and(|kind| kind.starts_with(b"bond"))
        {
            parts.push(number(message, HEADER + 4)?);
        }
        messages = rest;
    }
    Ok(false)
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
        assert!(!bond_parts(&links.concat(), 9, &mut parts).expect("whole messages"));
        assert_eq!(parts, [3, 6]);
        assert!(bond_parts(&message(NLMSG_DONE, 0, &[]), 9, &mut parts).expect("the end"));
    }

    #[test]
    fn cut_messages_and_errors_are_errors() {
        let mut parts = Vec::new();
        let whole = link(3, 9, b"bond\0");
        assert!(bond_parts(&whole[..whole.len() - 4], 9, &mut parts).is_err());
        assert!(bond_parts(&[0; 7], 9, &mut parts).is_err());
        let mut refused = message(NLMSG_ERROR, 0, &[]);
        refused[16..20].copy_from_slice(&(-libc::EPERM).to_ne_bytes());
        let error = bond_parts(&refused, 9, &mut parts).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        // No code of the kernel's, and no overflow.
        refused[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert!(xdp_mode(&refused).is_err() && family(&refused).is_err() && xdp_features(&refused).is_err());
    }

    #[test]
    fn what_is_behind_the_message_is_not_part_of_it() {
        let xdp = |mode| attribute_of(IFLA_XDP, &attribute_of(IFLA_XDP_ATTACHED, &[mode]));
        let mode = |octets: &[u8]| xdp_mode(octets).expect("a whole message");
        assert_eq!(mode(&message(16, 3, &xdp(2))), XdpModeUsed::Generic);
        assert_eq!(mode(&[message(16, 3, &[]), xdp(2)].concat()), XdpModeUsed::None);
    }
}
