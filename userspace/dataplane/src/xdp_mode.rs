//! Asks the kernel in which mode XDP really runs on an interface (netlink, `IFLA_XDP_ATTACHED`).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

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

const RTM_GETLINK: u16 = 18;
pub(crate) const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLMSG_ERROR: u16 = 2;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;

pub(crate) fn query(ifindex: u32) -> io::Result<XdpModeUsed> {
    // nlmsghdr (16) and ifinfomsg (16).
    let mut request = [0u8; 32];
    request[0..4].copy_from_slice(&32u32.to_ne_bytes());
    request[4..6].copy_from_slice(&RTM_GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    request[20..24].copy_from_slice(&ifindex.to_ne_bytes());
    let answer = ask(libc::NETLINK_ROUTE, &request)?;
    parse(&answer)
}

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

/// Sends one request and returns the first message of the answer.
pub(crate) fn ask(protocol: i32, request: &[u8]) -> io::Result<Vec<u8>> {
    let socket = open(protocol)?;
    let mut answer = vec![0u8; 32 * 1024];
    // SAFETY: buffers are live and of the lengths given.
    let length = unsafe {
        if libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    answer.truncate(length as usize);
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok());
    if kind.map(u16::from_ne_bytes).ok_or_else(short)? == NLMSG_ERROR {
        let code = answer
            .get(16..20)
            .and_then(|b| b.try_into().ok())
            .map(i32::from_ne_bytes)
            .ok_or_else(short)?;
        return Err(io::Error::from_raw_os_error(-code));
    }
    Ok(answer)
}

fn parse(answer: &[u8]) -> io::Result<XdpModeUsed> {
    let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
    let xdp = attribute(answer.get(32..).ok_or_else(short)?, IFLA_XDP);
    Ok(
        match xdp
            .and_then(|x| attribute(x, IFLA_XDP_ATTACHED))
            .and_then(|a| a.first())
        {
            Some(1) => XdpModeUsed::Driver,
            Some(2) => XdpModeUsed::Generic,
            Some(3) => XdpModeUsed::Hardware,
            Some(4) => XdpModeUsed::Multiple,
            _ => XdpModeUsed::None,
        },
    )
}

/// Payload of the first attribute of a kind.
pub(crate) fn attribute(mut list: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes(list.get(0..2)?.try_into().ok()?));
        let found = u16::from_ne_bytes(list.get(2..4)?.try_into().ok()?) & 0x3fff;
        let payload = list.get(4..length)?;
        if found == kind {
            return Some(payload);
        }
        list = list.get(length.div_ceil(4) * 4..)?;
    }
}
