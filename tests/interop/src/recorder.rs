//! A recorder on a network: a packet socket on the bridge, a large buffer, and a thread that enters all into a [`Ledger`].

use crate::clock::{now_ns, realtime_to_monotonic_ns};
use crate::ledger::{Ledger, Roles};
use crate::netns::Netns;
use anyhow::{Context, Result, bail};
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Octets of socket buffer: about 100 000 large packets of backlog while the recorder does not get a processor.
const BUFFER_OCTETS: i32 = 512 << 20;
const BATCH: usize = 64;
const FRAME: usize = 2048;
const CONTROL: usize = 64;

/// A classic BPF program: UDP from port 500, UDP from port 4500 with the non-ESP marker (RFC 3948 2.2: user-space ESP is in
/// UDP 4500 too), and all that is not IPv4.
const IKE_AND_ARP: [libc::sock_filter; 11] = {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_OCTET: u16 = 0x30;
    const JUMP_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const fn step(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
        libc::sock_filter { code, jt, jf, k }
    }
    [
        step(LOAD_HALF, 0, 0, 12),
        step(JUMP_EQUAL, 0, 8, 0x0800),
        step(LOAD_OCTET, 0, 0, 23),
        step(JUMP_EQUAL, 0, 5, 17),
        step(LOAD_HALF, 0, 0, 34),
        step(JUMP_EQUAL, 4, 0, 500),
        step(JUMP_EQUAL, 0, 2, 4500),
        step(LOAD_WORD, 0, 0, 42),
        step(JUMP_EQUAL, 1, 0, 0),
        step(RETURN, 0, 0, 0),
        step(RETURN, 0, 0, u32::MAX),
    ]
};

/// A running recorder.
#[derive(Debug)]
pub struct Recorder {
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    lost: Arc<AtomicU64>,
    horizon: Arc<AtomicU64>,
    socket: Arc<OwnedFd>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Recorder {
    /// Starts to record what passes a bridge.
    pub fn start(netns: &Netns, bridge: &str, roles: Roles) -> Result<Self> {
        let ledger = Arc::new(Mutex::new(Ledger::new(roles)));
        let stop = Arc::new(AtomicBool::new(false));
        let lost = Arc::new(AtomicU64::new(0));
        let horizon = Arc::new(AtomicU64::new(0));
        let socket = {
            let bridge = bridge.to_owned();
            Arc::new(netns.inside(move || packet_socket(&bridge, true))?)
        };
        let thread = {
            let (ledger, stop, lost, horizon) = (ledger.clone(), stop.clone(), lost.clone(), horizon.clone());
            let socket = socket.clone();
            std::thread::Builder::new()
                .name(format!("record {bridge}"))
                .spawn(move || record(&socket, &ledger, &stop, &lost, &horizon))?
        };
        Ok(Self {
            ledger,
            stop,
            lost,
            horizon,
            socket,
            thread: Some(thread),
        })
    }

    /// Looks into the ledger, after everything that was on the wire when this was called has been entered.
    pub fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        self.catch_up();
        look(&self.ledger.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Packets that the kernel could not give to the recorder. Anything but 0 voids the proofs.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Sees IKE and ARP only until [`Recorder::wake`], so that it takes no part of a processor from what is measured.
    pub fn rest(&self) -> Result<()> {
        let program = IKE_AND_ARP;
        let filter = libc::sock_fprog {
            len: program.len() as u16,
            // The kernel copies the program and writes nothing.
            filter: program.as_ptr().cast_mut(),
        };
        set(
            self.socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            &filter,
        )
    }

    /// Sees everything again.
    pub fn wake(&self) -> Result<()> {
        set(
            self.socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_FILTER,
            &0i32,
        )
    }

    /// From now on every packet that a member sends in clear is remembered, so that one that comes twice is found.
    pub fn judge_deliveries(&self) {
        self.ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .judge_deliveries();
    }

    /// Forgets what long runs need not remember ([`Ledger::forget_before`]).
    pub fn forget_before(&self, until_ns: u64) {
        self.ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .forget_before(until_ns);
    }

    /// Keeps no more frames for a replay, and forgets those that it has.
    pub fn forget_frames(&self) {
        self.ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .forget_frames();
    }

    fn catch_up(&self) {
        let now = now_ns();
        let limit = std::time::Duration::from_secs(10);
        crate::clock::wait_for(limit, std::time::Duration::from_millis(2), || {
            (self.horizon.load(Ordering::Acquire) >= now).then_some(())
        });
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Opens a packet socket on an interface of the current namespace; `listen` receives everything that passes.
pub fn packet_socket(interface: &str, listen: bool) -> Result<OwnedFd> {
    let name = CString::new(interface).context("interface name")?;
    // SAFETY: the name is a live C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        bail!("no interface {interface}");
    }
    // Protocol 0 receives nothing until bind names one, so no frame of another interface slips in.
    // SAFETY: a plain system call; the result is checked.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("packet socket: needs root");
    }
    // SAFETY: a new descriptor that nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    if listen {
        set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &BUFFER_OCTETS)?;
        set(fd, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &1i32)?;
        let timeout = libc::timeval {
            tv_sec: 0,
            tv_usec: 20_000,
        };
        set(fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
        let membership = libc::packet_mreq {
            mr_ifindex: index as i32,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        set(fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    }
    let protocol = if listen { libc::ETH_P_ALL as u16 } else { 0 };
    // SAFETY: all zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index as i32;
    // SAFETY: the address is live and its size is passed with it.
    let bound = unsafe {
        libc::bind(
            fd,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        )
    };
    if bound < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("bind to {interface}"));
    }
    Ok(socket)
}

fn record(
    socket: &OwnedFd,
    ledger: &Mutex<Ledger>,
    stop: &AtomicBool,
    lost: &AtomicU64,
    horizon: &AtomicU64,
) -> Result<()> {
    let fd = socket.as_raw_fd();
    let offset = realtime_to_monotonic_ns();
    let mut frames = vec![[0u8; FRAME]; BATCH];
    let mut controls = vec![[0u64; CONTROL / 8]; BATCH];
    let mut vectors: Vec<libc::iovec> = frames
        .iter_mut()
        .map(|f| libc::iovec {
            iov_base: f.as_mut_ptr().cast(),
            iov_len: FRAME,
        })
        .collect();
    // SAFETY: all zero is a valid mmsghdr.
    let mut messages: Vec<libc::mmsghdr> = vec![unsafe { std::mem::zeroed() }; BATCH];
    while !stop.load(Ordering::Relaxed) {
        for (i, message) in messages.iter_mut().enumerate() {
            message.msg_hdr.msg_iov = &raw mut vectors[i];
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_control = controls[i].as_mut_ptr().cast();
            message.msg_hdr.msg_controllen = CONTROL;
        }
        let asked = now_ns();
        let flags = libc::MSG_WAITFORONE;
        // SAFETY: every message points at buffers that live in this function, with their true lengths.
        let count = unsafe {
            libc::recvmmsg(
                fd,
                messages.as_mut_ptr(),
                BATCH as u32,
                flags,
                std::ptr::null_mut(),
            )
        };
        if count <= 0 {
            // Nothing within the timeout: all that was sent before the call is entered.
            horizon.store(asked, Ordering::Release);
            lost.fetch_add(drops(fd), Ordering::Relaxed);
            continue;
        }
        let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
        for message in &messages[..count as usize] {
            let at = stamp(&message.msg_hdr).map_or(asked, |t| (t + offset).max(0) as u64);
            // SAFETY: the vector points at a frame buffer of FRAME octets, and msg_len never exceeds it without MSG_TRUNC.
            let frame = unsafe {
                std::slice::from_raw_parts(
                    (*message.msg_hdr.msg_iov).iov_base.cast::<u8>(),
                    message.msg_len as usize,
                )
            };
            ledger.enter(at, frame);
        }
        if (count as usize) < BATCH {
            horizon.store(asked, Ordering::Release);
        }
    }
    Ok(())
}

/// The kernel's receive stamp (`CLOCK_REALTIME`, nanoseconds) out of the control messages.
fn stamp(header: &libc::msghdr) -> Option<i64> {
    // SAFETY: the header was filled by recvmmsg; CMSG_FIRSTHDR checks its length.
    let first = unsafe { libc::CMSG_FIRSTHDR(header) };
    if first.is_null() {
        return None;
    }
    // SAFETY: not null, so it points into the control buffer, which is aligned for it.
    let head = unsafe { &*first };
    if head.cmsg_level != libc::SOL_SOCKET || head.cmsg_type != libc::SO_TIMESTAMPNS {
        return None;
    }
    // SAFETY: a message of this type carries a timespec.
    let time: libc::timespec = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(first).cast()) };
    Some(time.tv_sec * 1_000_000_000 + time.tv_nsec)
}

/// Packets dropped since the last call.
fn drops(fd: RawFd) -> u64 {
    let mut stats = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of::<libc::tpacket_stats>() as u32;
    // SAFETY: the buffer is live and its length is passed with it.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    if result < 0 { 0 } else { u64::from(stats.tp_drops) }
}

fn set<T>(fd: RawFd, level: i32, name: i32, value: &T) -> Result<()> {
    // SAFETY: the value is live and its size is passed with it.
    let result = unsafe {
        libc::setsockopt(
            fd,
            level,
            name,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as u32,
        )
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("socket option {level}/{name}"));
    }
    Ok(())
}
