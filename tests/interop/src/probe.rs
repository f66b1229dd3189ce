//! Probes through some of the fleet's Child SAs: numbered UDP packets in ESP that we seal ourselves, echoed by the server, opened by
//! us. So both directions of every probed SA are seen to work, and losses are exact.

use crate::clock::{now_ns, sleep_until, wait_for};
use crate::netns::Netns;
use anyhow::{Context, Result, ensure};
use crypto::esp::EspKey;
use model::ChildSaRecord;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

const ECHO_PORT: u16 = 7007;
const IPV4: u8 = 4;
const UDP: u8 = 17;

/// A probe that runs.
pub struct Probe {
    stop: Arc<AtomicBool>,
    quit: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    back: Arc<Mutex<Vec<(u64, u64)>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Probe {
    /// Sends a packet every `interval_us` through the SAs by turns, from the fleet's namespace to the server. `base` is the highest
    /// sequence number that an earlier probe has used; no number of an SA may be used twice.
    pub fn start(
        from: &Netns,
        ends: (Ipv4Addr, Ipv4Addr),
        server: (&Netns, Ipv4Addr),
        records: &[ChildSaRecord],
        interval_us: u64,
        base: u64,
    ) -> Result<Self> {
        ensure!(!records.is_empty(), "no SA to probe");
        let (local, gateway) = ends;
        let (server_netns, server_address) = server;
        let raw = Arc::new(from.inside(move || raw_socket(local, gateway))?);
        let stop = Arc::new(AtomicBool::new(false));
        let quit = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let back = Arc::new(Mutex::new(Vec::new()));
        let echo = server_netns.inside(move || {
            let socket = UdpSocket::bind((server_address, ECHO_PORT)).context("echo server")?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        })?;
        let mut outgoing = Vec::new();
        let mut incoming = HashMap::new();
        for record in records {
            let IpAddr::V4(source) = record.ts_local[0].first else {
                anyhow::bail!("an IPv6 selector in the fleet");
            };
            let key = EspKey::new(record.suite, &record.key_out)?;
            outgoing.push((record.spi_out, key, source, record.ts_local[0].first_port));
            incoming.insert(record.spi_in.0, EspKey::new(record.suite, &record.key_in)?);
        }
        let mut threads = Vec::new();
        let spawn = |name: &str, work: Box<dyn FnOnce() -> Result<()> + Send>| {
            std::thread::Builder::new().name(name.into()).spawn(work)
        };
        {
            let quit = quit.clone();
            threads.push(spawn("echo", Box::new(move || serve(&echo, &quit)))?);
        }
        {
            let (raw, stop, sent) = (raw.clone(), stop.clone(), sent.clone());
            threads.push(spawn(
                "probe out",
                Box::new(move || {
                    let mut due = now_ns();
                    while !stop.load(Ordering::Relaxed) {
                        let number = sent.load(Ordering::Relaxed);
                        let (spi, key, source, port) = &outgoing[(number as usize) % outgoing.len()];
                        let sequence = base + number / outgoing.len() as u64 + 1;
                        let inner = udp_packet(*source, *port, server_address, number);
                        let iv = sequence.to_be_bytes();
                        let packet = key
                            .seal(*spi, sequence, false, iv, IPV4, &inner)
                            .map_err(|e| anyhow::anyhow!("sealing a probe: {e}"))?;
                        sent.store(number + 1, Ordering::Relaxed);
                        // A packet that the socket does not take is a lost one.
                        // SAFETY: the buffer is live and its length is passed with it.
                        unsafe { libc::send(raw.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
                        due += interval_us * 1000;
                        sleep_until(due);
                    }
                    Ok(())
                }),
            )?);
        }
        {
            let (quit, back) = (quit.clone(), back.clone());
            threads.push(spawn(
                "probe in",
                Box::new(move || {
                    let mut buffer = [0u8; 2048];
                    while !quit.load(Ordering::Relaxed) {
                        // SAFETY: the buffer is live and its length is passed with it.
                        let length = unsafe {
                            libc::recv(raw.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0)
                        };
                        let Ok(length) = usize::try_from(length) else {
                            continue;
                        };
                        if let Some(number) = opened(&buffer[..length], &incoming) {
                            back.lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .push((number, now_ns()));
                        }
                    }
                    Ok(())
                }),
            )?);
        }
        Ok(Self {
            stop,
            quit,
            sent,
            back,
            threads,
        })
    }

    /// Packets sent and echoes back so far.
    pub fn so_far(&self) -> (u64, u64) {
        let back = self.back.lock().unwrap_or_else(PoisonError::into_inner).len() as u64;
        (self.sent.load(Ordering::Relaxed), back)
    }

    /// Waits until so many echoes have come after a time.
    pub fn wait_back_after(&self, at_ns: u64, count: usize, limit: Duration) -> Result<()> {
        wait_for(limit, Duration::from_millis(5), || {
            let back = self.back.lock().unwrap_or_else(PoisonError::into_inner);
            let late = back.iter().rev().take_while(|(_, at)| *at > at_ns).count();
            (late >= count).then_some(())
        })
        .with_context(|| format!("no {count} echoes within {limit:?}"))
    }

    /// Ends it: packets sent, packets whose echo never came, and the number that the next probe has to begin above.
    pub fn finish(mut self, sas: usize, base: u64) -> Result<(u64, u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        wait_for(Duration::from_millis(500), Duration::from_millis(10), || {
            let (sent, back) = self.so_far();
            (sent == back).then_some(())
        });
        self.quit.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a probe's thread panicked"))??;
        }
        let (sent, back) = self.so_far();
        Ok((sent, sent - back.min(sent), base + sent / sas.max(1) as u64 + 1))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.quit.store(true, Ordering::Relaxed);
    }
}

/// Numbered packets of one Child SA, one by one, with whatever sequence number; the server says which arrive.
pub struct Shots {
    raw: OwnedFd,
    server: UdpSocket,
    server_address: Ipv4Addr,
}

impl Shots {
    /// Nothing is sent yet.
    pub fn new(from: &Netns, ends: (Ipv4Addr, Ipv4Addr), server: (&Netns, Ipv4Addr)) -> Result<Self> {
        let (local, gateway) = ends;
        let (netns, server_address) = server;
        let server = netns.inside(move || {
            let socket = UdpSocket::bind((server_address, ECHO_PORT)).context("the server's socket")?;
            socket.set_read_timeout(Some(Duration::from_millis(20)))?;
            Ok(socket)
        })?;
        Ok(Self {
            raw: from.inside(move || raw_socket(local, gateway))?,
            server,
            server_address,
        })
    }

    /// Sends packet `number` with this sequence number. `record` is the sender's; `source` the address behind it.
    pub fn send(&self, record: &ChildSaRecord, source: Ipv4Addr, sequence: u64, number: u64) -> Result<()> {
        let key = EspKey::new(record.suite, &record.key_out)?;
        let inner = udp_packet(source, ECHO_PORT, self.server_address, number);
        let iv = sequence.to_be_bytes();
        let packet = key.seal(record.spi_out, sequence, record.form.esn, iv, IPV4, &inner)?;
        // SAFETY: the buffer is live and its length is passed with it.
        let sent = unsafe { libc::send(self.raw.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0) };
        let error = std::io::Error::last_os_error();
        ensure!(sent == packet.len() as isize, "packet {number}: {error}");
        Ok(())
    }

    /// Numbers that have arrived since this was last asked, in their order; waits until nothing more comes for a moment.
    pub fn arrived(&self) -> Vec<u64> {
        let mut buffer = [0u8; 2048];
        let mut numbers = Vec::new();
        while let Ok(length) = self.server.recv(&mut buffer) {
            let number = buffer[..length].first_chunk();
            numbers.extend(number.map(|octets| u64::from_be_bytes(*octets)));
        }
        numbers
    }

    /// Waits for so many.
    pub fn wait_arrived(&self, count: usize, limit: Duration) -> Vec<u64> {
        let until = std::time::Instant::now() + limit;
        let mut numbers = self.arrived();
        while numbers.len() < count && std::time::Instant::now() < until {
            numbers.extend(self.arrived());
        }
        numbers
    }
}

fn raw_socket(local: Ipv4Addr, gateway: Ipv4Addr) -> Result<OwnedFd> {
    use nix::sys::socket::{SockaddrIn, bind, connect, setsockopt, sockopt};
    // nix names no protocol ESP; a raw socket takes any number.
    // SAFETY: a plain system call; the result is checked.
    let fd = unsafe {
        libc::socket(
            libc::AF_INET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::IPPROTO_ESP,
        )
    };
    ensure!(fd >= 0, "raw socket: {}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else owns.
    let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    bind(
        fd.as_raw_fd(),
        &SockaddrIn::from(std::net::SocketAddrV4::new(local, 0)),
    )?;
    connect(
        fd.as_raw_fd(),
        &SockaddrIn::from(std::net::SocketAddrV4::new(gateway, 0)),
    )?;
    setsockopt(&fd, sockopt::RcvBufForce, &(8 << 20))?;
    setsockopt(
        &fd,
        sockopt::ReceiveTimeout,
        &nix::sys::time::TimeVal::new(0, 20_000),
    )?;
    Ok(fd)
}

fn serve(socket: &UdpSocket, quit: &AtomicBool) -> Result<()> {
    let mut buffer = [0u8; 2048];
    while !quit.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            // An echo without a route is a lost one.
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
    Ok(())
}

/// The number in an echo; the buffer starts with the outer IPv4 header.
fn opened(packet: &[u8], keys: &HashMap<u32, EspKey>) -> Option<u64> {
    let header = usize::from(packet.first()? & 0xf) * 4;
    let esp = packet.get(header..)?;
    let spi = u32::from_be_bytes(*esp.first_chunk()?);
    let inner = keys.get(&spi)?.open(esp, None).ok()?;
    let number = inner.payload.get(28..36)?;
    Some(u64::from_be_bytes(number.try_into().ok()?))
}

fn udp_packet(from: Ipv4Addr, port: u16, to: Ipv4Addr, number: u64) -> Vec<u8> {
    const LENGTH: u16 = 28 + 64;
    let mut packet = vec![0x45, 0];
    packet.extend(LENGTH.to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend(ECHO_PORT.to_be_bytes());
    // No UDP checksum: allowed with IPv4 (RFC 768), and ESP protects it.
    packet.extend([(LENGTH - 20).to_be_bytes(), [0, 0]].concat());
    packet.extend(number.to_be_bytes());
    packet.resize(usize::from(LENGTH), 0x65);
    packet
}

fn checksum(data: &[u8]) -> u16 {
    let words = data
        .chunks_exact(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}
